"""CIFAR-10: archives and folders that are damaged, or made to do harm."""

import gzip
import io
import os
import shutil
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.data import cifar10, load_cifar10
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import mutated

EACH = 20
RECORD = 3073
NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)]


@pytest.fixture(scope="module", autouse=True)
def miniature():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "RECORDS_PER_FILE", EACH)
        yield


def batch(seed):
    """A file of 20 records, two of each class, nearly all black: small when compressed."""
    records = np.zeros((EACH, RECORD), np.uint8)
    records[:, 0] = np.arange(EACH) % 10
    records[:, 1:4] = np.random.default_rng(seed).integers(0, 256, (EACH, 3))
    return records.tobytes()


FILES = {name: batch(i) for i, name in enumerate(NAMES)}


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


GOOD = [member(f"cifar-10-batches-bin/{name}", data) for name, data in FILES.items()]


def archive(members, **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


WHOLE = archive(GOOD)
ZIPPED = gzip.compress(WHOLE, mtime=0)


def read(path):
    return cifar10.read_batches(path, "train")


def check(result, files):
    """The images are the bytes of these files, said again in the other order of axes."""
    images, labels = result
    records = np.concatenate(
        [labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(labels), -1)], axis=1
    )
    assert records.astype(np.uint8).tobytes() == b"".join(files)


def by_tarfile(path):
    """The five files as Python's own reader finds them, whatever else is there."""
    with tarfile.open(path) as tar:
        found = {info.name.removeprefix("./"): info for info in tar}
        wanted = [found[f"cifar-10-batches-bin/{name}"] for name in NAMES]
        assert all(info.isreg() for info in wanted)
        return [tar.extractfile(info).read() for info in wanted]


@examples(25)
@given(content=mutated(ZIPPED) | mutated(WHOLE) | mutated(WHOLE, where=512).map(gzip.compress))
def test_archives_are_what_tar_says_or_refused(place, content):
    path = place / "cifar-10-binary.tar.gz"
    path.write_bytes(content)
    result = attempt(lambda: read(path), path.name)
    if not refused(result):
        check(result, by_tarfile(path))


STRANGE = [
    {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"},
    {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    {"type": tarfile.BLKTYPE, "devmajor": 8},
    {"type": tarfile.FIFOTYPE},
    {"type": tarfile.DIRTYPE},
    {"type": tarfile.CONTTYPE, "size": 0},
]
PATHS = ["/etc/cron.d/x", "../../../x", "cifar-10-batches-bin/../../x", "a/" * 90 + "x", "ü\udcff"]


@pytest.mark.parametrize("fields", STRANGE, ids=lambda fields: str(fields["type"]))
def test_members_that_are_no_files_are_refused_under_the_names_that_are_read(place, fields):
    path = place / "cifar-10-binary.tar.gz"
    path.write_bytes(archive([member(GOOD[0][0].name, **fields), *GOOD[1:]]))
    assert refused(attempt(lambda: read(path), path.name))


@examples(10)
@given(data=st.data())
def test_other_members_are_passed_over_and_nothing_is_extracted(place, data):
    extra = [
        member(data.draw(st.sampled_from(PATHS)), b"", **data.draw(st.sampled_from(STRANGE)))
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    path = place / "cifar-10-binary.tar.gz"
    path.write_bytes(archive(data.draw(st.permutations([*GOOD, *extra]))))
    before = sorted(place.rglob("*"))
    check(read(path), FILES.values())
    assert sorted(place.rglob("*")) == before


def test_a_name_that_is_there_twice_is_refused(place):
    """Extracting would keep the last, reading in order the first: neither is what was meant."""
    path = place / "cifar-10-binary.tar.gz"
    path.write_bytes(archive([*GOOD, GOOD[0]]))
    assert refused(attempt(lambda: read(path), path.name))


def header(size, kind=b"x"):
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def zeros(num_bytes):
    """Gzip of so many zeros: many members of it, each a MiB."""
    return gzip.compress(bytes(MIB), 9) * (num_bytes // MIB)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gzip.compress(header(2**31)) + zeros(800 * MIB),
        lambda: gzip.compress(header(2**31, b"L")) + zeros(800 * MIB),
        lambda: gzip.compress(header(2**60, b"x")),
        lambda: gzip.compress(header(2**60, b"0")),
        lambda: gzip.compress(archive([member("a" * 99)] * 1)[:512] * 10) + zeros(800 * MIB),
        lambda: gzip.compress((header(20) + b"20 path=" + b"b" * 11 + b"\n" + bytes(492)) * 3000),
        lambda: gzip.compress(archive([member(str(i)) for i in range(200)])[: 200 * 512]) * 1000,
    ],
    ids=["pax header", "long name", "huge pax", "huge member", "zeros", "nested", "members"],
)
def test_bombs_are_refused_before_they_fill_the_memory(place, make):
    path = place / "cifar-10-binary.tar.gz"
    path.write_bytes(make())
    assert refused(attempt(lambda: read(path), path.name, memory=128 * MIB))


@examples(15)
@given(content=mutated(FILES[NAMES[2]], most=2))
def test_folders_are_read_byte_for_byte_or_refused(place, content):
    folder = place / "cifar-10-batches-bin"
    folder.mkdir(exist_ok=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / NAMES[2]).write_bytes(content)
    result = attempt(lambda: read(folder), NAMES[2])
    if not refused(result):
        check(result, [content if name == NAMES[2] else FILES[name] for name in NAMES])


def test_what_is_no_regular_file_is_not_waited_for(place):
    folder = place / "pipes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in NAMES:
        os.mkfifo(folder / name)
    assert refused(attempt(lambda: load_cifar10("train", path=folder), str(folder), seconds=5))
    os.mkfifo(folder / "cifar-10-binary.tar.gz")
    assert refused(attempt(lambda: load_cifar10("train", path=folder), str(folder), seconds=5))


def test_a_good_archive_takes_no_more_than_its_images(place):
    """The bound of the tests above is no accident of how much was free."""
    path = place / "cifar-10-binary.tar.gz"
    path.write_bytes(ZIPPED)
    tracemalloc.start()
    check(read(path), FILES.values())
    assert tracemalloc.get_traced_memory()[1] < 20 * sum(map(len, FILES.values()))
    tracemalloc.stop()
