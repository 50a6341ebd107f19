"""What every noise schedule promises, whichever formula made it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.programs import named
from ddpm_jax.programs.diffusion import DiffusionConfig


def of_programs(name):
    """The schedule that the programs build under this name."""
    return lambda T=1000: named.SCHEDULES[name](DiffusionConfig(num_timesteps=T))


SCHEDULES = {name: of_programs(name) for name in named.SCHEDULES} | {
    "from_beta": lambda T=1000: dj.schedule_from_beta(np.geomspace(1e-4, 0.1, T)),
    "from_alpha_bar": lambda T=1000: dj.schedule_from_alpha_bar(np.linspace(0.999, 0.001, T)),
    "respaced": lambda T=1000: dj.respace(
        dj.linear_schedule(4 * T, 2.5e-5, 0.005), dj.spaced_timesteps(4 * T, T)
    ),
}
NAMES = list(SCHEDULES)


# The geometric schedule runs between two noise levels, so it has at least two.
@pytest.mark.parametrize(
    "name,T", [(name, T) for name in NAMES for T in (1, 2, 50, 1000) if T > (name == "geometric")]
)
def test_tables_are_complete_and_consistent(name, T):
    s = SCHEDULES[name](T)
    tables = {k: np.asarray(v) for k, v in vars(s).items()}
    assert {v.shape for v in tables.values()} == {(T,)} and s.num_timesteps == T
    assert all(v.dtype == np.float32 for k, v in tables.items() if k != "timesteps")
    assert tables["timesteps"].dtype == np.int32
    assert (tables["beta"] > 0).all() and (tables["beta"] <= 1).all()
    assert (np.diff(tables["alpha_bar"]) < 0).all() and (np.diff(tables["log_snr"]) < 0).all()
    np.testing.assert_array_equal(tables["alpha_bar_prev"][1:], tables["alpha_bar"][:-1])
    np.testing.assert_allclose(
        tables["signal_scale"].astype(np.float64) ** 2 + tables["noise_scale"] ** 2, 1, rtol=1e-6
    )
    # Never more uncertain after seeing x_t than one step of noise makes.
    assert (tables["posterior_variance"] <= tables["beta"] * (1 + 1e-6)).all()
    assert np.isfinite(tables["posterior_log_variance"]).all()
    np.testing.assert_allclose(
        np.exp(tables["posterior_log_variance"][1:]), tables["posterior_variance"][1:], rtol=2e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_process_can_be_walked_forward(name):
    """Multiplying up (1-β) in float64 gives ᾱ: the tables are of one process."""
    s = SCHEDULES[name](200)
    beta = np.asarray(s.beta, np.float64)
    np.testing.assert_allclose(np.cumprod(1 - beta), s.alpha_bar, rtol=5e-5, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_posterior_undoes_the_forward_process(name):
    """E over x_t of μ̃_t is √ᾱ_{t-1} x_0, and the variances add up: law of total variance."""
    s = SCHEDULES[name](50)
    t = np.arange(50)
    x_0 = jnp.full(50, 0.7)
    at_mean = dj.posterior_mean(s, x_0, s.signal_scale * x_0, t)
    np.testing.assert_allclose(at_mean, np.sqrt(s.alpha_bar_prev) * 0.7, rtol=2e-5, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda x, i: dj.posterior_mean(s, jnp.float32(0.7), x, i)))(x_0, t)
    total = np.asarray(slope) ** 2 * np.asarray(s.noise_scale) ** 2 + s.posterior_variance
    np.testing.assert_allclose(total[1:], np.asarray(s.noise_scale)[:-1] ** 2, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_traceable(name):
    s = SCHEDULES[name](50)
    x, t = jnp.ones((4, 3)), jnp.array([0, 10, 20, 49])
    np.testing.assert_allclose(
        jax.jit(dj.posterior_mean)(s, x, x, t), dj.posterior_mean(s, x, x, t), rtol=1e-6
    )


OF_LIBRARY = {
    "linear": lambda: dj.linear_schedule(50, 2e-3, 0.3),
    "quadratic": lambda: dj.quadratic_schedule(50, 2e-3, 0.3),
    "constant": lambda: dj.constant_schedule(50, 0.3),
    "warmup10": lambda: dj.warmup_schedule(50, 2e-3, 0.3, warmup_fraction=0.1),
    "warmup50": lambda: dj.warmup_schedule(50, 2e-3, 0.3, warmup_fraction=0.5),
    "jsd": lambda: dj.jsd_schedule(50),
    "cosine": lambda: dj.cosine_schedule(50),
    "sigmoid": lambda: dj.sigmoid_schedule(50, 2e-3, 0.3),
    "geometric": lambda: dj.schedule_from_noise_levels(np.geomspace(0.03, 4.0, 50)[::-1]),
}


@pytest.mark.parametrize("name", named.SCHEDULES)
def test_the_programs_name_the_schedules_of_the_library(name):
    """With the options that concern them."""
    config = DiffusionConfig(
        num_timesteps=50, beta_start=2e-3, beta_end=0.3, sigma_min=0.03, sigma_max=4.0
    )
    made, wanted = named.SCHEDULES[name](config), OF_LIBRARY[name]()
    np.testing.assert_allclose(made.log_snr, wanted.log_snr, rtol=1e-5, atol=1e-5)
