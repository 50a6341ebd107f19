"""Every path option of every program, times every kind of path: it works or is refused at once."""

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax.programs.classifier import ClassifierConfig
from ddpm_jax.programs.config import DataConfig, TrainConfig
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.convert import FromDiffusers, FromTensorFlow, ToDiffusers, ToWeights
from ddpm_jax.programs.evaluate import EvaluateConfig
from ddpm_jax.programs.export import ExportConfig
from ddpm_jax.programs.paths import NAMES_OR_FILES, local_path, with_local_paths
from ddpm_jax.programs.publish import PullConfig, PushConfig
from ddpm_jax.programs.run_directory import RunDirectory
from ddpm_jax.programs.sample import SampleConfig
from guidance import GuidanceConfig
from inpaint import InpaintConfig
from interpolate import InterpolateConfig
from likelihood import LikelihoodConfig
from neighbours import NeighboursConfig
from progressive import ProgressiveConfig
from rivals_2d import RivalsConfig
from rivals_digits import RivalsDigitsConfig
from solvers import SolversConfig
from steps_vs_quality import StepsConfig
from tests.small_run import make_run, program
from theory_figures import TheoryConfig
from toy_2d import ToyConfig

# Of every program: its default, and its path options.
PROGRAMS = {
    "train": (
        TrainConfig(Path("run"), 1),
        ["run-dir", "init-from", "data.path", "data.cache-dir", "data.labels"],
    ),
    "sample": (SampleConfig(), ["run-dir", "out", "data-path", "cond", "context", "concat"]),
    "evaluate": (
        EvaluateConfig(),
        ["run-dir", "out", "data-path", "inception", "classifier", "cache-dir"],
    ),
    "guidance": (GuidanceConfig(), ["run-dir", "out", "data-path", "classifier"]),
    "steps_vs_quality": (StepsConfig(), ["run-dir", "out", "data-path", "classifier"]),
    "train classifier": (ClassifierConfig(), ["out", "data.path", "data.cache-dir", "data.labels"]),
    "inpaint": (InpaintConfig(), ["run-dir", "out", "data-path", "mask"]),
    "neighbours": (NeighboursConfig(), ["run-dir", "out", "data-path", "samples"]),
    "likelihood": (LikelihoodConfig(), ["run-dir", "out", "data-path"]),
    "progressive": (ProgressiveConfig(), ["run-dir", "out", "data-path"]),
    "rivals_2d": (RivalsConfig(), ["out"]),
    "rivals_digits": (RivalsDigitsConfig(), ["out"]),
    "solvers": (SolversConfig(), ["out"]),
    "theory_figures": (TheoryConfig(), ["out"]),
    "toy_2d": (ToyConfig(), ["out"]),
    "export": (ExportConfig(), ["run-dir", "out", "data-path"]),
    "from-diffusers": (FromDiffusers(), ["run-dir", "data-path", "folder", "cache-dir"]),
    "from-tensorflow": (FromTensorFlow(), ["run-dir", "data-path", "file"]),
    "to-diffusers": (ToDiffusers(), ["run-dir", "out", "data-path"]),
    "interpolate": (
        InterpolateConfig(),
        ["run-dir", "out", "data-path", "cond", "context", "concat"],
    ),
    "push": (PushConfig(), ["run-dir", "out", "data-path"]),
    "pull": (PullConfig(), ["out", "cache-dir"]),
    "to-weights": (ToWeights(), ["run-dir", "out", "data-path"]),
}
OPTIONS = [(name, option) for name, (_, options) in PROGRAMS.items() for option in options]
ACCEPTED = ["a b", "[x]", "mult=[1,2]", "a*", "a?", "back\\slash", "Ünïcödé", "a#%41", "../up"]
REFUSED = {
    "nosuch://bucket/run": "is an address",
    "nosuch://../run": "names no folder of a bucket",
    "http://host/run": "is an address",
    "file:///tmp/run": "is an address",
    os.fsdecode(b"not \xff utf-8"): "is not UTF-8",
}


def paths_of(config, prefix=""):
    """{option: value} of the path fields of a configuration, by their types."""
    found = {}
    for name, value in vars(config).items():
        hint = str(type(config).__annotations__.get(name, ""))
        for base in type(config).__mro__:
            hint = hint or str(vars(base).get("__annotations__", {}).get(name, ""))
        if hasattr(value, "__dataclass_fields__"):
            found |= paths_of(value, f"{prefix}{name}.")
        elif "Path" in hint or name in NAMES_OR_FILES:
            found[(prefix + name).replace("_", "-")] = value
    return found


