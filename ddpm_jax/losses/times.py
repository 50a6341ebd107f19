"""How training draws continuous times t [B], each from its example's key.

    uniform        t ~ U[t_min, t_max]
    likelihood     p(t) ∝ g²/n² = -dλ/dt: λ uniform      (Song et al. 2021, 2101.09258, §5.1)
    log-normal σ   log σ ~ N(-1.2, 1.2²)                 (Karras et al. 2022, Table 1)
    logit-normal   logit t ~ N(0, 1)                     (Esser et al. 2024, 2403.03206, Eq. 19)

The last two are distributions of their papers' losses, which are not reweighted for them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_number, check_real
from ddpm_jax.forward.continuous import ContinuousProcess, check_process
from ddpm_jax.keys import check_keys, normal_per_example
from ddpm_jax.types import Array, ArrayLike, Key


def uniform_times(keys: Key, process: ContinuousProcess) -> Array:
    """t ~ U[t_min, t_max], [B].

    Raises ValueError or TypeError unless there is one key per example.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> dj.losses.uniform_times(keys, dj.forward.flow_process()).shape
        (4,)
    """
    check_keys("uniform_times", keys)
    check_process("uniform_times", process)
    return jax.vmap(
        lambda key: jax.random.uniform(key, (), jnp.float32, process.t_min, process.t_max)
    )(keys)


def likelihood_times(keys: Key, process: ContinuousProcess) -> tuple[Array, Array]:
    """Times of uniform λ [B], and 1/p(t) [B]: importance sampling for the likelihood weighting.

    The product of `continuous_weight(..., "likelihood")` for ε and 1/p is then the same for every
    t. Raises ValueError for a process with infinite λ at its end (the flow: use a VP process, or
    `uniform_times`), and as `uniform_times` does.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> t, weight = dj.losses.likelihood_times(keys, dj.forward.vp_process())
        >>> t.shape, weight.shape
        ((4,), (4,))
    """
    call = "likelihood_times"
    check_keys(call, keys)
    check_process(call, process)
    first, last = (float(process.log_snr(np.float64(t))) for t in (process.t_min, process.t_max))
    if not last > -jnp.inf:
        raise ValueError(
            f"{call} needs a process whose log SNR is finite at t_max, got {process.name}, where "
            "it is -inf. Use vp_process, or uniform_times."
        )
    u = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys)
    t = jnp.clip(process.time_at_log_snr(last + (first - last) * u), process.t_min, process.t_max)
    rate = jnp.square(process.diffusion(t) / process.noise_scale(t))
    return t, (first - last) / rate


def lognormal_times(
    keys: Key, process: ContinuousProcess, *, mean: float = -1.2, std: float = 1.2
) -> Array:
    """The times of log σ ~ N(mean, std²), [B], clipped to the process's (Karras et al. Table 1).

    For the EDM process, where t is σ, and, by the same σ, for any other. Raises ValueError unless
    std > 0, and as `uniform_times` does.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> dj.losses.lognormal_times(keys, dj.forward.edm_process()).shape
        (4,)
    """
    call = "lognormal_times"
    z = _normal(call, keys, mean, std)
    check_process(call, process)
    return jnp.clip(process.time_at_log_snr(-2.0 * z), process.t_min, process.t_max)


def logit_normal_times(
    keys: Key, process: ContinuousProcess, *, mean: float = 0.0, std: float = 1.0
) -> Array:
    """t = sigmoid(z), z ~ N(mean, std²), [B], on the process's interval (Esser et al. 2024).

    `shift_times` moves them towards noise for high resolutions. Raises ValueError unless std > 0
    and for a process that does not end at t = 1 (EDM: `lognormal_times`), and as `uniform_times`.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> dj.losses.logit_normal_times(keys, dj.forward.flow_process()).shape
        (4,)
    """
    call = "logit_normal_times"
    z = _normal(call, keys, mean, std)
    check_process(call, process)
    if process.t_max != 1.0:
        raise ValueError(
            f"{call} needs a process on [0, 1], got {process.name} up to t = {process.t_max:g}. "
            "Its times are noise levels: use lognormal_times."
        )
    return jnp.clip(jax.nn.sigmoid(z), process.t_min, process.t_max)


def shift_times(t: ArrayLike, shift: float) -> Array:
    """t' = α t/(1 + (α-1) t): times of flows with σ multiplied by α (Esser et al. 2024, Eq. 23).

    α = √(m/n) keeps the uncertainty at m pixels that t has at n. For training times and sampling
    grids alike; 0 and 1 stay. Raises ValueError unless shift > 0.

    Example:
        >>> dj.losses.shift_times(jnp.array([0.0, 0.5, 1.0]), 3.0)
        Array([0.  , 0.75, 1.  ], dtype=float32)
    """
    check_real("shift_times", t=t)
    remedy = "1 leaves the times as they are."
    shift = check_number("shift_times", "shift", shift, remedy, within="(0, inf)")
    t = jnp.asarray(t)
    return shift * t / (1.0 + (shift - 1.0) * t)


def _normal(call: str, keys: Key, mean: float, std: float) -> Array:
    check_keys(call, keys)
    mean = check_number(call, "mean", mean, within="(-inf, inf)")
    std = check_number(call, "std", std, within="(0, inf)")
    return mean + std * normal_per_example(keys, ())
