"""Checkpoints written opcode by opcode: what is read, and that nothing in them ever runs.

PyTorch is not needed; where it is installed, it writes the same files and must be read the same.
"""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from ddpm_jax.evaluation import read_torch_file

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
COUNT = np.array(5, np.int64)


def number(value):
    return b"J" + struct.pack("<i", value)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def numbers(values):
    return b"(" + b"".join(number(v) for v in values) + b"t"


def storage(kind, key, numel, legacy):
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), number(numel)]
    return b"(" + b"".join(parts) + (b"N" if legacy else b"") + b"tQ"


def tensor(stored, shape, strides, offset=0):
    parts = [stored, number(offset), numbers(shape), numbers(strides), b"\x89"]
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + b"".join(parts) + hooks + b"tR"


def program(legacy=False, shape=(3, 4), strides=(4, 1), numel=12, extra=b""):
    weight = tensor(storage("FloatStorage", "0", numel, legacy), shape, strides)
    count = tensor(storage("LongStorage", "1", 1, legacy), (), ())
    entries = text("weight") + weight + b"s" + text("count") + count + b"s"
    attached = b"}" + text("_metadata") + b"}sb"  # as state_dict() attaches its version
    return (
        b"\x80\x02" + name("collections", "OrderedDict") + b")R" + entries + extra + attached + b"."
    )


def zipped(path, pickled, members=None, **options):
    members = (
        {"data/0": WEIGHT.tobytes(), "data/1": COUNT.tobytes()} if members is None else members
    )
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for member, content in members.items():
            archive.writestr(f"archive/{member}", content)
    return path


def legacy(path, pickled, keys=("0", "1")):
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    with open(path, "wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
        pickle.dump(1001, file, 2)
        pickle.dump(about, file, 2)
        file.write(pickled)
        pickle.dump(list(keys), file, 2)
        for values in (WEIGHT, COUNT):
            file.write(struct.pack("<q", values.size) + values.tobytes())
    return path


def check(tensors):
    assert list(tensors) == ["weight", "count"]
    for found, expected in zip(tensors.values(), (WEIGHT, COUNT), strict=True):
        assert found.dtype == expected.dtype and found.flags.writeable
        np.testing.assert_array_equal(found, expected)


def test_both_layouts_are_read(tmp_path):
    check(read_torch_file(zipped(tmp_path / "a.pth", program())))
    check(read_torch_file(legacy(tmp_path / "b.pth", program(legacy=True))))


def test_strides_and_offsets_are_kept(tmp_path):
    """A transposed tensor, and one that begins within its storage."""
    file = zipped(tmp_path / "a.pth", program(shape=(4, 3), strides=(1, 4)))
    np.testing.assert_array_equal(read_torch_file(file)["weight"], WEIGHT.T)
    part = tensor(storage("FloatStorage", "0", 12, False), (2, 2), (4, 2), offset=5)
    file = zipped(tmp_path / "b.pth", program(extra=text("part") + part + b"s"))
    np.testing.assert_array_equal(read_torch_file(file)["part"], WEIGHT[1:, 1::2])


@pytest.mark.parametrize("new", [True, False])
def test_what_pytorch_writes(tmp_path, new):
    torch = pytest.importorskip("torch", reason="PyTorch writes the file to be read")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = read_torch_file(tmp_path / "a.pth")
    assert set(found) == set(module.state_dict())
    for key, theirs in module.state_dict().items():
        np.testing.assert_array_equal(found[key], theirs.numpy())


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize(
    "module, attribute",
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_parameter"),
        ("collections", "abc.sys.modules"),
        ("ddpm_jax.evaluation.torch_file", "os.system"),
    ],
)
def test_programs_are_refused_and_not_run(tmp_path, write, module, attribute):
    """Each file would make a folder if the call in it were made."""
    made = tmp_path / "made"
    call = name(module, attribute) + b"(" + text(f"mkdir {made}") + b"tR"
    file = write(tmp_path / "a.pth", program(write is legacy, extra=text("x") + call + b"s"))
    with pytest.raises(ValueError, match=f"names {module}.{attribute}.*Nothing in it was run"):
        read_torch_file(file)
    assert not made.exists()


class Program:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    """The control: Python's own unpickler does make the folder."""
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Program(tmp_path / "made"), 2))
    with pytest.raises(ValueError, match="Nothing in it was run"):
        read_torch_file(tmp_path / "a.pth")
    assert not (tmp_path / "made").exists()
    pickle.loads((tmp_path / "a.pth").read_bytes())
    assert (tmp_path / "made").exists()


def test_what_the_reader_hands_out_cannot_be_called(tmp_path):
    """The storage classes a pickle may name are no functions, and stand for nothing else."""
    call = name("torch", "FloatStorage") + b"(" + number(10**9) + b"tR"
    file = zipped(tmp_path / "a.pth", program(extra=text("x") + call + b"s"))
    with pytest.raises(ValueError, match="not callable"):
        read_torch_file(file)


@pytest.mark.parametrize(
    "module, attribute",
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch", "FloatStorage"),
        ("collections", "OrderedDict"),
    ],
)
def test_what_the_reader_hands_out_cannot_be_changed(tmp_path, module, attribute):
    """BUILD sets attributes: here a function's default arguments, which would outlive the file."""
    state = b"(N}" + text("__defaults__") + numbers([1, 2]) + b"st"
    change = name(module, attribute) + state + b"b"
    file = zipped(tmp_path / "a.pth", program(extra=text("x") + change + b"s"))
    with pytest.raises(ValueError, match="could not be read") as caught:
        read_torch_file(file)
    assert isinstance(caught.value.__cause__, AttributeError | TypeError)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_every_truncation_is_refused(tmp_path, write):
    whole = write(tmp_path / "a.pth", program(write is legacy)).read_bytes()
    file = tmp_path / "cut.pth"
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.pth could not be read"):
            read_torch_file(file)


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (3, 5), "strides": (4, 1)},
        {"shape": (3, 4), "strides": (5, 1)},
        {"shape": (1000, 1000), "strides": (0, 0)},
        {"shape": (3, 4), "strides": (-4, 1)},
        {"shape": (12,), "strides": (4, 1)},
        {"numel": 13},
        {"numel": -1},
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, options):
    """Strides of 0 too: they would turn one number into any number of copies."""
    for write in (zipped, legacy):
        with pytest.raises(ValueError, match="could not be read as a PyTorch checkpoint"):
            read_torch_file(write(tmp_path / "a.pth", program(write is legacy, **options)))


def test_other_content_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "absent.pth")
    file = zipped(tmp_path / "a.pth", b"\x80\x02" + number(3) + b".")
    with pytest.raises(ValueError, match="holds a int in place of a mapping"):
        read_torch_file(file)
    file = zipped(tmp_path / "a.pth", program(extra=text("x") + number(3) + b"s"))
    with pytest.raises(ValueError, match="entry 'x' is no tensor"):
        read_torch_file(file)
    file = zipped(tmp_path / "a.pth", program(), {"data/0": WEIGHT.tobytes()})
    with pytest.raises(ValueError, match="data/1"):
        read_torch_file(file)
    file = zipped(tmp_path / "a.pth", program(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        read_torch_file(file)
    members = {"data/0": WEIGHT.tobytes(), "data/1": COUNT.tobytes(), "byteorder": b"big"}
    with pytest.raises(ValueError, match="not little-endian"):
        read_torch_file(zipped(tmp_path / "a.pth", program(), members))
    buffer = io.BytesIO()
    np.save(buffer, WEIGHT)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="could not be read as a PyTorch checkpoint"):
        read_torch_file(tmp_path / "a.pth")
