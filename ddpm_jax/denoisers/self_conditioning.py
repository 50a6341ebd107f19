"""Self-conditioning: a network that also gets an estimate of x_0 (Chen et al. 2022, 2208.04202).

The network is `(x_t, timesteps, estimate) -> output`, usually with the estimate [B, ...] joined to
x_t's channels; 0 stands for none. In training the estimate is the network's own, in half of the
examples and without gradient (§3.2, Algorithm 1); in sampling that of the step before
(`samplers.self_conditioned`).
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.denoiser import make_denoiser
from ddpm_jax.denoisers.prediction import Target, Variance, check_target, check_variance
from ddpm_jax.denoisers.scheduled import ScheduledDenoiser
from ddpm_jax.denoisers.thresholds import Clip, check_clip
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_batch
from ddpm_jax.forward.schedule import check_arguments
from ddpm_jax.types import ApplyFn, Array, Denoised, bcast_right, describe, per_example, x_0_of


class SelfConditionedFn(Protocol):
    """A network with an estimate of x_0: `(x_t, timesteps, estimate) -> output`."""

    def __call__(self, x_t: Array, timesteps: Array, estimate: Array, /) -> Array:
        """Evaluates the network."""
        ...


def with_previous_estimate(
    schedule: NoiseSchedule,
    apply_fn: SelfConditionedFn,
    use: Array,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
) -> ApplyFn:
    """The network for one training step, `(x_t, timesteps) -> output`, to be given to any loss.

    It evaluates the network twice: first with the estimate 0, then with the x̂_0 that follows, kept
    from the gradient, where `use` is True, and with 0 elsewhere.

    Args:
        schedule: the process the network is trained on.
        apply_fn: `(x_t, timesteps, estimate) -> output`.
        use: bool [B]; the paper draws it with probability 1/2 per example.
        target, variance, clip: as for `make_denoiser`.

    Raises ValueError for unknown kinds and for `use` that is not bool [B]; TypeError for arguments
    of another kind.

    >>> schedule, use = dj.linear_schedule(), jax.random.bernoulli(jax.random.key(0), 0.5, (2,))
    >>> network = lambda x, t, before: x + before
    >>> apply_fn = dj.denoisers.with_previous_estimate(schedule, network, use)
    >>> x_0 = jnp.ones((2, 3))
    >>> dj.simple_loss(schedule, apply_fn, x_0, jnp.array([5, 9]), 0.5 * x_0).shape
    (2,)
    """
    call = "with_previous_estimate"
    _check(call, schedule, apply_fn, target, variance, clip)
    if getattr(use, "ndim", 0) != 1 or getattr(use, "dtype", None) != jnp.bool_:
        raise ValueError(
            f"{call} needs use, one bool per example [B], got {describe(use)}. "
            "jax.random.bernoulli(key, 0.5, (B,)) draws it."
        )
    kinds = {"target": target, "variance": variance, "clip": clip}
    denoise = self_conditioned_denoiser(schedule, apply_fn, **kinds)

    def conditioned(x_t: Array, timesteps: Array) -> Array:
        (x_t,) = check_batch(call, x_t=x_t)
        use_here = per_example(call, "use", use, x_t)
        nothing = jnp.zeros_like(x_t)
        own = jax.lax.stop_gradient(x_0_of(denoise(x_t, timesteps, nothing), x_t))
        estimate = jnp.where(bcast_right(use_here, x_t.ndim), own, nothing).astype(x_t.dtype)
        return apply_fn(x_t, timesteps, estimate)

    return conditioned


def self_conditioned_denoiser(
    schedule: NoiseSchedule,
    apply_fn: SelfConditionedFn,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
) -> ScheduledDenoiser:
    """`make_denoiser` for such a network: `(x_t, timesteps, estimate) -> x̂_0`.

    For `samplers.self_conditioned`, which checks its grid against `schedule`. Raises as
    `make_denoiser` does.

    >>> network, schedule = lambda x, t, before: 0.1 * x + before, dj.linear_schedule()
    >>> denoise = dj.denoisers.self_conditioned_denoiser(schedule, network)
    >>> denoise(jnp.ones((2, 3)), jnp.array([10, 500]), jnp.zeros((2, 3))).shape
    (2, 3)
    """
    _check("self_conditioned_denoiser", schedule, apply_fn, target, variance, clip)

    def denoise(x_t: Array, timesteps: Array, estimate: Array) -> Array | Denoised:
        def bound(x, timesteps):
            return apply_fn(x, timesteps, estimate)

        kinds = {"target": target, "variance": variance, "clip": clip}
        return make_denoiser(schedule, bound, **kinds)(x_t, timesteps)

    return ScheduledDenoiser(schedule, denoise, "self_conditioned_denoiser")


def _check(call, schedule, apply_fn, target, variance, clip) -> None:
    check_arguments(call, schedule=schedule, apply_fn=apply_fn)
    check_target(call, target)
    check_variance(call, variance)
    check_clip(call, clip)
