"""A run's folder: config.json, log.jsonl, plan.json and shards, by whoever made the folder."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError, without_names
from ddpm_jax.programs.shards import remember_plan
from ddpm_jax.training.logs import read_jsonl
from tests.hostile.bounds import DOCUMENTED, attempt, examples, refused
from tests.hostile.mutation import JSON_VALUES, json_text, mutated

CONFIG = TrainConfig(run_dir="run", num_steps=10)
FACTS = {"data": {"name": "a", "fingerprint": "f", "image_shape": [8, 8, 1], "num_classes": 10}}
GOOD = json.loads(json.dumps({"config": to_json(CONFIG), **FACTS}))


@examples(150)
@given(content=json_text(GOOD))
def test_configurations_are_what_json_says_or_refused(place, content):
    directory = RunDirectory(place)
    directory.config.write_bytes(content)
    result = attempt(directory.read, directory.config, documented=RunDirectoryError)
    if not refused(result):
        config, facts = result
        said = json.loads(content)
        assert facts == {name: value for name, value in said.items() if name != "config"}
        assert covers(json.loads(json.dumps(to_json(config))), said["config"])


def covers(ours, said):
    """Whether all that was said is there, of the same type, and more perhaps as a default."""
    if isinstance(said, dict):
        return all(name in ours and covers(ours[name], value) for name, value in said.items())
    return ours == said and type(ours) is type(said)


@examples(100)
@given(values=JSON_VALUES)
def test_any_value_is_a_configuration_or_a_value_error(values):
    for whole in (values, {**to_json(CONFIG), "network": values, "run_dir": "a"}):
        attempt(lambda whole=whole: from_json(TrainConfig, whole, "here"), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"diffusion": {"num_timesteps": 10**15}},
        {"diffusion": {"beta_end": float("nan")}},
        {"diffusion": {"beta_end": float("inf")}},
        {"diffusion": {"beta_end": 10**400}},
        {"network": {"num_res_blocks": 10**9}},
        {"network": {"channels": 2**62}},
        {"network": {"channels": -8}},
        {"network": {"num_groups": 0}},
        {"network": {"channel_multipliers": [1] * 10**5}},
        {"network": {"channel_multipliers": [True]}},
        {"network": {"channel_multipliers": []}},
        {"data": {"path": "a\0b"}},
        {"seed": True},
        {"seed": 2**63},
    ],
    ids=lambda change: str(change)[:50],
)
def test_values_that_no_run_has_are_refused_before_a_model_is_built(place, change):
    directory = RunDirectory(place)
    ((name, value),) = change.items()
    config = {
        **GOOD["config"],
        name: {**GOOD["config"][name], **value} if name != "seed" else value,
    }
    directory.config.write_text(json.dumps({**FACTS, "config": config}))
    assert refused(attempt(directory.read, directory.config, documented=RunDirectoryError))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"config": [1]}', b'{"config": "a"}'])
def test_other_json_is_refused(place, content):
    directory = RunDirectory(place)
    directory.config.write_bytes(content)
    assert refused(attempt(directory.read, directory.config, documented=RunDirectoryError))


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_a_configuration_that_is_no_file_is_not_waited_for(tmp_path, what):
    directory = RunDirectory(tmp_path)
    {
        "pipe": lambda: os.mkfifo(directory.config),
        "device": lambda: directory.config.symlink_to("/dev/zero"),
        "folder": directory.config.mkdir,
    }[what]()
    assert refused(
        attempt(directory.read, directory.config, documented=RunDirectoryError, seconds=5)
    )


RECORDS = [{"kind": "train", "step": i, "loss": 0.5, "note": "\u2028"} for i in range(1, 4)]


@examples(100)
@given(
    lines=st.lists(
        st.sampled_from(RECORDS).flatmap(json_text)
        | st.sampled_from(RECORDS).map(lambda r: json.dumps(r, ensure_ascii=False).encode()),
        max_size=3,
    ),
    end=st.sampled_from([b"", b"\n", b"\r\n", b"\n\n", b"\n{", b"\n[1]", b'\n{"step": "a"}\n{}']),
)
def test_logs_are_their_records_or_refused(place, lines, end):
    path = place / "log.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    result = attempt(lambda: read_jsonl(path), path)
    if not refused(result):
        whole = [line for line in (b"\n".join(lines) + end).split(b"\n") if line]
        assert len(result) in (len(whole), len(whole) - 1)
        for record, line in zip(result, whole, strict=False):
            assert json.dumps(record) == json.dumps(json.loads(line))
            assert type(record.get("step", 0)) is int and type(record.get("kind", "")) is str


@examples(40)
@given(content=mutated(b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)))
def test_a_damaged_log_is_named_with_its_line(place, content):
    path = place / "log.jsonl"
    path.write_bytes(content)
    result = attempt(lambda: read_jsonl(path), path)
    assert refused(result) and "line " in str(result) or len(result) <= 6


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"1", b"null", b'{"step": "a"}', b'{"step": true}', b'{"step": 1.5}', b'{"kind": 1}']
    + [b"[" * 100_000, b"\xff", b""],
    ids=lambda line: str(line[:12]),
)
def test_lines_that_are_no_records_are_refused(place, line):
    """The last line alone may be cut short, and only where it is no JSON for it."""
    path = place / "log.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    result = attempt(lambda: read_jsonl(path), path)
    assert refused(result) and "line 2" in str(result)
    path.write_bytes(b'{"step": 1}\n{"step"')
    assert read_jsonl(path) == [{"step": 1}]


PLAN = {"run": "a", "data": FACTS["data"], "seed": 0, "sampler": {"sampler": "ddim"}, "count": 10}


@examples(80)
@given(content=json_text(PLAN))
def test_plans_are_the_same_or_refused(place, content):
    (place / "plan.json").write_bytes(content)
    result = attempt(
        lambda: remember_plan(place, PLAN), place, documented=(RunDirectoryError, *DOCUMENTED)
    )
    if not refused(result):
        # Names of runs and data change no image.
        said = json.loads(content)
        assert [without_names(said.get(k)) for k in PLAN if k != "run"] == [
            without_names(v) for k, v in PLAN.items() if k != "run"
        ]
    else:
        assert isinstance(result, RunDirectoryError)
    assert (place / "plan.json").read_bytes() == content
