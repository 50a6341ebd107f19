"""Inception weights: whatever is not the published file is refused before it is unpickled."""

import os

import pytest
from hypothesis import given

from ddpm_jax.evaluation import torch_file
from ddpm_jax.evaluation.inception_weights import load_inception_weights
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import mutated
from tests.test_evaluation_torch_file import program


@pytest.fixture(scope="module", autouse=True)
def unpickled():
    """The arguments of every unpickler that is made."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_file, "_Unpickler", made.append)
        yield made


@examples(40)
@given(content=mutated(program()))
def test_no_other_file_reaches_the_unpickler(place, unpickled, content):
    path = place / "a.pth"
    path.write_bytes(content)
    result = attempt(lambda: load_inception_weights(path), str(path), memory=64 * MIB, seconds=5)
    assert refused(result) and not unpickled


@pytest.mark.parametrize("what", ["pipe", "device", "large", "folder", "nowhere"])
def test_what_is_no_such_file_is_neither_read_nor_waited_for(place, monkeypatch, unpickled, what):
    monkeypatch.setattr(torch_file, "MAX_BYTES", MIB)
    path = place / f"{what}.pth"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "large":
        path.touch()
        os.truncate(path, 2**40)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if what == "device" else "absent")
    result = attempt(lambda: load_inception_weights(path), str(path), memory=64 * MIB, seconds=5)
    assert refused(result) and not unpickled
