"""Processes of continuous time in the training program: what goes together, and what is trained."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import ddpm_jax as dj
import train_digits_flow
from ddpm_jax.forward import edm_process, flow_process, sub_vp_process, ve_process, vp_process
from ddpm_jax.keys import make_key, split_each
from ddpm_jax.losses import (
    continuous_loss,
    continuous_weight,
    edm_weighting,
    likelihood_times,
    logit_normal_times,
    lognormal_times,
    shift_times,
    uniform_times,
)
from ddpm_jax.programs.build import build_model, build_sampler
from ddpm_jax.programs.config import (
    DevicesConfig,
    DiffusionConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    SamplerOptions,
    TrainConfig,
)
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.train import train
from ddpm_jax.programs.trained_run import load_run
from tests.small_run import CONFIG

SHAPE, B, T = (4, 4, 1), 6, 20
IMAGES = np.random.default_rng(0).integers(0, 256, (B, *SHAPE)).astype(np.uint8)
BATCH = {"image": IMAGES, "index": np.arange(B, dtype=np.int32)}
RATES = {"beta_start": 0.1 / T, "beta_end": 20 / T}
SIGMAS = {"sigma_min": 0.01, "sigma_max": 80.0}
# name: (fields, the process, its times, the factor undoing their density, weighting)
CASES = {
    "vp": (
        {"process": "vp", **RATES, "timesteps": "likelihood", "weighting": "likelihood"},
        vp_process(),
        likelihood_times,
        "likelihood",
    ),
    "subvp": (
        {"process": "subvp", **RATES, "target": "v"},
        sub_vp_process(),
        uniform_times,
        None,
    ),
    "ve": (
        {"process": "ve", **SIGMAS, "target": "score", "weighting": "snr"},
        ve_process(0.01, 80.0),
        uniform_times,
        dj.losses.snr_weighting,
    ),
    "edm": (
        {
            "process": "edm",
            **SIGMAS,
            "target": "x_0",
            "sigma_data": 0.7,
            "timesteps": "lognormal",
            "weighting": "edm",
        },
        edm_process(0.01, 80.0),
        lognormal_times,
        edm_weighting(0.7),
    ),
    "flow": (
        {
            "process": "flow",
            "target": "velocity",
            "timesteps": "logit_normal",
            "time_shift": 3.0,
        },
        flow_process(),
        lambda keys, process: shift_times(logit_normal_times(keys, process), 3.0),
        None,
    ),
}


class Readable:
    """A network of one weight that remembers its inputs."""

    def __init__(self):
        self.seen = []

    def apply(self, variables, x, t, dropout_keys=None):
        self.seen.append((x, t))
        return variables["params"] * (x + 0.01 * t.reshape(-1, 1, 1, 1))


def config_of(**fields):
    diffusion = DiffusionConfig(**{"num_timesteps": T, **fields})
    network = NetworkConfig(
        channels=8, channel_multipliers=(1,), attention_resolutions=(), num_groups=4
    )
    return dataclasses.replace(CONFIG, network=network, diffusion=diffusion)


def model_of(name, **fields):
    model = build_model(config_of(**CASES[name][0], **fields), SHAPE, None)
    return dataclasses.replace(model, network=Readable())


def network_by_hand(name, process, weight):
    """`(x_t, t) -> output` of the readable network, with the scales of each process written out."""

    def apply(x, step):
        return weight * (x + 0.01 * step.reshape(-1, 1, 1, 1))

    def network(x, t):
        sigma = t.reshape(-1, 1, 1, 1)
        if name == "edm":
            norm = jnp.sqrt(sigma**2 + 0.49)
            inner = apply(x / norm, 250 * jnp.log(t) / 4)
            return 0.49 / norm**2 * x + sigma * 0.7 / norm * inner
        if name == "ve":
            return apply(x / jnp.sqrt(1 + process.noise_scale(sigma) ** 2), 1000 * t)
        return apply(x, 1000 * t)

    return network


def keys_of(seed=0):
    return dj.example_keys(jax.random.key(seed), jnp.arange(B))


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_a_configuration_is_the_librarys(name):
    fields, process, draw, weighting = CASES[name]
    key_t, key_noise, *_ = split_each(keys_of(), 5)
    drawn = draw(key_t, process)
    t, factor = drawn if isinstance(drawn, tuple) else (drawn, 1.0)
    x_0, noise = dj.from_pixels(IMAGES), dj.normal_per_example(key_noise, SHAPE)
    target, network = fields.get("target", "epsilon"), network_by_hand(name, process, 0.7)
    wanted = factor * continuous_loss(process, network, x_0, t, noise, target=target)
    if weighting is not None:
        wanted = wanted * continuous_weight(process, t, weighting, target=target)
    got = model_of(name).training_losses(0.7, BATCH, keys_of())
    np.testing.assert_allclose(got, wanted, rtol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_process_is_a_denoiser_on_its_table_and_at_every_noise_level(name):
    """x̂_0 of a network whose output is 0, solved by hand; the two denoisers agree."""
    fields, process, *_ = CASES[name]
    model = model_of(name)
    times = model.times
    assert times.shape == (T,) and (np.diff(times) > 0).all()
    np.testing.assert_allclose(times[-1], process.t_max)
    rows = np.array([0, 3, 9, 14, 17, 19 if name != "flow" else 18])
    s, n = (
        f(times[rows]).reshape(-1, 1, 1, 1) for f in (process.signal_scale, process.noise_scale)
    )
    x_t = np.random.default_rng(1).standard_normal((B, *SHAPE))
    x = np.hypot(s, n) * x_t
    wanted = {
        "epsilon": x / s,
        "score": x / s,
        "v": s * x / (s**2 + n**2),
        "velocity": x,
        "x_0": 0.49 / (n**2 + 0.49) * x,
    }[fields.get("target", "epsilon")]
    got = model.bind(0.0)(jnp.asarray(x_t, jnp.float32), jnp.asarray(rows))
    assert model.target == "x_0"
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-5)
    network = model.network
    seen, steps = network.seen[-1]
    clock = 62.5 * np.log(times[rows]) if name == "edm" else 1000 * times[rows]
    np.testing.assert_allclose(steps, clock, rtol=1e-4, atol=1e-4)
    if name in ("ve", "edm"):  # of variance one, for data of variance 1 and σ_data²
        wanted = x / np.sqrt(n**2 + (0.49 if name == "edm" else 1.0))
        np.testing.assert_allclose(seen, wanted, rtol=1e-4)
    sigma = jnp.asarray(n / s, jnp.float32).ravel()
    y = jnp.asarray(x / s, jnp.float32)
    at_sigma = model.sigma_denoiser(0.3)(y, sigma)
    on_table = model.bind(0.3)(jnp.asarray(x_t, jnp.float32), jnp.asarray(rows))
    np.testing.assert_allclose(at_sigma, on_table, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", CASES)
def test_heldout_losses_are_the_loss_and_the_tables_bound(name):
    fields, process, _, weighting = CASES[name]
    model = model_of(name)
    rows = jnp.array([0, 3, 7, 11, 15, 18])
    got = model.heldout_losses(0.7, IMAGES, {}, rows, keys_of())
    noise = dj.normal_per_example(dj.keys.fold_in_each(keys_of(), 0), SHAPE)
    x_0, t = dj.from_pixels(IMAGES), jnp.asarray(model.times, jnp.float32)[rows]
    target, network = fields.get("target", "epsilon"), network_by_hand(name, process, 0.7)
    loss = continuous_loss(process, network, x_0, t, noise, target=target)
    if weighting is not None:
        loss = loss * continuous_weight(process, t, weighting, target=target)
    bound = dj.estimate_bound(
        model.schedule, model.bind(0.7), x_0, rows[None], noise[None], target="x_0"
    )
    np.testing.assert_allclose(got[:, 0], loss, rtol=2e-4)
    np.testing.assert_allclose(got[:, 1], bound, rtol=1e-3)


SOLVERS = ("ddim", "dpm_solver_pp", "heun", "probability_flow_euler", "probability_flow_heun")


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("name", ["flow", "edm", "subvp"])
def test_samplers_reach_gaussian_data_from_any_process(name, sampler):
    """x̂_0 = c² s/(s²c² + n²) x_t is exact for N(0, c²), whose flow maps x_T to c x_T."""
    options = {"num_timesteps": 400, "beta_start": 0.1 / 400, "beta_end": 20 / 400}
    fields = {**CASES[name][0], **options, "time_shift": 1.0}
    model = build_model(config_of(**fields), SHAPE, None)
    schedule, c = model.schedule, 0.5

    def denoise(x, timesteps):
        s, n = (
            table[timesteps][:, None] for table in (schedule.signal_scale, schedule.noise_scale)
        )
        return c**2 * s / (s**2 * c**2 + n**2) * x

    chosen = SamplerOptions(sampler, num_steps=200, spacing="trailing")
    made = build_sampler(schedule, chosen, process=model.process, times=model.times)
    assert made.num_steps == 200
    got = dj.sample(made, denoise, jnp.array([[1.0, -2.0]]))
    np.testing.assert_allclose(got, [[c, -2 * c]], rtol=0.03)


def test_euler_maruyama_reaches_gaussian_data():
    fields = {"num_timesteps": 400, "beta_start": 0.1 / 400, "beta_end": 20 / 400}
    model = build_model(config_of(**{**CASES["vp"][0], **fields}), SHAPE, None)
    signal, noise = model.schedule.signal_scale, model.schedule.noise_scale

    def denoise(x, t):
        s, n = signal[t][:, None], noise[t][:, None]
        return 0.25 * s / (0.25 * s**2 + n**2) * x

    sampler = build_sampler(
        model.schedule,
        SamplerOptions("euler_maruyama", num_steps=200),
        process=model.process,
        times=model.times,
    )
    keys = dj.example_keys(jax.random.key(0), jnp.arange(4000))
    x = dj.sample(sampler, denoise, dj.initial_noise(keys, (1,)), keys=keys)
    # 4,000 draws know a standard deviation to 1.1 %; the rest is the solver's.
    np.testing.assert_allclose(float(jnp.std(x)), 0.5, rtol=0.06)


REFUSED = {
    "an unknown process": ({"process": "vpx"}, ["vpx", "ddpm, vp, subvp, ve, edm, flow"]),
    "ddpm, velocity": ({"target": "velocity"}, ["velocity", "epsilon or x_0 or v"]),
    "ddpm, log-normal times": ({"timesteps": "lognormal"}, ["lognormal", "uniform or stratified"]),
    "ddpm, likelihood": ({"weighting": "likelihood"}, ["likelihood", "bound"]),
    "ddpm, shift": ({"time_shift": 3.0}, ["--diffusion.time-shift 3.0 (use 1.0)"]),
    "vp, stratified": ({"process": "vp", "timesteps": "stratified"}, ["stratified", "uniform or"]),
    "vp, importance": ({"process": "vp", "timesteps": "importance"}, ["importance", "likelihood"]),
    "vp, schedule": ({"process": "vp", "schedule": "cosine"}, ["cosine (use linear)"]),
    "vp, mean": ({"process": "vp", "target": "previous_mean"}, ["previous_mean", "or velocity"]),
    "vp, bound": ({"process": "vp", "weighting": "bound"}, ["bound", "or likelihood"]),
    "vp, L": ({"process": "vp", "loss": "bound"}, ["--diffusion.loss bound (use simple)"]),
    "subvp, variance": (
        {"process": "subvp", "variance": "learned_range", "loss": "hybrid"},
        ["learned_range (use fixed_large or fixed_small)", "hybrid (use simple)"],
    ),
    "ve, exploding": (
        {"process": "ve", "sigma_max": 100.0, "exploding": True},
        ["exploding True (use False)"],
    ),
    "ve, NCSN's σ": ({"process": "ve"}, ["sigma-max 2,", "use 100"]),
    "edm, all at once": (
        {"process": "edm", "timesteps": "logit_normal"},
        ["epsilon (use x_0)", "logit_normal (use lognormal", "use 80"],
    ),
    "edm, σ_data": (
        {**CASES["edm"][0], "sigma_data": 0.0},
        ["sigma_data in (0, inf), got 0"],
    ),
    "flow, ε": ({"process": "flow"}, ["epsilon (use velocity or v or x_0)"]),
    "flow, likelihood": (
        {"process": "flow", "target": "velocity", "weighting": "likelihood"},
        ["weighting likelihood (use none"],
    ),
    "flow, zero SNR": (
        {"process": "flow", "target": "v", "zero_terminal_snr": True},
        ["zero-terminal-snr True (use False)"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_with_what_would(name, tmp_path):
    fields, words = REFUSED[name]
    config = dataclasses.replace(config_of(**fields), run_dir=tmp_path / "run")
    with pytest.raises(ValueError) as error:
        train(config)
    assert all(word in str(error.value) for word in words), error.value
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    "name, sampler, words",
    [
        (None, "probability_flow_heun", ["probability_flow_heun", "ddpm", "ddim, heun"]),
        (None, "euler_maruyama", ["euler_maruyama", "ddpm"]),
        ("flow", "euler_maruyama", ["finite g", "probability_flow_heun"]),
    ],
)
def test_samplers_that_do_not_fit_the_process_are_refused(name, sampler, words):
    fields = {} if name is None else CASES[name][0]
    model = build_model(config_of(**fields), SHAPE, None)
    with pytest.raises(ValueError) as error:
        build_sampler(
            model.schedule, SamplerOptions(sampler), process=model.process, times=model.times
        )
    assert all(word in str(error.value) for word in words), error.value


def test_the_configuration_of_an_earlier_run_is_a_ddpms():
    config = config_of(schedule="cosine", timesteps="importance")
    values = json.loads(json.dumps(to_json(config)))
    for name in ("process", "sigma_data", "time_shift"):
        del values["diffusion"][name]
    assert from_json(TrainConfig, values) == config and config.diffusion.process == "ddpm"


@pytest.mark.slow
def test_a_flow_is_trained_interrupted_resumed_and_sampled(tmp_path):
    """Six steps and then six more are twelve; a saved run samples as the library does by hand."""
    preset = train_digits_flow.CONFIG
    small = dataclasses.replace(
        preset,
        batch_size=8,
        network=config_of().network,
        diffusion=dataclasses.replace(preset.diffusion, num_timesteps=T, clip=False),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
        devices=DevicesConfig(count=1),
        report=ReportConfig(
            heldout_every=0,
            sample_every=0,
            checkpoint_every=6,
            final_count=2,
            final_steps=3,
            final_sampler="probability_flow_heun",
        ),
    )
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder, num_steps in ((folders[0], 12), (folders[1], 6), (folders[1], 12)):
        result = train(dataclasses.replace(small, run_dir=folder, num_steps=num_steps))
        assert result is not None and result.step == num_steps
    with ocp.StandardCheckpointer() as reader:
        whole, parts = (
            jax.tree.leaves(reader.restore((folder / "checkpoints" / "12").absolute()))
            for folder in folders
        )
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

    run = load_run(folders[1])
    got = run.sample(3, sampler="probability_flow_heun", num_steps=5, seed=4)
    times = (dj.spaced_timesteps(T, 5) + 1) / T
    network = lambda x, t: run.model.network.apply({"params": run.params}, x, 1000 * t)  # noqa: E731
    denoise = dj.denoisers.denoiser_from_process(
        dj.forward.flow_process(), times, network, target="velocity"
    )
    x_T = dj.initial_noise(dj.example_keys(make_key(4), jnp.arange(3)), run.model.image_shape)
    sampler = dj.samplers.probability_flow_heun(dj.forward.flow_process(), times)
    wanted = np.asarray(dj.to_pixels(dj.sample(sampler, denoise, x_T)), int)
    # Rounding may move a value over the edge between two grey levels.
    assert np.abs(got.astype(int) - wanted).max() <= 1 and (got == wanted).mean() > 0.99
    assert np.std(got) > 5


def test_karras_steps_of_infinite_rho_are_even_in_log_snr():
    """Of a geometric schedule that is even in t; of DDPM's as near as its steps allow."""
    levels = dj.schedule_from_noise_levels(np.geomspace(0.01, 50.0, 101))
    np.testing.assert_array_equal(
        dj.karras_timesteps(levels, 11, math.inf), np.linspace(0, 100, 11).astype(int)
    )
    schedule = dj.linear_schedule()
    steps = dj.karras_timesteps(schedule, 20, math.inf)
    log_snr = np.asarray(schedule.log_snr, np.float64)
    wanted = np.linspace(log_snr[0], log_snr[-1], 20)
    apart = np.abs(np.diff(log_snr)).max()
    assert np.abs(log_snr[steps] - wanted).max() <= apart
    near = np.abs(dj.karras_timesteps(schedule, 20, 1e4) - steps)
    assert near.max() <= 1
