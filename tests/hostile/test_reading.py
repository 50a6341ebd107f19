"""What the readers open their files with: one case for each rule."""

import io
import os
import zipfile

import numpy as np
import pytest

from ddpm_jax.files import (
    check_regular,
    map_npy,
    open_archive,
    open_array,
    parse_json_object,
    read_arrays,
    read_json_object,
    read_regular,
)
from tests.hostile.test_npz import archive, header, npy, npz, one_member

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "text,named",
    [
        ('{"a": 1, "a": 1}', "'a' is there twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "beyond all"),
        ('{"a": [[-1e999]]}', "beyond all"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested deeper"),
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
    with pytest.raises(ValueError, match="more than the 11 bytes"):
        read_json_object(path, 11)
    with pytest.raises(FileNotFoundError, match="none"):
        read_regular(tmp_path / "none", 10)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path, "folder")):
        with pytest.raises(OSError, match=f"{path} is no regular file but a {kind}"):
            check_regular(path)
    with pytest.raises(OSError, match="/dev/zero is no regular file but a device"):
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
    with pytest.raises(ValueError, match="bytes after its header"):
        map_npy(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(archive([("a.npy", change(npy(VALUES)))]))
    with pytest.raises(ValueError, match="bytes after its header"):
        read_arrays(tmp_path / "a.npz", 10**6)


def test_a_member_swells_no_further_than_deflate_can(tmp_path):
    claimed = header("'|u1'", "(100000,)")
    (tmp_path / "a.npz").write_bytes(one_member(b"a.npy", b"\3\0", 0, 2, len(claimed) + 100_000))
    with open_archive(tmp_path / "a.npz") as members:
        with pytest.raises(ValueError, match="claims 100,128 bytes in 2"), open_array(members, "a"):
            pass


@pytest.mark.parametrize(
    "content,named",
    [
        (npz({"a": VALUES})[:-30], "not a zip file"),
        (b"\0" + npz({"a": VALUES}), "does not begin as an archive"),
        (archive([("a.npy", npy(VALUES)), ("a", b"")]), "there twice"),
        (archive([("a.npy", npy(VALUES)), ("b.txt", b"")]), "something else than arrays"),
        (archive([]), "something else than arrays"),
        (archive([("a.npy", npy(VALUES))], zipfile.ZIP_LZMA), "method 14"),
        (archive([("a.npy", npy(VALUES))], zipfile.ZIP_BZIP2), "method 12"),
        (npz({"a": VALUES, "b": VALUES}), "more than 30 bytes, with b"),
        (archive([("a.npy", header("'|O'") + bytes(99))]), "a pickle, which is not read"),
        (archive([("a.npy", header("[('a', '<f4')]") + bytes(99))]), "no array of plain numbers"),
        (archive([("a.npy", header("'<U9'") + bytes(99))]), "no array of plain numbers"),
        (archive([("a.npy", header(shape="(-1,)") + bytes(99))]), "no array of plain numbers"),
        (archive([("a.npy", header(shape="(True,)") + bytes(99))]), "no array of plain numbers"),
        (archive([("a.npy", header(length=20_000) + bytes(10**5))]), "header has 20,000 bytes"),
        (archive([("a.npy", header(version=b"\3\0"))]), r"version is \(3, 0\)"),
        (archive([("a.npy", b"\x80\4N.     ")]), "it may be pickled"),
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
