"""Files that are nearly right."""

import copy
import json

from hypothesis import strategies as st

EXTREMES = [b"\0", b"\xff", b"\x7f", b"\x80"]
EXTREMES = [byte * n for byte in EXTREMES for n in (1, 2, 4, 8)] + [b"\x80" + b"\0" * 7]


@st.composite
def mutated(draw, whole, most=3, where=None):
    """`whole` with up to `most` changes, within its first `where` bytes if that is given."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, most))):
        end = min(len(data), where or len(data))
        at = draw(st.integers(0, max(0, end - 1)))
        kind = draw(st.sampled_from(["flip", "flip", "set", "cut", "insert", "delete", "repeat"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            value = draw(st.sampled_from(EXTREMES))
            data[at : at + len(value)] = value
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


DEEP = 200_000
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**18, -(10**18), 10**400, 2**63, 0, -1, 1e308, -0.0])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "\0", "../../etc/passwd", "/etc/passwd", "a" * 5000, "NaN"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@st.composite
def json_text(draw, good):
    """Text that is JSON like `good`, with values of other kinds put in; or hardly JSON at all."""
    values = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        inner, key = draw(st.sampled_from(list(_places(values)) or [(None, None)]))
        if inner is None:
            values = draw(JSON_VALUES)
        elif draw(st.integers(0, 5)) == 0:
            del inner[key]
        else:
            inner[key] = draw(JSON_VALUES)
    text = json.dumps(values, ensure_ascii=draw(st.booleans()))
    whole = text.encode("utf-8", "surrogatepass")
    kind = draw(st.sampled_from(["as is"] * 5 + ["bytes", "deep", "twice", "marked", "huge"]))
    if kind == "bytes":
        return draw(mutated(whole))
    if kind == "deep":
        opening = draw(st.sampled_from([b"[", b'{"a":']))
        return draw(st.sampled_from([b"", b'{"config":', b'{"tree":'])) + opening * DEEP
    if kind == "twice" and isinstance(values, dict) and values:
        return b'{"%s": 1, ' % next(iter(values)).encode("utf-8", "surrogatepass") + whole[1:]
    if kind == "huge":
        number = draw(st.sampled_from([b"1e999", b"-1e999", b"9" * 10_000, b"Infinity", b"NaN"]))
        return whole.replace(b"1", number, 1)
    return b"\xef\xbb\xbf" + whole if kind == "marked" else whole


def _places(values):
    """(container, key) of everything in nested dictionaries and lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in list(items):
        yield values, key
        if isinstance(value, dict | list):
            yield from _places(value)
