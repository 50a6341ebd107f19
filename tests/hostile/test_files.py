"""Reads within limits and atomic writes: one case for each rule."""

import io
import os
import stat
import threading
import zipfile
import zlib

import numpy as np
import pytest

from ddpm_jax.files import (
    check_regular,
    map_npy,
    open_array,
    open_npz,
    parse_json_object,
    read_arrays,
    read_json_object,
    read_regular,
    user_path,
    write_atomically,
    write_json,
)
from tests.hostile.test_npz import archive, header, npy, npz, one_member

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "text,named",
    [
        ('{"a": 1, "a": 1}', "'a' occurs twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
        ('{"a": NaN}', "not JSON: Out of range"),
        ('{"a": -Infinity}', "not JSON: Out of range"),
        ('{"a": 1e999}', "not JSON: Out of range"),
        ('{"a": [[-1e999]]}', "not JSON: Out of range"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"a": %s}' % ("9" * 5000), "not JSON"),
        ("[1]", "not a JSON object but a list"),
        ("", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_json_in_the_strict_sense_is_refused(text, named):
    with pytest.raises(ValueError, match=named):
        parse_json_object(text)


def test_json_is_read():
    text = '{"a": [1, -2.5e3, true, null, "\\ud83d\\ude00", {}], "b": %s}' % (
        '{"c":' * 60 + "1" + "}" * 60
    )
    found = parse_json_object(text)
    assert found["a"] == [1, -2500.0, True, None, "\U0001f600", {}]
    assert parse_json_object('{"ü": 1}'.encode()) == {"ü": 1}


def test_files_are_read_up_to_a_size(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}" + " " * 10)
    assert read_regular(path, 12) == path.read_bytes() and read_json_object(path, 12) == {}
    with pytest.raises(ValueError, match="larger than the 11 bytes"):
        read_json_object(path, 11)
    with pytest.raises(FileNotFoundError, match="none"):
        read_regular(tmp_path / "none", 10)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path, "folder")):
        match = f"{path} is not a regular file but a {kind}. Name a file, or move the {kind} else"
        with pytest.raises(OSError, match=match):
            check_regular(path)
    with pytest.raises(OSError, match="/dev/zero is not a regular file but a device"):
        read_regular(type(tmp_path)("/dev/zero"), 10)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_in_both_orders(tmp_path, order):
    values = np.asarray(VALUES, order=order)
    np.save(tmp_path / "a.npy", values)
    mapped = map_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(mapped, VALUES)
    assert not mapped.flags.writeable
    np.savez_compressed(tmp_path / "a.npz", a=values, b=np.int64(7))
    found = read_arrays(tmp_path / "a.npz", 32)
    np.testing.assert_array_equal(found["a"], VALUES)
    assert found["b"].shape == () and found["b"] == 7
    assert list(read_arrays(tmp_path / "a.npz", 32, ("b", "c"))) == ["b"]


@pytest.mark.parametrize("change", [lambda c: c + b"\0", lambda c: c[:-1]], ids=["more", "less"])
def test_an_array_is_exactly_the_bytes_after_its_header(tmp_path, change):
    (tmp_path / "a.npy").write_bytes(change(npy(VALUES)))
    with pytest.raises(ValueError, match="its header says|mmap length"):
        map_npy(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(archive([("a.npy", change(npy(VALUES)))]))
    with pytest.raises(ValueError, match="bytes after its header"):
        read_arrays(tmp_path / "a.npz", 10**6)


def test_a_member_that_ends_before_its_size_is_refused(tmp_path):
    whole = header("'|u1'", "(100000,)") + bytes(1000)
    squeeze = zlib.compressobj(1, wbits=-15)
    stream = squeeze.compress(whole) + squeeze.flush()
    content = one_member(b"a.npy", stream, zlib.crc32(whole), len(stream), 100_128)
    (tmp_path / "a.npz").write_bytes(content)
    with open_npz(tmp_path / "a.npz") as members, open_array(members, "a") as (_, found):
        assert found.shape == (100_000,)
    with pytest.raises(ValueError, match="99,000 bytes too early"):
        read_arrays(tmp_path / "a.npz", 10**6)


@pytest.mark.parametrize(
    "content,named",
    [
        (npz({"a": VALUES})[:-30], "not a zip file"),
        (b"\0" + npz({"a": VALUES}), "pickle"),
        (archive([("a.npy", npy(VALUES)), ("a", b"")]), "occurs twice"),
        (archive([("a.npy", npy(VALUES)), ("b.txt", b"")]), "other things than arrays"),
        (archive([]), "other things than arrays"),
        (archive([("a.npy", npy(VALUES))], zipfile.ZIP_LZMA), "method 14"),
        (archive([("a.npy", npy(VALUES))], zipfile.ZIP_BZIP2), "method 12"),
        (npz({"a": VALUES, "b": VALUES}), "more than 30 bytes, with b"),
        (archive([("a.npy", header("'|O'") + bytes(99))]), "a pickle, which is not read"),
        (
            archive([("a.npy", header("[('a', '<f4')]") + bytes(99))]),
            "not an array of plain",
        ),
        (archive([("a.npy", header("'<U9'") + bytes(99))]), "not an array of plain"),
        (archive([("a.npy", header(shape="(-1,)") + bytes(99))]), "not an array of plain"),
        (
            archive([("a.npy", header(shape="(True,)") + bytes(99))]),
            "not an array of plain",
        ),
        (archive([("a.npy", header(length=20_000) + bytes(10**5))]), "not an .npy header"),
        (archive([("a.npy", header(version=b"\3\0"))]), "not an .npy header"),
        (archive([("a.npy", b"\x80\4N.     ")]), "not an .npy header, or a pickle"),
    ],
    ids=range(16),
)
def test_archives_are_refused_for_what_is_wrong(tmp_path, content, named):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        read_arrays(tmp_path / "a.npz", 30)


def test_an_encrypted_member_is_refused(tmp_path):
    whole = bytearray(npz({"a": VALUES}))
    for start in (b"PK\3\4", b"PK\1\2"):
        whole[whole.index(start) + (6 if start[2] == 3 else 8)] |= 1
    (tmp_path / "a.npz").write_bytes(whole)
    assert zipfile.ZipFile(io.BytesIO(whole)).infolist()[0].flag_bits & 1
    with pytest.raises(ValueError, match="encrypted"):
        read_arrays(tmp_path / "a.npz", 10**6)


KINDS = {"bytes": b"new", "text": "new", "function": lambda file: file.write(b"new")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, kind):
    path = tmp_path / "made" / "a.txt"
    write_atomically(path, KINDS[kind])
    assert path.read_bytes() == b"new"
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    path.write_bytes(b"old")

    def full(*_):
        assert path.read_bytes() == b"old"
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="No space"):
                write_atomically(path, KINDS[kind])
        assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_writers_at_once_do_not_mix(tmp_path):
    """Readers see one of the contents, whole, at any time."""
    path, contents = tmp_path / "a", [bytes([i]) * 100_000 for i in range(8)]
    write_atomically(path, contents[0])
    threads = [threading.Thread(target=write_atomically, args=(path, c)) for c in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in contents
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_json_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    write_json(tmp_path / "a.json", {"ü": "日本"})
    assert (tmp_path / "a.json").read_bytes().decode("utf-8") == '{\n  "ü": "日本"\n}\n'
    assert read_json_object(tmp_path / "a.json") == {"ü": "日本"}


def test_home_is_expanded_and_an_unknown_one_left(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = {"~/a": "/home/me/a", "~": "/home/me", "a/~": "a/~", "~no/a": "~no/a"}
    assert {given: str(user_path(given)) for given in paths} == paths
