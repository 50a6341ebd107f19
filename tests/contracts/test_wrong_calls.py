"""Wrong calls of the public functions that read and write no files.

`ROWS` has one right call per public function (see `wrong`). A new public function of these packages
needs a row here, or the first test fails.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.likelihood import VariationalBound
from tests.contracts.wrong import (
    KEYS,
    NOISE,
    SCHEDULE,
    Net,
    T,
    X,
    call,
    close,
    computed,
    network,
    row,
    same,
)

ROOMS = (
    dj.types,
    dj.keys,
    dj.forward,
    dj.nn,
    dj.denoisers,
    dj.losses,
    dj.likelihood,
    dj.samplers,
    dj.score,
    dj,
)
STEPS = jnp.array([0, 3, 7])
HISTORY = dj.losses.init_loss_history(T)
REVERSE = dj.p_mean_variance(SCHEDULE, NOISE, X, STEPS)
FLOW, VP, TIMES = dj.forward.flow_process(), dj.forward.vp_process(), jnp.array([0.2, 0.5, 0.9])
TERMS = jnp.ones((T, 3))
BOUND = VariationalBound(TERMS[0], TERMS, TERMS.sum(0), TERMS, TERMS)


def wide_network(x_t, timesteps):
    return jnp.concatenate([x_t, x_t], axis=-1)


def gaussian(y, sigma, *conditions):
    return 0.3 * y


def denoise_by(schedule, apply_fn, *, target, variance, clip):
    """`make_denoiser` and a call of what it made: some errors can only come then."""
    options = {"target": target, "variance": variance, "clip": clip}
    return dj.make_denoiser(schedule, apply_fn, **options)(X, STEPS)


def denoise_in_time(process, times, apply_fn, *, target):
    """`denoiser_from_process` and a call of what it made."""
    return dj.denoisers.denoiser_from_process(process, times, apply_fn, target=target)(X, STEPS)


def denoise_in_sigma(process, apply_fn, *, target):
    """`sigma_denoiser_from_process` and a call of what it made."""
    model = dj.denoisers.sigma_denoiser_from_process(process, apply_fn, target=target)
    return model(X, jnp.ones(3))


def move(process, denoise):
    """`velocity_from_denoiser` and a call of what it made."""
    return dj.denoisers.velocity_from_denoiser(process, denoise)(X, TIMES)


def precondition(apply_fn, *, sigma_data):
    """`edm_denoiser` and a call of what it made."""
    return dj.denoisers.edm_denoiser(apply_fn, sigma_data=sigma_data)(X, jnp.ones(3))


def energy(x, *conditions):
    return 0.5 * jnp.sum(x**2, axis=(1, 2, 3))


def guide(conditional, unconditional, scale, *, variance, rescale):
    """`classifier_free` and a call of what it made."""
    options = {"variance": variance, "rescale": rescale}
    return dj.classifier_free(conditional, unconditional, scale, **options)(X, STEPS)


def guide_by_classifier(schedule, apply_fn, log_probability, scale, *, target, variance):
    """`classifier_guided` and a call of what it made."""
    options = {"target": target, "variance": variance}
    return dj.classifier_guided(schedule, apply_fn, log_probability, scale, **options)(X, STEPS)


def guide_between(schedule, scale, sigma_low, sigma_high):
    """`guidance_interval` and a call of what it made."""
    return dj.denoisers.guidance_interval(schedule, scale, sigma_low, sigma_high)(STEPS)


def fill_in(sampler, known, mask, *, num_resamples):
    """`inpaint` and a step of what it made."""
    made = dj.inpaint(sampler, known, mask, num_resamples=num_resamples)
    noise = jnp.zeros((made.num_draws, *X.shape)) if made.num_draws > 1 else jnp.zeros(X.shape)
    return made.step(network, X, STEPS[0], noise, made.init(X)).x


def denoise_by_score(schedule, score_fn):
    """`denoiser_from_score` and a call of what it made."""
    return dj.denoiser_from_score(schedule, score_fn)(X, STEPS)


def denoise_by_sigma(schedule, sigma_denoise):
    """`denoiser_from_sigma` and a call of what it made."""
    return dj.denoisers.denoiser_from_sigma(schedule, sigma_denoise)(X, STEPS)


def score_by_denoiser(schedule, denoise):
    """`score_from_denoiser` and a call of what it made."""
    return dj.score_from_denoiser(schedule, denoise)(X, STEPS)


def denoise_every_sigma(schedule, apply_fn, *, target, variance, clip):
    """`sigma_denoiser` and a call of what it made."""
    options = {"target": target, "variance": variance, "clip": clip}
    return dj.sigma_denoiser(schedule, apply_fn, **options)(X, jnp.ones(3))


def score_by_energy(energy):
    """`score_of_energy` and a call of what it made."""
    return dj.score.score_of_energy(energy)(X)


schedule, t, keys = ("schedule", SCHEDULE), ("steps", STEPS), ("keys", KEYS)
x, noise, lone = ("events", X), ("events", NOISE), ("lone", X)
apply_fn = ("function", network)
target, clip, variance = ("target", "epsilon"), ("clip", True), ("variance", "fixed_large")
whole, positive, weighting = ("whole", T), ("positive", 0.5), ("function", dj.losses.snr_weighting)
dtype, table = ("dtype", jnp.float32), ("table", np.linspace(0.1, 0.5, T))
history, values, broadcastable = ("history", HISTORY), ("values", X), ("broadcastable", X)
uniform_mix, trace = ("share", 0.5), ("target", "exact")
flow = dict(
    rtol=("positive", 1e-3),
    atol=("positive", 1e-3),
    max_steps=("whole", 64),
    solver=("solver", None),
    conditions=("conditions", (STEPS,)),
)
conditioned, kinds = ("callable", network), {"target": target, "clip": clip}
measurement = {
    "schedule": schedule,
    "denoise": ("callable", network),
    "operator": ("callable", jnp.sum),
    "measured": ("real", jnp.zeros(())),
}
denoise, levels = ("function", gaussian), dict(sigma_min=("positive", 0.5), sigma_max=("many", 1.0))
rates = dict(beta_start=("rate", 0.1), beta_end=("rate", 0.7), dtype=dtype)
process, time = ("process", FLOW), ("times", TIMES)
variance_preserving = dict(
    beta_min=("positive", 0.1), beta_max=("positive", 20.0), t_min=("rate", 1e-5)
)
noise_range = dict(sigma_min=("positive", 0.01), sigma_max=("many", 50.0))

any_value, name = ("unchecked", X), ("unchecked", "x")
sampler, ancestral = dj.ddim(SCHEDULE), dj.ancestral(SCHEDULE)
flag, positive_or_rows = ("flag", False), ("per row", 0.5)
replay = ("replayed", jnp.stack([NOISE] * T))
encoding = {
    "schedule": schedule,
    "denoise": apply_fn,
    "x_0": lone,
    "last_step": ("last step", T - 1),
    "corrections": ("whole or 0", 1),
    "convention": ("target", "euler"),
}
solver = dict(process=process, times=("times of a grid", np.linspace(0.2, 0.9, 4)))
ladder = np.array([1.0, 0.5, 0.25])
chains = dict(x=lone, step_size=positive_or_rows)
event = dict(shape=("event shape", (4, 5, 2)), dtype=dtype)

ROWS = {
    "linear_schedule": row(dj.linear_schedule, num_timesteps=whole, **rates),
    "quadratic_schedule": row(dj.quadratic_schedule, num_timesteps=whole, **rates),
    "sigmoid_schedule": row(dj.sigmoid_schedule, num_timesteps=whole, **rates),
    "warmup_schedule": row(
        dj.warmup_schedule, num_timesteps=whole, **rates, warmup_fraction=("share", 0.5)
    ),
    "constant_schedule": row(
        dj.constant_schedule, num_timesteps=whole, beta=("rate", 0.7), dtype=dtype
    ),
    "jsd_schedule": row(dj.jsd_schedule, num_timesteps=whole, dtype=dtype),
    "cosine_schedule": row(
        dj.cosine_schedule,
        num_timesteps=whole,
        offset=("positive", 0.008),
        max_beta=("rate", 0.9),
        dtype=dtype,
    ),
    "schedule_from_beta": row(dj.schedule_from_beta, beta=table, dtype=dtype),
    "schedule_from_alpha_bar": row(
        dj.schedule_from_alpha_bar, alpha_bar=("table", np.linspace(0.9, 0.1, T)), dtype=dtype
    ),
    "schedule_from_log_snr": row(
        dj.forward.schedule_from_log_snr, log_snr=("table", np.linspace(4, -4, T)), dtype=dtype
    ),
    "vp_process": row(dj.forward.vp_process, **variance_preserving),
    "sub_vp_process": row(dj.forward.sub_vp_process, **variance_preserving),
    "ve_process": row(dj.forward.ve_process, **noise_range),
    "edm_process": row(dj.forward.edm_process, **noise_range),
    "flow_process": row(dj.forward.flow_process, t_min=("rate", 1e-4)),
    "process_sample": row(dj.forward.process_sample, process=process, x_0=x, t=time, noise=noise),
    "schedule_from_process": row(
        dj.forward.schedule_from_process, process=process, times=table, dtype=dtype
    ),
    "continuous_target": row(
        dj.denoisers.continuous_target, process=process, x_0=x, t=time, noise=noise, target=target
    ),
    "continuous_x_0": row(
        dj.denoisers.continuous_x_0, process=process, output=noise, x_t=x, t=time, target=target
    ),
    "denoiser_from_process": row(
        denoise_in_time, process=process, times=table, apply_fn=apply_fn, target=target
    ),
    "sigma_denoiser_from_process": row(
        denoise_in_sigma, process=process, apply_fn=apply_fn, target=target
    ),
    "velocity_from_denoiser": row(move, process=process, denoise=("function", gaussian)),
    "edm_denoiser": row(precondition, apply_fn=apply_fn, sigma_data=positive),
    "continuous_loss": row(
        dj.losses.continuous_loss,
        process=process,
        apply_fn=apply_fn,
        x_0=x,
        t=time,
        noise=noise,
        target=target,
    ),
    "continuous_weight": row(
        dj.losses.continuous_weight,
        process=process,
        t=("any times", TIMES),
        weighting=weighting,
        target=target,
    ),
    "edm_weighting": row(dj.losses.edm_weighting, sigma_data=positive),
    "continuous_bound": row(
        dj.losses.continuous_bound,
        gamma=("function", lambda t: dj.nn.Gamma(jnp.array(-8.0), jnp.array(5.0), t)),
        apply_fn=apply_fn,
        x_0=x,
        t=time,
        noise=noise,
    ),
    "uniform_times": row(dj.losses.uniform_times, keys=("any keys", KEYS), process=process),
    "likelihood_times": row(
        dj.losses.likelihood_times, keys=("any keys", KEYS), process=("process", VP)
    ),
    "lognormal_times": row(
        dj.losses.lognormal_times,
        keys=("any keys", KEYS),
        process=process,
        mean=("number", -1.2),
        std=positive,
    ),
    "logit_normal_times": row(
        dj.losses.logit_normal_times,
        keys=("any keys", KEYS),
        process=process,
        mean=("number", 0.0),
        std=positive,
    ),
    "shift_times": row(dj.losses.shift_times, t=values, shift=positive),
    "schedule_from_noise_levels": row(dj.schedule_from_noise_levels, sigmas=table, dtype=dtype),
    "respace": row(
        dj.respace, schedule=("host schedule", SCHEDULE), timesteps=("grid", np.array([0, 3, 7]))
    ),
    "rescale_zero_terminal_snr": row(
        dj.rescale_zero_terminal_snr, schedule=("host schedule", SCHEDULE)
    ),
    "spaced_timesteps": row(
        dj.spaced_timesteps,
        num_timesteps=whole,
        num_steps=("whole", 4),
        spacing=("target", "leading"),
    ),
    "karras_timesteps": row(
        dj.karras_timesteps,
        schedule=("host schedule", SCHEDULE),
        num_steps=("whole", 4),
        rho=("many", 7.0),
        sigma_max=("many", 80.0),
    ),
    "lookup": row(dj.forward.lookup, table=("values", SCHEDULE.beta), t=("any steps", STEPS)),
    "from_pixels": row(dj.from_pixels, pixels=("pixels", jnp.zeros((2, 3), jnp.uint8))),
    "to_pixels": row(dj.to_pixels, x=lone),
    "q_sample": row(dj.q_sample, schedule=schedule, x_0=x, t=t, noise=noise),
    "q_mean_variance": row(dj.q_mean_variance, schedule=schedule, x_0=lone, t=t),
    "q_posterior": row(dj.q_posterior, schedule=schedule, x_0=x, x_t=noise, t=t),
    "posterior_mean": row(dj.posterior_mean, schedule=schedule, x_0=x, x_t=noise, t=t),
    "posterior_variance": row(
        dj.forward.posterior_variance, schedule=schedule, t=("any steps", STEPS)
    ),
    "predict_x_0": row(dj.predict_x_0, schedule=schedule, output=noise, x_t=x, t=t, target=target),
    "predict_epsilon": row(
        dj.denoisers.predict_epsilon, schedule=schedule, output=noise, x_t=x, t=t, target=target
    ),
    "convert_prediction": row(
        dj.convert_prediction,
        schedule=schedule,
        output=noise,
        x_t=x,
        t=t,
        source=target,
        target=("target", "v"),
    ),
    "training_target": row(
        dj.training_target, schedule=schedule, x_0=x, t=t, noise=noise, target=target
    ),
    "p_mean_variance": row(
        dj.p_mean_variance,
        schedule=schedule,
        output=noise,
        x_t=x,
        t=t,
        target=target,
        variance=variance,
        clip=clip,
    ),
    "make_denoiser": row(
        denoise_by,
        schedule=schedule,
        apply_fn=apply_fn,
        target=target,
        variance=variance,
        clip=clip,
    ),
    "guidance_interval": row(
        guide_between,
        schedule=schedule,
        scale=("scale", 3.0),
        sigma_low=("positive", 0.3),
        sigma_high=("positive", 3.0),
    ),
    "dps": row(dj.denoisers.dps, **measurement, noise=("positive", 0.5), scale=("positive", 1.0)),
    "pi_gdm": row(
        dj.denoisers.pi_gdm, **measurement, noise=("positive", 0.5), data_std=("positive", 1.0)
    ),
    "self_conditioned_denoiser": row(
        dj.denoisers.self_conditioned_denoiser, schedule=schedule, apply_fn=conditioned, **kinds
    ),
    "with_previous_estimate": row(
        dj.denoisers.with_previous_estimate,
        schedule=schedule,
        apply_fn=conditioned,
        use=("flags", jnp.ones(3, bool)),
        **kinds,
    ),
    "make_denoiser()": row(
        dj.make_denoiser(SCHEDULE, network), x_t=lone, timesteps=("network steps", STEPS)
    ),
    "dynamic_threshold": row(dj.dynamic_threshold, percentile=("percentile", 99.5)),
    "dynamic_threshold()": row(dj.dynamic_threshold(99.5), x_0_hat=lone),
    "simple_loss": row(
        dj.simple_loss,
        schedule=schedule,
        apply_fn=apply_fn,
        x_0=x,
        t=t,
        noise=noise,
        target=target,
    ),
    "bound_loss": row(
        dj.bound_loss,
        schedule=schedule,
        apply_fn=apply_fn,
        x_0=x,
        t=t,
        noise=noise,
        target=target,
        variance=variance,
    ),
    "hybrid_loss": row(
        dj.hybrid_loss,
        schedule=schedule,
        apply_fn=("function", wide_network),
        x_0=x,
        t=t,
        noise=noise,
        target=target,
        variance=("variance", "learned"),
        bound_scale=("number", 1e-3),
    ),
    "loss_weight": row(
        dj.loss_weight,
        schedule=schedule,
        t=("any steps", STEPS),
        weighting=weighting,
        target=target,
    ),
    "bound_weight": row(
        dj.losses.bound_weight,
        schedule=schedule,
        t=("any steps", STEPS),
        target=target,
        variance=variance,
    ),
    "snr_weighting": row(dj.losses.snr_weighting, log_snr=values),
    "snr_plus_one_weighting": row(dj.losses.snr_plus_one_weighting, log_snr=values),
    "truncated_snr_weighting": row(dj.losses.truncated_snr_weighting, log_snr=values),
    "min_snr_weighting": row(dj.min_snr_weighting, gamma=positive),
    "p2_weighting": row(dj.losses.p2_weighting, k=positive, gamma=positive),
    "uniform_timesteps": row(dj.uniform_timesteps, keys=("any keys", KEYS), num_timesteps=whole),
    "stratified_timesteps": row(
        dj.stratified_timesteps,
        keys=keys,
        index=("steps", np.arange(3)),
        batch_size=("whole", 3),
        num_timesteps=whole,
    ),
    "init_loss_history": row(dj.losses.init_loss_history, num_timesteps=whole, length=whole),
    "importance_probabilities": row(
        dj.losses.importance_probabilities, history=history, uniform_mix=uniform_mix
    ),
    "importance_timesteps": row(
        dj.losses.importance_timesteps,
        keys=("any keys", KEYS),
        history=history,
        uniform_mix=uniform_mix,
    ),
    "update_loss_history": row(
        dj.losses.update_loss_history,
        history=history,
        t=("steps", STEPS),
        losses=("per example", jnp.ones(3)),
    ),
    "normal_kl": row(
        dj.likelihood.normal_kl,
        mean=broadcastable,
        log_variance=broadcastable,
        other_mean=broadcastable,
        other_log_variance=broadcastable,
    ),
    "normal_log_density": row(
        dj.likelihood.normal_log_density,
        x=broadcastable,
        mean=broadcastable,
        log_variance=broadcastable,
    ),
    "discretized_log_likelihood": row(
        dj.discretized_log_likelihood,
        x_0=broadcastable,
        mean=broadcastable,
        log_variance=broadcastable,
        levels=("whole", 256),
    ),
    "bound_term": row(
        dj.likelihood.bound_term,
        schedule=schedule,
        reverse=("history", REVERSE),
        x_0=x,
        x_t=noise,
        t=t,
    ),
    "prior_term": row(dj.likelihood.prior_term, schedule=schedule, x_0=lone),
    "variational_bound": row(
        dj.variational_bound,
        schedule=schedule,
        apply_fn=apply_fn,
        x_0=lone,
        keys=keys,
        target=target,
        variance=variance,
        clip=clip,
    ),
    "estimate_bound": row(
        dj.estimate_bound,
        schedule=schedule,
        apply_fn=apply_fn,
        x_0=x,
        t=("step rows", STEPS[None]),
        noise=("event rows", NOISE[None]),
        target=target,
        variance=variance,
        clip=clip,
    ),
    "rate_distortion": row(dj.rate_distortion, bound=("history", BOUND)),
    "mean_and_standard_error": row(
        dj.likelihood.mean_and_standard_error, values=("numbers", np.ones(4))
    ),
    "dequantize": row(
        dj.dequantize, x_0=("data on levels", X), uniform=("uniform draws", jnp.abs(NOISE))
    ),
    "bits_per_dim": row(
        dj.bits_per_dim,
        log_likelihood=values,
        event_shape=("shape", (4, 5, 2)),
        bin_width=positive,
    ),
    "probability_flow_sample": row(
        dj.probability_flow_sample,
        denoise=denoise,
        y_T=lone,
        **levels,
        **flow,
        final_denoise=("flag", False),
    ),
    "probability_flow_encode": row(
        dj.probability_flow_encode, denoise=denoise, y_0=lone, **levels, **flow
    ),
    "probability_flow_log_likelihood": row(
        dj.probability_flow_log_likelihood,
        denoise=denoise,
        y_0=lone,
        **levels,
        trace=trace,
        prior_mean=("mean", 0.0),
        prior_std=("positive", 1.0),
        **flow,
    ),
    "describe": row(dj.types.describe, value=any_value),
    "host_array": row(
        dj.types.host_array,
        call=("unchecked", "host_array"),
        name=name,
        value=("host values", np.ones(3)),
    ),
    "as_array": row(
        dj.types.as_array, call=("unchecked", "as_array"), name=name, value=("convertible", X)
    ),
    "per_example": row(
        dj.types.per_example,
        call=("unchecked", "per_example"),
        name=name,
        value=("any per example", jnp.ones(3)),
        x=("convertible", X),
    ),
    "x_0_of": row(dj.types.x_0_of, denoised=noise, x_t=("like", X)),
    "bcast_right": row(
        dj.types.bcast_right, x=("convertible", jnp.ones(3)), ndim=("number of axes", 4)
    ),
    "mean_per_example": row(dj.types.mean_per_example, x=("batch", X)),
    "sum_per_example": row(dj.types.sum_per_example, x=("batch", X)),
    "is_key": row(dj.keys.is_key, x=("unchecked", KEYS)),
    "make_key": row(dj.keys.make_key, seed=("seed", 0)),
    "example_keys": row(
        dj.example_keys, key=("key", jax.random.key(0)), index=("indices", np.arange(3))
    ),
    "fold_in_each": row(dj.keys.fold_in_each, keys=("any keys", KEYS), data=("seed", 7)),
    "split_each": row(dj.keys.split_each, keys=("any keys", KEYS), num=("whole", 2)),
    "normal_per_example": row(dj.normal_per_example, keys=("any keys", KEYS), **event),
    "check_draw": row(
        dj.keys.check_draw, call=("unchecked", "check_draw"), keys=("any keys", KEYS), **event
    ),
    "check_keys": row(
        dj.keys.check_keys, call=("unchecked", "check_keys"), keys=keys, count=("unchecked", 3)
    ),
    "count_parameters": row(dj.nn.count_parameters, params=("tree", {"kernel": X})),
    "sinusoidal_embedding": row(
        dj.nn.sinusoidal_embedding,
        t=("any numbers", STEPS),
        dim=("whole", 8),
        max_period=("positive", 1e4),
        order=("target", "sin_cos"),
        shift=("option number", 1),
    ),
    "classifier_free": row(
        guide,
        conditional=apply_fn,
        unconditional=apply_fn,
        scale=("scale", 2.0),
        variance=variance,
        rescale=("share", 0.5),
    ),
    "classifier_guided": row(
        guide_by_classifier,
        schedule=schedule,
        apply_fn=apply_fn,
        log_probability=("function", energy),
        scale=("scale", 2.0),
        target=target,
        variance=variance,
    ),
    "denoiser_from_score": row(
        denoise_by_score, schedule=schedule, score_fn=("function", gaussian)
    ),
    "denoiser_from_sigma": row(
        denoise_by_sigma, schedule=schedule, sigma_denoise=("function", gaussian)
    ),
    "score_from_denoiser": row(score_by_denoiser, schedule=schedule, denoise=apply_fn),
    "noise_levels": row(dj.denoisers.noise_levels, schedule=schedule),
    "sigma_range": row(dj.sigma_range, schedule=("host schedule", SCHEDULE)),
    "sigma_denoiser": row(
        denoise_every_sigma,
        schedule=schedule,
        apply_fn=apply_fn,
        target=target,
        variance=variance,
        clip=flag,
    ),
    "optimal_log_variance": row(
        dj.optimal_log_variance, schedule=("host schedule", SCHEDULE), x_0_mse=table
    ),
    "x_0_mse_from_epsilon": row(
        dj.denoisers.x_0_mse_from_epsilon,
        schedule=("host schedule", SCHEDULE),
        second_moment=table,
    ),
    "ancestral": row(dj.ancestral, schedule=schedule, variance=variance),
    "annealed_langevin": row(
        dj.annealed_langevin,
        schedule=schedule,
        steps_per_level=("whole", 2),
        rate=("rate of Langevin", 0.2),
        final_denoise=flag,
    ),
    "ddim": row(dj.ddim, schedule=schedule, eta=("share", 0.5)),
    "ddim_encode": row(dj.ddim_encode, **encoding),
    "ddim_encode_trajectory": row(dj.samplers.ddim_encode_trajectory, **encoding),
    "deis": row(
        dj.samplers.deis,
        schedule=("host schedule", SCHEDULE),
        order=("order", 3),
        process=("some schedule", SCHEDULE),
    ),
    "dpm_solver_pp": row(
        dj.dpm_solver_pp, schedule=schedule, order=("order", 2), sde=flag, singlestep=flag
    ),
    "unipc": row(dj.samplers.unipc, schedule=schedule, order=("order", 3)),
    "heun": row(
        dj.heun,
        schedule=("host schedule", SCHEDULE),
        churn=positive,
        churn_range=("range", (0.1, 5.0)),
        churn_noise=positive,
        process=("host schedule", SCHEDULE),
    ),
    "inpaint": row(
        fill_in,
        sampler=("sampler", sampler),
        known=("known", X),
        mask=("mask", jnp.ones(X.shape, bool)),
        num_resamples=whole,
    ),
    "lerp": row(dj.samplers.lerp, a=x, b=noise, fraction=positive_or_rows),
    "slerp": row(dj.slerp, a=x, b=noise, fraction=positive_or_rows),
    "predictor_corrector": row(
        dj.predictor_corrector,
        predictor=("sampler", sampler),
        snr=positive,
        num_corrections=("whole", 2),
    ),
    "self_conditioned": row(dj.samplers.self_conditioned, sampler=("sampler", sampler)),
    "probability_flow_euler": row(dj.samplers.probability_flow_euler, **solver),
    "probability_flow_heun": row(dj.samplers.probability_flow_heun, **solver),
    "euler_maruyama": row(dj.samplers.euler_maruyama, **solver),
    "initial_noise": row(dj.initial_noise, keys=("any keys", KEYS), **event),
    "grid_steps": row(dj.samplers.grid_steps, sampler=("sampler", sampler)),
    "sample": row(dj.sample, sampler=("sampler", ancestral), denoise=apply_fn, x_T=lone, keys=keys),
    "sample()": row(
        dj.sample, sampler=("sampler", ancestral), denoise=apply_fn, x_T=lone, noise=replay
    ),
    "sample_trajectory": row(
        dj.sample_trajectory, sampler=("sampler", ancestral), denoise=apply_fn, x_T=lone, keys=keys
    ),
    "advance": row(
        dj.samplers.advance,
        sampler=("sampler", ancestral),
        denoise=apply_fn,
        x=lone,
        state=("state", ()),
        steps=("grid steps", jnp.array([5, 4])),
        keys=keys,
        keep=flag,
    ),
    "geometric_noise_levels": row(
        dj.score.geometric_noise_levels,
        sigma_max=("many", 1.0),
        sigma_min=positive,
        num_levels=("whole", 3),
    ),
    "ncsnv2_noise_levels": row(
        dj.score.ncsnv2_noise_levels,
        sigma_max=("many", 1.0),
        sigma_min=positive,
        dim=("whole", 64),
        overlap=("share", 0.5),
    ),
    "geometric_ratio": row(dj.score.geometric_ratio, dim=("whole", 64), overlap=("share", 0.5)),
    "largest_pairwise_distance": row(
        dj.score.largest_pairwise_distance, data=("data", np.asarray(X)), block_size=whole
    ),
    "langevin_step_size": row(
        dj.score.langevin_step_size, sigmas=("ladder", ladder), num_steps_per_level=("whole", 5)
    ),
    "langevin_step": row(
        dj.score.langevin_step, score=x, x=x, step_size=positive_or_rows, noise=noise
    ),
    "langevin": row(
        dj.score.langevin,
        score_fn=("function", lambda x: -x),
        **chains,
        num_steps=("whole", 2),
        keys=keys,
        keep=flag,
    ),
    "langevin()": row(
        dj.score.langevin,
        score_fn=("function", lambda x: -x),
        **chains,
        num_steps=whole,
        noise=replay,
    ),
    "metropolis_adjusted_langevin": row(
        dj.score.metropolis_adjusted_langevin,
        log_density=("function", lambda x: -energy(x)),
        **chains,
        num_steps=("whole", 2),
        score_fn=("some function", lambda x: -x),
        keys=keys,
        keep=flag,
    ),
    "metropolis_adjusted_langevin()": row(
        dj.score.metropolis_adjusted_langevin,
        log_density=("function", lambda x: -energy(x)),
        **chains,
        num_steps=whole,
        noise=replay,
        uniform=("replayed", jnp.full((T, 3), 0.5)),
    ),
    "annealed_langevin_chains": row(
        dj.score.annealed_langevin_chains,
        score_fn=("function", lambda x, level: -x),
        x=lone,
        sigmas=("ladder of a program", ladder),
        step_size=positive_or_rows,
        steps_per_level=("whole", 2),
        keys=keys,
        final_denoise=flag,
        keep=flag,
    ),
    "score_of_energy": row(score_by_energy, energy=("function", energy)),
    "exact_score_matching": row(
        dj.score.exact_score_matching, score_fn=("function", lambda x: -x), x=lone
    ),
    "sliced_score_matching": row(
        dj.score.sliced_score_matching,
        score_fn=("function", lambda x: -x),
        x=lone,
        projections=("replayed", NOISE[None]),
        variance_reduced=flag,
    ),
    "projections": row(
        dj.score.projections,
        keys=("any keys", KEYS),
        num=("whole", 2),
        shape=event["shape"],
        kind=("target", "rademacher"),
        dtype=dtype,
    ),
    "denoising_score_matching": row(
        dj.score.denoising_score_matching,
        score_fn=("function", lambda x: -x),
        x=x,
        noise=noise,
        sigma=positive_or_rows,
    ),
    "ncsn_loss": row(
        dj.score.ncsn_loss,
        score_fn=("function", lambda x, level: -x),
        x=x,
        level=("network steps", jnp.array([0, 1, 2])),
        noise=noise,
        sigmas=("ladder of a program", ladder),
        power=("number", 2.0),
    ),
}


@pytest.fixture(autouse=True)
def keys_may_be_reused():
    """One right call serves many wrong ones, keys and all."""
    with jax.debug_key_reuse(False):
        yield


# (row, argument, what is wrong): what it means, and a check of (result, right result).
FLOWS = ("sample", "encode", "log_likelihood")
CHURNED = dj.heun(
    SCHEDULE, churn=1e6, churn_range=(0.1, 5.0), churn_noise=positive[1], process=SCHEDULE
)


def churned(sampler):
    """A step of the sampler, whose level churn raises."""
    t = jnp.full(2, sampler.num_steps // 2)
    return sampler.step(lambda x, t: 0.5 * x, jnp.ones((2, 3)), t, jnp.ones((2, 3)), ()).x


DOCUMENTED: dict[tuple[str, str, str], tuple[str, Any]] = {
    ("karras_timesteps", "sigma_max", "inf"): (
        "no limit, the default",
        lambda result, right: result[-1] == T - 1,
    ),
    ("guidance_interval", "sigma_high", "inf"): (
        "every σ above sigma_low",
        lambda result, right: bool((result == jnp.array([1.0, 3.0, 3.0])).all()),
    ),
    ("min_snr_weighting", "gamma", "inf"): (
        "no limit: the SNR",
        lambda result, right: bool(jnp.isclose(result(jnp.array([9.0])), jnp.exp(9.0)).all()),
    ),
    ("heun", "churn", "inf"): (
        "the largest γ, √2 - 1, at every step",
        lambda result, right: bool((churned(result) == churned(CHURNED)).all()),
    ),
    ("karras_timesteps", "rho", "inf"): (
        "even in the log SNR, from σ = 80 down",
        lambda result, right: result[0] == 0 and result[-1] == right[-1],
    ),
    **{
        (f"probability_flow_{name}", tolerance, "traced"): ("a program for all tolerances", close)
        for name in FLOWS
        for tolerance in ("rtol", "atol")
    },
    ("schedule_from_beta", "beta", "traced"): ("a table to differentiate", close),
    ("schedule_from_alpha_bar", "alpha_bar", "traced"): ("a table to differentiate", close),
    ("schedule_from_log_snr", "log_snr", "traced"): ("a table to differentiate", close),
    **{
        (name, "variance", "another T"): ("a fixed variance of the sampler's grid", same)
        for name in ("make_denoiser", "sigma_denoiser", "classifier_free", "classifier_guided")
    },
    ("probability_flow_log_likelihood", "prior_std", "None"): ("σ_max, here 1", same),
    ("ncsn_loss", "sigmas", "rising"): (
        "σ = sigmas[level], in any order: here levels 0 and 2 exchanged",
        lambda result, right: bool((result[1] == right[1]) & (result[0] != right[0])),
    ),
    ("x_0_of", "denoised, x_t", "exchanged"): (
        "two batches of one shape: another call that is right",
        lambda result, right: result.shape == right.shape,
    ),
    ("host_array", "name, value", "exchanged"): (
        "any value of the host; what it holds is checked after",
        lambda result, right: result.shape == (),
    ),
    ("warmup_schedule", "beta_end, warmup_fraction", "exchanged"): (
        "two numbers of one range: another call that is right",
        lambda result, right: bool(jnp.isclose(result.beta[-1], 0.5)),
    ),
    ("karras_timesteps", "num_steps, rho", "exchanged"): (
        "two numbers of one range: another call that is right",
        lambda result, right: len(result) == 7,
    ),
    ("cosine_schedule", "offset, max_beta", "exchanged"): (
        "two numbers of one range: another call that is right",
        lambda result, right: bool(jnp.isclose(result.beta.max(), 0.008)),
    ),
}
NET = Net(ROOMS, ROWS, DOCUMENTED)


def test_every_public_function_has_a_row():
    assert not NET.missing()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not computed(row)])
def test_the_right_call_is_right(name):
    """Calls with arrays are made in `test_variants`."""
    call(ROWS[name], {})


@pytest.mark.parametrize("name", ROWS)
def test_float32_stays_float32_where_float64_is_enabled(name):
    """A constant of NumPy, unlike one of Python, makes float64 of it, which breaks gradients."""

    row = ROWS[name]

    def arrays(given):
        return [x for x in jax.tree.leaves(call(row, given)) if isinstance(x, jax.Array)]

    def kinds():
        return [x.dtype for x in jax.eval_shape(arrays, computed(row))]

    right = kinds()
    with jax.enable_x64(True):
        wide = kinds()
    floats = [(a, b) for a, b in zip(right, wide, strict=True) if jnp.issubdtype(a, jnp.floating)]
    assert all(a == b for a, b in floats), floats


@pytest.mark.parametrize("name", ROWS)
def test_wrong_calls_raise_an_error_of_ours(name):
    faults = NET.faults(name)
    assert not faults, "\n".join([name, *faults])


@pytest.mark.parametrize(
    "name",
    NET.with_whole_numbers(),
)
def test_whole_numbers_may_be_floats(name):
    assert not NET.refused_floats(name)


def test_documented_meanings_are_reached():
    """No entry of the table is left over from a call that has since become an error."""
    assert not NET.unreached()
