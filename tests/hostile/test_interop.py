"""Models of other libraries: their JSON and their tensors, honest or not."""

import json
import os
import shutil
import struct

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.evaluation import inception_weights
from ddpm_jax.forward import linear_schedule
from ddpm_jax.interop import (
    Process,
    load_diffusers,
    read_safetensors,
    save_diffusers,
    unet_from_tensorflow,
    write_safetensors,
)
from ddpm_jax.nn import UNet
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import JSON_VALUES, json_text, mutated
from tests.reference_unet import random_params

TINY = UNet(
    channels=8,
    channel_multipliers=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    num_groups=4,
    dropout=0.0,
    out_channels=1,
)
SHAPE = (8, 8, 1)
PROCESS = Process("linear", 20, 1e-3, 0.2, False, "epsilon", "fixed_large", True)


@pytest.fixture(scope="module")
def folder(place):
    params = random_params(TINY, np.zeros((1, *SHAPE), np.float32), 0)
    save_diffusers(place / "model", TINY, params, SHAPE, PROCESS, linear_schedule(20, 1e-3, 0.2))
    return place / "model"


def read_with(folder, path, content):
    """What the folder reads as with one file's content, which is put back."""
    whole = (folder / path).read_bytes()
    (folder / path).write_bytes(content)
    try:
        return attempt(lambda: load_diffusers(folder), folder, memory=512 * MIB)
    finally:
        (folder / path).write_bytes(whole)


FILES = ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"]


@pytest.mark.parametrize("path", FILES)
@examples(15, most=1000)
@given(data=st.data())
def test_settings_are_ours_or_refused(folder, path, data):
    good = json.loads((folder / path).read_text())
    content = data.draw(json_text(good))
    result = read_with(folder, path, content)
    if refused(result):
        assert path in str(result) or "out_channels" in str(result)
        return
    said = json.loads(content)
    same = {name for name in good if said.get(name) == good[name]}
    if path.startswith("unet"):
        assert result.unet.channels == 8 and result.process == PROCESS
    elif path.startswith("scheduler") and set(said) | set(good) == same:
        assert result.process == PROCESS
    elif path.startswith("scheduler"):
        process = result.process
        assert process.num_timesteps <= 10**6 and 0 < process.beta_start <= process.beta_end < 1


