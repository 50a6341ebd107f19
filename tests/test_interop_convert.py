"""Runs made of other libraries' models, and back; the hub, played by a server on this machine."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ddpm_jax.interop import (
    ImportedModel,
    Process,
    choose_pipeline_files,
    load_diffusers,
    save_diffusers,
    tensorflow_name,
)
from ddpm_jax.interop.hub import fetch_files
from ddpm_jax.nn import UNet
from ddpm_jax.programs.build import build_model, build_schedule
from ddpm_jax.programs.config import (
    DiffusionConfig,
    NetworkConfig,
    SamplerOptions,
    TrainConfig,
)
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.convert import (
    FromDiffusers,
    FromTensorFlow,
    ToDiffusers,
    convert,
    write_run,
)
from ddpm_jax.programs.diffusers_code import sampling_code
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.training import Checkpoints
from tests.fake_hub import serving
from tests.reference_unet import random_params
from tests.reference_unet import unet as reference_unet

UNET = UNet(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
    dropout=0.25,
    out_channels=2,
    downsample_padding="symmetric",
)
SHAPE = (8, 8, 1)
PROCESS = Process("cosine", 30, 1e-3, 0.2, True, "v", "learned_range", False)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )


@pytest.fixture(scope="module")
def params():
    return random_params(UNET, np.zeros((1, *SHAPE), np.float32), 0)


@pytest.fixture(scope="module")
def pipeline(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    schedule = build_schedule(
        DiffusionConfig(*PROCESS[:4], zero_terminal_snr=True, target=PROCESS.target)
    )
    save_diffusers(folder, UNET, params, SHAPE, PROCESS, schedule)
    return folder


@pytest.fixture(scope="module")
def imported(pipeline, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "imported"
    convert(FromDiffusers(root, data_name="digits", folder=pipeline))
    return root


@pytest.fixture(scope="module")
def run(imported):
    return TrainedRun(RunOptions(imported))


@pytest.mark.slow
def test_an_imported_model_is_a_run(run, params):
    assert same(run.params, params)
    assert run.step == 0
    network = run.model.network
    for name in ("dropout", "downsample_padding", "attention_resolutions", "num_groups"):
        assert getattr(network, name) == getattr(UNET, name)
    diffusion = run.config.diffusion
    assert (diffusion.schedule, diffusion.zero_terminal_snr) == ("cosine", True)
    assert (diffusion.target, diffusion.variance, diffusion.clip) == ("v", "learned_range", False)
    assert float(run.model.schedule.signal_scale[-1]) == 0.0
    digests = run.facts["source"]["sha256"]
    assert {len(digest) for digest in digests.values()} == {64}
    assert "unet/diffusion_pytorch_model.safetensors" in digests
    # Of the data it was trained on nothing is known, so those it is given are taken.
    assert run.train_data.images.shape[1:] == SHAPE
    other = TrainedRun(RunOptions(run.directory.root))
    other.model = dataclasses.replace(other.model, image_shape=(16, 16, 3))
    with pytest.raises(RunDirectoryError, match=r"8×8×1.*makes images of 16×16×3"):
        _ = other.heldout_data


def test_an_imported_model_denoises_as_it_did(run, params):
    """x̂_0 = √ᾱ x_t - √(1-ᾱ) v̂, not clipped, and the other half of the output beside it."""
    x_t = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)), jnp.float32)
    t = jnp.array([3, 17])
    alpha_bar = np.asarray(run.model.schedule.alpha_bar, np.float64)[t].reshape(2, 1, 1, 1)
    output = reference_unet(params, x_t, np.asarray(t), config=UNET)
    x_0_hat, variance_output = jax.jit(run.model.guided(1.0)(run.params, None))(x_t, t)
    expected = np.sqrt(alpha_bar) * x_t - np.sqrt(1 - alpha_bar) * output[..., :1]
    np.testing.assert_allclose(x_0_hat, expected, atol=1e-5)
    np.testing.assert_allclose(variance_output, output[..., 1:], atol=1e-5)
    assert run.sampler(SamplerOptions("ancestral", num_steps=5)).num_steps == 5


def test_there_and_back(imported, params, tmp_path):
    convert(ToDiffusers(imported, out=tmp_path / "out"))
    back = load_diffusers(tmp_path / "out")
    assert same(back.params, params)
    assert (back.unet, back.image_shape) == (UNET, SHAPE)
    # A cosine has no first and last β of its own; they are kept all the same.
    assert back.process == PROCESS


@pytest.mark.slow
def test_a_run_with_classes_there_and_back(tmp_path, capsys):
    unet = UNET.clone(num_classes=10, out_channels=1)
    params = random_params(unet, np.zeros((1, *SHAPE), np.float32), 0)
    process = PROCESS._replace(variance="fixed_small")
    first = FromDiffusers(tmp_path / "run", data_name="digits")
    write_run(first, ImportedModel(unet, params, SHAPE, process), {"library": "ours"})
    convert(ToDiffusers(tmp_path / "run", out=tmp_path / "model"))
    printed = capsys.readouterr().out
    assert "as a UNet2DModel with 10 classes" in printed
    assert "no_label, guidance = 0, 10, 2.0  # labels 0 to 9\n" in printed
    assert "set_timesteps(30)" in printed and "torch.randn(16, 1, 8, 8)" in printed
    convert(FromDiffusers(tmp_path / "back", data_name="digits", folder=tmp_path / "model"))
    assert "11 embeddings of labels: 10 classes" in capsys.readouterr().out
    there, back = (TrainedRun(RunOptions(tmp_path / name)) for name in ("run", "back"))
    assert same(back.params, params)
    assert back.model.network == there.model.network
    assert back.config.diffusion == there.config.diffusion
    options = {"sampler": "ddim", "num_steps": 3, "label": 4, "guidance": 2.0}
    images = there.sample(2, **options)
    np.testing.assert_array_equal(back.sample(2, **options), images)
    assert (images != there.sample(2, **options | {"label": 5})).any()


def classes_run(image_shape, class_names, num_classes, **diffusion):
    """What the code for diffusers needs of a class-conditional run; no weights."""
    config = TrainConfig(
        Path("run"),
        num_steps=1,
        diffusion=DiffusionConfig(**diffusion),
        network=NetworkConfig(class_conditional=True, attention_resolutions=()),
    )
    return SimpleNamespace(
        model=build_model(config, image_shape, num_classes),
        config=config,
        facts={"data": {"class_names": class_names}},
    )


@pytest.mark.parametrize(
    "change,expected",
    [
        ({}, "guidance = 0, 10, 2.0  # labels 0 to 9: a b, c"),
        ({"label_dropout": 0.0}, "0, 10, 1.0  # labels 0 to 9: a b, c; guidance 1, because no"),
        ({"variance": "learned_range", "loss": "hybrid"}, "class_labels=given).sample[:, :1] for"),
        ({"num_timesteps": 1000}, "set_timesteps(50)"),
    ],
    ids=str,
)
def test_the_code_for_diffusers_follows_the_run(change, expected):
    """Names are those of folders or files, and must not end the comment."""
    run = classes_run(SHAPE, ["a\nb", "c"], 10, **{"num_timesteps": 20, **change})
    code = sampling_code(run, Path('a "folder"'))
    compile(code, "code", "exec")
    assert expected in code and r'from_pretrained("a \"folder\"", subfolder="unet")' in code


def test_the_page_shows_the_printed_code():
    page = Path(__file__).parents[1] / "docs/howto/diffusers.md"
    code = sampling_code(classes_run((32, 32, 3), ["cat", "dog"], 2), Path("model"))
    assert f"```py\n{code}```\n" in page.read_text()


def test_a_run_is_never_overwritten(imported, pipeline):
    before = sorted(path for path in imported.rglob("*"))
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        convert(FromDiffusers(imported, folder=pipeline))
    assert sorted(path for path in imported.rglob("*")) == before


def test_a_broken_pipeline_leaves_no_run(pipeline, tmp_path):
    (tmp_path / "pipeline").mkdir()
    for path in ("config.json", "diffusion_pytorch_model.safetensors"):
        content = (pipeline / "unet" / path).read_bytes()
        (tmp_path / "pipeline" / path).write_bytes(content[: -4 * path.endswith("s") or None])
    scheduler = (pipeline / "scheduler/scheduler_config.json").read_bytes()
    (tmp_path / "pipeline/scheduler_config.json").write_bytes(scheduler)
    with pytest.raises(ValueError, match="cut short"):
        convert(FromDiffusers(tmp_path / "run", folder=tmp_path / "pipeline"))
    assert not (tmp_path / "run").exists()


def test_the_options_that_go_together(tmp_path):
    with pytest.raises(ValueError, match="needs --folder or --download, got None and None"):
        convert(FromDiffusers(tmp_path))


def test_runs_without_counterpart_are_refused(imported, tmp_path):
    """The same checkpoint under a configuration that feeds x_0 + σ ε."""
    shutil.copytree(imported, tmp_path / "run")
    config = tmp_path / "run/config.json"
    values = json.loads(config.read_text())
    values["config"]["diffusion"]["exploding"] = True
    config.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="exploding"):
        convert(ToDiffusers(tmp_path / "run"))
    assert not (tmp_path / "run/diffusers").exists()


def test_the_authors_variables_as_a_run(tmp_path):
    unet = UNet(channels=64, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    params = random_params(unet, np.zeros((1, 4, 4, 3), np.float32), 0)
    flat = traverse_util.flatten_dict(params)
    variables = {tensorflow_name(path): np.asarray(leaf) for path, leaf in flat.items()}
    np.savez(tmp_path / "variables.npz", **variables)
    convert(FromTensorFlow(tmp_path / "run", file=tmp_path / "variables.npz", resolution=4))
    run = TrainedRun(RunOptions(tmp_path / "run", ema=False))
    assert same(run.params, params)
    assert run.model.schedule.num_timesteps == 1000
    assert run.config.diffusion.variance == "fixed_large"


def test_configurations_of_older_runs(imported):
    """They do not name the newer attributes of the network, and mean DDPM's."""
    config, _ = RunDirectory(imported).read()
    values = to_json(config)
    assert values["network"].pop("downsample_padding") == "symmetric"
    newer = set(values["network"]) - {
        "channels",
        "channel_multipliers",
        "num_res_blocks",
        "attention_resolutions",
        "dropout",
        "num_groups",
        "class_conditional",
        "dtype",
    }
    assert {"num_heads", "scale_shift", "norm_epsilon", "embedding_order"} < newer
    for name in newer:
        del values["network"][name]
    old = from_json(TrainConfig, values)
    papers = UNet(dtype=jnp.dtype("float32"), out_channels=2 * SHAPE[-1])
    built = build_model(old, SHAPE, None).network
    for name in newer | {"downsample_padding"}:
        assert getattr(built, name) == getattr(papers, name)


