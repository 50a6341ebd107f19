import json
import os
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import (
    Checkpoints,
    CheckpointWriteError,
    DamagedCheckpointError,
    DataParallel,
    MismatchedCheckpointError,
    init_state,
)
from ddpm_jax.training import checkpoints as checkpoints_module

DEVICES = tuple(jax.devices())


def make_state(step=0, width=3):
    params = {
        "dense": {"w": jnp.arange(12.0).reshape(4, 3)[:, :width] + step, "b": jnp.ones(width)}
    }
    state = init_state(params, optax.adam(1e-3), jax.random.key(step))
    return state.replace(step=jnp.int32(step))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints, of steps 1, 2 and 3."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step))
    return tmp_path


def test_round_trip(saved):
    with Checkpoints(saved) as checkpoints:
        restored = checkpoints.restore(make_state())
        assert_same(restored, make_state(3))
        assert_same(checkpoints.restore(make_state(), step=1), make_state(1))
        assert jax.random.normal(restored.key) == jax.random.normal(jax.random.key(3))


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.restore(make_state()) is None
        with pytest.raises(FileNotFoundError, match="step 7"):
            checkpoints.restore(make_state(), step=7)
    assert not (tmp_path / "none").exists()


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(5):
            checkpoints.save(step, make_state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]
    assert sorted(os.listdir(tmp_path)) == ["3", "4"]


def test_shapes_are_enough_to_restore_into(saved):
    parallel = DataParallel("shard_map", DEVICES[:2])
    like = parallel.placeholder(jax.eval_shape(make_state))
    with Checkpoints(saved) as checkpoints:
        restored = checkpoints.restore(like)
    assert_same(restored, make_state(3))
    assert len(restored.params["dense"]["w"].sharding.device_set) == 2


@pytest.mark.parametrize("count", [1, 2, 8])
def test_restores_onto_any_number_of_devices(saved, count):
    parallel = DataParallel("shard_map", DEVICES[:count])
    with Checkpoints(saved) as checkpoints:
        restored = checkpoints.restore(parallel.replicate(make_state()))
    assert len(restored.params["dense"]["w"].sharding.device_set) == count
    assert_same(restored, make_state(3))


def array_file(folder):
    """A file that holds array bytes."""
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def test_every_flipped_bit_is_noticed(saved):
    """In whichever file of the newest checkpoint: the one before it is restored, the bad one kept
    aside."""
    names = [p.relative_to(saved / "3") for p in sorted((saved / "3").rglob("*")) if p.is_file()]
    assert len(names) > 5
    shutil.copytree(saved / "3", saved.parent / "intact")
    for name in names:
        flip_a_bit(saved / "3" / name)
        with Checkpoints(saved) as checkpoints, pytest.warns(UserWarning, match="damaged"):
            assert_same(checkpoints.restore(make_state()), make_state(2))
        assert (saved / "3.damaged").exists() and not (saved / "3").exists()
        shutil.rmtree(saved / "3.damaged")
        shutil.copytree(saved.parent / "intact", saved / "3")


@pytest.mark.parametrize("how", ["truncated", "deleted", "no manifest", "empty folder"])
def test_missing_bytes_are_noticed(saved, how):
    folder = saved / "3"
    if how == "truncated":
        path = array_file(folder)
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "deleted":
        array_file(folder).unlink()
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    with (
        Checkpoints(saved) as checkpoints,
        pytest.warns(UserWarning, match="from step 2"),
    ):
        assert_same(checkpoints.restore(make_state()), make_state(2))


def test_reading_only_moves_nothing(saved):
    flip_a_bit(array_file(saved / "3"))
    with Checkpoints(saved, writable=False) as checkpoints, pytest.warns(UserWarning):
        checkpoints.restore(make_state())
    assert (saved / "3").exists()


def test_nothing_intact_is_refused_and_nothing_changed(saved):
    for step in (1, 2, 3):
        flip_a_bit(array_file(saved / str(step)))
    before = sorted(os.listdir(saved))
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(DamagedCheckpointError, match="no intact"),
    ):
        checkpoints.restore(make_state())
    assert sorted(os.listdir(saved)) == before


def test_another_shape_is_refused(saved):
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(MismatchedCheckpointError, match=r"\['w'\].*\[4, 3\].*\[4, 2\]"):
            checkpoints.restore(make_state(width=2))
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state().params)
        with pytest.raises(MismatchedCheckpointError, match="bfloat16"):
            checkpoints.restore(make_state().replace(params=half))
        with pytest.raises(MismatchedCheckpointError, match="nothing"):
            checkpoints.restore(init_state(make_state().params, optax.sgd(0.1), jax.random.key(0)))
    assert sorted(os.listdir(saved)) == ["1", "2", "3"]


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_training(saved, monkeypatch):
    """It may belong to somebody else, or be gone already."""
    rename = Path.rename

    def refuse(self, target):
        if self.name == "1":
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with Checkpoints(saved) as checkpoints, pytest.warns(UserWarning) as warned:
        for step in (4, 5):
            checkpoints.save(step, make_state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4, 5]
    assert all(
        "step 1 in" in str(one.message) and "Permission" in str(one.message) for one in warned
    )