@pytest.mark.parametrize(
    "path,change",
    [
        (FILES[0], {"layers_per_block": 10**9}),
        (FILES[0], {"layers_per_block": 50_000}),
        (FILES[0], {"norm_num_groups": 10**30}),
        (FILES[0], {"block_out_channels": [2**40], "time_embedding_dim": None}),
        (FILES[0], {"sample_size": 2**999}),
        (FILES[0], {"in_channels": 10**9}),
        (FILES[0], {"attention_head_dim": []}),
        (FILES[1], {"num_train_timesteps": 10**15}),
        (FILES[1], {"num_train_timesteps": 500, "trained_betas": [0.1, 0.2]}),
        (FILES[1], {"predict_epsilon": "no", "prediction_type": "sample"}),
        (FILES[1], {"thresholding": [False]}),
        (FILES[1], {"trained_betas": [[0.1], [0.2]]}),
        (FILES[1], {"trained_betas": ["a", {}]}),
        (FILES[1], {"trained_betas": {}}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_settings_of_no_model_are_refused_at_once(folder, path, change):
    good = json.loads((folder / path).read_text())
    result = read_with(folder, path, json.dumps(good | change).encode())
    assert refused(result)


def test_names_of_files_are_not_followed_out_of_the_folder(folder, tmp_path):
    """What a link leads to is read as the format says: it is never unpickled, nor waited for."""
    copy = tmp_path / "copy"
    for link in ("/etc/passwd", "/dev/zero", "nowhere"):
        shutil.copytree(folder, copy)
        (copy / FILES[0]).unlink()
        (copy / FILES[0]).symlink_to(link)
        assert refused(attempt(lambda: load_diffusers(copy), copy, seconds=5))
        shutil.rmtree(copy)
    shutil.copytree(folder, copy)
    (copy / FILES[0]).unlink()
    os.mkfifo(copy / FILES[0])
    assert refused(attempt(lambda: load_diffusers(copy), copy, seconds=5))


TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def by_the_format(content):
    """The tensors of a safetensors file, from its description: length, JSON, bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    found, reached = {}, 0
    about = [(name, said) for name, said in header.items() if name != "__metadata__"]
    for name, said in sorted(about, key=lambda item: item[1]["data_offsets"]):
        start, end = said["data_offsets"]
        assert start == reached and said["dtype"] == "F32"
        found[name] = np.frombuffer(body[start:end], "<f4").reshape(said["shape"])
        reached = end
    assert reached == len(body)
    return found


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 6, 16, 24, 40, 2**31, 2**62, 2**63, 2**64 - 1, -1])
ABOUT = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F32"] * 4 + ["F16", "BF16", "I64", "F8_E4M3", "F4", "BOOL", "x"]
        ),
        "shape": st.lists(NUMBERS, max_size=3) | st.sampled_from([[2, 3], [4], [1] * 100]),
        "data_offsets": st.tuples(NUMBERS, NUMBERS).map(list)
        | st.sampled_from([[0, 24], [24, 40]]),
    }
) | st.sampled_from(
    [
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
    ]
)


@st.composite
def safetensors(draw, whole):
    kind = draw(st.sampled_from(["bytes", "header", "header", "text", "length"]))
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = whole[8 : 8 + length], whole[8 + length :]
    if kind == "bytes":
        return draw(mutated(whole))
    if kind == "length":
        said = draw(st.sampled_from([0, 1, length - 1, 2**31, 2**32, 10**8, 2**63, 2**64 - 1]))
        return struct.pack("<Q", said) + header + body
    if kind == "text":
        header = draw(json_text(json.loads(header)))
    else:
        names = st.sampled_from(["a", "b", "", "../a", "\0", "a" * 300, "__metadata__"])
        pairs = draw(st.lists(st.tuples(names, ABOUT), max_size=3))
        header = b"{" + b",".join(
            json.dumps(n).encode() + b":" + json.dumps(a).encode() for n, a in pairs
        )
        header += b"}"
    return struct.pack("<Q", len(header)) + header + body


@examples(100)
@given(data=st.data())
def test_safetensors_are_what_the_format_says_or_refused(place, data):
    path = place / "a.safetensors"
    write_safetensors(path, TENSORS)
    content = data.draw(safetensors(path.read_bytes()))
    path.write_bytes(content)
    result = attempt(lambda: read_safetensors(path), path)
    if not refused(result):
        expected = by_the_format(content)
        assert set(result) == set(expected)
        for name, tensor in result.items():
            np.testing.assert_array_equal(tensor, expected[name])


def test_a_name_twice_is_refused(place):
    """Which of the two is meant, readers do not agree on."""
    about = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b'{"a":' + about + b',"a":' + about + b"}"
    path = place / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert refused(attempt(lambda: read_safetensors(path), path))


@examples(20, most=1000)
@given(data=st.data())
def test_inceptions_file_is_read_or_refused_by_name(place, data):
    path = place / "inception.safetensors"
    write_safetensors(path, TENSORS)
    path.write_bytes(data.draw(safetensors(path.read_bytes())))
    result = attempt(lambda: inception_weights.load_inception_weights(path), path)
    assert refused(result)
    path = path.with_suffix(".pth")
    path.write_bytes(data.draw(st.binary()))
    result = attempt(lambda: inception_weights.load_inception_weights(path), path)
    assert "not unpickled" in str(result)


GOOD = {
    "model/conv_in/W": (3, 3, 1, 32),
    "model/conv_out/W": (3, 3, 32, 1),
    "model/down_0/block_0/conv1/W": (3, 3, 32, 32),
}


@examples(30, most=1000)
@given(
    shapes=st.dictionaries(
        st.sampled_from(
            [*GOOD, "model/down_1/block_0/conv1/W", "model/down_0/attn_0/q/W", "global_step"]
            + ["model/down_99999/block_0/conv1/W", "model/conv_in/W:0", "model/down_x/", "", "\0"]
            + ["model/conv_in/W/ExponentialMovingAverage", "model/down_0/block_" + "9" * 5000]
        ),
        st.lists(st.sampled_from([0, 1, 3, 32, 64]), max_size=5),
    )
)
def test_variables_of_other_shapes_are_refused(shapes):
    """None of these is a whole network; each must be refused, and by a ValueError."""
    variables = {name: np.zeros(shape, np.float32) for name, shape in {**GOOD, **shapes}.items()}
    with jax.numpy_rank_promotion("allow"):
        result = attempt(lambda: unet_from_tensorflow(variables, 8), "unet_from_tensorflow")
    assert refused(result)


@examples(15, most=1000)
@given(values=JSON_VALUES)
def test_any_json_is_a_config_of_neither_kind(folder, values):
    for path in FILES:
        if values == {} and path == FILES[2]:
            continue
        content = json.dumps(values).encode("utf-8", "surrogatepass")
        result = read_with(folder, path, content)
        assert refused(result) or path != FILES[0]
