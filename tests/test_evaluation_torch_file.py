"""The published weights' file format: tensors as PyTorch wrote them, and no other file is read."""

import hashlib
import os
import pickle
import struct

import numpy as np
import pytest

from ddpm_jax.evaluation.torch_file import read_torch_file

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


def tensor(kind, key, numel, shape, strides, offset=0):
    """The opcodes that PyTorch writes for a tensor; its storages are pickled by reference."""
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), number(numel), b"N"]
    storage = b"(" + b"".join(parts) + b"tQ"
    arguments = [storage, number(offset), numbers(shape), numbers(strides), b"\x89"]
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + b"".join(arguments) + hooks + b"tR"


def program(shape=(3, 4), strides=(4, 1), extra=b""):
    entries = text("weight") + tensor("FloatStorage", "0", 12, shape, strides) + b"s"
    entries += text("count") + tensor("LongStorage", "1", 1, (), ()) + b"s"
    attached = b"}" + text("_metadata") + b"}sb"  # as state_dict() attaches its version
    start = b"\x80\x02" + name("collections", "OrderedDict") + b")R"
    return start + entries + extra + attached + b"."


def write(path, pickled):
    """Returns the path and the sha256 of a file in the format of PyTorch before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    content = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))
    content += pickled + pickle.dumps(["0", "1"], 2)
    for values in (WEIGHT, COUNT):
        content += struct.pack("<q", values.size) + values.tobytes()
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def test_tensors_are_read_with_their_strides_and_offsets(tmp_path):
    part = text("part") + tensor("FloatStorage", "0", 12, (2, 2), (4, 2), offset=5) + b"s"
    found = read_torch_file(*write(tmp_path / "a.pth", program((4, 3), (1, 4), part)))
    expected = {"weight": WEIGHT.T, "count": COUNT, "part": WEIGHT[1:, 1::2]}
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert found[key].dtype == values.dtype and found[key].flags.writeable
        np.testing.assert_array_equal(found[key], values)


def test_what_pytorch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch writes the file to be read")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "a.pth"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)
    found = read_torch_file(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert set(found) == set(module.state_dict())
    for key, theirs in module.state_dict().items():
        np.testing.assert_array_equal(found[key], theirs.numpy())


CALLS = [
    *(("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr")),
    *(("torch", "load"), ("torch._utils", "_rebuild_parameter"), ("pickle", "loads")),
    *(("collections", "abc.sys.modules"), ("ddpm_jax.evaluation.torch_file", "os.system")),
]


@pytest.mark.parametrize(("module", "attribute"), CALLS)
def test_even_a_file_with_the_right_hash_can_call_nothing(tmp_path, module, attribute):
    """Each file would make a folder if its call were made."""
    made = tmp_path / "made"
    call = text("x") + name(module, attribute) + b"(" + text(f"mkdir {made}") + b"tRs"
    with pytest.raises(pickle.UnpicklingError, match=f"{module}.{attribute} is not part"):
        read_torch_file(*write(tmp_path / "a.pth", program(extra=call)))
    assert not made.exists()


class Program:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_another_file_is_not_unpickled(tmp_path, monkeypatch):
    """The control: Python's own unpickler does make the folder."""
    file, made = tmp_path / "a.pth", tmp_path / "made"
    file.write_bytes(pickle.dumps(Program(made), 2))
    monkeypatch.setattr("ddpm_jax.evaluation.torch_file._Unpickler", lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match="has sha256 .* not 0123, so it was not unpickled"):
        read_torch_file(file, "0123")
    assert not made.exists()
    pickle.loads(file.read_bytes())
    assert made.exists()
