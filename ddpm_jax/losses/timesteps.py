"""How training draws its steps t: uniformly, spread over the batch, or where the loss is large.

    uniform      t ~ U{0, …, T-1}, each example by itself (Ho et al. 2020, Alg. 1)
    stratified   one t in each B-th part of the process    (Kingma et al. 2021, App. I.1)
    importance   p_t ∝ √E[L_t²], the loss weighted by 1/(T p_t)      (iDDPM Eq. 18)

The last keeps the latest losses of every step in a `LossHistory`, which belongs into the state of
training: it is updated from the whole global batch, and saved and restored with the parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, ArrayLike, Key


def uniform_timesteps(keys: Key, num_timesteps: int) -> Array:
    """Steps t ~ U{0, …, T-1}, int32 [B], each from its example's key (Ho et al. 2020, Alg. 1)."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps))(keys)


def stratified_timesteps(keys: Key, index: ArrayLike, batch_size: int, num_timesteps: int) -> Array:
    """Steps t = ⌊T (i + u_i)/B⌋, int32 [b], u_i ~ U[0, 1): one in each B-th part of the process.

    `index` [b] are the examples' places i in the global batch of B. Over a step the t's cover
    0..T-1 evenly, which leaves the expectation of the mean loss as it is and takes out most of the
    variance that the choice of t brings in (as the low-discrepancy sampler of Kingma et al. 2021,
    App. I.1, with one draw a stratum).
    """
    u = jax.vmap(jax.random.uniform)(keys)
    # i + u may round up to i + 1, and at the last place out of the process: hence the clip.
    t = jnp.floor((jnp.asarray(index, jnp.float32) + u) * (num_timesteps / batch_size))
    return jnp.clip(t.astype(jnp.int32), 0, num_timesteps - 1)


class LossHistory(NamedTuple):
    """The latest losses of every step.

    Attributes:
        losses: float32 [T, K], in the order of a ring.
        count: int32 [T], how many losses each step has had in all.
    """

    losses: Array
    count: Array


def init_loss_history(num_timesteps: int, length: int = 10) -> LossHistory:
    """A history of no losses yet, for T steps; iDDPM keeps the last 10 of each.

    Raises ValueError unless both numbers are at least 1.
    """
    if num_timesteps < 1 or length < 1:
        raise ValueError(
            "init_loss_history needs num_timesteps >= 1 and length >= 1, got "
            f"{num_timesteps=}, {length=}. iDDPM keeps 10 losses a step."
        )
    return LossHistory(
        jnp.zeros((num_timesteps, length), jnp.float32), jnp.zeros((num_timesteps,), jnp.int32)
    )


def importance_probabilities(history: LossHistory, *, uniform_mix: float = 1e-3) -> Array:
    """p_t [T] ∝ √(mean of the step's last squared losses), mixed with a little of the uniform.

    Uniform until every step has had as many losses as the history holds (iDDPM §3.3). The mixture
    keeps every p_t, and so every weight 1/(T p_t), within bounds.
    """
    T, length = history.losses.shape
    # Only ratios count: of the largest loss, so that no square overflows and turns every later p_t
    # into NaN.
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
    weights, and give the unweighted ones to `update_loss_history`.
    """
    p = importance_probabilities(history, uniform_mix=uniform_mix)
    T = p.shape[0]
    upto = jnp.cumsum(p)
    u = jax.vmap(jax.random.uniform)(keys) * upto[-1]
    t = jnp.minimum(jnp.searchsorted(upto, u, side="right"), T - 1).astype(jnp.int32)
    return t, 1.0 / (T * p[t])


def update_loss_history(history: LossHistory, t: Array, losses: Array) -> LossHistory:
    """Enters the losses [B] of steps t [B], in the order of the batch.

    Of a step that occurs more often than the history is long only the last ones are kept. Give it
    the whole global batch, so that every device arrives at the same history.
    """
    T, length = history.losses.shape
    same = t[:, None] == t[None, :]
    earlier = jnp.tril(same, k=-1).sum(axis=1)
    later = same.sum(axis=1) - earlier - 1
    slot = (history.count[t] + earlier) % length
    # What a later loss of this very batch overwrites is left out: two writes to one slot have no
    # defined order.
    row = jnp.where(later < length, t, T)
    entered = jax.lax.stop_gradient(losses).astype(jnp.float32)
    return LossHistory(
        history.losses.at[row, slot].set(entered, mode="drop"), history.count.at[t].add(1)
    )
