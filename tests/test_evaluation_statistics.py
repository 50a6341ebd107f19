"""Statistics on disk: what is loaded is what was asked for, or an error says what it is."""

import dataclasses
import json
import os

import numpy as np
import pytest

from ddpm_jax.evaluation import (
    StatisticsKey,
    cached_statistics,
    load_statistics,
    moments,
    read_reference_statistics,
    save_statistics,
)
from ddpm_jax.evaluation import statistics as module

KEY = StatisticsKey(data="d1", split="train", count=30, features="f1", output="pool")
MOMENTS = moments(np.random.default_rng(0).standard_normal((30, 4)))


def same(found, expected=MOMENTS):
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.covariance, expected.covariance)
    assert found.count == expected.count


def test_there_and_back(tmp_path):
    file = tmp_path / "deep" / "a.npz"
    save_statistics(file, MOMENTS, KEY)
    same(load_statistics(file, KEY))
    same(load_statistics(file))
    same(read_reference_statistics(file))
    assert sorted(os.listdir(file.parent)) == ["a.json", "a.npz"]


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(StatisticsKey)])
def test_every_part_of_the_key_counts(tmp_path, field):
    save_statistics(tmp_path / "a.npz", MOMENTS, KEY)
    other = 99 if isinstance(getattr(KEY, field), int) else "other"
    asked = dataclasses.replace(KEY, **{field: other})
    with pytest.raises(ValueError, match=f"a.npz has {field} {getattr(KEY, field)!r}, not"):
        load_statistics(tmp_path / "a.npz", asked)
    assert asked.fingerprint != KEY.fingerprint


def test_cached_once_per_key(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return MOMENTS

    for _ in range(3):
        same(cached_statistics(tmp_path, KEY, compute))
    cached_statistics(tmp_path, dataclasses.replace(KEY, features="f2"), compute)
    assert len(calls) == 2


def damage(file, how):
    described = file.with_suffix(".json")
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "one bit":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "no json":
        described.unlink()
    elif how == "half json":
        described.write_text(described.read_text()[:40])
    elif how == "another key":
        about = json.loads(described.read_text())
        about["key"]["data"] = "d2"
        described.write_text(json.dumps(about))
    elif how == "another's npz":  # a crash between the two renames
        save_statistics(file.parent / "b.npz", MOMENTS._replace(mean=MOMENTS.mean + 1), KEY)
        os.replace(file.parent / "b.npz", file)


@pytest.mark.parametrize(
    "how", ["truncated", "one bit", "no json", "half json", "another key", "another's npz"]
)
def test_damage_is_seen_and_computed_anew(tmp_path, how):
    cached_statistics(tmp_path, KEY, lambda: MOMENTS)
    (file,) = tmp_path.glob("*.npz")
    damage(file, how)
    with pytest.raises((ValueError, FileNotFoundError), match=file.stem):
        load_statistics(file, KEY)
    with pytest.warns(UserWarning, match="computed anew"):
        same(cached_statistics(tmp_path, KEY, lambda: MOMENTS))
    same(cached_statistics(tmp_path, KEY, lambda: pytest.fail("was not stored again")))


def test_a_failed_write_leaves_the_old_entry(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    save_statistics(file, MOMENTS, KEY)

    def full(opened, **arrays):
        opened.write(b"PK")
        raise OSError("No space left on device")

    monkeypatch.setattr(module.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_statistics(file, MOMENTS._replace(mean=MOMENTS.mean + 1), KEY)
    same(load_statistics(file, KEY))
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npz"]
    with pytest.warns(UserWarning, match="could not be written"):
        same(cached_statistics(tmp_path / "elsewhere", KEY, lambda: MOMENTS))


def test_public_files_need_a_count(tmp_path):
    file = tmp_path / "public.npz"
    np.savez(
        file,
        mu=MOMENTS.mean,
        sigma=MOMENTS.covariance,
        mu_s=MOMENTS.mean[:2],
        sigma_s=MOMENTS.covariance[:2, :2],
    )
    same(read_reference_statistics(file, count=30))
    assert read_reference_statistics(file, count=30, spatial=True).mean.shape == (2,)
    with pytest.raises(ValueError, match="Pass count="):
        read_reference_statistics(file)
    with pytest.raises(FileNotFoundError, match="without public.json"):
        load_statistics(file)


class Program:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"mu": np.zeros(3)}, "it has \\['mu'\\], not mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"in place of \[D\] and \[D, D\]"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.1, 1.0]])}, "not symmetric"),
        ({"mu": np.array([Program()], object), "sigma": np.eye(1)}, "object, a pickle"),
    ],
)
def test_other_files_are_refused(tmp_path, monkeypatch, arrays, message):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=f"a.npz .*{message}"):
        read_reference_statistics(tmp_path / "a.npz", count=5)
    assert os.listdir(tmp_path) == ["a.npz"]


def test_paths_and_counts_are_checked(tmp_path):
    with pytest.raises(ValueError, match="ends in .npz"):
        save_statistics(tmp_path / "a", MOMENTS, KEY)
    with pytest.raises(ValueError, match="30 images and a key that says 31"):
        save_statistics(tmp_path / "a.npz", MOMENTS, dataclasses.replace(KEY, count=31))
    with pytest.raises(FileNotFoundError):
        read_reference_statistics(tmp_path / "absent.npz")
