"""Continuous time: every process against closed forms, one Gaussian model for all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import denoisers, forward, losses, samplers
from ddpm_jax.denoisers.continuous import CONTINUOUS_TARGETS

PROCESSES = {
    "vp": forward.vp_process(),
    "subvp": forward.sub_vp_process(),
    "ve": forward.ve_process(0.005, 60.0),
    "edm": forward.edm_process(),
    "flow": forward.flow_process(),
}
LOW, HIGH = 0.02, 20.0  # noise levels that all of them have
MEAN, STD = 0.3, 0.5
RNG = np.random.default_rng(0)
each = pytest.mark.parametrize("name", PROCESSES)


def times(process, steps, low=LOW, high=HIGH):
    """The times of the same levels, whatever the process; float64."""
    return process.time_at_log_snr(-2 * np.log(np.geomspace(low, high, steps)))


def denoise(y, sigma):
    """E[x_0 | y] of x_0 ~ N(m, c² I)."""
    sigma = jnp.reshape(sigma, jnp.shape(sigma) + (1,) * (y.ndim - jnp.ndim(sigma)))
    return MEAN + STD**2 * (y - MEAN) / (STD**2 + sigma**2)


def exact(process, x_t, t):
    """E[x_0 | x_t] without a division by s."""
    signal, noise = process.signal_scale(t)[:, None], process.noise_scale(t)[:, None]
    gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
    return MEAN + gain * (x_t - signal * MEAN)


def network(process, target):
    """What a perfect network of this target returns."""

    def apply(x_t, t):
        x_0_hat = exact(process, x_t, t)
        signal, noise = process.signal_scale(t)[:, None], process.noise_scale(t)[:, None]
        epsilon_hat = (x_t - signal * x_0_hat) / noise
        signal_rate, noise_rate = (rate[:, None] for rate in process.rates(t))
        norm = jnp.sqrt(signal**2 + noise**2)
        return {
            "epsilon": epsilon_hat,
            "x_0": x_0_hat,
            "v": (signal * epsilon_hat - noise * x_0_hat) / norm,
            "velocity": signal_rate * x_0_hat + noise_rate * epsilon_hat,
            "score": -epsilon_hat / noise,
        }[target]

    return apply


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@each
def test_the_ends_of_a_process_are_times_of_it_in_every_precision(name, dtype):
    process, x = PROCESSES[name], jnp.ones((1, 2), dtype)
    for t in (process.t_min, process.t_max):
        assert forward.process_sample(process, x, t, x).dtype == dtype
    with pytest.raises(ValueError, match="needs times t in"):
        forward.process_sample(process, x, 1.02 * process.t_max, x)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@each
def test_half_precision_keeps_its_noise_level(name, dtype):
    """Rounded to its bits it would leave the process at its ends, and be another one between."""
    process = PROCESSES[name]
    ends = np.exp(-0.5 * process.log_snr(np.array([process.t_min, process.t_max])))
    sigma = np.array([ends[0], 0.3, min(ends[1], 1e3)])
    seen = []

    def apply(x_t, t):
        seen.append((x_t.dtype, t))
        return exact(process, x_t.astype(jnp.float32), t)

    model = denoisers.sigma_denoiser_from_process(process, apply, target="x_0")
    got = model(jnp.ones((3, 2), dtype), jnp.asarray(sigma, jnp.float32))
    [(seen_dtype, t)] = seen
    assert seen_dtype == got.dtype == dtype
    np.testing.assert_allclose(process.log_snr(np.asarray(t)), -2 * np.log(sigma), atol=1e-3)
    np.testing.assert_allclose(got.astype(jnp.float32), denoise(np.ones((3, 2)), sigma), rtol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_preconditioning_half_precision_keeps_its_noise_level(dtype):
    sigma, seen = np.array([0.002, 0.3, 80.0]), []

    def apply(x, c_noise):
        seen.append((x.dtype, c_noise))
        return jnp.zeros_like(x)

    model = denoisers.edm_denoiser(apply)
    got = model(jnp.ones((3, 2), dtype), jnp.asarray(sigma, jnp.float32))
    [(seen_dtype, c_noise)] = seen
    assert seen_dtype == got.dtype == dtype
    np.testing.assert_allclose(c_noise, 0.25 * np.log(sigma), rtol=1e-5)
    np.testing.assert_allclose(got[:, 0].astype(jnp.float32), 0.25 / (sigma**2 + 0.25), rtol=0.005)


@each
def test_functions_of_time_belong_together(name):
    """f = d log s/dt, g² = dn²/dt - 2 f n², by central differences in float64; and inverses."""
    process = PROCESSES[name]
    t = times(process, 50)
    signal, noise = process.signal_scale(t), process.noise_scale(t)
    assert noise.dtype == np.float64
    np.testing.assert_allclose(process.log_snr(t), 2 * np.log(signal / noise), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(noise / signal, np.geomspace(LOW, HIGH, 50), rtol=1e-9)
    h = 1e-5 * t
    drift = (np.log(process.signal_scale(t + h)) - np.log(process.signal_scale(t - h))) / (2 * h)
    rate = (process.noise_scale(t + h) ** 2 - process.noise_scale(t - h) ** 2) / (2 * h)
    np.testing.assert_allclose(process.drift(t), drift, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        process.diffusion(t) ** 2, rate - 2 * drift * noise**2, rtol=1e-5, atol=1e-8
    )
    for function in ("signal_scale", "noise_scale", "log_snr", "drift", "diffusion"):
        want = getattr(process, function)(t)
        got = getattr(process, function)(jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_closed_forms_of_the_papers():
    t = np.linspace(0.1, 1.0, 10)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    vp, subvp = PROCESSES["vp"], PROCESSES["subvp"]
    np.testing.assert_allclose(vp.noise_scale(t) ** 2, 1 - np.exp(-integral), rtol=1e-12)
    np.testing.assert_allclose(subvp.noise_scale(t), 1 - np.exp(-integral), rtol=1e-12)
    np.testing.assert_allclose(
        subvp.diffusion(t) ** 2, (0.1 + 19.9 * t) * (1 - np.exp(-2 * integral)), rtol=1e-12
    )
    np.testing.assert_allclose(PROCESSES["ve"].noise_scale(t), 0.005 * 12000**t, rtol=1e-12)


def test_ddpm_is_a_table_of_the_vp_process():
    """linear_schedule(T, 0.1/T, 20/T) → VP at t = 1/T … 1: log ᾱ to first order in 1/T."""
    errors = []
    for steps in (250, 1000):
        discrete = dj.linear_schedule(steps, 0.1 / steps, 20 / steps)
        table = forward.schedule_from_process(PROCESSES["vp"], (np.arange(steps) + 1.0) / steps)
        off = np.log(np.asarray(discrete.alpha_bar)) - np.log(np.asarray(table.alpha_bar))
        errors.append(np.abs(off).max())
    assert errors[1] < 0.15
    np.testing.assert_allclose(errors[0] / errors[1], 4.0, rtol=0.1)


@each
def test_every_process_has_the_same_tables(name):
    """ᾱ of the same levels, and the flow's time as a function of σ."""
    process = PROCESSES[name]
    sigma = np.geomspace(LOW, HIGH, 20)
    table = forward.schedule_from_process(process, times(process, 20))
    np.testing.assert_allclose(table.alpha_bar, 1 / (1 + sigma**2), rtol=1e-6)
    np.testing.assert_allclose(
        table.beta, forward.schedule_from_noise_levels(sigma).beta, rtol=1e-5
    )
    np.testing.assert_allclose(times(PROCESSES["flow"], 20), sigma / (1 + sigma), rtol=1e-12)


