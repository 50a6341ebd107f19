"""Whole trajectories of diffusers' schedulers and ours, with the same network, start and noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.interop import Process, process_from_diffusers_config, process_to_diffusers_config
from ddpm_jax.programs.build import build_schedule
from ddpm_jax.programs.config import DiffusionConfig

SHAPE = (3, 6, 5, 2)  # NHWC
X_T = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(50, *SHAPE)).astype(np.float32)


def toy(x, t, xp, learned=False):
    """A network of no sense that leaves no symmetry: neighbours, channels and t all matter."""
    mixed = 0.7 * x + 0.4 * xp.roll(x, 1, -1) - 0.3 * xp.roll(x, 2, -3)
    output = xp.sin(mixed * (1 + t / 300.0)) + 0.2 * xp.cos(t / 50.0)
    if not learned:
        return output
    return xp.concatenate([output, xp.tanh(xp.roll(mixed, 1, -2))], axis=-1)


def theirs(torch, scheduler, num_steps, *, learned=False, **options):
    """x after each step of a scheduler, in float32: [S, *SHAPE]."""
    scheduler.set_timesteps(num_steps)
    x, kept = torch.tensor(X_T), []
    for k, t in enumerate(scheduler.timesteps):
        output = toy(x.numpy(), np.float32(t), np, learned)
        x = call(torch, scheduler, torch.tensor(output, dtype=torch.float32), t, x, k, options)
        kept.append(x.numpy())
    return np.stack(kept)


def call(torch, scheduler, output, t, x, k, options):
    """One step, on NCHW, with noise k in place of the scheduler's own."""

    def swap(array):
        return array.movedim(-1, 1)

    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    drawn = module.randn_tensor
    given = swap(torch.tensor(NOISE[k]))
    # A learned variance asks for as many channels of noise as the prediction has.
    module.randn_tensor = lambda shape, **_: given
    try:
        result = scheduler.step(swap(output), t, swap(x), **options)
    finally:
        module.randn_tensor = drawn
    return result.prev_sample.movedim(1, -1)


def ours(scheduler, process, make, *, learned=False, clip=None):
    """x after each step of our sampler on the scheduler's own grid: [S, *SHAPE]."""
    config = DiffusionConfig(*process[:4], target=process.target)
    full = build_schedule(config)
    full = dj.rescale_zero_terminal_snr(full) if process.zero_terminal_snr else full
    grid = dj.respace(full, np.sort(np.asarray(scheduler.timesteps)))

    def network(x, t):
        return toy(x, t.astype(jnp.float32).reshape(-1, 1, 1, 1), jnp, learned)

    denoise = dj.make_denoiser(
        full,
        network,
        target=process.target,
        variance=process.variance,
        clip=process.clip if clip is None else clip,
    )
    sampler = make(grid)
    noise = jnp.asarray(NOISE[: sampler.num_steps]) if sampler.stochastic else None
    run = jax.jit(lambda x, noise: dj.sample_trajectory(sampler, denoise, x, noise=noise)[1].x)
    return np.asarray(run(jnp.asarray(X_T), noise))[1:]


PROCESSES = {
    "as in the paper": Process("linear", 1000, 1e-4, 0.02, False, "epsilon", "fixed_large", True),
    "small variance, no clip": Process(
        "quadratic", 1000, 1e-4, 0.02, False, "x_0", "fixed_small", False
    ),
    "cosine, v": Process("cosine", 1000, 1e-4, 0.02, False, "v", "fixed_small", True),
    "learned range": Process("sigmoid", 1000, 1e-4, 0.02, False, "v", "learned_range", True),
    "stretched": Process("linear", 1000, 1e-4, 0.02, True, "v", "fixed_small", True),
    "a table": Process("constant", 400, 0.015, 0.015, False, "x_0", "fixed_large", True),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_ancestral_sampling_is_ddpm_scheduler(libraries, name):
    """Written as their configuration and read again; on 50 of the steps."""
    torch, diffusers = libraries
    process = PROCESSES[name]
    schedule = build_schedule(DiffusionConfig(*process[:4], target=process.target))
    config = process_to_diffusers_config(process, schedule)
    # Their "leading" grid leaves out the last step, where a stretched process has its zero.
    config |= {"timestep_spacing": "trailing"} if process.zero_terminal_snr else {}
    scheduler = diffusers.DDPMScheduler.from_config(config)
    assert process_from_diffusers_config(dict(scheduler.config)) == process
    learned = process.variance == "learned_range"
    make = functools.partial(dj.ancestral, variance=process.variance)
    truth = theirs(torch, scheduler, 50, learned=learned)
    got = ours(scheduler, process, make, learned=learned)
    assert np.std(truth[-1]) > 0.1
    np.testing.assert_allclose(got, truth, atol=5e-5, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_is_ddim_scheduler(libraries, eta, clip):
    """With ε̂ from the clipped x̂_0, as in the authors' code (use_clipped_model_output)."""
    torch, diffusers = libraries
    process = PROCESSES["as in the paper"]._replace(clip=clip, target="v")
    scheduler = diffusers.DDIMScheduler(clip_sample=clip, prediction_type="v_prediction")
    read = process_from_diffusers_config(dict(scheduler.config))
    assert read == process._replace(variance="fixed_small")
    truth = theirs(torch, scheduler, 50, eta=eta, use_clipped_model_output=True)
    got = ours(scheduler, process, functools.partial(dj.ddim, eta=eta))
    np.testing.assert_allclose(got, truth, atol=5e-5, rtol=0)


def test_dynamic_thresholding_is_theirs_below_their_limit(libraries):
    """Theirs stops at sample_max_value, ours has no such limit: equal where none is reached."""
    torch, diffusers = libraries
    process = PROCESSES["small variance, no clip"]
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="sample",
        thresholding=True,
        sample_max_value=50.0,
        dynamic_thresholding_ratio=0.9,
    )
    make = functools.partial(dj.ancestral, variance="fixed_small")
    truth = theirs(torch, scheduler, 50)
    got = ours(scheduler, process, make, clip=dj.dynamic_threshold(90.0))
    clipped = ours(scheduler, process, make, clip=True)
    np.testing.assert_allclose(got, truth, atol=1e-4)
    assert np.abs(clipped - truth).max() > 1e-2


def test_without_leaving_out_steps(libraries):
    """Every step of a shorter process, whose β is written and read as numbers."""
    torch, diffusers = libraries
    process = PROCESSES["as in the paper"]._replace(num_timesteps=50, beta_start=2e-3, beta_end=0.4)
    table = dj.linear_schedule(50, 2e-3, 0.4)
    scheduler = diffusers.DDPMScheduler.from_config(process_to_diffusers_config(process, table))
    np.testing.assert_allclose(scheduler.betas, table.beta, rtol=1e-6)
    truth = theirs(torch, scheduler, 50)
    np.testing.assert_allclose(ours(scheduler, process, dj.ancestral), truth, atol=5e-5, rtol=0)
