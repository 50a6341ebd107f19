"""Runs made of other libraries' models, and back; the hub, played by a server on this machine."""

import dataclasses
import hashlib
import http.server
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ddpm_jax.interop import (
    ImportedModel,
    Process,
    hub,
    load_diffusers,
    save_diffusers,
    tensorflow_name,
)
from ddpm_jax.nn import UNet
from ddpm_jax.programs.build import build_model, build_schedule
from ddpm_jax.programs.config import (
    DiffusionConfig,
    SamplerOptions,
    TrainConfig,
)
from ddpm_jax.programs.convert import (
    FromDiffusers,
    FromTensorFlow,
    ToDiffusers,
    convert,
    write_run,
)
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError, from_json, to_json
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.training import Checkpoints
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
REVISION = "0123456789abcdef0123456789abcdef01234567"


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
    with pytest.raises(ValueError, match="needs --revision"):
        convert(FromDiffusers(tmp_path, download="google/ddpm-cifar10-32"))


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


class FakeHub:
    """Serves a folder as the hub serves a repository; `changed` replaces what is sent of a file."""

    def __init__(self, folder):
        self.asked, self.changed = [], {}
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        files = {name: (folder / name).read_bytes() for name in names}
        hub = self

        def describe(name, content):
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                lfs = {"size": len(content), "sha256": digest, "pointerSize": 134}
                return {"rfilename": name, "size": len(content), "blobId": "0" * 40, "lfs": lfs}
            header = f"blob {len(content)}\0".encode()
            blob = hashlib.sha1(header + content).hexdigest()
            return {"rfilename": name, "size": len(content), "blobId": blob}

        listing = [describe(*file) for file in files.items()]
        listing.append({"rfilename": "README.md", "size": 3, "blobId": "1" * 40})
        answers = {
            f"/api/models/some/model/revision/{REVISION}?blobs=true": json.dumps(
                {"id": "some/model", "sha": REVISION, "siblings": listing}
            ).encode()
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append(self.path)
                prefix = f"/some/model/resolve/{REVISION}/"
                name = self.path.removeprefix(prefix)
                content = answers.get(self.path, hub.changed.get(name, files.get(name)))
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def fake_hub(pipeline):
    served = FakeHub(pipeline)
    yield served
    served.server.shutdown()
    served.server.server_close()


def fetch(served, cache):
    return hub.fetch_pipeline("some/model", REVISION, cache_dir=cache, endpoint=served.url)


def test_a_repository_is_fetched_once_and_only_what_is_needed(fake_hub, params, tmp_path):
    folder = fetch(fake_hub, tmp_path)
    assert same(load_diffusers(folder).params, params)
    assert len(fake_hub.asked) == 5
    assert not any("README" in path for path in fake_hub.asked)
    fetch(fake_hub, tmp_path)
    assert len(fake_hub.asked) == 6
    (folder / "unet/config.json").write_bytes(b"damaged")
    fetch(fake_hub, tmp_path)
    assert len(fake_hub.asked) == 8
    assert load_diffusers(folder).unet == UNET


@pytest.mark.parametrize("name", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_file_that_is_not_what_the_hub_says_is_not_kept(fake_hub, pipeline, tmp_path, name):
    for content in (b"something else", (pipeline / name).read_bytes()[::-1]):
        fake_hub.changed[name] = content
        with pytest.raises(ValueError, match="sent .*not the .* bytes"):
            fetch(fake_hub, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name == name.split("/")[-1]]


def test_a_revision_is_a_commit(tmp_path):
    for revision in ("main", "v1.0", REVISION[:10], REVISION.upper()):
        with pytest.raises(ValueError, match="40 hex digits.*can be moved"):
            hub.fetch_pipeline("some/model", revision, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="OWNER/NAME"):
        hub.fetch_pipeline("../../etc", REVISION, cache_dir=tmp_path)


def test_without_an_answer_it_says_so(tmp_path):
    with pytest.raises(ConnectionError, match="copy the repository's files here"):
        hub.fetch_pipeline(
            "some/model", REVISION, cache_dir=tmp_path, endpoint="http://127.0.0.1:9"
        )


def test_a_checkpoint_of_step_0_is_the_newest(imported):
    with Checkpoints(imported / "checkpoints", writable=False) as checkpoints:
        assert checkpoints.steps() == [0]