def test_other_projects_settings_are_runs(tmp_path):
    """Every attribute that weights need goes through config.json, labels included."""
    unet = UNET.clone(
        num_classes=3,
        out_channels=1,
        head_channels=4,
        middle_attention="plain",
        scale_shift=True,
        embedding_order="cos_sin",
        embedding_shift=0,
        norm_epsilon=1e-5,
    )
    params = random_params(unet, np.zeros((1, *SHAPE), np.float32), 0)
    process = PROCESS._replace(variance="fixed_small")
    options = FromDiffusers(tmp_path / "run", data_name="digits")
    write_run(options, ImportedModel(unet, params, SHAPE, process), {"library": "diffusers"})
    run = TrainedRun(RunOptions(tmp_path / "run"))
    assert same(run.params, params)
    assert run.model.network == unet.clone(dtype=jnp.dtype("float32"))


@pytest.fixture
def fake_hub(pipeline, tmp_path):
    """A hub with the pipeline and a README; `commit` is its newest."""
    files = {p.relative_to(pipeline).as_posix(): p for p in pipeline.rglob("*") if p.is_file()}
    contents = {name: path.read_bytes() for name, path in files.items()}
    with serving(tmp_path / "cache") as served:
        served.commit = served.repository("some/model", {**contents, "README.md": b"Read me."})
        yield served


