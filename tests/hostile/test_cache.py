"""The cache of decoded images: an entry is what was written, or decoded again with a warning."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.data.cache import read_entry, write_entry
from ddpm_jax.data.dataset import fingerprint_of
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import json_text, mutated
from tests.hostile.test_npz import DESCRS, HEADERS, SHAPES, header

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
LABELS = np.arange(5, dtype=np.int32) % 3
FILES = ["entry.json", "images.npy", "labels.npy"]


@pytest.fixture(scope="module")
def entry(place):
    write_entry(place, "key", IMAGES, LABELS, 3, "a/train", {"kind": "here"})
    return place / "key"


def read(entry, **limits):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        limits = {"memory": 64 * MIB} | limits
        result = attempt(lambda: read_entry(entry.parent, "key"), entry, **limits)
    assert not refused(result)
    if result is None:
        told = any(str(entry) in str(warning.message) for warning in said)
        assert told or not (entry / "entry.json").is_file()
    return result


def with_file(entry, name, content):
    whole = (entry / name).read_bytes()
    (entry / name).write_bytes(content)
    try:
        result = read(entry)
        return None if result is None else (np.array(result.images), result)
    finally:
        (entry / name).write_bytes(whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
@examples(50)
@given(data=st.data())
def test_entries_are_what_was_written_or_decoded_anew(entry, name, data):
    whole = (entry / name).read_bytes()
    if name == "entry.json":
        content = data.draw(json_text(json.loads(whole)))
    else:
        kind = data.draw(st.sampled_from(["bytes", "header", "zip"]))
        content = data.draw(mutated(whole)) if kind == "bytes" else b"PK\3\4" + whole
        content = data.draw(HEADERS) + whole[128:] if kind == "header" else content
    found = with_file(entry, name, content)
    if found is not None:
        images, result = found
        np.testing.assert_array_equal(images, IMAGES)
        assert result.labels.tolist() == LABELS.tolist() or result.num_classes is None
        assert type(result.name) is str and type(result.num_classes) in (int, type(None))


@pytest.mark.filterwarnings("ignore")
@examples(50)
@given(descr=DESCRS, shape=SHAPES, name=st.sampled_from(FILES[1:]))
def test_headers_of_any_kind_take_no_memory(entry, descr, shape, name):
    found = with_file(entry, name, header(descr, shape) + bytes(80))
    assert found is None


def test_labels_that_are_wrapped_by_their_type_are_not_read(entry, place):
    """Of numbers above 2³² the fingerprint sees the lower half alone."""
    labels = LABELS.astype(np.int64) + 2**32
    about = json.loads((entry / "entry.json").read_text())
    about |= {"num_classes": 2**40, "fingerprint": fingerprint_of(IMAGES, LABELS)}
    shutil.copytree(entry, place / "wrapped" / "key")
    wrapped = place / "wrapped" / "key"
    np.save(wrapped / "labels.npy", labels)
    (wrapped / "entry.json").write_text(json.dumps(about))
    assert read(wrapped) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "nowhere"])
def test_what_is_no_file_is_not_waited_for(entry, place, name, what):
    copy = place / f"{what}-{name}" / "key"
    shutil.copytree(entry, copy)
    (copy / name).unlink()
    {
        "pipe": lambda: os.mkfifo(copy / name),
        "device": lambda: (copy / name).symlink_to("/dev/zero"),
        "folder": (copy / name).mkdir,
        "nowhere": lambda: (copy / name).symlink_to("nowhere"),
    }[what]()
    assert read(copy, seconds=5) is None