def test_what_a_kill_left_behind_is_swept_up(saved):
    (saved / "incoming-4").mkdir()
    (saved / "incoming-4" / "half").write_text("x")
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
    assert not (saved / "incoming-4").exists()


def test_a_failed_save_says_so_and_the_next_succeeds(saved, monkeypatch):
    from ddpm_jax.training import checkpoints as module

    with Checkpoints(saved) as checkpoints:
        with monkeypatch.context() as patch:

            def full(*args):
                raise OSError(28, "No space left on device")

            patch.setattr(module, "write_manifest", full)
            checkpoints.save(4, make_state(4))
            with pytest.raises(OSError, match="No space"):
                checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]
        checkpoints.save(5, make_state(5))
        checkpoints.wait()
        assert_same(checkpoints.restore(make_state()), make_state(5))
    assert not list(saved.glob("incoming*"))


def test_one_failed_save_does_not_cost_the_next(saved, monkeypatch):
    """A full disk reaches us from TensorStore as a ValueError, in the background."""
    from ddpm_jax.training import checkpoints as module

    with Checkpoints(saved) as checkpoints:
        with monkeypatch.context() as patch:

            def full(*args, **kwargs):
                raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

            patch.setattr(module, "write_manifest", full)
            checkpoints.save(4, make_state(4))
            checkpoints._pending.exception()
        with pytest.warns(UserWarning, match="step 4 could not be written.*No space"):
            checkpoints.save(5, make_state(5))
        checkpoints.wait()
        assert checkpoints.steps()[-1] == 5
        assert_same(checkpoints.restore(make_state()), make_state(5))
    assert not list(saved.glob("incoming*"))


@pytest.mark.parametrize("part", ["step", "float32", "sha256", "bytes"])
def test_the_manifest_protects_itself(saved, part):
    path = saved / "3" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace(part, part[:-1] + chr(ord(part[-1]) ^ 1), 1))
    with Checkpoints(saved) as checkpoints, pytest.warns(UserWarning, match="manifest"):
        assert_same(checkpoints.restore(make_state()), make_state(2))


@pytest.mark.parametrize("bytes_kept", [0, 1, -2, -1])
def test_a_manifest_cut_short_is_noticed(saved, bytes_kept):
    path = saved / "3" / "manifest.json"
    path.write_bytes(path.read_bytes()[:bytes_kept])
    with Checkpoints(saved) as checkpoints, pytest.warns(UserWarning, match="manifest"):
        assert_same(checkpoints.restore(make_state()), make_state(2))


@pytest.mark.parametrize("copied", [False, True])
def test_a_step_under_another_number_is_not_that_step(saved, copied):
    if copied:
        shutil.copytree(saved / "3", saved / "7")
    else:
        (saved / "3").rename(saved / "7")
    with Checkpoints(saved) as checkpoints, pytest.warns(UserWarning, match="of step 3 under anot"):
        assert_same(checkpoints.restore(make_state()), make_state(3 if copied else 2))
    assert (saved / "7.damaged").exists() and not (saved / "7").exists()


def test_other_names_in_the_folder_are_left_alone(saved):
    names = ("04", "٧", "3 copy", "-1", "notes.txt")
    for name in names:
        (saved / name).mkdir()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        assert_same(checkpoints.restore(make_state()), make_state(3))
    assert all((saved / name).exists() for name in names)


def test_saving_the_same_step_again_changes_nothing(saved):
    before = (saved / "3" / "manifest.json").read_bytes()
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(3, make_state(99))
    assert (saved / "3" / "manifest.json").read_bytes() == before


def test_manifest_lists_every_file(saved):
    manifest = json.loads((saved / "3" / "manifest.json").read_text())
    files = {p.relative_to(saved / "3").as_posix() for p in (saved / "3").rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert manifest["step"] == 3


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_some_are_kept_for_good(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, make_state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [4, 8, 9, 10]
        assert_same(checkpoints.restore(make_state(), step=4), make_state(4))


# Each is a folder name that a file system takes, and what earlier versions made of it.
PLAIN = [b"plain", b"a b", "Ünï".encode(), b"a%41b", b"a#b", b"~", b"a\nb", b"-x"]
MISREAD = [b"lr=[1e-4]", b"mult=[1,2,2]", b"a[!x]", b"x*", b"x?y", b"x\\y", b"\xff\xfe", b"gs:"]


@pytest.mark.parametrize("name", PLAIN + MISREAD)
@pytest.mark.parametrize("inside", [b"checkpoints", b""])
def test_any_folder_name_is_taken_literally(tmp_path, name, inside):
    root = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name, inside)))
    with Checkpoints(root, keep=1) as checkpoints:
        checkpoints.try_folder()
        assert os.listdir(root) == []
        checkpoints.save(1, make_state(1))
        checkpoints.save(2, make_state(2))
    with Checkpoints(root, writable=False) as checkpoints:
        assert_same(checkpoints.restore(make_state()), make_state(2))
    assert os.listdir(root) == ["2"] and os.listdir(os.fsencode(tmp_path)) == [name]


