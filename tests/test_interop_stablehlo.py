"""Exported programs give what the sampler gives, for any batch, with nothing but JAX."""

import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.interop.stablehlo import export_sampler, load_program, save_program
from ddpm_jax.programs.generator import Generator

SHAPE = (4, 4, 1)
SCHEDULE = dj.linear_schedule(50, 2e-3, 0.3)
GRID = dj.respace(SCHEDULE, dj.spaced_timesteps(50, 4))
PARAMS = {"mix": jnp.array([0.7, -0.4]), "classes": jnp.array([0.0, 0.5, -0.5])}
SAMPLERS = {
    "ddim": dj.ddim(GRID),
    "ancestral": dj.ancestral(GRID),
    "dpm_solver_pp": dj.dpm_solver_pp(GRID),
    "heun": dj.heun(GRID, process=SCHEDULE),
    "predictor_corrector": dj.predictor_corrector(dj.ancestral(GRID)),
}


def denoiser_of(params, labels):
    """A network of two numbers that sees neighbours, t and the label."""

    def network(x, t):
        mix = params["mix"]
        output = jnp.sin(mix[0] * x + mix[1] * jnp.roll(x, 1, 2)) + t.reshape(-1, 1, 1, 1) / 50
        if labels is not None:
            output = output + params["classes"][labels].reshape(-1, 1, 1, 1)
        return output

    return dj.make_denoiser(SCHEDULE, network)


def truth(sampler, x_T, *, labels=None, **random):
    x_0 = dj.sample(sampler, denoiser_of(PARAMS, labels), x_T, **random)
    return dj.to_pixels(x_0)


def start(batch, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, *SHAPE))
    return jnp.asarray(x, jnp.float32)


def through_bytes(exported):
    return jax.export.deserialize(bytearray(exported.serialize()))


def close(images, expected):
    """Equal but for rounding: a program compiled as one may differ in the last bit of a float."""
    assert images.dtype == jnp.uint8
    np.testing.assert_allclose(np.int32(images), np.int32(expected), atol=1)


@pytest.mark.parametrize(
    "name,batches", [("ddim", (1, 3)), ("dpm_solver_pp", (3,)), ("heun", (3,))]
)
def test_samplers_that_draw_nothing_for_any_batch(name, batches):
    program = through_bytes(export_sampler(SAMPLERS[name], denoiser_of, PARAMS, SHAPE))
    for batch in batches:
        images = program.call(start(batch))
        assert images.shape == (batch, *SHAPE)
        assert np.std(np.float32(images)) > 10
        close(images, truth(SAMPLERS[name], start(batch)))


@pytest.mark.parametrize("name", ["ancestral", "predictor_corrector"])
def test_given_noise_is_replayed(name):
    sampler = SAMPLERS[name]
    program = through_bytes(
        export_sampler(sampler, denoiser_of, PARAMS, SHAPE, inputs="x_T_noise", batch_size=2)
    )
    draws = (sampler.num_draws,) if sampler.num_draws > 1 else ()
    noise = np.random.default_rng(5).normal(size=(4, *draws, 2, *SHAPE)).astype(np.float32)
    images = program.call(start(2), noise)
    close(images, truth(sampler, start(2), noise=jnp.asarray(noise)))
    assert not np.array_equal(images, program.call(start(2), 0 * noise))
    with pytest.raises(ValueError, match="[Ss]hape"):
        program.call(start(3), noise)


def test_noise_by_a_seed_for_machines_that_are_not_here():
    sampler = SAMPLERS["ancestral"]
    platforms = ("cpu", "cuda", "tpu")
    program = export_sampler(sampler, denoiser_of, PARAMS, SHAPE, platforms=platforms)
    assert program.platforms == platforms
    keys = dj.example_keys(jax.random.key(7), jnp.arange(2, dtype=jnp.uint32))
    images = through_bytes(program).call(start(2), jnp.uint32(7))
    close(images, truth(sampler, start(2), keys=keys))


def test_from_a_seed_come_the_generators_images():
    """Images 3 … 5 of seed 11, which are themselves in whatever batch they are made."""
    sampler = SAMPLERS["ancestral"]
    program = through_bytes(
        export_sampler(sampler, denoiser_of, PARAMS, SHAPE, inputs="seed", batch_size=3)
    )
    made = Generator(sampler, denoiser_of, SHAPE, target_chunks=1)(PARAMS, seed=11, count=6).images
    close(program.call(jnp.uint32(11), jnp.uint32(3)), made[3:])


def test_weights_as_an_argument_and_a_label():
    sampler = SAMPLERS["ddim"]
    program = through_bytes(
        export_sampler(sampler, denoiser_of, PARAMS, SHAPE, bake=False, label=2)
    )
    labels = jnp.full(2, 2)
    close(program.call(PARAMS, start(2)), truth(sampler, start(2), labels=labels))
    other = jax.tree.map(lambda leaf: 0.5 * leaf, PARAMS)
    assert not np.array_equal(program.call(other, start(2)), program.call(PARAMS, start(2)))


