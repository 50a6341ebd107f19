"""EDM's Algorithm 2 and its grid, against the paper's formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.forward import karras_timesteps
from ddpm_jax.samplers import heun
from tests.oracles import Tables

FULL = dj.linear_schedule()
ALPHA_BAR = Tables(np.linspace(1e-4, 0.02, 1000)).alpha_bar
SIGMA = np.sqrt(1 / ALPHA_BAR - 1)
rng = np.random.default_rng(0)
X_T, NOISE = rng.standard_normal((3, 5)), rng.standard_normal((12, 3, 5))


def toy(x, t, xp=jnp):
    return xp.tanh(x) * (0.9 - 0.0005 * t)


def reference(steps, churn=0.0, low=0.0, high=np.inf, churn_noise=1.0):
    """Algorithm 2 in y and σ; σ̂ rounded to the process. The network sees x = y/√(1+σ²)."""

    def slope(y, step):
        return (y - toy(y / np.sqrt(1 + SIGMA[step] ** 2), step, np)) / SIGMA[step]

    y = X_T * np.sqrt(1 + SIGMA[steps[-1]] ** 2)
    for k, i in enumerate(range(len(steps) - 1, -1, -1)):
        step = steps[i]
        gamma = min(churn / len(steps), np.sqrt(2) - 1) if low <= SIGMA[step] <= high else 0.0
        up = step + np.abs(SIGMA[step:] - (1 + gamma) * SIGMA[step]).argmin()
        y = y + np.sqrt(SIGMA[up] ** 2 - SIGMA[step] ** 2) * churn_noise * NOISE[k]
        target = SIGMA[steps[i - 1]] if i else 0.0
        d = slope(y, up)
        euler = y + (target - SIGMA[up]) * d
        if i:
            euler = y + (target - SIGMA[up]) * 0.5 * (d + slope(euler, steps[i - 1]))
        y = euler
    return y


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"churn": 2.0},
        {"churn": 80.0, "churn_range": (0.05, 2.0), "churn_noise": 1.007},
    ],
    ids=["no churn", "churn", "churn in a range"],
)
def test_equals_a_float64_run(kwargs):
    steps = karras_timesteps(FULL, 12)
    low, high = kwargs.get("churn_range", (0.0, np.inf))
    expected = reference(steps, kwargs.get("churn", 0.0), low, high, kwargs.get("churn_noise", 1.0))
    sampler = heun(dj.respace(FULL, steps), process=FULL, **kwargs)
    noise = jnp.float32(NOISE) if kwargs else None
    got = dj.sample(sampler, lambda x, t: toy(x, t[:, None]), jnp.float32(X_T), noise=noise)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)
    assert sampler.num_draws == bool(kwargs)


def test_from_infinite_noise_the_first_step_is_eulers():
    grid = dj.schedule_from_alpha_bar([0.9, 0.5, 0.1, 0.0])
    t, x = jnp.full(3, 3), jnp.float32(X_T)
    got = heun(grid).step(lambda x, t: toy(x, t[:, None]), x, t, None, ()).x
    expected = np.sqrt(0.1) * toy(X_T, 3, np) + np.sqrt(0.9) * X_T
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_last_step_costs_one_evaluation_and_the_others_two():
    fed = []

    def denoise(x, t):
        jax.debug.callback(lambda step: fed.append(int(step)), t[0], ordered=True)
        return 0.3 * x

    dj.sample(heun(dj.respace(FULL, [20, 300, 700])), denoise, jnp.ones((2, 3)))
    jax.effects_barrier()
    assert fed == [700, 300, 300, 20, 20]


def test_karras_grid_is_nearest_to_the_formula():
    """Eq. 5 of the paper; where levels are dense against the grid, each is within half a gap."""
    steps = karras_timesteps(FULL, 18)
    i = np.arange(18)
    wanted = (SIGMA[-1] ** (1 / 7) + i / 17 * (SIGMA[0] ** (1 / 7) - SIGMA[-1] ** (1 / 7))) ** 7
    nearest = np.abs(SIGMA[:, None] - wanted[::-1]).argmin(0)
    np.testing.assert_array_equal(steps, nearest)
    assert steps[0] == 0 and steps[-1] == 999 and steps.dtype == np.int32


@pytest.mark.parametrize("rho", [1.0, 7.0, 40.0])
@pytest.mark.parametrize("num_steps", [1, 2, 10, 300, 999, 1000])
def test_karras_grids_have_as_many_distinct_steps_as_asked_for(num_steps, rho):
    steps = karras_timesteps(FULL, num_steps, rho)
    assert steps.shape == (num_steps,) and (np.diff(steps) > 0).all()
    assert steps[0] >= 0 and steps[-1] == 999


def test_karras_grids_leave_out_infinite_and_too_large_noise():
    assert karras_timesteps(dj.jsd_schedule(100), 10)[-1] == 98
    cosine = dj.cosine_schedule()
    steps = karras_timesteps(cosine, 20, sigma_max=80.0)
    sigma = np.exp(-0.5 * np.asarray(cosine.log_snr))
    assert sigma[steps[-1]] <= 80 < sigma[steps[-1] + 1]


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: heun(FULL, churn=-1.0), r"churn in \[0, inf\]"),
        (lambda: heun(FULL, churn=1.0), "process="),
        (
            lambda: heun(FULL, churn=1.0, process=dj.respace(FULL, [0, 5])),
            "grid has timestep 1,",
        ),
        (lambda: karras_timesteps(FULL, 1001), r"num_steps, a whole number in 1\.\.1000"),
        (lambda: karras_timesteps(FULL, 10, rho=0.0), r"rho in \(0, inf\]"),
        (lambda: karras_timesteps(dj.jsd_schedule(100), 100), r"in 1\.\.99"),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("num_steps", [5, 10, 20, 50])
def test_a_first_step_from_a_huge_sigma_does_no_harm(schedule, num_steps):
    """Against the exact ODE of Gaussian data, whose y - mean grows like √(s² + σ²): the cosine
    schedule begins at σ = 20,291, and with few steps the next σ is 3,000 times as small."""
    mean, s = 0.5, 0.3
    process = {"cosine": dj.cosine_schedule, "linear": dj.linear_schedule}[schedule](1000)
    grid = dj.respace(process, dj.spaced_timesteps(1000, num_steps))
    signal, sigma = process.signal_scale, process.noise_scale / process.signal_scale

    def denoise(x, t):
        y, variance = x / signal[t][:, None], (sigma[t] ** 2)[:, None]
        return (s**2 * y + variance * mean) / (s**2 + variance)

    x_T = np.random.default_rng(0).normal(size=(50, 3))
    first = float(np.exp(-0.5 * np.float64(grid.log_snr[-1])))
    last = float(np.exp(-0.5 * np.float64(grid.log_snr[0])))
    y = x_T * np.sqrt(1 + first**2)
    y = mean + (y - mean) * np.sqrt((s**2 + last**2) / (s**2 + first**2))
    exact = (s**2 * y + last**2 * mean) / (s**2 + last**2)  # the last step returns x̂_0
    errors = {
        name: np.abs(np.asarray(dj.sample(make(grid), denoise, jnp.float32(x_T))) - exact).max()
        for name, make in (("heun", dj.heun), ("ddim", dj.ddim))
    }
    assert errors["heun"] < errors["ddim"]