def fetch(revision="main"):
    return fetch_files("some/model", revision, choose_pipeline_files)


def test_a_repository_is_fetched_once_and_only_what_is_needed(fake_hub, params):
    folder, commit = fetch()
    assert commit == folder.name == fake_hub.commit
    assert same(load_diffusers(folder).params, params)
    assert not any("README" in line for line in fake_hub.asked)

    def downloads(revision):
        del fake_hub.asked[:]
        assert fetch(revision) == (folder, commit)
        return sum(line.startswith("GET /some") for line in fake_hub.asked)

    assert downloads("main") == downloads(commit) == 0
    (folder / "unet/config.json").write_bytes(b"damaged")
    assert downloads(commit) == 1
    assert load_diffusers(folder).unet == UNET


@pytest.mark.parametrize("name", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_file_that_is_not_what_the_hub_says_is_not_kept(fake_hub, pipeline, tmp_path, name):
    for content in (b"something else", (pipeline / name).read_bytes()[::-1]):
        fake_hub.send[name] = content
        with pytest.raises((ValueError, ConnectionError), match=f"{name} of some/model"):
            fetch()
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert b"something else" not in kept and content not in kept


@pytest.mark.slow
def test_a_pipeline_of_the_hub_becomes_a_run_of_a_commit(fake_hub, params, tmp_path):
    """A branch may move; what config.json records may not."""
    convert(FromDiffusers(tmp_path / "run", data_name="digits", download="some/model"))
    run = TrainedRun(RunOptions(tmp_path / "run"))
    assert same(run.params, params)
    assert run.facts["source"]["repository"] == "some/model"
    assert run.facts["source"]["revision"] == fake_hub.commit


def test_a_checkpoint_of_step_0_is_the_newest(imported):
    with Checkpoints(imported / "checkpoints", writable=False) as checkpoints:
        assert checkpoints.steps() == [0]