@pytest.mark.parametrize("inputs,batch_size", [("x_T", None), ("seed", 3)])
def test_conditions_are_the_last_arguments(inputs, batch_size):
    """A vector [B, 2] and any number of tokens [B, L, 2] with their mask, against the sampler's."""

    def conditioned(params, labels, *, cond, context, context_mask):
        tokens = jnp.where(context_mask[..., None], context, 0.0).sum(1)
        shift = (cond + tokens) @ params["mix"]
        network = lambda x, t: jnp.sin(x) + shift[:, None, None, None]  # noqa: E731
        return dj.make_denoiser(SCHEDULE, network)

    sampler = SAMPLERS["ancestral"]
    shapes = {"cond": (2,), "context": ("L", 2), "context_mask": ("L",)}
    options = {"inputs": inputs, "batch_size": batch_size, "conditions": shapes}
    program = through_bytes(export_sampler(sampler, conditioned, PARAMS, SHAPE, **options))
    numbers = np.random.default_rng(2)
    keys = dj.example_keys(jax.random.key(7), jnp.arange(3, dtype=jnp.uint32))
    x_T = start(3) if inputs == "x_T" else dj.initial_noise(keys, SHAPE)
    for length in (1, 4):
        given = {
            "cond": numbers.normal(size=(3, 2)).astype(np.float32),
            "context": numbers.normal(size=(3, length, 2)).astype(np.float32),
            "context_mask": numbers.random((3, length)) < 0.5,
        }
        first = (x_T, jnp.uint32(7)) if inputs == "x_T" else (jnp.uint32(7), jnp.uint32(0))
        images = program.call(*first, *given.values())
        denoise = conditioned(PARAMS, None, **given)
        close(images, dj.to_pixels(dj.sample(sampler, denoise, x_T, keys=keys)))
        other = program.call(*first, -given["cond"], *list(given.values())[1:])
        assert not np.array_equal(images, other)
    with pytest.raises(ValueError, match="[Ss]hape"):
        program.call(*first, given["cond"][:2], *list(given.values())[1:])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "ddim.stablehlo"
    save_program(path, export_sampler(SAMPLERS["ddim"], denoiser_of, PARAMS, SHAPE), {"run": "a"})
    return path


def test_a_saved_program_runs_without_this_package(saved, tmp_path):
    np.save(tmp_path / "x_T.npy", start(2))
    code = (
        "import sys, jax, jax.export, numpy as np\n"
        "program = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))\n"
        "np.save(sys.argv[3], program.call(np.load(sys.argv[2])))\n"
        "assert not {'flax', 'ddpm_jax'} & set(sys.modules)\n"
    )
    arguments = [str(saved), str(tmp_path / "x_T.npy"), str(tmp_path / "images.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tmp_path)
    close(np.load(tmp_path / "images.npy"), truth(SAMPLERS["ddim"], start(2)))


def test_a_saved_program_says_what_it_is(saved):
    facts = json.loads(saved.with_name("ddim.stablehlo.json").read_text())
    assert facts["arguments"] == ["float32[b,4,4,1]"]
    assert facts["run"] == "a"
    assert facts["bytes"] == saved.stat().st_size
    assert load_program(saved).in_avals[0].shape[1:] == SHAPE


@pytest.mark.parametrize("with_facts", [True, False])
def test_damaged_programs_are_refused(saved, tmp_path, with_facts):
    whole = saved.read_bytes()
    path = tmp_path / "program.stablehlo"
    if with_facts:
        facts = saved.with_name("ddim.stablehlo.json").read_text()
        path.with_name("program.stablehlo.json").write_text(facts)
    damaged = [b"", whole[:100], whole[: len(whole) // 2], b"hello" * 100]
    if with_facts:
        # Which only a digest can tell.
        middle = len(whole) // 2
        flipped = bytes([whole[middle] ^ 1])
        damaged += [whole[:-1], whole[:middle] + flipped + whole[middle + 1 :]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"program.stablehlo (has .* bytes and|is no exported)"
        ):
            load_program(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_program(tmp_path / "none")


def test_inputs_that_do_not_go_together():
    def export(name, **options):
        return export_sampler(SAMPLERS[name], denoiser_of, PARAMS, SHAPE, **options)

    with pytest.raises(ValueError, match="needs inputs"):
        export("ddim", inputs="noise")
    with pytest.raises(ValueError, match="draws none"):
        export("ddim", inputs="x_T_noise")
    with pytest.raises(ValueError, match="needs a batch_size"):
        export("ddim", inputs="seed")
    with pytest.raises(ValueError, match="batch_size, a whole number"):
        export("ddim", batch_size=0)


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("names", [("B", "b"), ("L", "l"), ("max", "mod"), ("L", "L")])
def test_open_sizes_may_have_any_names(names, batch_size):
    """Also those of the batch, of each other but for the case, and of JAX's operators."""

    def conditioned(params, labels, *, first, second):
        shift = first.sum(1) - second.sum(1)
        return dj.make_denoiser(SCHEDULE, lambda x, t: jnp.sin(x) + shift[:, None, None, None])

    shapes = {"first": names[:1], "second": names[1:]}
    options = {"conditions": shapes, "batch_size": batch_size}
    program = export_sampler(SAMPLERS["ddim"], conditioned, PARAMS, SHAPE, **options)
    sizes = (2, 2) if len(set(names)) == 1 else (2, 5)
    given = {k: jnp.ones((3, n)) / n for k, n in zip(shapes, sizes, strict=True)}
    denoise = conditioned(PARAMS, None, **given)
    close(
        program.call(start(3), *given.values()),
        dj.to_pixels(dj.sample(SAMPLERS["ddim"], denoise, start(3))),
    )


@pytest.mark.parametrize("size", ["", "L+1", "L, M", "...", "2", 0, -1, 1.5, None])
def test_sizes_of_conditions_that_are_none_are_refused(size):
    with pytest.raises(ValueError, match="export_sampler .*conditions\\['cond'\\]"):
        export_sampler(SAMPLERS["ddim"], denoiser_of, PARAMS, SHAPE, conditions={"cond": (2, size)})
