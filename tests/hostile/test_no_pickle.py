"""Nothing is unpickled but one file of known sha256: no other module could, and no reader does."""

import ast
import io
import os
import pathlib
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest

from ddpm_jax.data import load_folder, mnist
from ddpm_jax.data.cache import read_entry, write_entry
from ddpm_jax.data.cifar10 import load_cifar10, read_batches
from ddpm_jax.data.images import decode_image
from ddpm_jax.evaluation import open_images
from ddpm_jax.evaluation.inception_weights import load_inception_weights
from ddpm_jax.evaluation.statistics import load_statistics, read_reference_statistics
from ddpm_jax.interop import load_diffusers, read_npz, read_safetensors
from ddpm_jax.programs.run_directory import RunDirectory
from ddpm_jax.programs.shards import _read_shard, remember_plan
from ddpm_jax.training import Checkpoints
from ddpm_jax.training.logs import read_jsonl
from ddpm_jax.training.manifest import verify_manifest
from tests.test_training_checkpoints import make_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = sorted([*(ROOT / "ddpm_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
UNPICKLERS = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"),
    *("pandas", "torch"),
}

# Of Python's unpickler, after the sha256 of a published file has matched.
TRUSTED = ROOT / "ddpm_jax" / "evaluation" / "torch_file.py"
RUNNING = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_could_unpickle(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        unpicklers = UNPICKLERS & {name.split(".")[0] for name in names}
        assert unpicklers <= ({"pickle"} if path == TRUSTED else set()), f"{path}:{node.lineno}"
        if "yaml" in names:
            tree = ast.parse(path.read_text())
            found = {
                ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Call)
            }
            used = {name for name in found if re.match(r"yaml\.\w+(\(|$)", name)}
            safe = {"yaml.SafeLoader", "yaml.YAMLError", "yaml.load", "yaml.load(content, Loader)"}
            assert used <= safe and "class Loader(yaml.SafeLoader)" in path.read_text()
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in RUNNING, f"{path}:{node.lineno} calls {called}"
            if called.split(".")[-1] in ("load", "read_array") and called.startswith(
                ("np", "numpy")
            ):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("allow_pickle") == "False", f"{path}:{node.lineno}"
            assert "allow_pickle" not in {word.arg for word in node.keywords} or (
                given.get("allow_pickle") == "False"
            ), f"{path}:{node.lineno}"


class Canary:
    """Whoever unpickles it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def in_npz(array, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("images", "mu", "sigma", "count", "samples", "arr_0", "labels"):
            archive.writestr(f"{name}.npy", array)
    return buffer.getvalue()


def in_torch(program):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return buffer.getvalue()


def payloads(canary):
    programs = [pickle.dumps(canary, protocol) for protocol in (0, 2, 5)]
    buffer = io.BytesIO()
    np.save(buffer, np.array([canary], object), allow_pickle=True)
    array = buffer.getvalue()
    magic = [pickle.dumps(n, 2) for n in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return [
        *programs,
        array,
        in_npz(array, zipfile.ZIP_STORED),
        in_npz(array, zipfile.ZIP_DEFLATED),
        in_torch(programs[1]),
        b"".join(magic) + programs[1],
    ]


def folder_with(*names):
    """A reader's folder in which every one of these files is the payload."""

    def make(place, content):
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return place

    return make


def entry(place, content):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    write_entry(place, "key", images, None, None, "a", {"kind": "here"})
    for name in ("images.npy", "labels.npy"):
        (place / "key" / name).write_bytes(content)
    return place


def pipeline(place, content):
    folder_with("unet/diffusion_pytorch_model.bin")(place, content)
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("{}")
    return place


def restore(place):
    with Checkpoints(place, writable=False) as checkpoints:
        return checkpoints.restore(make_state())


def one(name):
    return lambda place, content: folder_with(name)(place, content) / name


READERS = {
    "cifar10 archive": (one("cifar-10-binary.tar.gz"), lambda p: read_batches(p, "test")),
    "cifar10 folder": (folder_with("test_batch.bin"), lambda p: read_batches(p, "test")),
    "cifar10 pickles": (
        folder_with("cifar-10-batches-py/test_batch"),
        lambda p: load_cifar10("test", path=p),
    ),
    "mnist": (one("t10k-images-idx3-ubyte"), lambda p: mnist.read_idx(p, (10, 28, 28))),
    "image": (one("a.png"), lambda p: decode_image(p, 8)),
    "folder": (folder_with("a.png", "b.jpg"), lambda p: load_folder(p, 8)),
    "set of images": (folder_with("a.png"), open_images),
    "images": (one("a.npz"), open_images),
    "cache": (entry, lambda p: read_entry(p, "key")),
    "reference statistics": (one("a.npz"), read_reference_statistics),
    "statistics": (folder_with("a.npz", "a.json"), lambda p: load_statistics(p / "a.npz")),
    "inception": (one("a.pth"), load_inception_weights),
    "inception safetensors": (one("a.safetensors"), load_inception_weights),
    "variables": (one("a.npz"), read_npz),
    "safetensors": (one("a.safetensors"), read_safetensors),
    "safetensors that is a .bin": (one("a.bin"), read_safetensors),
    "pipeline": (pipeline, load_diffusers),
    "run": (folder_with("config.json"), lambda p: RunDirectory(p).read()),
    "log": (one("log.jsonl"), read_jsonl),
    "plan": (folder_with("plan.json"), lambda p: remember_plan(p, {"a": 1})),
    "shard": (one("000000.npz"), lambda p: _read_shard(p, (4, 4, 1))),
    "manifest": (folder_with("manifest.json"), verify_manifest),
    "checkpoint": (folder_with("3/manifest.json", "3/manifest.ocdbt", "3/_METADATA"), restore),
}
UNREAD = (type(None), list)


@pytest.mark.parametrize("reader", READERS)
def test_a_canary_survives_every_reader(tmp_path, reader):
    make, read = READERS[reader]
    sung = tmp_path / "sung"
    for i, content in enumerate(payloads(Canary(sung))):
        place = tmp_path / str(i)
        place.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = read(make(place, content))
            except (ValueError, OSError, RuntimeError):
                result = None
        # Nothing, or no records: of none of these files is there anything to be had.
        assert type(result) in UNREAD and not result
        assert not sung.exists(), content[:40]


def test_the_canary_would_sing(tmp_path):
    """The control: what unpickles, makes the folder."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "sung")))
    assert (tmp_path / "sung").exists()
    np.savez(tmp_path / "a.npz", images=np.array([Canary(tmp_path / "again")], object))
    with np.load(tmp_path / "a.npz", allow_pickle=True) as arrays:
        _ = arrays["images"]
    assert (tmp_path / "again").exists()
