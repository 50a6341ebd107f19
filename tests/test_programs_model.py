"""What a run's model feeds its network and makes of the answer, with a network that can be read."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.keys import split_each
from ddpm_jax.programs.build import as_rows, build_model, build_sampler, fetch, heldout_plan
from ddpm_jax.programs.config import DiffusionConfig, NetworkConfig, SamplerOptions, TrainConfig
from ddpm_jax.programs.training_run import TrainingRun
from tests.small_run import CONFIG

SHAPE, B = (4, 4, 1), 6
NETWORK = NetworkConfig(
    channels=8, channel_multipliers=(1,), attention_resolutions=(), num_groups=4
)
IMAGES = np.random.default_rng(0).integers(0, 256, (B, *SHAPE)).astype(np.uint8)
LABELS = np.arange(B, dtype=np.int32) % 3
BATCH = {"image": IMAGES, "label": LABELS, "index": np.arange(B, dtype=np.int32)}


class Readable:
    """A network of one weight that remembers what it was fed."""

    def __init__(self, channels=1):
        self.channels, self.seen = channels, []

    def apply(self, variables, x, t, label=None, dropout_keys=None):
        self.seen.append({"x": x, "t": t, "label": label})
        shift = 0.0 if label is None else 0.1 * label.astype(x.dtype).reshape(-1, 1, 1, 1)
        out = variables["params"] * x + 0.01 * t.astype(x.dtype).reshape(-1, 1, 1, 1) + shift
        return jnp.concatenate([out, 0.3 * jnp.ones_like(out)], -1) if self.channels == 2 else out


def model_of(classes=False, **diffusion):
    config = TrainConfig(
        run_dir=Path("unused"),
        num_steps=10,
        batch_size=B,
        network=dataclasses.replace(NETWORK, class_conditional=classes),
        diffusion=DiffusionConfig(num_timesteps=20, beta_end=0.4, **diffusion),
    )
    model = build_model(config, SHAPE, 3)
    learned = diffusion.get("variance", "").startswith("learned")
    return dataclasses.replace(model, network=Readable(2 if learned else 1))


def keys_of(seed=0):
    return dj.example_keys(jax.random.key(seed), jnp.arange(B))


def by_hand(model, loss, keys, t=None):
    """(the loss on what the keys draw, t), from the library's functions alone."""
    key_t, key_noise, *_ = split_each(keys, 5)
    t = dj.uniform_timesteps(key_t, 20) if t is None else t
    x_0, noise = dj.from_pixels(IMAGES), dj.normal_per_example(key_noise, SHAPE)
    apply_fn = lambda x, s: model.network.apply({"params": 0.7}, x, s)  # noqa: E731
    return loss(model.schedule, apply_fn, x_0, t, noise), t


def test_images_as_rows_are_the_same_images():
    """A data set on the device holds rows; the losses are those of whole images, bit for bit."""
    model, keys = model_of(), keys_of()
    rows = as_rows(IMAGES)
    assert rows.shape == (B, np.prod(SHAPE))
    fetched = fetch(
        {"image": rows}, {"example": np.array([4, 1, 1, 0, 5, 2]), "index": np.arange(B)}
    )
    whole = {"image": IMAGES[[4, 1, 1, 0, 5, 2]]}
    np.testing.assert_array_equal(
        model.training_losses(0.7, fetched, keys), model.training_losses(0.7, whole, keys)
    )