def test_no_program_is_missing_from_the_table():
    scripts = Path(__file__).parents[1] / "experiments"
    calls = [re.findall(r"run_program\(\w+, (\w+)\(", p.read_text()) for p in scripts.glob("*.py")]
    assert len(calls) > 30
    assert {x for found in calls for x in found} <= {type(x).__name__ for x, _ in PROGRAMS.values()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_path_option_is_missing_from_the_table(name):
    default, options = PROGRAMS[name]
    assert sorted(paths_of(default)) == sorted(options)


def read_command_line(name, option, value, monkeypatch):
    """What the program would be given for one option."""
    seen = []
    monkeypatch.setattr(sys, "argv", [name, f"--{option}={value}"])
    run_program(lambda config: seen.append(config), PROGRAMS[name][0], None)
    return Path(paths_of(seen[0])[option])


@pytest.mark.parametrize("name,option", OPTIONS)
def test_a_tilde_is_the_home_folder_in_every_option(name, option, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert read_command_line(name, option, "~/x", monkeypatch) == Path("/somewhere/x")
    assert read_command_line(name, option, "a/~/x", monkeypatch) == Path("a/~/x")


@pytest.mark.parametrize("name,option", OPTIONS)
def test_odd_names_reach_the_program_as_they_are(name, option, monkeypatch):
    for value in ACCEPTED:
        assert read_command_line(name, option, value, monkeypatch) == Path(value)


@pytest.mark.parametrize("name,option", OPTIONS)
def test_addresses_and_bytes_are_refused_and_nothing_is_written(
    name, option, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for value, words in REFUSED.items():
        began = time.monotonic()
        with pytest.raises(SystemExit) as stopped:
            read_command_line(name, option, value, monkeypatch)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and time.monotonic() - began < 5
        assert words in error and f"--{option}" in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_locale_alone_cannot_read_is_told_apart():
    with pytest.raises(ValueError, match="PYTHONUTF8=1 or LC_ALL=C.UTF-8"):
        local_path("\udcc3\udca9", "out")  # the bytes of é, as an ASCII locale has them
    with pytest.raises(ValueError, match="Rename the folder"):
        local_path("\udce9", "out")


@pytest.mark.parametrize("path", ["runs/a", "/runs/a", "a:b", "x://"[:2], "C", "~nobody-here/x"])
def test_what_is_no_address_is_kept(path):
    assert local_path(path, "run_dir") == Path(path)


def test_library_calls_expand_too(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert RunDirectory("~/runs/a").root == Path("/somewhere/runs/a")
    config = TrainConfig(Path("~/a"), 1, data=DataConfig(path=Path("~/b")))
    assert with_local_paths(config).data.path == Path("/somewhere/b")
    assert with_local_paths(SampleConfig(data_path="~/b")).data_path == Path("/somewhere/b")
    with pytest.raises(ValueError, match="NUL"):
        RunDirectory("a\0b")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("trained"))


IMPOSSIBLE = ["file/x", "file", "/proc/none/x"]
WRITTEN = {
    "train_digits.py": ["--run-dir"],
    "sample.py": ["--out"],
    "evaluate.py": ["--out"],
    "export.py": ["--out"],
}
WRITES = [(script, option) for script, options in WRITTEN.items() for option in options]


@pytest.mark.slow
@pytest.mark.parametrize("script,option", WRITES)
@pytest.mark.parametrize("path", IMPOSSIBLE)
def test_what_cannot_be_written_is_refused_in_time(
    trained, tmp_path, monkeypatch, capsys, script, option, path
):
    """A file in the way, or a parent that nobody may write to (such as those of /proc)."""
    if (script, path) == ("export.py", "file"):
        pytest.skip("its --out is a file, which is replaced")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    arguments = [] if option == "--run-dir" else [f"--run-dir={trained}"]
    before = sorted(trained.rglob("*"))
    began = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        program(script, *arguments, f"{option}={path}")
    assert stopped.value.code == 2 and time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert option in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and sorted(trained.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "[x]", "back\\slash", "~", "Ünï", "a*?", "new/parents"])
def test_sampling_reads_and_writes_under_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "home" if name == "~" else tmp_path / name
    make_run(root / "run")
    options = ["--count=3", "--sampler=ddim", "--num-steps=2", "--no-gif"]
    program("sample.py", f"--run-dir={name}/run", f"--out={name}/out", *options)
    assert np.load(root / "out" / "samples.npz")["images"].shape == (3, 8, 8, 1)
    assert json.loads((root / "out" / "sampling.json").read_text())["count"] == 3
    assert sorted(p.name for p in (root / "out").iterdir()) == [
        "grid.png",
        "samples.npz",
        "sampling.json",
    ]
