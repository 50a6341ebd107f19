"""Runs conditioned on vectors and tokens: exported, interpolated, converted. Untrained networks."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
import interpolate
from ddpm_jax.interop.stablehlo import load_program
from ddpm_jax.programs.config import DataConfig
from ddpm_jax.programs.convert import ToDiffusers, ToWeights, to_diffusers, to_weights
from ddpm_jax.programs.export import ExportConfig, export
from ddpm_jax.programs.trained_run import load_run
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training import Checkpoints
from tests.small_run import CONFIG

SEED = {"inputs": "seed", "batch_size": 4, "platforms": ("cpu",)}
SHORT = {"sampler": "ddim", "num_steps": 3}


@pytest.fixture(scope="module", params=["cond", "context", "concat"])
def conditioned(request, tmp_path_factory):
    """A run on images of 4×4 with vectors or tokens of width 2, and rows to condition on."""
    folder, numbers = tmp_path_factory.mktemp("conditioned"), np.random.default_rng(0)
    shape = {"cond": (2,), "context": (3, 2), "concat": (4, 4, 2)}[request.param]
    rows = numbers.normal(size=(40, *shape)).astype(np.float32)
    images = numbers.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    np.savez(folder / "own.npz", images=images, **{request.param: rows})
    network = dataclasses.replace(CONFIG.network, class_conditional=False)
    diffusion = dataclasses.replace(CONFIG.diffusion, variance="fixed_large", loss="simple")
    data = DataConfig(name="arrays", path=folder / "own.npz", cache_dir=folder / "cache")
    config = dataclasses.replace(
        CONFIG, run_dir=folder / "run", network=network, diffusion=diffusion, data=data
    )
    run = TrainingRun(config)
    moved = jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * numbers.standard_normal(x.shape), jnp.float32),
        run.model.init().params,
    )
    run.directory.write(run.config, run.facts)
    with Checkpoints(run.directory.checkpoints) as checkpoints:
        state = run.model.init()
        checkpoints.save(0, state.replace(params=moved, ema_params=moved))
    np.save(folder / "rows.npy", rows[:4])
    return request.param, folder / "run", folder / "rows.npy"


@pytest.mark.slow
def test_an_exported_program_takes_conditions(conditioned, tmp_path):
    name, run_dir, rows = conditioned
    given = {name: np.load(rows)}
    if name == "context":
        given["context_mask"] = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
    export(ExportConfig(**SHORT, run_dir=run_dir, out=tmp_path / "with", guidance=2.0, **SEED))
    about = json.loads((tmp_path / "with.json").read_text())
    assert about["conditions"] == list(given)
    program = load_program(tmp_path / "with")
    images = np.asarray(program.call(np.uint32(5), np.uint32(0), *given.values()), int)
    run = load_run(run_dir)
    wanted = run.sample(4, **SHORT, conditions=given, guidance=2.0, seed=5)
    assert np.abs(images - wanted).max() <= 1
    # Without them, the program makes the images of no condition, which are others.
    export(ExportConfig(**SHORT, run_dir=run_dir, out=tmp_path / "none", conditions=False, **SEED))
    plain = np.asarray(load_program(tmp_path / "none").call(np.uint32(5), np.uint32(0)), int)
    assert np.abs(plain - run.sample(4, **SHORT, seed=5)).max() <= 1
    assert np.abs(plain - images).max() > 3


@pytest.mark.slow
def test_interpolation_uses_a_row_for_each_pair(conditioned, tmp_path):
    """The ends of DDIM's row are its inversion with the pair's own condition, by the library."""
    name, run_dir, rows = conditioned
    options = {"first": (0, 1), "second": (2, 3), "points": 2, "depths": (0.5,), "batch_size": 3}
    config = interpolate.InterpolateConfig(run_dir, out=tmp_path / "out", **options)
    given = interpolate.interpolate(dataclasses.replace(config, **{name: rows}))
    (made,) = (images for row, images in given.images.items() if row.startswith("DDIM"))
    run = load_run(run_dir)

    @jax.jit
    def inverted(x_0, conditions):
        denoise = run.denoiser(clip=False, **conditions)
        x_T = dj.ddim_encode(run.schedule, denoise, x_0, corrections=1)
        return dj.to_pixels(dj.sample(dj.ddim(run.schedule), denoise, x_T))

    x_0 = dj.from_pixels(run.heldout_data.images[:2])
    wanted = np.asarray(inverted(x_0, {name: np.load(rows)[:2]}), int)
    assert np.abs(made[:, 0] - wanted).mean() < 1
    for other in (inverted(x_0, {}), inverted(x_0, {name: np.load(rows)[1::-1]})):
        assert np.abs(made[:, 0] - np.asarray(other, int)).mean() > 2
    rank = np.load(rows).ndim
    np.save(tmp_path / "wrong.npy", np.ones((2, 3, 3, 7)[-rank:]))
    with pytest.raises(ValueError, match=f"--{name} .*needs {name}"):
        interpolate.interpolate(dataclasses.replace(config, **{name: tmp_path / "wrong.npy"}))


@pytest.mark.slow
def test_weights_keep_the_condition_and_diffusers_refuses_it(conditioned, tmp_path):
    name, run_dir, rows = conditioned
    to_weights(ToWeights(run_dir, out=tmp_path / "weights"))
    given = {**SHORT, "conditions": {name: np.load(rows)}}
    images = load_run(run_dir).sample(4, **given)
    assert (load_run(tmp_path / "weights").sample(4, **given) == images).all()
    with pytest.raises(ValueError, match=f"{name}_features=2"):
        to_diffusers(ToDiffusers(run_dir, out=tmp_path / "pipeline"))
    assert not (tmp_path / "pipeline").exists()
