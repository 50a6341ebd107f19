"""PyTorch files: pickles that are no tensors, that never end, or that claim the whole memory."""

import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.evaluation import read_torch_file
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import mutated
from tests.test_evaluation_torch_file import (
    COUNT,
    WEIGHT,
    legacy,
    name,
    number,
    numbers,
    program,
    storage,
    tensor,
    text,
    zipped,
)

MAKERS = {"zipped": zipped, "legacy": legacy}


def read(path, memory=64 * MIB):
    return attempt(lambda: read_torch_file(path), str(path), memory=memory, seconds=5)


def check(result, exact):
    """Names, and arrays of the two kinds there are; the values themselves where they are summed."""
    if refused(result):
        return
    assert all(a.dtype in (np.float32, np.int64) for a in result.values())
    if exact and list(result) == ["weight", "count"]:
        np.testing.assert_array_equal(np.sort(result["weight"], None), np.sort(WEIGHT, None))
        assert result["count"] == COUNT


@pytest.mark.parametrize("kind", MAKERS)
@examples(60)
@given(data=st.data())
def test_damaged_files_are_tensors_or_refused(place, kind, data):
    path = MAKERS[kind](place / "a.pth", program(kind == "legacy"))
    whole = path.read_bytes()
    path.write_bytes(data.draw(mutated(whole)))
    check(read(path), exact=False)


OPCODES = [bytes([code]) for code in range(256)]
PIECES = st.sampled_from(OPCODES) | st.sampled_from(
    [
        text("a"),
        number(1),
        numbers([3, 4]),
        numbers([2**31 - 1, 2**31 - 1]),
        name("collections", "OrderedDict"),
        name("torch", "FloatStorage"),
        name("torch._utils", "_rebuild_tensor_v2"),
        name("os", "system"),
        storage("FloatStorage", "0", 12, False),
        tensor(storage("FloatStorage", "0", 12, False), (3, 4), (4, 1)),
        b"q\1",
        b"h\1",
        b"r\xff\xff\xff\x7f",
        b"\x8e" + struct.pack("<Q", 2**60),
        b"\x8d" + struct.pack("<Q", 2**60),
        b"\x8b" + struct.pack("<i", 2**31 - 1),
        b"B" + struct.pack("<i", 2**31 - 1),
        b"\x95" + struct.pack("<Q", 2**62),
        b"(I" + b"9" * 5000 + b"\n",
        b"}(",
        b"u",
        b"s",
    ]
)


@examples(150)
@given(pieces=st.lists(PIECES, max_size=12), kind=st.sampled_from(sorted(MAKERS)))
def test_programs_of_any_opcodes_are_refused_or_tensors(place, pieces, kind):
    whole = program(kind == "legacy")
    path = MAKERS[kind](place / "a.pth", whole[:-1] + b"".join(pieces) + b".")
    check(read(path), exact=True)


LARGE = {
    "memo": b"r\xff\xff\xff\x0f",
    "bytes": b"\x8e" + struct.pack("<Q", 2**40),
    "text": b"X\xff\xff\xff\x7f",
    "bytearray": b"\x96" + struct.pack("<Q", 2**40),
    "integer": b"\x8b\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("what", LARGE)
def test_sizes_that_an_opcode_claims_are_not_believed(place, what):
    path = zipped(place / "a.pth", program(extra=text("x") + LARGE[what] + b"s"))
    assert refused(read(path))


def doubled(times):
    """A tuple of a tuple twice of a tuple twice …: soon said, and never looked through."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, times))


@pytest.mark.parametrize("where", ["key", "value", "shape", "name"])
def test_nothing_is_looked_through_that_doubles_at_every_level(place, where):
    nest = doubled(60)
    extra = {
        "key": nest + number(1) + b"s",
        "value": text("x") + nest + b"s",
        "shape": text("x")
        + name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage("FloatStorage", "0", 12, False)
        + number(0)
        + nest
        + nest
        + b"\x89NtRs",
        "name": b"(" + nest + nest + nest + nest + nest + b"tQ" + number(1) + b"s",
    }[where]
    assert refused(read(zipped(place / "a.pth", program(extra=extra))))


def test_large_numbers_are_not_multiplied(place):
    """Many factors, or factors of a million digits, would be a shape for an afternoon."""
    long = b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6
    for shape in (b"(" + long * 8 + b"t", b"(" + number(2**31 - 1) * 300_000 + b"t"):
        extra = text("x") + name("torch._utils", "_rebuild_tensor_v2") + b"("
        extra += storage("FloatStorage", "0", 12, False) + number(0) + shape + shape + b"\x89NtRs"
        assert refused(read(zipped(place / "a.pth", program(extra=extra)), memory=256 * MIB))


def test_members_that_swell_are_refused(place):
    path = place / "a.pth"
    for swollen in ("data.pkl", "byteorder", "data/0"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in {
                "data.pkl": program(),
                "byteorder": b"little",
                "data/0": WEIGHT.tobytes(),
                "data/1": COUNT.tobytes(),
            }.items():
                with archive.open(f"archive/{member}", "w") as stream:
                    stream.write(content)
                    for _ in range(100 if member == swollen else 0):
                        stream.write(bytes(MIB))
        assert refused(read(path))


def test_one_storage_is_not_copied_without_end(place):
    """A thousand names of one storage of a MiB would be a GiB."""
    many = b"".join(
        text(str(i)) + tensor(storage("FloatStorage", "2", 2**18, False), (2**18,), (1,)) + b"s"
        for i in range(1000)
    )
    members = {"data/0": WEIGHT.tobytes(), "data/1": COUNT.tobytes(), "data/2": bytes(MIB)}
    assert refused(read(zipped(place / "a.pth", program(extra=many), members)))
    two = many[: many.index(text("2") + b"c")]
    found = read(zipped(place / "b.pth", program(extra=two), members))
    assert list(found) == ["weight", "count", "0", "1"]
