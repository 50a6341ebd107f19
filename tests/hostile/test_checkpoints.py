"""Checkpoints: damaged by accident, or made by somebody who also made their manifest."""

import json
import os
import shutil
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.training import Checkpoints, DamagedCheckpointError, MismatchedCheckpointError
from ddpm_jax.training import manifest as manifests
from tests.hostile.bounds import DOCUMENTED, attempt, examples, refused
from tests.hostile.mutation import JSON_VALUES, json_text, mutated
from tests.test_training_checkpoints import assert_same, make_state

STATE = make_state(3)
ERRORS = (*DOCUMENTED, DamagedCheckpointError, MismatchedCheckpointError)


@pytest.fixture(scope="module")
def saved(place):
    with Checkpoints(place / "good") as checkpoints:
        checkpoints.save(3, STATE)
    return place / "good"


@pytest.fixture(scope="module")
def reader(saved):
    with Checkpoints(saved.parent / "checkpoints", writable=False) as checkpoints:
        yield checkpoints


def fresh(saved):
    """A copy to be damaged; its folder."""
    folder = saved.parent / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    return folder / "3"


def restore(reader):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attempt(lambda: reader.restore(STATE), reader.folder, documented=ERRORS)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@examples(25, most=1500)
@given(data=st.data())
def test_damage_of_any_kind_is_seen_or_changes_nothing(saved, reader, data):
    folder = fresh(saved)
    files = files_of(folder)
    path = data.draw(st.sampled_from(files))
    kind = data.draw(st.sampled_from(["bytes", "bytes", "delete", "add", "link", "swap", "folder"]))
    whole = path.read_bytes()
    if kind == "bytes":
        path.write_bytes(data.draw(mutated(whole)))
    elif kind == "add":
        name = data.draw(
            st.sampled_from(["_METADATA.tmp", "d/x", ".zarray", "x", "manifest.ocdbt2"])
        )
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data.draw(st.binary(max_size=64)))
    else:
        path.unlink()
        if kind == "link":
            path.symlink_to(
                data.draw(st.sampled_from(["/etc/passwd", "/dev/zero", "x", path.name]))
            )
        elif kind == "swap":
            shutil.copy(data.draw(st.sampled_from(files_of(folder))), path)
        elif kind == "folder":
            path.mkdir()
    result = restore(reader)
    if not refused(result):
        assert_same(result, STATE)
    elif kind in ("bytes", "swap") and path.exists() and path.read_bytes() == whole:
        raise AssertionError(f"{result!r} of a file that is as it was")


def rewritten(folder, content):
    """The manifest with its own digest put right, where it is JSON enough to have one."""
    try:
        body = json.loads(content)
        body.pop("sha256", None)
        digest = manifests._digest_of(body)
        content = json.dumps({"sha256": digest, **body}).encode("utf-8", "surrogatepass")
    except Exception:
        pass
    (folder / manifests.NAME).write_bytes(content)
    return content


@examples(60)
@given(data=st.data())
def test_manifests_that_agree_with_themselves_are_not_trusted_for_it(saved, data):
    folder = saved / "3"
    whole = (folder / manifests.NAME).read_bytes()
    good = json.loads(whole)
    change = data.draw(st.sampled_from(["any", "file", "tree"]))
    if change == "file":
        name = data.draw(st.sampled_from(sorted(good["files"])))
        good["files"][data.draw(st.sampled_from([name, *NAMES]))] = data.draw(JSON_VALUES)
    elif change == "tree":
        name = data.draw(st.sampled_from(sorted(good["tree"])))
        sizes = st.lists(st.sampled_from([0, 1, -1, 2**31, 10**18, 10**30, 1.5, True, "a"]))
        good["tree"][name] = ["float32", data.draw(sizes)]
    content = json.dumps(good).encode("utf-8", "surrogatepass")
    content = data.draw(json_text(json.loads(whole))) if change == "any" else content
    try:
        content = rewritten(folder, content)
        result = attempt(
            lambda: manifests.verify_manifest(folder), folder, documented=DamagedCheckpointError
        )
    finally:
        (folder / manifests.NAME).write_bytes(whole)
    if not refused(result):
        said = json.loads(content)
        assert result == said["tree"]
        names = set(said["files"])
        assert names <= {p.relative_to(folder).as_posix() for p in files_of(folder)}


NAMES = [
    "ROOT/etc/passwd",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "..",
    ".",
    "",
    "a\0b",
    "d/../../3/d",
]


@pytest.mark.parametrize("name", [*NAMES, "link", "pipe"])
def test_no_file_outside_of_a_checkpoint_is_opened(saved, reader, monkeypatch, name):
    folder = fresh(saved)
    good = json.loads((folder / manifests.NAME).read_text())
    if name == "link":
        (folder / name).symlink_to("/etc/passwd")
    if name == "pipe":
        os.mkfifo(folder / name)
    # As deep as the root, whatever the folder, so that the file is there to be opened.
    name = name.replace("ROOT", "/".join([".."] * len(folder.resolve().parts)))
    good["files"][name] = {"bytes": os.path.getsize("/etc/passwd"), "sha256": "0" * 64}
    opened, digest = [], manifests.sha256_of
    monkeypatch.setattr(manifests, "sha256_of", lambda path: opened.append(path) or digest(path))
    rewritten(folder, json.dumps(good).encode())
    result = attempt(
        lambda: manifests.verify_manifest(folder),
        folder,
        documented=DamagedCheckpointError,
        seconds=5,
    )
    assert refused(result)
    assert all(folder.resolve() in path.resolve().parents for path in opened)


def test_arrays_that_no_file_holds_are_refused_before_memory_is_taken(saved, reader):
    """Orbax would make zeros of what is missing, however much that is."""
    folder = fresh(saved)
    good = json.loads((folder / manifests.NAME).read_text())
    good["tree"]["['params']['dense']['w']"] = ["float32", [10**6, 10**6]]
    rewritten(folder, json.dumps(good).encode())
    with pytest.raises(DamagedCheckpointError, match="bytes of arrays for"):
        manifests.verify_manifest(folder)


@examples(10, most=1500)
@given(data=st.data())
def test_what_orbax_reads_is_the_wanted_shapes_or_refused(saved, reader, data):
    """Whoever damages the files may also write a manifest that fits them."""
    folder = fresh(saved)
    files = [path for path in files_of(folder) if path.name != manifests.NAME]
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(mutated(path.read_bytes())))
    tree = json.loads((folder / manifests.NAME).read_text())["tree"]
    (folder / manifests.NAME).unlink()
    manifests.write_manifest(folder, tree, 3)
    result = restore(reader)
    if not refused(result):
        assert np.shape(result.params["dense"]["w"]) == (4, 3)
        assert result.params["dense"]["w"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["9" * 200, "٣", "３", "-1", "3.damaged", "1e3", "07", " 4"])
def test_folders_that_are_no_steps_are_no_harm(saved, reader, name):
    folder = fresh(saved)
    shutil.copytree(folder, folder.parent / name)
    result = restore(reader)
    assert refused(result) or np.shape(result.params["dense"]["w"]) == (4, 3)
