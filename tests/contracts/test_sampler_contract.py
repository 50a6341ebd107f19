"""What every sampler promises: the loop, keys, replay, jit, vmap over examples, shapes of any
kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import samplers
from ddpm_jax.programs import named
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.samplers.base import step_noise
from tests.oracles import GaussianData

FULL = dj.linear_schedule()
NO_SIGNAL = dj.jsd_schedule(200)


def process_of(grid):
    """The process that a grid of these tests was respaced from; FULL for a traced one."""
    traced = isinstance(grid.signal_scale, jax.core.Tracer)
    return NO_SIGNAL if not traced and grid.signal_scale[-1] == 0 else FULL


def of_programs(name):
    """The sampler that the programs build under this name."""
    options = SamplerOptions(sampler=name, langevin_steps=20, langevin_rate=0.5)
    return lambda s: named.SAMPLERS[name](named.SamplerInputs(s, process_of(s), options))


# Every sampler of the programs, and some with other options. tests/test_continuous.py has those
# that follow the time of a continuous process.
IN_TIME = {"probability_flow_euler", "probability_flow_heun", "euler_maruyama"}
SAMPLERS = {name: of_programs(name) for name in named.SAMPLERS if name not in IN_TIME} | {
    "ancestral small": lambda s: dj.ancestral(s, variance="fixed_small"),
    "ddim 0.5": lambda s: dj.ddim(s, eta=0.5),
    "ddim 1": lambda s: dj.ddim(s, eta=1.0),
    "dpm 1": lambda s: samplers.dpm_solver_pp(s, order=1),
    "unipc 1": lambda s: samplers.unipc(s, order=1),
    "deis 1": lambda s: samplers.deis(s, order=1),
    "deis 4": lambda s: samplers.deis(s, order=4, process=process_of(s)),
    "heun churn": lambda s: samplers.heun(s, churn=5.0, process=FULL),
    "pc ddim": lambda s: samplers.predictor_corrector(dj.ddim(s), num_corrections=2),
    "inpaint nothing": lambda s: samplers.inpaint(
        samplers.dpm_solver_pp(s), jnp.zeros(()), jnp.zeros((), bool), num_resamples=2
    ),
}
# The evaluations per step of samplers that document more than one, and those of their last step.
EVALUATIONS = {
    "annealed_langevin": (21, 21),
    "heun": (2, 1),
    "heun churn": (2, 1),
    "predictor_corrector": (2, 1),
    "pc ddim": (3, 1),
    "inpaint nothing": (2, 1),
}
# Churn and DEIS's coefficients are computed on the host: there the grid has to be concrete.
ON_HOST = {"heun churn", "deis", "deis 1", "deis 4"}
SPACINGS = ["fractional", "uniform", "quadratic", "leading", "trailing"]
EXACT = GaussianData(0.0, 0.5, np.asarray(FULL.alpha_bar, np.float64))


@functools.cache
def make(name, num_steps=10, spacing="trailing"):
    return SAMPLERS[name](dj.respace(FULL, dj.spaced_timesteps(1000, num_steps, spacing)))


@functools.cache
def jitted(name):
    """The sampler on its ten steps, compiled once for all tests of the same shape."""
    sampler = make(name)
    return jax.jit(lambda x_T, keys: dj.sample(sampler, EXACT.denoise, x_T, keys=keys))


def start(shape, count=4):
    keys = dj.example_keys(jax.random.key(0), jnp.arange(count, dtype=jnp.uint32))
    return keys, dj.initial_noise(keys, shape)


@pytest.mark.parametrize("shape", [(), (2, 2, 1)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_event_shape(name, shape):
    keys, x_T = start(shape)
    got = jitted(name)(x_T, keys)
    assert got.shape == (4, *shape) and got.dtype == x_T.dtype
    # Data of width 0.5: whatever the shape, nothing ends far outside.
    assert np.abs(got).max() < 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_replaying_the_noise_replays_the_sample(name):
    """Also compiled against not compiled."""
    sampler = make(name)
    keys, x_T = start((2, 2, 1))
    drawn = jitted(name)(x_T, keys)
    noise = None
    if sampler.stochastic:
        noise = jnp.stack([step_noise(keys, t, x_T, sampler.num_draws) for t in range(9, -1, -1)])
        draws = [sampler.num_draws][: sampler.num_draws > 1]
        assert noise.shape == (10, *draws, 4, 2, 2, 1)
    replayed = dj.sample(sampler, EXACT.denoise, x_T, noise=noise)
    np.testing.assert_allclose(replayed, drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_examples_do_not_see_each_other(name):
    keys, x_T = start((2, 2, 1))
    together = jitted(name)(x_T, keys)
    alone = jitted(name)(x_T[2:3], keys[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)


@functools.cache
def towards_truth(name):
    def run(grid, truth, x_T, keys):
        sampler = SAMPLERS[name](grid)
        return dj.sample(sampler, lambda x, t: jnp.broadcast_to(truth, x.shape), x_T, keys=keys)

    return run if name in ON_HOST else jax.jit(run)


@pytest.mark.parametrize(
    "name,spacing",
    [
        (name, spacing)
        for name in SAMPLERS
        for spacing in (SPACINGS if name not in ON_HOST else ["trailing", "quadratic"])
    ],
)
def test_a_perfect_denoiser_is_obeyed_at_the_end(name, spacing):
    """If x̂_0 is always the same, every sampler ends exactly there, on any grid."""
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 20, spacing))
    keys, x_T = start((3,))
    truth = jnp.array([0.3, -0.9, 0.1])
    got = towards_truth(name)(grid, truth, x_T, keys)
    np.testing.assert_allclose(got, np.tile(truth, (4, 1)), atol=2e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_start_without_any_signal(name):
    """ᾱ_T = 0: x̂_0 = E[x_0 | x_t] is still defined, and samples have about the data's moments."""
    grid = dj.respace(NO_SIGNAL, dj.spaced_timesteps(200, 40, "trailing"))
    if name == "heun churn":
        sampler = samplers.heun(grid, churn=5.0, process=NO_SIGNAL)
    else:
        sampler = SAMPLERS[name](grid)
    data = GaussianData(0.4, 0.5, np.asarray(NO_SIGNAL.alpha_bar, np.float64))
    keys, x_T = start((64,), 64)
    got = jax.jit(lambda x, k: dj.sample(sampler, data.denoise, x, keys=k))(x_T, keys)
    np.testing.assert_allclose([np.mean(got), np.std(got)], [0.4, 0.5], atol=0.08)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_fed_the_steps_of_the_full_process(name):
    seen = []
    keys, x_T = start((3,), 1)

    def denoise(x_t, t):
        jax.debug.callback(lambda step: seen.append(int(step)), t[0], ordered=True)
        return 0.5 * x_t

    dj.sample(make(name, 4, "leading"), denoise, x_T, keys=keys)
    jax.effects_barrier()
    if name == "heun churn":  # γ = √2-1 lifts each level, but the last, which is at the top
        sigma = np.exp(-0.5 * np.asarray(FULL.log_snr))
        raised = [np.abs(sigma - np.sqrt(2) * sigma[t]).argmin() for t in (750, 500, 250, 0)]
        assert seen[0::2] == raised and seen[1::2] == [500, 250, 0]
    elif name in EVALUATIONS:
        each, last = EVALUATIONS[name]
        assert len(seen) == 3 * each + last
        assert set(seen) == {750, 500, 250, 0} and seen[0] == 750 and seen[-1] == 0
        assert seen == sorted(seen, reverse=True)
    else:
        assert seen == [750, 500, 250, 0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_schedule_of_numpys_tables_will_do(name):
    """Such as `jax.device_get` returns; traced only, as the numbers are the same."""
    sampler = SAMPLERS[name](jax.device_get(make(name).schedule))
    keys, x_T = start((3,))
    made = jax.eval_shape(lambda x, k: dj.sample(sampler, EXACT.denoise, x, keys=k), x_T, keys)
    assert made.shape == (4, 3)


def test_any_network_will_do():
    """Flax NNX and plain functions serve as the network."""
    from flax import nnx

    class Small(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x, t):
            return self.dense(jnp.concatenate([x, t[:, None] / 1000], -1))

    model = Small(nnx.Rngs(0))
    graph, weights = nnx.split(model)

    def apply_fn(x, t):
        # NNX's own layers rely on rank promotion.
        with jax.numpy_rank_promotion("allow"):
            return nnx.merge(graph, weights)(x, t)

    keys, x_T = start((3,))
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 5))
    got = dj.sample(dj.ddim(grid), dj.make_denoiser(FULL, apply_fn), x_T)
    kernel, bias = np.asarray(model.dense.kernel[...]), np.asarray(model.dense.bias[...])

    def plain(x, t):
        return jnp.concatenate([x, t[:, None] / 1000], -1) @ kernel + bias[None]

    expected = dj.sample(dj.ddim(grid), dj.make_denoiser(FULL, plain), x_T)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    loss = dj.simple_loss(FULL, apply_fn, jnp.zeros((4, 3)), 10, x_T)
    assert loss.shape == (4,)
