"""The rivals of DDPM against closed forms and autodiff, and the study at a tiny size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import ddpm_jax as dj
from ddpm_jax.score import score_of_energy
from rivals.data import CENTRES, WEIGHTS, board, eight_gaussians
from rivals.ddpm import bound
from rivals.energy import SPREAD, energy, energy_of
from rivals.flow import couplings_of, flow, forward, inverse
from rivals.gan import gan
from rivals.measures import energy_distance, modes_of
from rivals.rival import Perceptron, equal_models, num_parameters
from rivals.vae import elbo, importance_bound
from rivals_2d import RivalsConfig, makers, rivals_2d
from tests.small_run import program

pytestmark = pytest.mark.slow

SETS = {"eight Gaussians": eight_gaussians(), "checkerboard": board()}


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def moved(params, dtype=None, size=0.3):
    """Parameters away from their start, where some layers are 0."""
    random = np.random.default_rng(0)
    shift = lambda x: jnp.asarray(x + size * random.standard_normal(x.shape), dtype or x.dtype)  # noqa: E731
    return jax.tree.map(shift, params)


@pytest.mark.parametrize("dim", [2, 6])
def test_the_flow_is_invertible_and_knows_the_determinant_of_its_jacobian(dim):
    with jax.enable_x64(True):
        model = flow(dim, 8, couplings=5)
        params = moved(model.init(jax.random.key(0)), jnp.float64)
        couplings = couplings_of(Perceptron(8, dim), params)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((7, dim)))
        z, log_det = forward(couplings, x)
        assert z.dtype == jnp.float64 and float(jnp.max(jnp.abs(z - x))) > 0.5
        np.testing.assert_allclose(inverse(couplings, z), x, atol=1e-12)
        jacobian = jax.vmap(jax.jacfwd(lambda x: forward(couplings, x[None])[0][0]))(x)
        sign, expected = np.linalg.slogdet(jacobian)
        assert (sign == 1).all() and np.abs(expected).max() > 0.1
        np.testing.assert_allclose(log_det, expected, atol=1e-12)
        normal = scipy.stats.multivariate_normal(np.zeros(dim)).logpdf(z)
        log_p = model.log_density["exact"](params, x, keys_of(0, 7))
        np.testing.assert_allclose(log_p, normal + expected, atol=1e-12)


def linear_gaussian(widen):
    """z ~ N(0, I), x = Wz + b + σε with orthogonal columns in W: p(x) and p(z | x) are Gaussian.

    Returns the encoder with the posterior's variance times `widen`, the decoder, log p, and the KL
    of the encoder to the posterior.
    """
    W, b, sigma = np.array([[2.0, -0.5], [0.5, 2.0], [1.0, 0.0]]), np.array([0.3, 0, -1]), 0.7
    W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / (W[:, 0] @ W[:, 0])
    variance = 1.0 / (1.0 + (W**2).sum(axis=0) / sigma**2)

    def encode(x):
        mean = (x - b[None]) @ W * variance[None] / sigma**2
        return mean, jnp.broadcast_to(jnp.log(widen * variance)[None], mean.shape)

    def decode(z):
        mean = z @ W.T + b[None]
        return mean, jnp.full(mean.shape, 2 * np.log(sigma))

    p = scipy.stats.multivariate_normal(b, W @ W.T + sigma**2 * np.eye(3))
    return encode, decode, p.logpdf, len(variance) * 0.5 * (widen - 1 - np.log(widen))


@pytest.mark.parametrize("widen", [1.0, 3.0])
def test_the_elbo_lies_below_the_likelihood_by_the_encoders_divergence(widen):
    with jax.enable_x64(True):
        encode, decode, log_p, gap = linear_gaussian(widen)
        random = np.random.default_rng(0)
        x = jnp.asarray(random.normal(size=(3, 3)))
        draws = 20_000
        noise = jnp.asarray(random.normal(size=(draws, 3, 2)))
        values = np.asarray(jax.vmap(lambda noise: elbo(encode, decode, x, noise))(noise))
        error = values.std(axis=0) / np.sqrt(draws)
        assert (np.abs(values.mean(axis=0) - (log_p(x) - gap)) < 4 * error).all()
        assert (values.mean(axis=0) <= log_p(x) + 4 * error).all()
        # Each weight p(x, z)/q(z | x) is p(x) if q is the posterior; else many are needed.
        few = np.asarray(importance_bound(encode, decode, x, noise[:2]))
        many = np.asarray(importance_bound(encode, decode, x, noise))
        if widen == 1.0:
            np.testing.assert_allclose(few, log_p(x), rtol=1e-10)
        np.testing.assert_allclose(many, log_p(x), atol=0.03)


def test_the_energy_models_score_is_a_gradient_and_its_density_has_a_normaliser():
    """A gradient has a symmetric Jacobian; far out f grows as the square does."""
    with jax.enable_x64(True):
        network = Perceptron(8, 1)
        params = moved(energy(4, 8).init(jax.random.key(0)), jnp.float64)
        score = score_of_energy(lambda x: energy_of(network, params, x))
        x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)))
        jacobian = jax.vmap(jax.jacfwd(lambda x: score(x[None])[0]))(x)
        off_diagonal = jacobian + jnp.eye(4)[None] / SPREAD**2
        assert float(jnp.max(jnp.abs(off_diagonal))) > 0.05  # the network takes part
        np.testing.assert_allclose(jacobian, jnp.swapaxes(jacobian, 1, 2), atol=1e-12)
        far = 1e6 * x
        square = 0.5 * jnp.sum(jnp.square(far), axis=1) / SPREAD**2
        np.testing.assert_allclose(energy_of(network, params, far), square, rtol=1e-3)


def test_mala_leaves_the_density_of_the_energy_where_it_is():
    """With a network of zeros, e^{-f} is the Gaussian that the chains start from."""
    model = energy(2, 4, num_steps=60, step_size=3.0)
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    keys = keys_of(3, 3000)
    with jax.debug_key_reuse(False):
        x = np.asarray(jax.jit(model.sample)(params, keys))
        one = energy(2, 4, num_steps=1, step_size=3.0)
        first = np.asarray(jax.jit(one.sample)(params, keys))
    assert np.mean(np.abs(x - first) > 0.1) > 0.9  # they did move
    assert scipy.stats.kstest(x.ravel() / SPREAD, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x.T)[0, 1]) < 4 / np.sqrt(len(x))


def test_each_player_of_the_gan_descends_its_own_loss():
    """The discriminator's gradient raises D(x) over D(G(z)), the generator's raises D(G(z))."""
    model = gan(2, 16)
    params = moved(model.init(jax.random.key(0)), size=0.1)
    x, keys = 3.0 + jax.random.normal(jax.random.key(1), (256, 2)), keys_of(2, 256)

    def logits(params, x):
        return Perceptron(16, 1).apply(params["discriminator"], x)

    with jax.debug_key_reuse(False):
        loss, gradient = model.gradient(params, x, jax.random.key(3))
        fake = model.sample(params, keys)
    step = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient)
    assert float(loss) > 0
    better = {**params, "discriminator": step["discriminator"]}
    assert float(jnp.mean(logits(better, x)) - jnp.mean(logits(better, fake))) > float(
        jnp.mean(logits(params, x)) - jnp.mean(logits(params, fake))
    )
    with jax.debug_key_reuse(False):
        moved_fake = model.sample({**params, "generator": step["generator"]}, keys)
    assert float(jnp.mean(logits(params, moved_fake))) > float(jnp.mean(logits(params, fake)))
    # An undecided discriminator: E log D + E log (1 - D) = -2 log 2, and no slope to pay for.
    undecided = {**params, "discriminator": jax.tree.map(jnp.zeros_like, params["discriminator"])}
    loss, _ = model.gradient(undecided, x, jax.random.key(4))
    assert float(loss) == pytest.approx(2 * np.log(2), rel=1e-6)


def test_ddpms_bound_is_the_likelihood_where_the_reverse_steps_are_exact():
    """Data N(0, I) stay N(0, I): ε̂ = √(1-ᾱ) x_t and variances β_t make p_θ the true reverse."""
    schedule = dj.cosine_schedule(20)
    apply_fn = lambda x_t, t: schedule.noise_scale[t][:, None] * x_t  # noqa: E731
    points = jnp.asarray([[0.0, 0.0], [1.0, -2.0]])
    exact = scipy.stats.multivariate_normal(np.zeros(2)).logpdf(points)
    draws = 4000
    x = jnp.repeat(points, draws, axis=0)
    with jax.debug_key_reuse(False):
        values = {
            variance: np.asarray(bound(schedule, apply_fn, x, keys_of(4, len(x)), variance))
            for variance in ("fixed_large", "fixed_small")
        }
    values = {variance: v.reshape(2, draws) for variance, v in values.items()}
    error = values["fixed_large"].std(axis=1) / np.sqrt(draws)
    assert (error < 0.04).all()
    assert (np.abs(values["fixed_large"].mean(axis=1) - exact) < 4 * error + 2e-3).all()
    assert (values["fixed_small"].mean(axis=1) < exact - 0.1).all()


def test_all_have_equally_many_parameters():
    models = equal_models(makers(RivalsConfig()), 2, 10_000)
    assert [model.name for model in models] == ["VAE", "Flow", "GAN", "Energy", "DDPM"]
    counts = [num_parameters(model) for model in models]
    assert num_parameters(energy(2, 3)) == (2 * 3 + 3) + (3 * 3 + 3) + (3 + 1)
    assert max(counts) <= 1.05 * min(counts) and abs(np.mean(counts) - 10_000) < 250
    with pytest.raises(ValueError, match="--parameters=20.*5 %"):
        equal_models(makers(RivalsConfig()), 2, 20)


@pytest.mark.parametrize("name", SETS)
def test_true_samples_cover_all_modes_in_their_shares(name):
    data, count = SETS[name], 8000
    x = np.asarray(jax.jit(data.sample)(keys_of(5, count)))
    np.testing.assert_allclose(x.std(axis=0), 1.0, atol=0.03)
    found = modes_of(data, x)
    on = {"eight Gaussians": 1 - np.exp(-4.5), "checkerboard": 1.0}[name]
    assert found["share_of_modes_covered"] == 1.0
    assert found["share_off_modes"] == pytest.approx(1 - on, abs=4e-3)
    assert found["weight_error"] < 0.02
    y = np.stack(np.meshgrid(*[np.linspace(-2.5, 2.5, 501)] * 2), axis=-1).reshape(-1, 2)
    p = np.exp(np.asarray(data.log_density(jnp.asarray(y, jnp.float32)), np.float64))
    inside = np.ones(len(y), bool) if name == "eight Gaussians" else data.mode(y) >= 0
    assert (p * inside).sum() * 0.01**2 == pytest.approx(1.0, abs=0.02)


def test_modes_are_counted_by_hand():
    """Three points on mode 1, one on mode 0, and one on none: two of eight modes are covered."""
    x = np.concatenate([CENTRES[[1, 1, 1, 0]], [[0.0, 0.0]]])
    found = modes_of(eight_gaussians(), x)
    assert found["share_of_modes_covered"] == 0.25
    assert found["share_off_modes"] == pytest.approx(0.2)
    error = 0.5 * (abs(0.75 - 3 / 16) + abs(0.25 - 1 / 16) + WEIGHTS[2:].sum())
    assert found["weight_error"] == pytest.approx(error, abs=1e-12)
    nowhere = modes_of(eight_gaussians(), np.full((3, 2), 9.0))
    assert nowhere == {"share_of_modes_covered": 0, "share_off_modes": 1, "weight_error": 1}


def test_the_energy_distance_is_unbiased():
    """0 in the mean for equal distributions; 2 E|A-B| - E|A-A'| - E|B-B'| for two Gaussians."""
    random = np.random.default_rng(0)
    for shift in (0.0, 1.0):
        found = [
            energy_distance(random.normal(size=(20, 1)), shift + random.normal(size=(20, 1)))
            for _ in range(1000)
        ]
        folded = scipy.stats.foldnorm(shift / np.sqrt(2), scale=np.sqrt(2)).mean()
        expected = 2 * folded - 2 * 2 / np.sqrt(np.pi)
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(len(found))


def tiny(out, **changes):
    sizes = dict(num_seeds=2, parameters=2480, num_steps=60, batch_size=32, training_count=500)
    sizes |= dict(count=100, ode_count=5, mala_steps=20, num_timesteps=10, shown=50)
    return RivalsConfig(out=out, **(sizes | changes))


@pytest.mark.slow
def test_the_study_at_a_tiny_size_writes_its_table_and_figure(tmp_path):
    with jax.debug_key_reuse(False):
        numbers = rivals_2d(tiny(tmp_path))
    assert json.loads((tmp_path / "rivals_2d.json").read_text())["numbers"] == numbers
    assert Image.open(tmp_path / "rivals.png").width > 1200
    table = (tmp_path / "rivals.md").read_text()
    assert set(numbers) == set(SETS)
    for name, rows in numbers.items():
        assert list(rows) == ["data", "VAE", "Flow", "GAN", "Energy", "DDPM"]
        floor = rows["data"]["energy_distance"]
        assert abs(floor["mean"]) < 0.02 and name in table
        counts = [rows[model]["parameters"] for model in list(rows)[1:]]
        assert max(counts) <= 1.05 * min(counts)
        assert [rows[m]["evaluations_per_sample"] for m in list(rows)[1:]] == [1, 1, 1, 21, 10]
        assert not any(key.startswith("log p") for m in ("GAN", "Energy") for key in rows[m])
        one, many = rows["VAE"]["log p: ELBO"], rows["VAE"]["log p: bound of 256 draws"]
        assert one["mean"] < many["mean"] and len(one["seeds"]) == 2
        # No model beats the truth's own log p on true samples, but by chance.
        assert rows["Flow"]["log p: exact"]["mean"] < rows["data"]["log p: true"]["highest"]
    lines = [line for line in table.splitlines() if line.startswith(("| GAN", "| Energy"))]
    assert len(lines) == 4 and all("| none |" in line for line in lines)


@pytest.mark.parametrize("option", ["--num-steps=0", "--learning-rate=0", "--parameters=5"])
def test_a_wrong_option_gets_one_clear_error(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        program("rivals_2d.py", option, f"--out={tmp_path}")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 1 and option.split("=")[0] in message
    assert "Traceback" not in message
