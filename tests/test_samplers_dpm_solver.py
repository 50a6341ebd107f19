"""DPM-Solver++ against the paper's formulas in float64, another library, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.samplers import dpm_solver_pp
from tests.oracles import Tables

BETA = np.linspace(1e-4, 0.02, 1000)
FULL = dj.linear_schedule()
TRUTH = Tables(BETA)
rng = np.random.default_rng(0)
X_T, NOISE = rng.standard_normal((3, 5)), rng.standard_normal((20, 3, 5))


def toy(x, t, xp=jnp):
    return xp.tanh(x) * (0.9 - 0.0005 * t)


def denoise(x, t):
    return toy(x, t[:, None])


def reference(alpha_bar, fed, order, sde):
    """Algorithm 2 of the paper and its SDE form, by λ and h; the last step gives x̂_0."""
    lam = 0.5 * np.log(alpha_bar / (1 - alpha_bar))
    x, old = X_T.copy(), None
    for k, i in enumerate(range(len(fed) - 1, -1, -1)):
        new = toy(x, fed[i], np)
        if i == 0:
            return new
        h = lam[i - 1] - lam[i]
        signal, noise = np.sqrt(alpha_bar[i - 1]), np.sqrt(1 - alpha_bar[i - 1])
        D = new
        if order == 2 and old is not None:
            r = (lam[i] - lam[i + 1]) / h
            D = (1 + 1 / (2 * r)) * new - 1 / (2 * r) * old
        ratio = noise / np.sqrt(1 - alpha_bar[i])
        if sde:
            x = ratio * np.exp(-h) * x - signal * np.expm1(-2 * h) * D
            x = x + noise * np.sqrt(-np.expm1(-2 * h)) * NOISE[k]
        else:
            x = ratio * x - signal * np.expm1(-h) * D
        old = new


def third(alpha_bar, fed):
    """Order 3 as ∫ e^λ P(λ) dλ by quadrature, P the parabola through the last three x̂_0."""
    lam = 0.5 * np.log(alpha_bar / (1 - alpha_bar))
    points, weights = np.polynomial.legendre.leggauss(40)
    x, lams, seen = X_T.copy(), [], []
    for i in range(len(fed) - 1, -1, -1):
        lams, seen = [lam[i], *lams][:3], [toy(x, fed[i], np), *seen][:3]
        if i == 0:
            return seen[0]
        at = lam[i] + (lam[i - 1] - lam[i]) * (points + 1) / 2
        through = np.polynomial.polynomial.polyvander(at - lam[i], len(lams) - 1) @ np.linalg.solve(
            np.vander(np.array(lams) - lam[i], increasing=True),
            np.stack(seen).reshape(len(lams), -1),
        )
        inside = (weights * np.exp(at)) @ through * (lam[i - 1] - lam[i]) / 2
        if len(lams) == 2:  # 2M's line has a weight of its own
            h, before = lam[i - 1] - lam[i], lam[i] - lams[1]
            D = seen[0] + h / (2 * before) * (seen[0] - seen[1])
            inside = (np.exp(lam[i - 1]) - np.exp(lam[i])) * D.ravel()
        noise = np.sqrt(1 - alpha_bar)
        x = noise[i - 1] * (x / noise[i] + inside.reshape(x.shape))


def singlestep(alpha_bar, fed):
    """Algorithm 1 with the grid's steps as its ends and intermediate points, in turn."""
    lam, signal = 0.5 * np.log(alpha_bar / (1 - alpha_bar)), np.sqrt(alpha_bar)
    noise, x, i = np.sqrt(1 - alpha_bar), X_T.copy(), len(fed) - 1
    while i > 1:
        s, end = i - 1, i - 2
        h, first = lam[end] - lam[i], toy(x, fed[i], np)
        r = (lam[s] - lam[i]) / h
        u = noise[s] / noise[i] * x - signal[s] * np.expm1(-r * h) * first
        D = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * toy(u, fed[s], np)
        x, i = noise[end] / noise[i] * x - signal[end] * np.expm1(-h) * D, end
    if i == 1:  # an even number of steps: the last pair ends at the data
        r_h = lam[0] - lam[1]
        x = noise[0] / noise[1] * x - signal[0] * np.expm1(-r_h) * toy(x, fed[1], np)
    return toy(x, fed[0], np)


