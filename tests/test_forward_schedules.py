import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.forward import SPACINGS, lookup
from tests.oracles import Tables

LINEAR = np.linspace(1e-4, 0.02, 1000)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def cosine_beta(T, s=0.008):
    def f(u):
        return np.cos((u + s) / (1 + s) * np.pi / 2) ** 2

    return np.array([min(1 - f((i + 1) / T) / f(i / T), 0.999) for i in range(T)])


# Each by the formula of its paper, written out here and not imported.
EXPECTED_BETA = {
    "linear": (lambda: dj.linear_schedule(), LINEAR),
    "quadratic": (
        lambda: dj.quadratic_schedule(500),
        np.linspace(np.sqrt(1e-4), np.sqrt(0.02), 500) ** 2,
    ),
    "constant": (lambda: dj.constant_schedule(100, 0.01), np.full(100, 0.01)),
    "warmup10": (
        lambda: dj.warmup_schedule(1000, warmup_fraction=0.1),
        np.concatenate([np.linspace(1e-4, 0.02, 100), np.full(900, 0.02)]),
    ),
    "warmup50": (
        lambda: dj.warmup_schedule(1000, warmup_fraction=0.5),
        np.concatenate([np.linspace(1e-4, 0.02, 500), np.full(500, 0.02)]),
    ),
    "jsd": (lambda: dj.jsd_schedule(50), 1.0 / np.linspace(50, 1, 50)),
    "cosine": (lambda: dj.cosine_schedule(1000), cosine_beta(1000)),
    "sigmoid": (
        lambda: dj.sigmoid_schedule(1000),
        1e-4 + sigmoid(np.linspace(-6, 6, 1000)) * (0.02 - 1e-4),
    ),
}


@pytest.mark.parametrize("name", EXPECTED_BETA)
def test_every_table_equals_float64_textbook_formulas(name):
    make, beta = EXPECTED_BETA[name]
    schedule, truth = make(), Tables(beta)
    close = dict(rtol=3e-7, atol=0)
    np.testing.assert_allclose(schedule.beta, truth.beta, **close)
    # The running product of 1000 rounded factors is itself good to some 1e-13 only.
    np.testing.assert_allclose(schedule.alpha_bar, truth.alpha_bar, rtol=3e-7, atol=1e-18)
    np.testing.assert_allclose(schedule.alpha_bar_prev, truth.alpha_bar_prev, **close)
    np.testing.assert_allclose(
        schedule.signal_scale, np.sqrt(truth.alpha_bar), rtol=3e-7, atol=1e-9
    )
    np.testing.assert_allclose(schedule.noise_scale, np.sqrt(1 - truth.alpha_bar), **close)
    np.testing.assert_allclose(schedule.posterior_variance, truth.posterior_variance, **close)
    np.testing.assert_allclose(schedule.posterior_log_variance, truth.log_variance, **close)
    with np.errstate(divide="ignore"):
        snr = np.log(truth.alpha_bar) - np.log1p(-truth.alpha_bar)
    finite = np.isfinite(snr)
    np.testing.assert_allclose(schedule.log_snr[finite], snr[finite], rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(schedule.timesteps, np.arange(len(beta)))


def test_the_papers_schedule_has_the_papers_numbers():
    """Known of the paper's schedule: KL(q(x_T|x_0) ‖ N(0,I)) ≈ 1e-5 bits/dim needs ᾱ_T ≈ 4e-5."""
    schedule = dj.linear_schedule()
    assert schedule.num_timesteps == 1000
    assert schedule.beta[0] == np.float32(1e-4) and schedule.beta[-1] == np.float32(0.02)
    np.testing.assert_allclose(schedule.alpha_bar[-1], 4.0358e-5, rtol=1e-4)


def test_first_entries():
    schedule = dj.linear_schedule()
    assert schedule.alpha_bar_prev[0] == 1
    assert schedule.posterior_variance[0] == 0
    assert schedule.posterior_log_variance[0] == schedule.posterior_log_variance[1]
    # The table that float32 arithmetic would get wrong by 1.7e-4.
    np.testing.assert_allclose(schedule.noise_scale[0] ** 2, 1e-4, rtol=1e-6)


def test_single_step_process():
    schedule = dj.schedule_from_beta([0.3])
    np.testing.assert_allclose(schedule.posterior_log_variance, [np.log(0.3)], rtol=1e-6)
    assert schedule.posterior_variance[0] == 0


def test_jsd_ends_with_nothing_left():
    schedule = dj.jsd_schedule(10)
    assert schedule.alpha_bar[-1] == 0 and schedule.log_snr[-1] == -np.inf
    np.testing.assert_allclose(schedule.alpha_bar, 1 - np.arange(1, 11) / 10, rtol=1e-6, atol=0)


def test_alpha_bar_and_beta_tables_are_inverse():
    beta = np.array([0.1, 0.2, 0.5, 0.9])
    from_beta = dj.schedule_from_beta(beta)
    from_alpha_bar = dj.schedule_from_alpha_bar(np.cumprod(1 - beta))
    for a, b in zip(jax.tree.leaves(from_beta), jax.tree.leaves(from_alpha_bar), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_dtype():
    assert dj.linear_schedule(10, 0.01, 0.1).beta.dtype == jnp.float32
    assert dj.linear_schedule(10, 0.01, 0.1, dtype=jnp.bfloat16).log_snr.dtype == jnp.bfloat16


def test_is_a_pytree():
    schedule = dj.linear_schedule()
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(schedule)
    assert isinstance(doubled, dj.NoiseSchedule)
    np.testing.assert_array_equal(doubled.beta, 2 * schedule.beta)


@pytest.mark.parametrize("spacing", ["fractional", "leading", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 7, 50, 1000])
def test_respaced_betas_equal_float64(spacing, num_steps):
    steps = dj.spaced_timesteps(1000, num_steps, spacing)
    schedule = dj.respace(dj.linear_schedule(), steps)
    alpha_bar = np.cumprod(1 - LINEAR)[steps]
    truth = Tables(1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]]))
    np.testing.assert_allclose(schedule.beta, truth.beta, rtol=1e-6)
    np.testing.assert_allclose(schedule.alpha_bar, alpha_bar, rtol=1e-6)
    np.testing.assert_allclose(schedule.posterior_variance, truth.posterior_variance, rtol=1e-6)
    np.testing.assert_array_equal(schedule.timesteps, steps)


