"""How training draws its steps t: uniformly, spread over the batch, or where the loss is large.

    uniform      t ~ U{0, …, T-1}, independently for each example (Ho et al. 2020, Alg. 1)
    stratified   one t in each B-th part of the process    (Kingma et al. 2021, App. I.1)
    importance   p_t ∝ √E[L_t²], the loss weighted by 1/(T p_t)      (iDDPM Eq. 18)

The last keeps the latest losses of every step in a `LossHistory`, which is part of the training
state: it is updated from the whole global batch, and saved and restored with the parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_kind, check_number, check_real, check_steps, check_whole
from ddpm_jax.forward.schedule import at_least_32_bits
from ddpm_jax.keys import check_keys
from ddpm_jax.types import Array, ArrayLike, Key, as_array, describe


def uniform_timesteps(keys: Key, num_timesteps: int) -> Array:
    """Steps t ~ U{0, …, T-1}, int32 [B], each from its example's key (Ho et al. 2020, Alg. 1).

    Raises ValueError or TypeError unless there is one key per example, and T is at least 1.

    Example:
        >>> t = dj.uniform_timesteps(jax.random.split(jax.random.key(0), 4), 1000)
        >>> t.shape, bool((t >= 0).all() and (t < 1000).all())
        ((4,), True)
    """
    check_keys("uniform_timesteps", keys)
    num_timesteps = check_whole("uniform_timesteps", "num_timesteps", num_timesteps)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps, jnp.int32))(keys)


def stratified_timesteps(keys: Key, index: ArrayLike, batch_size: int, num_timesteps: int) -> Array:
    """Steps t = ⌊T (i + u_i)/B⌋, int32 [b], u_i ~ U[0, 1): one in each B-th part of the process.

    `index` [b] are the examples' places i in the global batch of B. Over a training step the t's
    cover 0..T-1 evenly, which leaves the expectation of the mean loss unchanged and removes most of
    the variance that the choice of t adds (as the low-discrepancy sampler of Kingma et al. 2021,
    App. I.1, with one draw per stratum). Raises ValueError or TypeError unless there is one key per
    index, the indices lie in 0..B-1 (host values), and B and T are at least 1.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> dj.stratified_timesteps(keys, jnp.arange(4), 4, 1000) // 250
        Array([0, 1, 2, 3], dtype=int32)
    """
    call = "stratified_timesteps"
    batch_size = check_whole(call, "batch_size", batch_size)
    num_timesteps = check_whole(call, "num_timesteps", num_timesteps)
    check_keys(call, keys)
    given, index = index, as_array(call, "index", index)
    host = None if isinstance(given, jax.Array) else np.asarray(given)
    outside = host is not None and host.size and not 0 <= host.min() <= host.max() < batch_size
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.shape != keys.shape or outside:
        raise ValueError(
            f"{call} needs index {keys.shape}, one integer in 0..{batch_size - 1} per key, got "
            f"{given if outside else describe(given)}. It is an example's place in the global "
            "batch: jnp.arange(batch_size) on one device."
        )
    u = jax.vmap(jax.random.uniform)(keys)
    # i + u may round up to i + 1, at the last place out of the process: hence the clip.
    t = jnp.floor((jnp.asarray(index, jnp.float32) + u) * (num_timesteps / batch_size))
    return jnp.clip(t.astype(jnp.int32), 0, num_timesteps - 1)


class LossHistory(NamedTuple):
    """The latest losses of every step.

    Attributes:
        losses: float32 [T, K], a ring buffer per step.
        count: int32 [T], how many losses each step has had in total.
    """

    losses: Array
    count: Array


def init_loss_history(num_timesteps: int, length: int = 10) -> LossHistory:
    """An empty history for T steps that keeps the last `length` losses of each (iDDPM: 10).

    Raises ValueError unless both are whole numbers of at least 1.

    Example:
        >>> dj.losses.init_loss_history(1000).losses.shape
        (1000, 10)
    """
    call = "init_loss_history"
    num_timesteps = check_whole(call, "num_timesteps", num_timesteps)
    length = check_whole(call, "length", length, remedy="iDDPM keeps 10 losses per step.")
    return LossHistory(
        jnp.zeros((num_timesteps, length), jnp.float32), jnp.zeros((num_timesteps,), jnp.int32)
    )


def importance_probabilities(history: LossHistory, *, uniform_mix: float = 1e-3) -> Array:
    """p_t [T] ∝ √(mean of the step's last squared losses), mixed with a little of the uniform.

    Uniform until every step has had as many losses as the history holds (iDDPM §3.3). The mixture
    keeps every p_t, and so every weight 1/(T p_t), within bounds. Raises ValueError unless
    0 <= uniform_mix <= 1, TypeError for anything but a LossHistory.

    Example:
        >>> dj.losses.importance_probabilities(dj.losses.init_loss_history(4))
        Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    return _probabilities("importance_probabilities", history, uniform_mix)


def _probabilities(call: str, history: LossHistory, uniform_mix: float) -> Array:
    check_kind(call, "history", history, LossHistory, "init_loss_history makes one")
    remedy = "iDDPM uses 1e-3."
    uniform_mix = check_number(call, "uniform_mix", uniform_mix, remedy, within="[0, 1]")
    T, length = history.losses.shape
    # Only ratios count. Relative to the largest loss no square overflows, which would turn every
    # later p_t into NaN.
    largest = jnp.max(jnp.abs(history.losses))
    losses = history.losses / jnp.where(largest > 0, largest, 1.0)
    size = jnp.sqrt(jnp.mean(jnp.square(losses), axis=1))
    total = jnp.sum(size)
    ready = jnp.all(history.count >= length) & (total > 0)
    share = jnp.where(ready, size / jnp.where(total > 0, total, 1.0), 1.0 / T)
    return (1.0 - uniform_mix) * share + uniform_mix / T


def importance_timesteps(
    keys: Key, history: LossHistory, *, uniform_mix: float = 1e-3
) -> tuple[Array, Array]:
    """Steps t ~ p [B] and their weights 1/(T p_t) [B], each from its example's key.

    E_p[w_t L_t] is the uniform mean of L_t whatever the history: multiply the losses by the
    weights, and give the unweighted ones to `update_loss_history`. Raises as
    `importance_probabilities` does, and for keys that are not one per example.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> dj.losses.importance_timesteps(keys, dj.losses.init_loss_history(1000))[1]
        Array([1., 1.], dtype=float32)
    """
    check_keys("importance_timesteps", keys)
    p = _probabilities("importance_timesteps", history, uniform_mix)
    T = p.shape[0]
    upto = jnp.cumsum(p)
    u = jax.vmap(jax.random.uniform)(keys) * upto[-1]
    t = jnp.minimum(jnp.searchsorted(upto, u, side="right"), T - 1).astype(jnp.int32)
    return t, 1.0 / (T * p[t])


def update_loss_history(history: LossHistory, t: Array, losses: Array) -> LossHistory:
    """Enters the losses [B] of steps t [B], in the order of the batch.

    If a step occurs more often than the history is long, only its last losses are kept. Pass the
    whole global batch, so that every device arrives at the same history. Raises ValueError unless
    t and losses are both [B], and TypeError for other dtypes.

    Example:
        >>> history = dj.losses.init_loss_history(1000)
        >>> dj.losses.update_loss_history(history, jnp.array([7]), jnp.array([0.5])).count[7]
        Array(1, dtype=int32)
    """
    call = "update_loss_history"
    check_kind(call, "history", history, LossHistory, "init_loss_history makes one")
    check_real(call, losses=losses)
    if jnp.ndim(losses) != 1:
        raise ValueError(f"{call} needs losses [B], got shape {jnp.shape(losses)}.")
    check_steps(call, t, history.losses.shape[0], jnp.shape(losses))
    if jnp.ndim(t) != 1:
        raise ValueError(f"{call} needs one step t per loss, [B], got shape {jnp.shape(t)}.")
    T, length = history.losses.shape
    history, t = jax.tree.map(jnp.asarray, history), at_least_32_bits(t)
    same = t[:, None] == t[None, :]
    earlier = jnp.tril(same, k=-1).sum(axis=1)
    later = same.sum(axis=1) - earlier - 1
    slot = (history.count[t] + earlier) % length
    # A loss that a later one of this batch overwrites is left out: two writes to one slot have no
    # defined order.
    row = jnp.where(later < length, t, T)
    entered = jax.lax.stop_gradient(losses).astype(jnp.float32)
    return LossHistory(
        history.losses.at[row, slot].set(entered, mode="drop"), history.count.at[t].add(1)
    )