@pytest.mark.parametrize("target", CONTINUOUS_TARGETS)
@each
def test_targets_and_denoisers_convert_both_ways(name, target):
    process, apply = PROCESSES[name], network(PROCESSES[name], target)
    t = jnp.asarray(times(process, 8), jnp.float32)
    x_0, noise = (jnp.asarray(RNG.standard_normal((8, 3)), jnp.float32) for _ in range(2))
    x_t = forward.process_sample(process, x_0, t, noise)
    truth = denoisers.continuous_target(process, x_0, t, noise, target=target)
    back = denoisers.continuous_x_0(process, truth, x_t, t, target=target)
    np.testing.assert_allclose(back, x_0, atol=2e-4)
    y = x_t / process.signal_scale(t)[:, None]
    sigma = jnp.exp(-0.5 * process.log_snr(t))
    seen = denoisers.sigma_denoiser_from_process(process, apply, target=target)
    np.testing.assert_allclose(seen(y, sigma), denoise(y, sigma), atol=3e-4)
    velocity = denoisers.velocity_from_denoiser(process, seen)(x_t, t)
    want = network(process, "velocity")(x_t, t)
    np.testing.assert_allclose(velocity, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
    assert np.isnan(seen(y, sigma / 1e9)).all()


SOLVERS = {
    "euler": (samplers.probability_flow_euler, 0.06),
    "heun": (samplers.probability_flow_heun, 5e-3),
    "ddim": (lambda process, t: dj.ddim(forward.schedule_from_process(process, t)), 0.06),
    "heun in σ": (lambda process, t: dj.heun(forward.schedule_from_process(process, t)), 5e-3),
    "dpm": (lambda process, t: dj.dpm_solver_pp(forward.schedule_from_process(process, t)), 5e-3),
}
X_T = jnp.asarray(RNG.standard_normal((6, 2)), jnp.float32)


def quantiles(x_T, sigma):
    """The flow's end x_0 from x_T of variance one at level σ: the map of quantiles."""
    y = np.asarray(x_T, np.float64) * np.sqrt(1 + sigma**2)
    return MEAN + STD * (y - MEAN) / np.sqrt(STD**2 + sigma**2)


def solve(process, solver, steps, target="velocity"):
    grid = times(process, steps)
    model = denoisers.denoiser_from_process(process, grid, network(process, target), target=target)
    return np.asarray(jax.jit(lambda x: dj.sample(solver(process, grid), model, x))(X_T))


@pytest.mark.parametrize("solver", SOLVERS)
@each
def test_every_process_gives_the_same_samples(name, solver):
    make, tolerance = SOLVERS[solver]
    if (name, solver) == ("ve", "euler"):  # its t is log σ, where Euler's method errs most
        tolerance *= 3
    got = solve(PROCESSES[name], make, 60)
    np.testing.assert_allclose(got, quantiles(X_T, HIGH), atol=tolerance)


@pytest.mark.parametrize("solver,order", [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_solvers_in_t_have_their_order(name, solver, order):
    """Ends at a level of the grid, so that only the steps err and not the last x̂_0."""
    process = PROCESSES[name]

    def error(steps):
        grid = times(process, steps, low=0.3)
        apply = network(process, "velocity")
        model = denoisers.denoiser_from_process(process, grid, apply, target="velocity")
        sampler = SOLVERS[solver][0](process, grid)
        _, way = dj.sample_trajectory(sampler, model, X_T)
        last = np.asarray(way.x[-2], np.float64) * np.sqrt(1 + 0.3**2)
        scale = np.sqrt((STD**2 + 0.3**2) / (STD**2 + HIGH**2))
        want = MEAN + scale * (np.asarray(X_T) * np.sqrt(1 + HIGH**2) - MEAN)
        return np.abs(last - want).max()

    np.testing.assert_allclose(np.log2(error(20) / error(40)), order, atol=0.35)


def test_straight_path_from_its_end():
    """From t = 1, where nothing of x_0 is left: Euler in t is DDIM, and finite."""
    process, grid = PROCESSES["flow"], np.linspace(0.0, 1.0, 65)[1:]
    model = denoisers.denoiser_from_process(
        process, grid, network(process, "velocity"), target="velocity"
    )
    euler = dj.sample(samplers.probability_flow_euler(process, grid), model, X_T)
    np.testing.assert_allclose(euler, dj.sample(dj.ddim(model.schedule), model, X_T), atol=1e-5)
    np.testing.assert_allclose(euler, MEAN + STD * np.asarray(X_T), atol=0.03)
    heun = dj.sample(samplers.probability_flow_heun(process, grid), model, X_T)
    np.testing.assert_allclose(heun, MEAN + STD * np.asarray(X_T), atol=3e-3)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (samplers.probability_flow_euler, 6),
        (samplers.probability_flow_heun, 11),
        (samplers.euler_maruyama, 6),
    ],
)
def test_samplers_in_time_evaluate_the_network_as_often_as_they_say(make, count):
    seen = []

    def denoise(x_t, t):
        jax.debug.callback(lambda step: seen.append(int(step)), t[0], ordered=True)
        return 0.5 * x_t

    keys = dj.example_keys(jax.random.key(0), jnp.arange(1))
    dj.sample(make(PROCESSES["vp"], GRID), denoise, X_0[:1], keys=keys)
    jax.effects_barrier()
    assert len(seen) == count and set(seen) == set(range(STEPS))


def test_heun_of_the_edm_process_is_edms():
    process = PROCESSES["edm"]
    got, want = (solve(process, SOLVERS[name][0], 12, "x_0") for name in ("heun", "heun in σ"))
    np.testing.assert_allclose(got, want, atol=2e-5)


@each
def test_reverse_sde_gives_the_data(name):
    process = PROCESSES[name]
    grid = times(process, 150)
    model = denoisers.denoiser_from_process(process, grid, network(process, "x_0"), target="x_0")
    sampler = samplers.euler_maruyama(process, grid)
    row_keys = dj.example_keys(jax.random.key(0), jnp.arange(500))
    # The exact marginal at σ_max, of variance one.
    z = dj.initial_noise(row_keys, (8,))
    x_T = (MEAN + np.sqrt(STD**2 + HIGH**2) * z) / np.sqrt(1 + HIGH**2)
    x = np.asarray(jax.jit(lambda x, keys: dj.sample(sampler, model, x, keys=keys))(x_T, row_keys))
    assert abs(x.mean() - MEAN) < 4 * STD / np.sqrt(x.size)
    np.testing.assert_allclose(x.std(), STD, rtol=0.06)  # 4000 values: 1.1 %; and the step's error


@each
def test_likelihood_is_the_gaussians(name):
    process = PROCESSES[name]
    model = denoisers.sigma_denoiser_from_process(
        process, network(process, "velocity"), target="velocity"
    )
    y_0 = jnp.asarray(MEAN + STD * RNG.standard_normal((3, 2)), jnp.float32)
    spread = float(np.sqrt(STD**2 + HIGH**2))
    flow = jax.jit(
        lambda y: dj.probability_flow_log_likelihood(
            model,
            y,
            sigma_min=LOW,
            sigma_max=HIGH,
            trace="exact",
            prior_mean=MEAN,
            prior_std=spread,
        )
    )(y_0)
    variance = STD**2 + LOW**2
    squared = (np.asarray(y_0, np.float64) - MEAN) ** 2 / variance
    want = -0.5 * (squared + np.log(2 * np.pi * variance)).sum(1)
    assert flow.converged.all()
    np.testing.assert_allclose(flow.log_likelihood, want, atol=3e-3)


STEPS = 6
GRID = times(PROCESSES["vp"], STEPS)
TABLE = forward.schedule_from_process(PROCESSES["vp"], GRID)
T = jnp.asarray(GRID, jnp.float32)
X_0, NOISE = (jnp.asarray(RNG.standard_normal((STEPS, 4)), jnp.float32) for _ in range(2))


@pytest.mark.parametrize("target", ["epsilon", "x_0", "v", "score"])
def test_losses_are_those_of_the_table(target):
    """L_simple and its weights, at the times of a discrete process; one network evaluation."""
    calls = []

    def apply(x_t, t):
        calls.append(1)
        return 0.3 * jnp.tanh(x_t)

    process, index = PROCESSES["vp"], jnp.arange(STEPS)
    got = losses.continuous_loss(process, apply, X_0, T, NOISE, target=target)
    assert len(calls) == 1
    want = dj.simple_loss(TABLE, apply, X_0, index, NOISE, target=target)
    np.testing.assert_allclose(got, want, rtol=1e-3)
    weighting = dj.min_snr_weighting(5.0)
    got = losses.continuous_weight(process, T, weighting, target=target)
    want = dj.loss_weight(TABLE, index, weighting, target=target)
    np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.parametrize("target", CONTINUOUS_TARGETS)
@each
def test_likelihood_weighting_integrates_to_the_closed_form(name, target):
    """½ ∫ -dλ E‖ε - ε̂‖² = ½ log (1 + c² SNR) between the ends, by any target and process.

    The mean over x_0 = m ± c and ε = ±1 is the exact expectation of a quadratic.
    """
    process, count = PROCESSES[name], 2000
    edges = np.linspace(-2 * np.log(LOW), -2 * np.log(HIGH), count + 1)
    t = jnp.asarray(process.time_at_log_snr(0.5 * (edges[1:] + edges[:-1])), jnp.float32)
    width = np.diff(process.time_at_log_snr(edges))
    sign = jnp.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], jnp.float32)
    x_0, noise = jnp.tile(MEAN + STD * sign[:, :1], (count, 1)), jnp.tile(sign[:, 1:], (count, 1))

    @jax.jit
    def weighted():
        times = jnp.repeat(t, 4)
        loss = losses.continuous_loss(
            process, network(process, target), x_0, times, noise, target=target
        )
        return loss * losses.continuous_weight(process, times, "likelihood", target=target)

    got = (np.asarray(weighted(), np.float64).reshape(count, 4).mean(1) * width).sum()
    ends = np.log1p(STD**2 / np.square([LOW, HIGH]))
    np.testing.assert_allclose(got, 0.5 * (ends[0] - ends[1]), rtol=3e-3)