@pytest.mark.parametrize("num_steps", [2, 5, 20, 21])
@pytest.mark.parametrize(
    "reference,options", [(third, {"order": 3}), (singlestep, {"singlestep": True})]
)
def test_order_3_and_singlestep_equal_a_float64_run(reference, options, num_steps):
    steps = dj.spaced_timesteps(1000, num_steps, "trailing")
    expected = reference(TRUTH.alpha_bar[steps], steps)
    sampler = dpm_solver_pp(dj.respace(FULL, steps), **options)
    got = dj.sample(sampler, denoise, jnp.float32(X_T))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def ours(grid, order, sde):
    kwargs = {"noise": jnp.float32(NOISE)} if sde else {}
    return dj.sample(dpm_solver_pp(grid, order=order, sde=sde), denoise, jnp.float32(X_T), **kwargs)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("order,sde", [(1, False), (2, False), (1, True), (2, True)])
def test_equals_a_float64_run(order, sde, schedule):
    steps = dj.spaced_timesteps(1000, 20, "trailing")
    full, truth = FULL, TRUTH
    if schedule == "cosine":
        full = dj.cosine_schedule()
        u = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        truth = Tables(np.minimum(1 - u[1:] / u[:-1], 0.999))
    expected = reference(truth.alpha_bar[steps], steps, order, sde)
    got = ours(dj.respace(full, steps), order, sde)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order,sde", [(1, False), (2, False), (1, True), (2, True)])
def test_equals_diffusers(order, sde):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=BETA,
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_order=order,
        prediction_type="sample",
        timestep_spacing="trailing",
        thresholding=False,
    )
    scheduler.set_timesteps(20)
    x = torch.tensor(X_T, dtype=torch.float32)
    for k, t in enumerate(scheduler.timesteps):
        x_0_hat = torch.tensor(toy(x.numpy(), float(t), np), dtype=torch.float32)
        z = torch.tensor(NOISE[k], dtype=torch.float32)
        x = scheduler.step(x_0_hat, t, x, variance_noise=z).prev_sample
    grid = dj.respace(FULL, np.asarray(scheduler.timesteps)[::-1])
    np.testing.assert_allclose(ours(grid, order, sde), x.numpy(), atol=1e-4)


@pytest.mark.parametrize("sde", [False, True])
def test_order_one_is_ddim(sde):
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 20, "leading"))
    kwargs = {"noise": jnp.float32(NOISE)} if sde else {}
    other = dj.sample(dj.ddim(grid, eta=float(sde)), denoise, jnp.float32(X_T), **kwargs)
    np.testing.assert_allclose(ours(grid, 1, sde), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sde", [False, True])
def test_a_start_without_signal_is_the_limit_of_starts_with_little(sde):
    """ᾱ_T → 0: the first step, its formula free of λ, and the second, of first order."""
    alpha_bar = np.cos(np.linspace(0.03, 1, 20) * np.pi / 2) ** 2
    ends = []
    for last in (0.0, 1e-37):
        grid = dj.schedule_from_alpha_bar(np.append(alpha_bar[:-1], last))
        first = dpm_solver_pp(grid, sde=sde).step(
            denoise,
            jnp.float32(X_T),
            jnp.full(3, 19),
            jnp.float32(NOISE[0]),
            dpm_solver_pp(grid).init(jnp.float32(X_T)),
        )
        x_0_hat, a = toy(X_T, 19, np), alpha_bar[-2]
        rest = NOISE[0] if sde else X_T
        expected = np.sqrt(a) * x_0_hat + np.sqrt(1 - a) * rest
        np.testing.assert_allclose(first.x, expected, rtol=1e-5, atol=1e-6)
        ends.append(ours(grid, 2, sde))
    # h/h' is 0 for ᾱ_T = 0 and of the order of 1/40 for 1e-37.
    np.testing.assert_allclose(ends[0], ends[1], atol=0.02)


def test_the_first_step_is_of_order_one_wherever_it_starts():
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 20, "trailing"))
    x = jnp.float32(X_T)
    two, one = dpm_solver_pp(grid), dpm_solver_pp(grid, order=1)
    steps = jnp.array([9])
    a, _, _ = dj.samplers.advance(two, denoise, x, two.init(x), steps)
    b, _, _ = dj.samplers.advance(one, denoise, x, one.init(x), steps)
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        dpm_solver_pp,
        lambda s: dpm_solver_pp(s, order=3),
        lambda s: dpm_solver_pp(s, singlestep=True),
        dj.unipc,
        dj.deis,
    ],
    ids=["dpm 2", "dpm 3", "dpm 2s", "unipc", "deis"],
)
def test_gradients_are_finite_through_first_and_last_steps(make):
    grid = dj.schedule_from_alpha_bar([0.9, 0.5, 0.1, 0.0])
    got = jax.grad(lambda x: dj.sample(make(grid), denoise, x).sum())(jnp.float32(X_T))
    assert np.isfinite(got).all()
