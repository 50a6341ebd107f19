"""The rivals on digits: dequantised levels, the options digits need, and the study at tiny size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import ddpm_jax as dj
from rivals.ddpm import bound
from rivals.digits import DIM, bits, evenly, fitted_gaussian, load, to_images, to_vectors
from rivals.energy import energy
from rivals.rival import equal_models, num_parameters
from rivals_digits import RivalsDigitsConfig, makers, rivals_digits
from tests.small_run import program

pytestmark = pytest.mark.slow


def test_dequantised_digits_fill_their_bins_and_round_back_to_themselves():
    levels = np.arange(17).repeat(64 * 40).reshape(-1, 8, 8, 1)
    images = np.round(levels * (255.0 / 16.0)).astype(np.uint8)
    x = np.asarray(to_vectors(images, jax.random.key(0)), np.float64)
    assert x.shape == (17 * 40, DIM)
    np.testing.assert_array_equal(to_images(x), images)
    inside = (x + 1.0) * 17 / 2 - levels.reshape(x.shape)
    assert inside.min() > -1e-5 and inside.max() < 1.0 + 1e-5
    assert scipy.stats.kstest(inside.ravel(), "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(to_images(np.full((1, DIM), -3.0)), images[:1])
    np.testing.assert_array_equal(to_images(np.full((1, DIM), 3.0)), images[-1:])


def test_the_uniform_density_costs_all_bits_of_the_levels():
    """On [-1, 1] its log p is -64 log 2 nats; one twice as dense everywhere saves one bit."""
    assert bits([-DIM * np.log(2.0)] * 3) == pytest.approx(np.log2(17), rel=1e-6)
    assert bits([0.0, 0.0]) == pytest.approx(np.log2(17) - 1, rel=1e-6)


def test_the_fitted_gaussian_has_the_moments_of_its_data():
    x = np.random.default_rng(0).normal(size=(50, 3)) @ np.diag([1.0, 2.0, 3.0])
    gaussian = fitted_gaussian(x)
    np.testing.assert_allclose(gaussian.mean, x.mean(axis=0))
    np.testing.assert_allclose(gaussian.cov, np.cov(x.T))


def test_real_digits_are_near_and_recognised_and_noise_is_not():
    data = load(360)
    assert data.heldout.shape == (360, 8, 8, 1)
    assert data.distance(data.train) == pytest.approx(0.0, abs=1e-9)
    real = data.labels(data.heldout)
    assert real["share_off_modes"] < 0.06 and real["share_of_modes_covered"] == 1.0
    noise = np.random.default_rng(0).integers(0, 256, (360, 8, 8, 1)).astype(np.uint8)
    assert data.labels(noise)["share_off_modes"] > 0.99
    assert data.distance(noise) > 10 * data.distance(data.heldout)
    assert evenly(10, 5).tolist() == [0, 2, 4, 6, 8] and len(set(evenly(360, 100))) == 100


def test_the_energy_models_last_step_is_the_mean_of_the_data_given_the_sample():
    """With a network of zeros x ~ N(0, c² I) = data + σz: E[data | x] = (1 - σ²/c²) x."""
    shape = {"num_steps": 5, "step_size": 0.5, "spread": 1.5, "sigma": 0.6}
    plain, denoised = energy(4, 8, **shape), energy(4, 8, **shape, denoise=True)
    params = jax.tree.map(jnp.zeros_like, plain.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), 4000)
    with jax.debug_key_reuse(False):
        x, mean = (np.asarray(jax.jit(model.sample)(params, keys)) for model in (plain, denoised))
    assert scipy.stats.kstest(x.ravel() / 1.5, "norm").pvalue > 1e-3
    np.testing.assert_allclose(mean, (1 - 0.6**2 / 1.5**2) * x, rtol=1e-5, atol=1e-6)
    assert (plain.evaluations, denoised.evaluations) == (6, 7)


def test_ddpms_bound_does_not_depend_on_what_the_network_predicts():
    """For data N(0, I), ε̂ = √(1-ᾱ) x_t and v̂ = 0 are the same prediction."""
    schedule = dj.cosine_schedule(20)
    outputs = {
        "epsilon": lambda x, t: schedule.noise_scale[t][:, None] * x,
        "v": lambda x, t: jnp.zeros_like(x),
    }
    x, keys = jnp.linspace(-1, 1, 12).reshape(4, 3), jax.random.split(jax.random.key(0), 4)
    with jax.debug_key_reuse(False):
        for clip in (False, True):
            of_epsilon, of_v = (
                np.asarray(bound(schedule, fn, x, keys, target=target, clip=clip))
                for target, fn in outputs.items()
            )
            # x̂_0 of ε̂ cancels where √ᾱ is small: 0.005 at the last step.
            np.testing.assert_allclose(of_v, of_epsilon, rtol=1e-3)


def test_all_have_equally_many_parameters():
    config = RivalsDigitsConfig()
    models = equal_models(makers(config), DIM, config.parameters)
    assert [model.name for model in models] == ["VAE", "Flow", "GAN", "Energy", "DDPM"]
    counts = [num_parameters(model) for model in models]
    assert max(counts) <= 1.05 * min(counts)
    assert abs(np.mean(counts) / config.parameters - 1) < 0.025


@pytest.mark.slow
def test_the_study_at_a_tiny_size_writes_its_table_and_figure(tmp_path):
    sizes = dict(num_seeds=2, num_steps=40, batch_size=32, dequantisations=2, count=40)
    sizes |= dict(mala_steps=10, num_timesteps=10, shown=5)
    with jax.debug_key_reuse(False):
        numbers = rivals_digits(RivalsDigitsConfig(out=tmp_path, **sizes))
    assert json.loads((tmp_path / "rivals_digits.json").read_text())["numbers"] == numbers
    assert Image.open(tmp_path / "samples.png").width > 400
    models = ["VAE", "Flow", "GAN", "Energy", "DDPM"]
    assert list(numbers) == ["held-out digits", "Gaussian", *models]
    assert [numbers[m]["evaluations_per_sample"] for m in models] == [1, 1, 1, 12, 10]
    floor = numbers["held-out digits"]["frechet"]
    assert floor["lowest"] < floor["mean"] < floor["highest"]
    for name in ["Gaussian", *models]:
        row = numbers[name]
        assert name == "Gaussian" or row["frechet"]["mean"] > floor["mean"]
        assert len(row["frechet"]["seeds"]) == 2
        assert any(key.startswith("bits/dim") for key in row) == (name not in ("GAN", "Energy"))
    for which in ("held out", "training"):
        one, many = (
            numbers["VAE"][f"bits/dim, {which}: {kind}"]["mean"]
            for kind in ("ELBO", "bound of 256 draws")
        )
        assert one > many
    # A Gaussian knows more than the uniform density does.
    assert 0 < numbers["Gaussian"]["bits/dim, held out: exact"]["mean"] < np.log2(17)
    lines = (tmp_path / "rivals.md").read_text().splitlines()
    assert len(lines) == 2 + len(numbers) and len({line.count("|") for line in lines}) == 1
    assert [line.count("| none |") for line in lines if line.startswith("| GAN")] == [1]


@pytest.mark.parametrize(
    "option", ["--num-steps=0", "--count=361", "--shown=400", "--sigma=0", "--parameters=500"]
)
def test_a_wrong_option_gets_one_clear_error(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        program("rivals_digits.py", option, f"--out={tmp_path}")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 1 and option.split("=")[0] in message
    assert "Traceback" not in message