@pytest.fixture
def as_before(monkeypatch):
    """Folder names reach Orbax as they are, and what it wrote is not looked at."""
    with monkeypatch.context() as patch:
        patch.setattr("ddpm_jax.training.orbax_folder.is_misread", lambda folder: False)
        patch.setattr(Checkpoints, "_check_readable", lambda *_: None)
        yield patch


@pytest.mark.parametrize("name", ["lr=[1e-4]", "a[!x]", "x\\y", "a[b]/run\\1"])
@pytest.mark.parametrize("writable", [True, False])
def test_steps_without_an_index_are_completed(tmp_path, as_before, name, writable):
    """What earlier versions saved under such a path: whole arrays that nobody could read."""
    folder = tmp_path / name / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step))
    assert not (folder / "2" / "manifest.ocdbt").exists()
    as_before.undo()
    with Checkpoints(folder, writable=writable) as checkpoints:
        with pytest.warns(UserWarning, match="The index was added; nothing is lost"):
            assert_same(checkpoints.restore(make_state()), make_state(2))
        with pytest.warns(UserWarning, match="index was added"):
            assert_same(checkpoints.restore(make_state(), step=1), make_state(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Checkpoints(folder) as checkpoints:
            assert_same(checkpoints.restore(make_state()), make_state(2))


@pytest.mark.parametrize("stray", [5, 9])
def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path, stray):
    """It removes no older one, and does not take the place of the step of its name."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
        (tmp_path / str(stray) / "mine").mkdir(parents=True)
        checkpoints.save(5, make_state(5))
        checkpoints.wait()
    with Checkpoints(tmp_path, writable=False) as checkpoints:
        assert_same(checkpoints.restore(make_state(), step=5), make_state(5))
    assert not (tmp_path / "4").exists()
    assert [path.name for path in tmp_path.glob("*/mine")] == ["mine"]


def test_a_newer_checkpoint_of_someone_else_does_not_remove_the_one_just_saved(tmp_path):
    with Checkpoints(tmp_path / "a") as others:
        others.save(9, make_state(9))
    with Checkpoints(tmp_path / "b", keep=1) as checkpoints:
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
        shutil.copytree(tmp_path / "a" / "9", tmp_path / "b" / "9")
        checkpoints.save(5, make_state(5))
        checkpoints.wait()
        assert checkpoints.steps() == [5, 9]


def test_a_reader_finds_the_newer_step_when_training_removes_the_one_it_reads(
    tmp_path, monkeypatch
):
    with Checkpoints(tmp_path, keep=1) as training:
        training.save(1, make_state(1))
        training.wait()
        verify = checkpoints_module.verify_manifest

        def meanwhile(folder, step):
            if step == 1:
                training.save(2, make_state(2))
                training.wait()
            return verify(folder, step)

        monkeypatch.setattr(checkpoints_module, "verify_manifest", meanwhile)
        with Checkpoints(tmp_path, writable=False) as reader:
            assert_same(reader.restore(make_state()), make_state(2))


def test_an_unreadable_step_costs_none_of_the_older_ones(tmp_path, monkeypatch):
    folder = tmp_path / "a[b]"
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1))
    monkeypatch.setattr("ddpm_jax.training.orbax_folder.is_misread", lambda folder: False)
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(2, make_state(2))
        with pytest.raises(CheckpointWriteError, match="finds only 0 of the 11 arrays"):
            checkpoints.wait()
        with pytest.raises(CheckpointWriteError, match="could not be written and read back"):
            checkpoints.try_folder()
    assert os.listdir(folder) == ["1"]
    monkeypatch.undo()
    with Checkpoints(folder) as checkpoints:
        assert_same(checkpoints.restore(make_state()), make_state(1))


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with Checkpoints(tmp_path / "file" / "checkpoints") as checkpoints:
        with pytest.raises(CheckpointWriteError, match="cannot be made .*--run-dir"):
            checkpoints.try_folder()


def test_without_descriptors_by_name_a_misread_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_jax.training.orbax_folder._DESCRIPTORS", tmp_path / "none")
    with Checkpoints(tmp_path / "a[b]") as checkpoints:
        with pytest.raises(CheckpointWriteError, match=r"UnusableFolderError.*a\[b\]"):
            checkpoints.try_folder()
    with Checkpoints(tmp_path / "plain") as checkpoints:
        checkpoints.try_folder()