@pytest.mark.parametrize(
    "target, expected",
    [
        ("x_0", lambda t: (1 - t) / t**3),
        ("velocity", lambda t: (1 - t) / t),
        ("v", lambda t: (1 - t) / (t * (t**2 + (1 - t) ** 2))),
    ],
)
def test_likelihood_weighting_of_the_flow_falls_to_0_at_its_end(target, expected):
    """½ g² s²/n⁴ = (1-t)/t³ for x_0, although g is infinite at t = 1."""
    t = np.array([1e-4, 0.1, 0.5, 0.999, 1.0])
    flow = PROCESSES["flow"]
    got = losses.continuous_weight(flow, jnp.asarray(t, jnp.float32), "likelihood", target=target)
    np.testing.assert_allclose(got, expected(t), rtol=2e-4)


def keys(count=20_000):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "edm"])
def test_importance_times_make_the_likelihood_weight_constant(name):
    process = PROCESSES[name]
    t, weight = losses.likelihood_times(keys(), process)
    both = weight * losses.continuous_weight(process, t, "likelihood", target="epsilon")
    ends = process.log_snr(np.array([process.t_min, process.t_max]))
    np.testing.assert_allclose(both, 0.5 * (ends[0] - ends[1]), rtol=1e-3)
    # Unbiased: E[1/p] is the length of the interval.
    spread = np.asarray(weight, np.float64).std() / np.sqrt(weight.size)
    length = process.t_max - process.t_min
    assert abs(np.mean(weight) - length) < 5 * spread + 1e-5 * length


