"""MNIST: IDX files and gzip streams that lie."""

import gzip
import io
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.data.mnist import read_idx
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import mutated

SHAPE = (5, 4, 3)
HEADER = struct.pack(">BBBBiii", 0, 0, 8, 3, *SHAPE)
BODY = bytes(range(60))
WHOLE = HEADER + BODY


@examples(60)
@given(
    content=mutated(WHOLE)
    | mutated(WHOLE).map(gzip.compress)
    | mutated(gzip.compress(WHOLE, mtime=0))
    | st.binary(max_size=80)
    | st.integers(-(2**31), 2**31 - 1).map(lambda n: HEADER[:4] + struct.pack(">i", n) + WHOLE[8:])
)
def test_files_are_exactly_the_header_and_the_bytes_or_refused(place, content):
    path = place / "images"
    path.write_bytes(content)
    result = attempt(lambda: read_idx(path, SHAPE), str(path), memory=32 * MIB)
    if not refused(result):
        # Read by the decompressor itself; no header but this one, no byte more.
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            plain = stream.read() if content[:2] == b"\x1f\x8b" else content
        assert plain[: len(HEADER)] == HEADER and len(plain) == len(WHOLE)
        np.testing.assert_array_equal(result, np.frombuffer(plain[16:], np.uint8).reshape(SHAPE))


def test_a_bomb_is_read_no_further_than_the_images_would_go(place):
    path = place / "images.gz"
    path.write_bytes(gzip.compress(HEADER + bytes(MIB), 9) + gzip.compress(bytes(MIB), 9) * 2000)
    assert refused(attempt(lambda: read_idx(path, SHAPE), str(path), memory=8 * MIB))
