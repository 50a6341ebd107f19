"""Functions that functions return: denoisers, networks, scores and velocities, called wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import denoisers
from tests.contracts.wrong import SCHEDULE, T, network

X, STEPS = jnp.linspace(-1.0, 1.0, 24).reshape(3, 4, 2), jnp.array([0, 3, 7])
VP, TIMES = dj.forward.vp_process(), jnp.array([0.2, 0.5, 0.9])
GRID, SIGMAS = np.linspace(0.1, 0.9, T), jnp.array([0.5, 1.0, 2.0])


def gaussian(y, *_):
    return 0.3 * y


def log_p(x, *_):
    return -jnp.sum(x**2, axis=(1, 2))


def self_conditioned(x_t, timesteps):
    made = denoisers.self_conditioned_denoiser(SCHEDULE, gaussian)
    return made(x_t, timesteps, X)


MEASURED = (SCHEDULE, network, jnp.sum, jnp.zeros(()))
OF_STEPS = {
    "make_denoiser": dj.make_denoiser(SCHEDULE, network),
    "dps": denoisers.dps(*MEASURED, noise=0.5),
    "pi_gdm": denoisers.pi_gdm(*MEASURED, noise=0.5),
    "denoiser_from_score": dj.denoiser_from_score(SCHEDULE, gaussian),
    "denoiser_from_sigma": denoisers.denoiser_from_sigma(SCHEDULE, gaussian),
    "denoiser_from_process": denoisers.denoiser_from_process(VP, GRID, gaussian, target="epsilon"),
    "self_conditioned_denoiser": self_conditioned,
    "classifier_guided": dj.classifier_guided(SCHEDULE, network, log_p, 2.0),
    "score_from_denoiser": dj.score_from_denoiser(SCHEDULE, network),
}
OF_LEVELS = {
    "edm_denoiser": denoisers.edm_denoiser(gaussian),
    "sigma_denoiser": dj.sigma_denoiser(SCHEDULE, gaussian),
    "sigma_denoiser_from_process": denoisers.sigma_denoiser_from_process(
        VP, gaussian, target="epsilon"
    ),
}
MADE = (
    {name: (made, STEPS) for name, made in OF_STEPS.items()}
    | {name: (made, SIGMAS) for name, made in OF_LEVELS.items()}
    | {
        "classifier_free": (dj.classifier_free(network, network, 2.0), STEPS),
        "velocity_from_denoiser": (denoisers.velocity_from_denoiser(VP, gaussian), TIMES),
    }
)
EVENTS = {
    "uint8": jnp.zeros(X.shape, jnp.uint8),
    "int32": jnp.zeros(X.shape, int),
    "complex": X + 0j,
    "None": None,
    "a list": X.tolist(),
    "text": "x",
    "a number": 0.3,
}
POINTS = {
    "None": None,
    "text": "0",
    "short": lambda t: t[:2],
    "one": lambda t: t[:1],
    "a column": lambda t: t[:, None],
    "bools": lambda t: t > 0,
    "of the other kind": lambda t: t / 2 if jnp.issubdtype(t.dtype, jnp.integer) else STEPS,
}


@pytest.mark.parametrize("name", MADE)
def test_wrong_events_are_refused(name):
    made, t = MADE[name]
    assert made(X, t).shape == X.shape
    for wrong in EVENTS.values():
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
            made(wrong, t)


@pytest.mark.parametrize("name", sorted(MADE.keys() - {"classifier_free"}))
def test_wrong_steps_levels_and_times_are_refused(name):
    made, t = MADE[name]
    for wrong in POINTS.values():
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
            made(X, wrong(t) if callable(wrong) else wrong)


@pytest.mark.parametrize("name", sorted(OF_STEPS.keys() - {"score_from_denoiser"}))
def test_a_step_that_the_schedule_does_not_have_gives_nan(name):
    result = np.asarray(OF_STEPS[name](X, np.array([0, T, -1])))
    assert np.isfinite(result[0]).all() and np.isnan(result[1:]).all()


@pytest.mark.parametrize("name", MADE)
def test_an_empty_batch_stays_empty(name):
    made, t = MADE[name]
    if name == "self_conditioned_denoiser":
        return
    assert made(X[:0], t[:0]).shape == (0, *X.shape[1:])


EMPTY, NO_KEYS = jnp.zeros((0, 4, 4, 2)), jax.random.split(jax.random.key(0), 3)[:0]
LEVELS = {"sigma_min": 0.5, "sigma_max": 1.0}
UNET = dj.UNet(
    channels=8,
    num_groups=4,
    channel_multipliers=(1,),
    num_res_blocks=1,
    attention_resolutions=(4,),
    out_channels=2,
)


@pytest.mark.parametrize(
    "call",
    [
        lambda: dj.dynamic_threshold()(EMPTY),
        lambda: dj.probability_flow_sample(gaussian, EMPTY, **LEVELS).y,
        lambda: dj.probability_flow_encode(gaussian, EMPTY, **LEVELS).y,
        lambda: jax.jit(UNET.init_with_output)(jax.random.key(0), EMPTY, jnp.zeros(0, int))[0],
    ],
    ids=["dynamic_threshold", "sample", "encode", "UNet"],
)
def test_functions_keep_an_empty_batch_empty(call):
    assert call().shape == EMPTY.shape


def test_an_empty_batch_has_no_likelihood():
    for trace, probes in (("exact", None), ("hutchinson", EMPTY[None])):
        flow = dj.probability_flow_log_likelihood(
            gaussian, EMPTY, trace=trace, probes=probes, **LEVELS
        )
        assert flow.log_likelihood.shape == (0,)
