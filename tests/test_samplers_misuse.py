"""Calls that would sample something else than was meant are refused, in words of our own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.scheduled import ScheduledDenoiser

FULL = dj.linear_schedule(100, 1e-3, 0.2)
GRID = dj.respace(FULL, dj.spaced_timesteps(100, 5))
X = jnp.zeros((4, 3))
KEYS = dj.example_keys(jax.random.key(0), jnp.arange(4))
DDIM, ANCESTRAL = dj.ddim(GRID), dj.ancestral(GRID)


def halve(x, t):
    return 0.5 * x


def noise(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


KINDS = {
    "a maker that was not called": lambda f: f(dj.ddim, halve, X),
    "denoiser first": lambda f: f(halve, DDIM, X),
    "a schedule for a sampler": lambda f: f(GRID, halve, X),
    "no denoiser": lambda f: f(DDIM, X, X),
    "pixels": lambda f: f(DDIM, halve, X.astype(jnp.uint8)),
    "whole numbers": lambda f: f(DDIM, halve, np.zeros((4, 3), int)),
    "no batch": lambda f: f(DDIM, halve, 1.0),
    "a pair": lambda f: f(DDIM, lambda x, t: (x, x), X),
    "a list": lambda f: f(DDIM, lambda x, t: [0.0], X),
    "nothing estimated": lambda f: f(DDIM, lambda x, t: None, X),
    "classes": lambda f: f(DDIM, lambda x, t: jnp.zeros(x.shape, int), X),
}
VALUES = {
    "one row estimated": lambda f: f(DDIM, lambda x, t: x[:1], X),
    "one column estimated": lambda f: f(DDIM, lambda x, t: x[:, :1], X),
    "the batch lost": lambda f: f(DDIM, lambda x, t: x[0], X),
    "both halves of the output": lambda f: f(DDIM, lambda x, t: jnp.tile(x, (1, 2)), X),
    "variance of one row": lambda f: f(
        dj.ancestral(GRID, variance="learned"), lambda x, t: dj.Denoised(x, x[:1]), X, keys=KEYS
    ),
    "no variance": lambda f: f(
        dj.ancestral(GRID, variance="learned"), lambda x, t: dj.Denoised(x), X, keys=KEYS
    ),
    "no noise": lambda f: f(ANCESTRAL, halve, X),
    "keys and noise": lambda f: f(ANCESTRAL, halve, X, keys=KEYS, noise=noise(5, 4, 3)),
    "noise of one row": lambda f: f(ANCESTRAL, halve, X, noise=noise(5, 1, 3)),
    "noise of one step": lambda f: f(ANCESTRAL, halve, X, noise=noise(4, 3)),
    "noise in whole numbers": lambda f: f(ANCESTRAL, halve, X, noise=noise(5, 4, 3, dtype=int)),
    "a shorter process": lambda f: f(DDIM, dj.make_denoiser(dj.linear_schedule(50), halve), X),
    "another process": lambda f: f(DDIM, dj.make_denoiser(dj.cosine_schedule(100), halve), X),
    "another grid": lambda f: f(DDIM, dj.make_denoiser(dj.respace(FULL, [0, 5, 99]), halve), X),
    "another process in σ": lambda f: f(
        DDIM, dj.denoisers.denoiser_from_sigma(dj.cosine_schedule(100), halve), X
    ),
    "another ladder": lambda f: f(
        DDIM, dj.denoiser_from_score(dj.forward.schedule_from_noise_levels([1.0, 0.1]), halve), X
    ),
}
CALLS = {
    "sample": dj.sample,
    "sample_trajectory": dj.sample_trajectory,
    "jit of sample": lambda sampler, denoise, x, **kwargs: jax.jit(
        lambda x: dj.sample(sampler, denoise, x, **kwargs)
    )(x),
    "advance": lambda sampler, denoise, x, **kwargs: dj.samplers.advance(
        sampler, denoise, x, (), np.arange(5)[::-1], **kwargs
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", KINDS | VALUES)
def test_misuse_of_the_loop_is_refused(call, case):
    error = TypeError if case in KINDS else ValueError
    words = f"{call.split(' ')[-1]}|a denoiser must return|ancestral\\(variance"
    with pytest.raises(error, match=words):
        (KINDS | VALUES)[case](CALLS[call])


def test_the_denoisers_own_process_and_its_grids_are_accepted():
    """Also a grid of a grid, in bfloat16, traced, and a denoiser that hides its schedule."""
    denoise = dj.make_denoiser(FULL, halve)
    assert isinstance(denoise, ScheduledDenoiser) and denoise.schedule is FULL
    for grid in (FULL, GRID, dj.respace(GRID, [0, 2, 4])):
        assert np.isfinite(dj.sample(dj.ddim(grid), denoise, X)).all()
    low = dj.linear_schedule(100, 1e-3, 0.2, dtype=jnp.bfloat16)
    dj.sample(dj.ddim(dj.respace(low, [0, 50, 99])), dj.make_denoiser(low, halve), X)
    other = dj.cosine_schedule(100)
    jax.jit(lambda s: dj.sample(dj.ddim(s), denoise, X))(other)
    dj.sample(dj.ddim(other), lambda x, t: denoise(x, t), X)


STEPS = {
    "rising": np.arange(5),
    "steps left out": np.array([4, 2, 0]),
    "twice the same": np.array([3, 3]),
    "of the full process": np.arange(99, 94, -1),
    "negative": np.array([0, -1]),
    "one number": 4,
    "fractions": np.array([4.0, 3.0]),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_must_fall_one_by_one_on_the_grid(case):
    with pytest.raises(ValueError, match="advance needs grid steps"):
        dj.samplers.advance(DDIM, halve, X, (), STEPS[case])
    with pytest.raises(ValueError, match="advance needs grid steps"):
        dj.samplers.advance(DDIM, halve, X, (), jnp.asarray(STEPS[case]))


@pytest.mark.parametrize("made", [list, np.array, functools.partial(np.array, dtype=np.uint8)])
def test_steps_may_be_any_integers(made):
    """Differences of unsigned integers wrap round."""
    given = dj.samplers.advance(DDIM, halve, X, (), made([4, 3, 2]))[0]
    np.testing.assert_array_equal(
        given, dj.samplers.advance(DDIM, halve, X, (), jnp.array([4, 3, 2]))[0]
    )


MAKERS = {
    "ancestral": dj.ancestral,
    "ddim": dj.ddim,
    "dpm_solver_pp": dj.dpm_solver_pp,
    "unipc": dj.unipc,
    "deis": dj.deis,
    "heun": dj.heun,
    "annealed_langevin": dj.annealed_langevin,
    "ddim_encode": lambda schedule: dj.ddim_encode(schedule, halve, X),
    "predictor_corrector": dj.predictor_corrector,
    "inpaint": lambda sampler: dj.inpaint(sampler, jnp.zeros(3), jnp.ones(3, bool)),
    "grid_steps": dj.samplers.grid_steps,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("given", [10, np.arange(10), dj.linear_schedule, None, dj.ddim])
def test_makers_need_a_schedule_or_sampler(name, given):
    with pytest.raises(
        TypeError, match=f"^{name} needs (schedule|sampler), a (NoiseSchedule|Sampler)"
    ):
        MAKERS[name](given)


@pytest.mark.parametrize("encode", [dj.ddim_encode, functools.partial(dj.score_from_denoiser)])
def test_other_uses_of_a_denoiser_check_its_process_too(encode):
    denoise = dj.make_denoiser(dj.cosine_schedule(100), halve)
    args = (X,) if encode is dj.ddim_encode else ()
    with pytest.raises(ValueError, match="respaced from that process"):
        encode(GRID, denoise, *args)


def test_encoding_needs_data_in_floating_point():
    with pytest.raises(TypeError, match="ddim_encode needs real floating-point"):
        dj.ddim_encode(GRID, halve, X.astype(jnp.uint8))


ON_HOST = {
    "heun": lambda grid, process: dj.heun(grid, churn=1.0, process=process),
    "deis": lambda grid, process: dj.deis(grid, process=process),
}


@pytest.mark.parametrize("process", [dj.cosine_schedule(100), dj.respace(FULL, [0, 5, 99])])
@pytest.mark.parametrize("name", ON_HOST)
def test_a_sampler_between_its_steps_needs_the_grids_own_process(name, process):
    with pytest.raises(ValueError, match=f"^{name}: "):
        ON_HOST[name](GRID, process)
    with pytest.raises(TypeError, match=f"^{name} needs process, a NoiseSchedule"):
        ON_HOST[name](GRID, 100)


@pytest.mark.parametrize("name", ON_HOST)
def test_a_traced_schedule_is_refused_where_tables_are_made(name):
    with pytest.raises(TypeError, match=f"^{name}.* runs on the host"):
        jax.jit(lambda s: ON_HOST[name](s, FULL).num_draws)(GRID)


ORDERS = {
    "dpm_solver_pp (knows the orders 1, 2 and 3|needs order)": [
        lambda: dj.dpm_solver_pp(GRID, order=0),
        lambda: dj.dpm_solver_pp(GRID, order=4),
    ],
    "dpm_solver_pp has sde=True for": [
        lambda: dj.dpm_solver_pp(GRID, order=3, sde=True),
        lambda: dj.dpm_solver_pp(GRID, order=3, singlestep=True),
        lambda: dj.dpm_solver_pp(GRID, order=1, singlestep=True),
        lambda: dj.dpm_solver_pp(GRID, sde=True, singlestep=True),
    ],
    "unipc (knows the orders|needs order)": [
        lambda k=k: dj.unipc(GRID, order=k) for k in (0, 4, "2")
    ],
    "deis (knows the orders|needs order)": [
        lambda k=k: dj.deis(GRID, order=k) for k in (0, 5, None)
    ],
}


@pytest.mark.parametrize("words", ORDERS)
def test_orders_that_do_not_exist_are_refused(words):
    for call in ORDERS[words]:
        with pytest.raises(ValueError, match=f"^{words}"):
            call()