def test_respacing_twice_keeps_what_the_network_is_fed():
    once = dj.respace(dj.linear_schedule(), np.arange(0, 1000, 10))
    twice = dj.respace(once, np.arange(0, 100, 10))
    np.testing.assert_array_equal(twice.timesteps, np.arange(0, 1000, 100))
    straight = dj.respace(dj.linear_schedule(), np.arange(0, 1000, 100))
    np.testing.assert_allclose(twice.beta, straight.beta, rtol=1e-6)


def test_respacing_to_all_steps_changes_nothing():
    schedule = dj.cosine_schedule(100)
    same = dj.respace(schedule, np.arange(100))
    for a, b in zip(jax.tree.leaves(schedule), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7)


def iddpm_spacing(T, S):
    """Evenly spaced by fractional stride, written as one adds up the stride."""
    stride = 1.0 if S <= 1 else (T - 1) / (S - 1)
    position, steps = 0.0, []
    for _ in range(S):
        steps.append(round(position))
        position += stride
    return steps


@pytest.mark.parametrize("T,S", [(1000, 10), (1000, 23), (1000, 250), (4000, 100), (17, 17)])
def test_fractional_spacing(T, S):
    np.testing.assert_array_equal(dj.spaced_timesteps(T, S, "fractional"), iddpm_spacing(T, S))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_single_step_starts_from_noise(spacing):
    """x_T ~ N(0, I) is the law at step T-1, not at step 0, where several rules would begin."""
    np.testing.assert_array_equal(dj.spaced_timesteps(1000, 1, spacing), [999])


def test_traced_schedules_and_steps_are_refused():
    schedule = dj.linear_schedule(10)
    for traced in (
        lambda x: dj.respace(schedule.replace(beta=x * schedule.beta), [0, 5]),
        lambda x: dj.respace(schedule, x.astype(int) * jnp.arange(3)),
        lambda x: dj.karras_timesteps(schedule.replace(log_snr=x * schedule.log_snr), 5),
    ):
        with pytest.raises(TypeError, match="runs on the host"):
            jax.jit(traced)(1.0)