def test_distributions_of_times():
    edm, flow = PROCESSES["edm"], PROCESSES["flow"]
    log_sigma = np.log(np.asarray(losses.lognormal_times(keys(), edm), np.float64))
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=0.04)
    same = losses.lognormal_times(keys(), flow)
    np.testing.assert_allclose(-0.5 * flow.log_snr(same), log_sigma, atol=2e-3)
    t = np.asarray(losses.logit_normal_times(keys(), flow, mean=0.5, std=0.7), np.float64)
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0.5, 0.7], atol=0.03)
    uniform = np.asarray(losses.uniform_times(keys(), edm))
    assert uniform.min() >= edm.t_min and uniform.max() <= edm.t_max
    np.testing.assert_allclose(uniform.mean(), 40.0, atol=1.0)
    # The shift multiplies σ by α.
    t = np.linspace(0.1, 0.9, 5)
    ratio = flow.log_snr(np.asarray(losses.shift_times(t, 3.0), np.float64)) - flow.log_snr(t)
    np.testing.assert_allclose(ratio, -2 * np.log(3.0), atol=1e-5)


def test_edm_trains_its_inner_network_with_unit_weight():
    """λ(σ) ‖D - x_0‖² = ‖F - F*‖², F* = (x_0 - c_skip y)/c_out (Karras et al. 2022, Eq. 8)."""
    process, sigma_data = PROCESSES["edm"], 0.5
    sigma = jnp.asarray(np.geomspace(0.01, 50, STEPS), jnp.float32)
    seen = {}

    def inner(x, c_noise):
        seen["x"], seen["c_noise"] = x, c_noise
        return 0.4 * jnp.tanh(x)

    model = denoisers.edm_denoiser(inner, sigma_data=sigma_data)
    loss = losses.continuous_loss(process, model, X_0, sigma, NOISE, target="x_0")
    got = loss * losses.continuous_weight(
        process, sigma, losses.edm_weighting(sigma_data), target="x_0"
    )
    s, x_0 = np.asarray(sigma, np.float64)[:, None], np.asarray(X_0, np.float64)
    y, norm = x_0 + s * np.asarray(NOISE, np.float64), np.sqrt(s**2 + sigma_data**2)
    wanted = (x_0 - (sigma_data / norm) ** 2 * y) / (s * sigma_data / norm)
    want = np.square(0.4 * np.tanh(y / norm) - wanted).mean(1)
    np.testing.assert_allclose(got, want, rtol=3e-3)
    np.testing.assert_allclose(seen["x"], y / norm, rtol=1e-5)
    np.testing.assert_allclose(seen["c_noise"], np.log(s[:, 0]) / 4, rtol=1e-5)


