"""Objectives in continuous time, per example: the caller takes the mean over the batch.

    mean_d (target - output(x_t, t))² · weight(t) · 1/p(t)

with one t per example. The parts are separate, as those of discrete time: `continuous_loss` is the
squared error of a target, `continuous_weight` turns a weighting w(λ) of the error of x_0, or the
likelihood weighting, into the weight of that target's own error; `times` draws t.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from ddpm_jax.denoisers.continuous import (
    ContinuousTarget,
    check_continuous_target,
    continuous_target,
    target_weights,
)
from ddpm_jax.forward.checks import check_function, check_number, check_real, check_same_shape
from ddpm_jax.forward.continuous import (
    ContinuousProcess,
    check_process,
    check_times,
    process_sample,
)
from ddpm_jax.losses.weightings import Weighting
from ddpm_jax.types import ApplyFn, Array, ArrayLike, mean_per_example


def continuous_loss(
    process: ContinuousProcess,
    apply_fn: ApplyFn,
    x_0: Array,
    t: ArrayLike,
    noise: Array,
    *,
    target: ContinuousTarget,
) -> Array:
    """The mean squared error of the network's prediction at times t, per example: [B].

    One network evaluation, `apply_fn(x_t [B, ...], t [B])`. For the flow and the target "velocity"
    this is the loss of rectified flow (Liu et al. 2022, Eq. 1); for "epsilon", L_simple with
    continuous t; for `edm_denoiser` (which takes y and σ, as the EDM process has x_t and t) use
    "x_0". Raises ValueError for shapes that differ, of noise or of the output, unknown targets and
    host times out of range; TypeError for data that are not floating-point.

    Example:
        >>> x_0, noise, t = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.array([0.5, 1.0])
        >>> flow, network = dj.forward.flow_process(), lambda x_t, t: 0.0 * x_t
        >>> dj.losses.continuous_loss(flow, network, x_0, t, noise, target="velocity")
        Array([1., 1.], dtype=float32)
    """
    call = "continuous_loss"
    check_process(call, process)
    check_function(call, "apply_fn", apply_fn, "(x_t, t) -> output")
    check_continuous_target(call, target)
    check_same_shape(call, x_0=x_0, noise=noise)
    t = check_times(call, t, x_0, process)
    output = apply_fn(process_sample(process, x_0, t, noise), t)
    check_same_shape(f"{call} (apply_fn)", x_0=x_0, output=output)
    expected = continuous_target(process, x_0, t, noise, target=target)
    return mean_per_example(jnp.square(output.astype(expected.dtype) - expected))


def continuous_weight(
    process: ContinuousProcess,
    t: Array,
    weighting: Weighting | Literal["likelihood"],
    *,
    target: ContinuousTarget,
) -> Array:
    """The weight of this target's own squared error at times t, of t's shape.

    A function w(λ) of the log-SNR weights the squared error of x_0, as in discrete time. The string
    "likelihood" is ½ g² for the score and ½ -dλ/dt for ε. Times `continuous_loss` and the
    1/p(t) of how t was drawn, its mean is in nats per dimension (Song et al. 2021, 2101.09258,
    Thm. 1; the integral of the bound in Kingma et al. 2021). An error of a target a x_0 + b ε is
    one of x_0 times (n a - s b)/n. Raises ValueError for unknown targets and weightings.

    Example:
        >>> process, t = dj.forward.vp_process(), jnp.array([0.1, 0.9])
        >>> snr = dj.losses.snr_weighting
        >>> dj.losses.continuous_weight(process, t, snr, target="epsilon").round(4)
        Array([1., 1.], dtype=float32)
    """
    call = "continuous_weight"
    check_process(call, process)
    check_continuous_target(call, target)
    check_real(call, t=t)
    t = jnp.asarray(t)
    check_times(call, t.ravel(), t.ravel(), process)
    a, b = target_weights(process, t, target)
    signal, noise = process.signal_scale(t), process.noise_scale(t)
    # The target's error as a multiple of the error of x_0, at this x_t.
    factor = jnp.square(a - signal / noise * b)
    if isinstance(weighting, str):
        if weighting != "likelihood":
            raise ValueError(
                f"{call} needs a function log_snr -> w, or 'likelihood'; got {weighting!r}."
            )
        # ½ -dλ/dt = n'/n - s'/s, times SNR as a weight of x_0. Unlike g²/n² s² it is finite where
        # s is 0 and g infinite (the flow's t = 1).
        signal_rate, noise_rate = process.rates(t)
        weight = signal / noise * (signal / noise * noise_rate - signal_rate) / noise
    else:
        check_function(call, "weighting", weighting, "log_snr -> w")
        weight = weighting(process.log_snr(t))
        check_same_shape(f"{call} (weighting)", result=weight, t=t)
    return weight / factor


def edm_weighting(sigma_data: float = 0.5) -> Weighting:
    """w = (σ²+σ_d²)/(σ σ_d)², σ² = 1/SNR: 1/c_out², the unit loss of EDM's F (Karras Eq. 8).

    Raises ValueError unless sigma_data > 0.

    Example:
        >>> dj.losses.edm_weighting(0.5)(jnp.array([0.0]))
        Array([5.], dtype=float32)
    """
    call = "edm_weighting"
    sigma_data = check_number(call, "sigma_data", sigma_data, "EDM uses 0.5.", within="(0, inf)")
    return lambda log_snr: jnp.exp(log_snr) + 1.0 / sigma_data**2
