"""NumPy's files, .npy and .npz: headers that lie, archives that swell, pickles inside."""

import functools
import hashlib
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.evaluation import Moments, open_images
from ddpm_jax.evaluation.statistics import (
    StatisticsKey,
    load_statistics,
    read_reference_statistics,
    save_statistics,
)
from ddpm_jax.interop import read_npz
from ddpm_jax.programs.shards import _read_shard
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import JSON_VALUES, json_text, mutated

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (3, 4, 4, 1), np.uint8)
WEIGHTS = {"a": RANDOM.standard_normal((3, 2)).astype(np.float32), "b": np.arange(3)}
MOMENTS = Moments(np.arange(3.0), np.eye(3), 5)
KEY = StatisticsKey("d" * 64, "train", 5, "f" * 64, "pool")


def npz(arrays, save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def shard(path):
    return _read_shard(path, (4, 4, 1))


READERS = {
    "images": (
        {"images": IMAGES},
        lambda path: {"images": np.concatenate(list(open_images(path).batches(2)))},
    ),
    "shard": ({"images": IMAGES}, lambda path: {"images": shard(path)}),
    "weights": (WEIGHTS, read_npz),
    "statistics": (
        {"mu": MOMENTS.mean, "sigma": MOMENTS.covariance, "count": np.int64(5)},
        lambda path: dict(
            zip(("mu", "sigma", "count"), read_reference_statistics(path), strict=True)
        ),
    ),
}


def header(descr="'|u1'", shape="(3, 4, 4, 1)", order="False", length=None, version=b"\x01\x00"):
    """The beginning of an .npy that says whatever it is given."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + version + size.to_bytes(2 if version[0] == 1 else 4, "little") + text


def archive(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, content in members:
            out.writestr(name, content)
    return buffer.getvalue()


def first_name(kind):
    return next(iter(READERS[kind][0]))


NUMBERS = ["0", "1", "-1", "3", "10**3", "2**31", "2**62", "2**63", "2**64", "10**30", "True"]
SHAPES = st.sampled_from(
    ["()", "(3,)", "3", "None", "'a'", "(3, 4, 4, 1)", "(3.0, 4, 4, 1)", "[3, 4, 4, 1]", "(,)"]
) | st.lists(st.sampled_from([str(eval(n)) for n in NUMBERS]), min_size=1, max_size=5).map(
    lambda axes: f"({', '.join(axes)},)"
)
DESCRS = st.sampled_from(
    ["'|u1'", "'<f4'", "'>f4'", "'<f8'", "'|O'", "'O'", "'|V1000000000'", "'<U99999999'", "'<m8'"]
    + ["'|b1'", "'<c8'", "[('a', '<f4')]", "('<f4', (1000, 1000))", "'f4,f4'", "None", "1", "{}"]
    + ["'|S0'", "'<f2'", "[('a', '|O')]", "[" * 150 + "]" * 150, "'os.system'", "'\\n'", "'\\'"]
)
HEADERS = st.builds(
    header,
    descr=DESCRS,
    shape=SHAPES,
    order=st.sampled_from(["False", "True", "None", "1", "'a'"]),
    length=st.sampled_from([None] * 6 + [0, 1, 65535]),
    version=st.sampled_from(
        [b"\x01\x00"] * 4 + [b"\x02\x00", b"\x03\x00", b"\x00\x00", b"\xff\xff"]
    ),
)
METHODS = st.sampled_from([zipfile.ZIP_STORED] * 3 + [8, 12, 14])


def member(draw, kind):
    """What lies under one name of an archive."""
    content = io.BytesIO()
    np.save(content, READERS[kind][0][first_name(kind)])
    whole = content.getvalue()
    return draw(
        st.just(whole)
        | mutated(whole, where=128)
        | HEADERS.map(lambda head: head + whole[128:])
        | st.sampled_from([b"", b"\x80\x04N.", whole[:-1], whole + b"\0", whole[:100]])
    )


@st.composite
def archives(draw, kind):
    arrays = READERS[kind][0]
    how = draw(st.sampled_from(["bytes", "bytes", "deflated", "member", "member", "names"]))
    if how in ("bytes", "deflated"):
        save = np.savez if how == "bytes" else np.savez_compressed
        return draw(mutated(npz(arrays, save)))
    others = [(f"{n}.npy", npy(a)) for n, a in arrays.items() if n != first_name(kind)]
    mine = (f"{first_name(kind)}.npy", member(draw, kind))
    if how == "names":
        name = st.sampled_from([mine[0], first_name(kind), "/etc/passwd", "../a.npy", "a/", "a\0b"])
        others += [(draw(name), draw(st.binary(max_size=9))) for _ in range(2)]
    return archive(draw(st.permutations([mine, *others])), draw(METHODS))


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
@examples(40)
@given(data=st.data())
def test_archives_are_what_numpy_reads_or_refused(place, silent, kind, data):
    content = data.draw(archives(kind))
    path = place / f"{kind}.npz"
    path.write_bytes(content)
    result = attempt(lambda: READERS[kind][1](path), path.name, memory=64 * MIB)
    if refused(result) or (kind == "shard" and result["images"] is None):
        return
    with np.load(path, allow_pickle=False) as found:
        for name, values in result.items():
            theirs = found[name] if name in found.files else found[found.files[0]]
            np.testing.assert_array_equal(values, theirs)
            assert kind != "weights" or values.dtype == theirs.dtype


@pytest.fixture(scope="module")
def silent():
    """Warnings of damaged shards are not what is tested here."""
    from ddpm_jax.programs import shards

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "say", lambda *_: None)
        yield


@functools.cache
def bomb(what):
    """A header and zeros, deflated to a thousandth: the stream, its check sum, its two sizes."""
    squeeze, crc, size = zlib.compressobj(1, wbits=-15), 0, 0
    stream = b""
    for piece in (BOMBS[what], *[bytes(MIB)] * 200):
        stream += squeeze.compress(piece)
        crc, size = zlib.crc32(piece, crc), size + len(piece)
    stream += squeeze.flush()
    return stream, crc, len(stream), size


def one_member(name, stream, *numbers):
    """An archive of one deflated member, which zipfile would have to inflate and deflate again."""
    common = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, *numbers) + struct.pack("<HH", len(name), 0)
    local = b"PK\3\4" + common + name + stream
    central = b"PK\1\2\24\0" + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    sizes = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + b"PK\5\6" + sizes


BOMBS = {
    "one image": header(shape="(1, 20000, 10000, 1)"),
    "float": header("'<f4'", "(52428800,)"),
    "header": header(length=200 * MIB, version=b"\x02\x00"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", BOMBS)
def test_bombs_are_refused_by_their_headers(place, silent, what):
    for kind, (_, read) in READERS.items():
        path = place / f"{kind}.npz"
        path.write_bytes(one_member(f"{first_name(kind)}.npy".encode(), *bomb(what)))
        result = attempt(lambda read=read, path=path: read(path), path.name, memory=64 * MIB)
        assert refused(result) or result["images"] is None, kind


def test_an_honest_member_made_by_hand_is_read(place):
    """The control of the above: it is the size that is refused, and not the archive."""
    content = npy(WEIGHTS["a"])
    squeeze = zlib.compressobj(1, wbits=-15)
    stream = squeeze.compress(content) + squeeze.flush()
    path = place / "a.npz"
    path.write_bytes(one_member(b"a.npy", stream, zlib.crc32(content), len(stream), len(content)))
    np.testing.assert_array_equal(read_npz(path)["a"], WEIGHTS["a"])


@pytest.fixture(scope="module")
def entry(place):
    save_statistics(place / "entry.npz", MOMENTS, KEY)
    return place / "entry.npz"


@examples(40)
@given(data=st.data())
def test_entries_of_statistics_are_their_own_or_refused(entry, data):
    described = entry.with_suffix(".json")
    good = json.loads(described.read_text())
    described.write_bytes(data.draw(json_text(good)))
    try:
        result = attempt(lambda: load_statistics(entry, KEY), entry.stem)
    finally:
        described.write_text(json.dumps(good))
    if not refused(result):
        np.testing.assert_array_equal(result.mean, MOMENTS.mean)
        np.testing.assert_array_equal(result.covariance, MOMENTS.covariance)
        assert result.count == 5


@examples(30)
@given(key=st.fixed_dictionaries({name: JSON_VALUES for name in KEY.__dataclass_fields__}))
def test_keys_of_other_types_are_refused_even_where_their_hash_fits(entry, key):
    described = entry.with_suffix(".json")
    good = json.loads(described.read_text())
    try:
        text = json.dumps(key, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        described.write_text(json.dumps({**good, "key": key, "fingerprint": fingerprint}))
        result = attempt(lambda: load_statistics(entry), entry.stem)
    finally:
        described.write_text(json.dumps(good))
    assert refused(result)