def test_spacings_of_the_literature():
    np.testing.assert_array_equal(dj.spaced_timesteps(1000, 10, "uniform"), np.arange(0, 1000, 100))
    np.testing.assert_array_equal(
        dj.spaced_timesteps(1000, 10, "quadratic"),
        [int(x) for x in np.linspace(0, np.sqrt(800), 10) ** 2],
    )
    # Lin et al. 2023, Table 2, less one because their steps count from 1.
    np.testing.assert_array_equal(
        dj.spaced_timesteps(1000, 10, "leading") + 1,
        [1, 101, 201, 301, 401, 501, 601, 701, 801, 901],
    )
    np.testing.assert_array_equal(
        dj.spaced_timesteps(1000, 10, "trailing") + 1, np.arange(100, 1001, 100)
    )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T,S", [(1000, 1), (1000, 4), (1000, 100), (1000, 1000), (12, 6), (5, 5)])
def test_every_spacing_gives_rising_steps_inside(spacing, T, S):
    steps = dj.spaced_timesteps(T, S, spacing)
    assert steps.shape == (S,) and steps.dtype == np.int32
    assert (np.diff(steps) > 0).all() and steps[0] >= 0 and steps[-1] < T


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: dj.linear_schedule(0), "num_timesteps"),
        (lambda: dj.linear_schedule(2.5), "num_timesteps"),
        (lambda: dj.linear_schedule(10, 0.5, 0.1), r"beta_end in \[beta_start=0.5, 1\)"),
        (lambda: dj.linear_schedule(10, 0.1, 1.0), "beta_end"),
        (lambda: dj.warmup_schedule(warmup_fraction=1.5), "warmup_fraction"),
        (lambda: dj.cosine_schedule(10, max_beta=1.0), "max_beta"),
        (lambda: dj.schedule_from_beta([]), "shape"),
        (lambda: dj.schedule_from_beta([0.1, 1.0, 0.1]), r"β\[1\]"),
        (lambda: dj.schedule_from_beta([0.1, np.nan]), r"β\[1\]"),
        (lambda: dj.schedule_from_alpha_bar([1.0, 0.5]), "implied"),
        (lambda: dj.schedule_from_alpha_bar([0.5, 0.6]), "strictly falling"),
        (lambda: dj.respace(dj.linear_schedule(), [0, 1000]), "0..999"),
        (lambda: dj.respace(dj.linear_schedule(), [5, 5]), "strictly rising"),
        (lambda: dj.respace(dj.linear_schedule(), []), "spaced_timesteps"),
        (lambda: dj.spaced_timesteps(1000, 1001), "num_steps"),
        (lambda: dj.spaced_timesteps(1000, 0), "num_steps"),
        (lambda: dj.spaced_timesteps(1000, 300, "uniform"), "334"),
        (lambda: dj.spaced_timesteps(1000, 10, "even"), "fractional"),
    ],
)
def test_bad_values_are_named_with_a_remedy(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_lookup_never_wraps_or_clamps():
    table = dj.linear_schedule().beta
    with pytest.raises(ValueError, match="0-based"):
        lookup(table, 1000)
    with pytest.raises(ValueError):
        lookup(table, np.array([-1, 3]))
    got = jax.jit(lookup)(table, jnp.array([-1, 0, 999, 1000]))
    np.testing.assert_array_equal(np.isnan(got), [True, False, False, True])
    with pytest.raises(TypeError, match="Continuous time"):
        lookup(table, 0.5)


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: dj.linear_schedule(50), "up to β = 0.4"),
        (lambda: dj.quadratic_schedule(100), "up to β = 0.2"),
        (lambda: dj.constant_schedule(100), "up to β = 0.2"),
        (lambda: dj.warmup_schedule(100, warmup_fraction=0.5), "up to β = 0.2"),
        (lambda: dj.sigmoid_schedule(10), r"cosine_schedule\(10\)"),
        (lambda: dj.linear_schedule(1000, 1e-5, 1e-3), "up to β"),
    ],
)
def test_a_schedule_that_keeps_x_0_warns(make, words):
    with pytest.warns(UserWarning, match=words) as caught:
        make()
    assert caught[0].filename == __file__


def test_the_remedy_of_the_warning_ends_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for family in (dj.linear_schedule, dj.quadratic_schedule, dj.sigmoid_schedule):
            family(), family(50, 0.002, 0.4)
        dj.constant_schedule(), dj.constant_schedule(100, 0.2)
        dj.warmup_schedule(warmup_fraction=0.5), dj.warmup_schedule(50, 0.002, 0.4)
