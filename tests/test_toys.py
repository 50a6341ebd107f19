"""Toy densities against autodiff, quadrature and samples; the page at a tiny size against its
claims."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import ddpm_jax as dj
from tests.small_run import program
from toy_2d import FIGURES, ToyConfig, toy_2d
from toys import densities, models
from toys.field import FieldConfig, by_decile
from toys.fit import FitConfig, fit
from toys.manifold import ManifoldConfig
from toys.mixing import MixingConfig
from toys.models import ModelsConfig
from toys.objectives import ObjectivesConfig

pytestmark = pytest.mark.slow

PLANES = {
    "two_gaussians": densities.two_gaussians(0.2, 1.5),
    "rings": densities.rings(),
    "checkerboard": densities.checkerboard(),
    "swiss_roll": densities.swiss_roll(),
}
ROLL = densities.on_plane(PLANES["swiss_roll"], np.linalg.qr(np.eye(3)[:, :2] + 0.3)[0])
ALL = {**PLANES, "on_plane": ROLL}
SIGMA = 0.4


def keys_of(seed, count):
    return dj.example_keys(jax.random.key(seed), jnp.arange(count))


def grid(half_width, count):
    line = (np.arange(count) + 0.5) / count * 2 * half_width - half_width
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("name", ALL)
def test_the_score_is_the_gradient_of_the_log_density(name):
    """Also far out and at the centre, and with another σ in every row."""
    density = ALL[name]
    x = np.random.default_rng(0).normal(size=(64, density.dim)) * 1.5
    x[0], x[1] = 0.0, 6.0
    x, sigma = jnp.asarray(x, jnp.float32), jnp.linspace(0.1, 2.0, 64)

    @jax.jit
    def both(x):
        total = lambda x: jnp.sum(density.log_density(x, sigma))  # noqa: E731
        return density.score(x, sigma), jax.grad(total)(x)

    score, gradient = both(x)
    np.testing.assert_allclose(score, gradient, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", PLANES)
def test_the_smoothed_density_is_the_density_blurred(name):
    """p_σ(x) = E p(x - σz), the mean over a grid of p times a normal: of total mass one."""
    density = PLANES[name]
    if name == "checkerboard":  # no density at σ = 0 that is defined on its edges: count squares
        y = grid(2.0, 200)
        p = (np.floor(y).astype(int).sum(axis=1) % 2 == 0) / 8.0
        cell = 0.02**2
    else:
        y = grid(5.5, 300)
        p = np.exp(np.asarray(density.log_density(jnp.asarray(y, jnp.float32), 0.0), np.float64))
        cell = (11.0 / 300) ** 2
    assert p.sum() * cell == pytest.approx(1.0, abs=1e-3)
    x = np.array([[0.3, -0.2], [1.0, 1.1], [-1.7, 0.4], [2.6, -2.2]])
    squares = np.sum((x[:, None] - y[None]) ** 2, axis=-1)
    kernel = np.exp(-0.5 * squares / SIGMA**2) / (2 * np.pi * SIGMA**2)
    blurred = (kernel * p).sum(axis=1) * cell
    found = np.exp(density.log_density(jnp.asarray(x, jnp.float32), SIGMA))
    np.testing.assert_allclose(found, blurred, rtol=5e-3)


@pytest.mark.parametrize("name", PLANES)
def test_samples_have_the_density(name):
    """χ² of noisy samples over cells, against the integral of p_σ there; a fixed seed."""
    density, count, sigma = PLANES[name], 4000, 0.2
    noise = jax.random.normal(jax.random.key(9), (count, 2))
    x = np.asarray(jax.jit(density.sample)(keys_of(1, count)) + sigma * noise)
    y = grid(4.0, 160)
    mass = np.exp(np.asarray(density.log_density(jnp.asarray(y, jnp.float32), sigma), np.float64))
    mass = (mass * 0.05**2).reshape(8, 20, 8, 20).sum(axis=(1, 3)).ravel()
    observed = np.histogram2d(*x.T, bins=8, range=[[-4, 4]] * 2)[0].ravel()
    big = count * mass > 5
    expected = np.append(count * mass[big], count * (1 - mass[big].sum()))
    counts = np.append(observed[big], count - observed[big].sum())
    keep = expected > 1
    statistic = np.sum((counts[keep] - expected[keep]) ** 2 / expected[keep])
    assert scipy.stats.chi2.sf(statistic, keep.sum() - 1) > 1e-3


def test_on_a_plane_samples_lie_on_it_and_the_score_leads_back():
    x = ROLL.sample(keys_of(2, 100))
    basis = np.linalg.qr(np.eye(3)[:, :2] + 0.3)[0]
    normal = np.cross(*basis.T)
    np.testing.assert_allclose(x @ normal, 0.0, atol=1e-5)
    lifted = x + 0.3 * jnp.asarray(normal[None], jnp.float32)
    np.testing.assert_allclose(ROLL.score(lifted, 0.5) @ normal, -0.3 / 0.25, rtol=1e-4)


def test_a_ring_is_drawn_from_in_proportion_to_its_length():
    radius = jnp.linalg.norm(PLANES["rings"].sample(keys_of(4, 4000)), axis=1)
    assert float(jnp.mean(radius > 1.5)) == pytest.approx(2 / 3, abs=0.025)


def test_what_has_no_density_says_so():
    x = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="checkerboard .* sigma > 0"):
        PLANES["checkerboard"].score(x, 0.0)
    with pytest.raises(ValueError, match="on_plane .* sigma > 0"):
        ROLL.log_density(jnp.zeros((1, 3)), 0)
    with pytest.raises(ValueError, match="beads"):
        densities.swiss_roll(0.01)
    with pytest.raises(ValueError, match="sum 1"):
        densities.gaussian_mixture([0.5, 0.4], np.eye(2), 1.0)
    with pytest.raises(ValueError, match="orthonormal"):
        densities.on_plane(PLANES["rings"], np.ones((3, 2)))


def test_fit_finds_a_minimum_and_watches_on_the_way():
    """The mean of a quadratic about 3 with noise: its minimum is at 3."""

    def loss_fn(params, keys):
        target = 3.0 + 0.1 * jax.vmap(jax.random.normal)(keys)
        return jnp.square(params - target)

    told = []
    config = FitConfig(num_steps=60, batch_size=16, learning_rate=0.3)
    fitted = fit(
        loss_fn,
        jnp.zeros(()),
        jax.random.key(0),
        config,
        watch=lambda params: params,
        reports=4,
        on_progress=told.append,
    )
    np.testing.assert_allclose(fitted.params, 3.0, atol=0.1)
    assert fitted.losses.shape == (60,) and fitted.losses[0] > 5 > 0.1 > fitted.losses[-1]
    assert told == [15] * 4 and list(fitted.steps) == [0, 15, 30, 45, 60]
    assert fitted.watched[0] == 0.0 and fitted.watched[-1] == fitted.params
    with pytest.raises(ValueError, match="num_steps >= 1"):
        fit(loss_fn, jnp.zeros(()), jax.random.key(0), dataclasses.replace(config, num_steps=0))


def test_distances_of_points_by_hand():
    """One point against one at distance 5; four points whose squares are known."""
    a, b = np.zeros((1, 2)), np.array([[3.0, 4.0]])
    assert models.energy_distance(a, b) == 10.0 and models.energy_distance(a, a) == 0.0
    x = np.array([[-1.5, -1.5], [-1.5, -0.5], [0.5, 0.5], [9.0, 9.0]])
    assert models.share_inside(x) == 0.5
    on_squares = densities.checkerboard().sample(keys_of(3, 200))
    assert models.share_inside(np.asarray(on_squares)) == 1.0


def test_errors_by_density_are_sorted_rarest_first():
    log_density = np.arange(20.0)[::-1]
    error = (np.arange(20.0)[::-1] // 2) ** 2
    tenths = by_decile(error, 4.0 * np.ones(20), log_density)
    np.testing.assert_allclose(tenths["rms_error"], np.arange(10.0))
    np.testing.assert_allclose(tenths["relative_to_score"], np.arange(10.0) / 2)


@pytest.mark.slow
def test_the_page_at_a_tiny_size_shows_what_it_claims(tmp_path):
    """Every claim's direction, at sizes that take seconds."""
    small = FitConfig(num_steps=200, batch_size=64, features=32, num_layers=1, learning_rate=1e-2)
    config = ToyConfig(
        out=tmp_path / "page",
        field=FieldConfig(small, count=500),
        mixing=MixingConfig(count=300, num_levels=10, steps_per_level=30, shown=50),
        manifold=ManifoldConfig(dataclasses.replace(small, decay="constant"), count=200),
        objectives=ObjectivesConfig(
            dataclasses.replace(small, num_steps=150),
            count=300,
            dims=(2,),
            timed_batch=4,
            timed_features=8,
            repeats=1,
        ),
        models=ModelsConfig(small, num_timesteps=20, num_levels=5, count=200, floors=2),
    )
    # As a user runs it: the suite's check of keys makes compilation several times slower.
    with jax.debug_key_reuse(False):
        numbers = toy_2d(config)
    assert json.loads((config.out / "toy_2d.json").read_text())["numbers"] == numbers
    for name in FIGURES:
        assert Image.open(config.out / f"{name}.png").width > 600
    field = numbers["field"]
    assert field["rms_error_unweighted"] > 2 * field["rms_error_data_weighted"]
    by_density = field["plane_by_density"]["rms_error"]
    assert by_density[0] > 3 * by_density[-1]

    weights = numbers["mixing"]["minor_weight"]
    assert abs(weights["langevin"]["estimate"] - 0.2) > 0.15
    annealed = weights["annealed_langevin"]
    assert abs(annealed["estimate"] - 0.2) < 4 * annealed["standard_error"] + 0.02

    off, on = numbers["manifold"]["without_noise"], numbers["manifold"]["with_noise"]
    assert off["lowest"] < 3 * on["exact_minimum"]
    assert on["mean_of_last_fifth"] > 1.1 * on["exact_minimum"]
    assert max(numbers["objectives"]["relative_score_error"].values()) < 0.9
    distance = numbers["models"]["energy_distance"]
    assert min(distance["ddpm"], distance["ncsn"]) > 0 < distance["data_to_data_mean"]


@pytest.mark.parametrize("script", ["toy_2d.py", "ablation.py"])
def test_a_wrong_option_of_a_script_gets_one_clear_error(script, tmp_path, capsys):
    """Also where a module beside the script raises it."""
    arguments = {
        "toy_2d.py": ["--field.fit.num-steps=0"],
        "ablation.py": ["digits", "v-mse", "--data.name=cifar10"],
    }
    out = {"toy_2d.py": "--out", "ablation.py": "--run-dir"}[script]
    with pytest.raises(SystemExit) as stopped:
        program(script, *arguments[script], f"{out}={tmp_path}")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 1 and "got" in message and "Traceback" not in message
