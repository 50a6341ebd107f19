"""Training objectives, per example: the caller takes the mean over the batch.

    L_simple = mean_d ‖ε - ε̂(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²,  t uniform        (Ho et al. 2020, Eq. 14)

It is the variational bound with its weight β_t²/(2σ_t² (1-β_t)(1-ᾱ_t)) dropped, and denoising score
matching with weight 1-ᾱ_t (Vincent 2011): the score is -ε̂/√(1-ᾱ_t).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.gaussian import q_sample
from ddpm_jax.prediction import Target, training_target
from ddpm_jax.schedules import NoiseSchedule
from ddpm_jax.types import ApplyFn, Array, ArrayLike, Key, mean_per_example


def simple_loss(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    t: ArrayLike,
    noise: Array,
    *,
    target: Target = "epsilon",
) -> Array:
    """The unweighted mean squared error of the network's prediction, per example: [B].

    Args:
        schedule: the process; the network is fed `schedule.timesteps[t]`.
        apply_fn: `(x_t [B, ...], timesteps [B]) -> output [B, ...]`.
        x_0: clean data [B, ...], images in [-1, 1].
        t: steps, int32 [B], or [] for one step shared by all.
        noise: ε ~ N(0, I) of x_0's shape.
        target: what the network predicts; "epsilon" is L_simple of Ho et al. 2020, Eq. 14.

    Raises ValueError when the output's shape is not x_0's.
    """
    t = jnp.broadcast_to(jnp.asarray(t), jnp.shape(x_0)[:1])
    x_t = q_sample(schedule, x_0, t, noise)
    output = apply_fn(x_t, jnp.asarray(schedule.timesteps)[t])
    if jnp.shape(output) != jnp.shape(x_0):
        raise ValueError(
            f"simple_loss: the network returned shape {jnp.shape(output)} for inputs of shape "
            f"{jnp.shape(x_0)}. L_simple trains the prediction alone; split off learned variances "
            "first."
        )
    wanted = training_target(schedule, x_0, t, noise, target=target)
    # float32 before the difference: a bfloat16 output would round the error it is meant to measure.
    return mean_per_example(jnp.square(output.astype(x_t.dtype) - wanted))


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