CASES = {
    "simple": ({}, dj.simple_loss),
    "v": ({"target": "v"}, lambda *a: dj.simple_loss(*a, target="v")),
    "hybrid": (
        {"loss": "hybrid", "variance": "learned_range"},
        lambda *a: dj.hybrid_loss(*a, variance="learned_range"),
    ),
    "bound": (
        {"loss": "bound", "variance": "learned", "target": "x_0"},
        lambda *a: dj.bound_loss(*a, variance="learned", target="x_0"),
    ),
    "min_snr": (
        {"weighting": "min_snr", "min_snr_gamma": 2.0, "target": "v"},
        lambda s, f, x, t, e: (
            dj.simple_loss(s, f, x, t, e, target="v")
            * dj.loss_weight(s, t, dj.min_snr_weighting(2.0), target="v")
        ),
    ),
    "p2": (
        {"weighting": "p2", "p2_gamma": 0.5},
        lambda s, f, x, t, e: (
            dj.simple_loss(s, f, x, t, e)
            * dj.loss_weight(s, t, dj.losses.p2_weighting(1.0, 0.5), target="epsilon")
        ),
    ),
    "bound's weight": (
        {"weighting": "bound", "variance": "fixed_small"},
        lambda s, f, x, t, e: (
            dj.simple_loss(s, f, x, t, e)
            * dj.losses.bound_weight(s, t, target="epsilon", variance="fixed_small")
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_a_configuration_names_is_the_librarys(name):
    options, loss = CASES[name]
    model = model_of(**options)
    got = model.training_losses(0.7, BATCH, keys_of())
    np.testing.assert_allclose(got, by_hand(model, loss, keys_of())[0], rtol=1e-5)


def test_importance_sampling_weights_the_loss_and_reports_it_plain():
    model = model_of(timesteps="importance")
    history = dj.losses.init_loss_history(20)
    steps = jnp.tile(jnp.arange(20), 10)
    history = dj.losses.update_loss_history(history, steps, 1.0 + jnp.arange(200.0) % 20)
    losses, seen = model.training_losses(0.7, BATCH, keys_of(), history)
    plain, _ = by_hand(model, dj.simple_loss, keys_of(), seen["t"])
    np.testing.assert_allclose(seen["loss"], plain, rtol=1e-5)
    share = (1 + np.arange(20)) / np.sum(1 + np.arange(20))
    p = 0.999 * share + 0.001 / 20
    np.testing.assert_allclose(losses, plain / (20 * p[np.asarray(seen["t"])]), rtol=1e-4)
    after = model.update_loss_state(history, seen)
    assert int(after.count.sum()) == 200 + B


def test_an_exploding_process_shows_the_network_x_0_plus_sigma_noise():
    model = model_of(
        schedule="geometric", sigma_max=5.0, sigma_min=0.05, exploding=True, clip=False
    )
    losses = model.training_losses(0.0, BATCH, keys_of())
    key_t, key_noise, *_ = split_each(keys_of(), 5)
    t = np.asarray(dj.uniform_timesteps(key_t, 20))
    noise = np.asarray(dj.normal_per_example(key_noise, SHAPE))
    sigma = np.geomspace(0.05, 5.0, 20)[t].reshape(-1, 1, 1, 1)
    wanted = np.asarray(dj.from_pixels(IMAGES)) + sigma * noise
    np.testing.assert_allclose(model.network.seen[-1]["x"], wanted, rtol=1e-4, atol=1e-5)
    # NCSN's ½ σ² ‖s + z/σ‖², s = -out/σ, is ½ ‖z - out‖²: d/2 times this loss.
    out = 0.01 * t.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(losses, np.square(noise - out).mean((1, 2, 3)), rtol=1e-4)


def test_labels_are_dropped_as_often_as_asked():
    model = model_of(classes=True, label_dropout=0.25)
    dropped = 0
    for seed in range(100):
        model.training_losses(0.7, BATCH, keys_of(seed))
        label = np.asarray(model.network.seen[-1]["label"])
        assert ((label == LABELS) | (label == 3)).all()
        dropped += (label == 3).sum()
    # Binomial: 600 draws, standard deviation 10.6.
    assert abs(dropped - 150) < 4 * 10.6
    never = model_of(classes=True, label_dropout=0.0)
    never.training_losses(0.7, BATCH, keys_of())
    np.testing.assert_array_equal(never.network.seen[-1]["label"], LABELS)


@pytest.mark.parametrize("num_timesteps", [1, 2, 200, 1000])
@pytest.mark.parametrize("draws", [1, 2, 8, 199, 512, 2048])
def test_the_heldout_plan_weighs_every_step_the_same(draws, num_timesteps):
    image, t, weight = heldout_plan(draws, 7, num_timesteps)
    assert len(image) == len(t) == draws and (np.diff(t) >= 0).all()
    np.testing.assert_array_equal(image, np.arange(draws) % 7)
    shares = np.bincount(t, weight, num_timesteps) / draws
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    if draws >= num_timesteps:
        np.testing.assert_allclose(shares, 1 / num_timesteps, rtol=1e-12)
    elif draws > 1:
        # t = 0 stands for itself, and any linear function of t has its mean.
        np.testing.assert_allclose(shares[0], 1 / num_timesteps, rtol=1e-12)
        mean = shares @ np.arange(num_timesteps)
        assert abs(mean - (num_timesteps - 1) / 2) <= 0.5


def test_the_heldout_loss_is_the_plans_weighted_mean(tmp_path, monkeypatch):
    """Of a loss that is t, and of bits that are those of t = 0 alone; 25 draws of 20 steps."""
    run = TrainingRun(dataclasses.replace(CONFIG, run_dir=tmp_path / "run"))

    def losses(model, params, images, conditions, t, keys):
        return jnp.stack([t, t == 0], axis=1).astype(jnp.float32)

    monkeypatch.setattr(type(run.model), "heldout_losses", losses)
    found = run.heldout_loss({}, run.heldout_data, 25)
    np.testing.assert_allclose(found, [19 / 2, 1 / 20], rtol=1e-6)


def test_heldout_losses_are_the_loss_and_the_bounds_estimate():
    model = model_of(variance="learned_range", loss="hybrid")
    t = jnp.array([0, 3, 7, 11, 15, 19])
    got = model.heldout_losses(0.7, IMAGES, {}, t, keys_of())
    noise = dj.normal_per_example(dj.keys.fold_in_each(keys_of(), 0), SHAPE)
    apply_fn = model.bind(0.7)
    x_0 = dj.from_pixels(IMAGES)
    options = {"variance": "learned_range"}
    loss = dj.hybrid_loss(model.schedule, apply_fn, x_0, t, noise, **options)
    bound = dj.estimate_bound(model.schedule, apply_fn, x_0, t[None], noise[None], **options)
    np.testing.assert_allclose(got[:, 0], loss, rtol=1e-5)
    np.testing.assert_allclose(got[:, 1], bound, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, jnp.arange(1.0, B + 1), lambda t: t / 3])
def test_guidance_moves_along_the_difference_of_two_predictions(scale):
    """By one scale for all, one per example or one per step."""
    model = model_of(classes=True, clip=False)
    x, t = jnp.ones((B, *SHAPE)), jnp.full((B,), 9)
    got = model.guided(scale)(0.7, LABELS)(x, t)
    plain = 0.7 * x + 0.09
    labelled = plain + 0.1 * LABELS.reshape(-1, 1, 1, 1)
    scales = jnp.broadcast_to(scale(t) if callable(scale) else jnp.asarray(scale), (B,))
    epsilon = plain + scales.reshape(-1, 1, 1, 1) * (labelled - plain)
    wanted = dj.predict_x_0(model.schedule, epsilon, x, t, target="epsilon")
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaled_guidance_has_the_spread_of_the_labelled_prediction(share):
    class Widens:
        def apply(self, variables, x, t, label=None):
            return x * (1.0 if label is None else 1.0 + label.reshape(-1, 1, 1, 1))

    model = dataclasses.replace(model_of(classes=True, clip=False, target="x_0"), network=Widens())
    x = jax.random.normal(jax.random.key(0), (B, *SHAPE))
    got = model.guided(3.0, rescale=share)({}, LABELS)(x, jnp.full((B,), 9))
    labelled, guided = 1.0 + LABELS, 1.0 + 3.0 * LABELS
    width = (share * labelled / guided + 1.0 - share) * guided
    np.testing.assert_allclose(got, x * width.reshape(-1, 1, 1, 1), rtol=1e-4)


def test_initial_parameters_are_the_networks_own():
    """However fast they are compiled: the paper's run depends on the seed alone."""
    config = TrainConfig(run_dir=Path("unused"), num_steps=10, batch_size=B, network=NETWORK)
    model = build_model(config, SHAPE, None)
    state = model.init()
    key = jax.random.split(jax.random.key(config.seed))[0]
    plain = jax.jit(model.network.init)(key, jnp.zeros((1, *SHAPE)), jnp.zeros((1,), jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, state.params, plain["params"])
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, plain["params"])


@pytest.mark.parametrize("timesteps", ["uniform", "importance"])
def test_init_shapes_are_those_of_init(timesteps):
    config = TrainConfig(
        run_dir=Path("unused"),
        num_steps=10,
        batch_size=B,
        network=NETWORK,
        diffusion=DiffusionConfig(num_timesteps=20, beta_end=0.4, timesteps=timesteps),
    )
    model = build_model(config, SHAPE, None)
    like = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(like, model.init_shapes()) == jax.tree.map(like, model.init())


@pytest.mark.parametrize(
    "sampler,option",
    [
        ("ddim", {"eta": 1.0}),
        ("heun", {"churn": 5.0}),
        ("annealed_langevin", {"langevin_steps": 3}),
        ("annealed_langevin", {"langevin_rate": 0.5}),
        ("ancestral", {"variance": "fixed_small"}),
    ],
    ids=str,
)
def test_each_option_of_a_sampler_reaches_it(sampler, option):
    """Its samples are those of the library's function with that argument, and no other's."""
    schedule = dj.linear_schedule(20, 5e-3, 0.5)
    of_library = {
        "eta": lambda eta: dj.ddim(schedule, eta=eta),
        "churn": lambda churn: dj.heun(schedule, churn=churn, process=schedule),
        "langevin_steps": lambda n: dj.annealed_langevin(schedule, steps_per_level=n, rate=0.2),
        "langevin_rate": lambda r: dj.annealed_langevin(schedule, steps_per_level=2, rate=r),
        "variance": lambda variance: dj.ancestral(schedule, variance=variance),
    }
    ((name, value),) = option.items()
    keys = dj.example_keys(jax.random.key(0), jnp.arange(2, dtype=jnp.uint32))
    x_T = dj.initial_noise(keys, (3,))

    def draw(made):
        with jax.debug_key_reuse(False):
            return dj.sample(made, lambda x, t: 0.5 * x, x_T, keys=keys)

    plain = {"langevin_steps": 2} if sampler == "annealed_langevin" else {}
    made, without = (
        draw(build_sampler(schedule, SamplerOptions(sampler, **options)))
        for options in ({**plain, **option}, plain)
    )
    np.testing.assert_array_equal(made, draw(of_library[name](value)))
    assert np.abs(made - without).max() > 1e-3