FLOW, EDM = PROCESSES["flow"], PROCESSES["edm"]
EVENTS = jnp.ones((2, 3))
REFUSED = {
    "ε at t = 1": (
        lambda: denoisers.continuous_x_0(FLOW, EVENTS, EVENTS, 1.0, target="epsilon"),
        "predicts 'velocity'",
    ),
    "a grid to t = 1 for ε": (
        lambda: denoisers.denoiser_from_process(FLOW, [0.5, 1.0], lambda x, t: x, target="epsilon"),
        "predicts 'velocity'",
    ),
    "the reverse SDE at t = 1": (
        lambda: samplers.euler_maruyama(FLOW, [0.5, 1.0]),
        "use probability_flow_heun",
    ),
    "the data's own time": (
        lambda: samplers.probability_flow_heun(FLOW, [0.0, 1.0]),
        "strictly rising times from 0.0001 to 1",
    ),
    "falling times": (
        lambda: forward.schedule_from_process(EDM, [2.0, 1.0]),
        "strictly rising times",
    ),
    "a time in [0, 1] for EDM": (
        lambda: losses.logit_normal_times(keys(2), EDM),
        "use lognormal_times",
    ),
    "importance for the flow": (
        lambda: losses.likelihood_times(keys(2), FLOW),
        "vp_process, or uniform_times",
    ),
    "the previous mean": (
        lambda: denoisers.continuous_target(FLOW, EVENTS, 0.5, EVENTS, target="previous_mean"),
        "belongs to a discrete process",
    ),
    "a time out of range": (
        lambda: forward.process_sample(FLOW, EVENTS, 1.5, EVENTS),
        r"times t in \[0.0001, 1\]",
    ),
    "another weighting": (
        lambda: losses.continuous_weight(FLOW, jnp.array([0.5]), "snr", target="x_0"),
        "or 'likelihood'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_would_work(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_discrete_network_becomes_a_flow():
    """Through σ: the velocity of a DDPM's network moves samples along the straight path."""
    schedule = dj.linear_schedule()
    table = jnp.asarray(schedule.alpha_bar)

    def ddpm(x, timesteps):
        alpha_bar = jnp.interp(timesteps, jnp.arange(1000.0), table)[:, None]
        y, sigma = x / jnp.sqrt(alpha_bar), jnp.sqrt(1 / alpha_bar - 1)
        return (y - denoise(y, sigma)) / sigma

    velocity = denoisers.velocity_from_denoiser(FLOW, dj.sigma_denoiser(schedule, ddpm))
    model = functools.partial(denoisers.denoiser_from_process, FLOW, target="velocity")
    grid = times(FLOW, 60)
    sampler = samplers.probability_flow_heun(FLOW, grid)
    got = jax.jit(lambda x: dj.sample(sampler, model(grid, velocity), x))(X_T)
    np.testing.assert_allclose(got, quantiles(X_T, HIGH), atol=0.01)


def test_a_number_as_time_is_as_exact_beside_half_precision():
    x = jnp.ones((2, 3), jnp.bfloat16)
    got = forward.process_sample(PROCESSES["flow"], x, 0.999, 0 * x)
    np.testing.assert_allclose(np.asarray(got, np.float64), 0.001, rtol=1e-3)
