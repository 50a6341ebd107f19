"""Programs keep what they compile in a folder of the user alone; bars show training speed."""

import os
import subprocess
import sys
import types

import pytest

from ddpm_jax.programs import compilation, console, throughput
from tests.small_run import CONFIG


class _Config:
    """JAX's configuration, as far as the cache needs it."""

    def __init__(self, folder=None):
        self.jax_compilation_cache_dir = folder
        self.jax_persistent_cache_min_compile_time_secs = 1.0

    def update(self, name, value):
        assert hasattr(self, name)
        setattr(self, name, value)


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Calls `keep_compiled_programs` and returns the configuration that JAX then has."""
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))

    def call(folder=None, program=True):
        config = _Config(folder)
        monkeypatch.setattr(compilation, "jax", types.SimpleNamespace(config=config))
        monkeypatch.setattr(compilation, "is_program", lambda: program)
        compilation.keep_compiled_programs()
        return config

    return call


@pytest.fixture
def keep(configure):
    """Calls `keep_compiled_programs` and returns the folder that JAX then has."""
    return lambda *args, **options: configure(*args, **options).jax_compilation_cache_dir


def test_programs_keep_what_they_compile_by_cpu(keep, tmp_path, monkeypatch):
    first = keep()
    assert os.path.dirname(first) == str(tmp_path / "cache" / "compiled")
    assert os.stat(first).st_mode & 0o777 == 0o700
    assert keep() == first
    monkeypatch.setattr(compilation, "_cpu", lambda: "another model")
    assert keep() not in (None, first)


@pytest.mark.parametrize("chosen,seconds", [(None, 0), ("0.5", 1.0)])
def test_small_programs_are_kept_unless_the_user_says_otherwise(
    configure, monkeypatch, chosen, seconds
):
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    monkeypatch.setenv(name, chosen) if chosen else monkeypatch.delenv(name, raising=False)
    assert configure().jax_persistent_cache_min_compile_time_secs == seconds


def test_a_users_own_choice_and_other_programs_are_left_alone(keep, tmp_path):
    assert keep("/my/own") == "/my/own"
    assert keep(program=False) is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_may_write_is_not_trusted(keep, mode):
    os.chmod(keep(), mode)
    assert keep() is None


def test_a_folder_that_cannot_be_made_ends_nothing(keep, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    assert keep() is None


def test_the_programs_used_longest_ago_go_first(keep, monkeypatch):
    folder = keep()
    for age, name in enumerate(["newest", "used", "oldest"]):
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(bytes(100))
        os.utime(path, (1e9 - 1000 * age, 1e9 - 1000 * age))
    os.utime(os.path.join(folder, "oldest"), (1e9 - 1000 * 5, 1e9 - 1000 * 5))
    monkeypatch.setattr(compilation, "MAX_KEPT_BYTES", 250)
    keep()
    assert sorted(os.listdir(folder)) == ["newest", "used"]
    monkeypatch.setattr(compilation, "MAX_KEPT_BYTES", 0)
    keep()
    assert os.listdir(folder) == []


TWICE = """
import pathlib, sys, warnings
import jax
from ddpm_jax.programs import console
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
warnings.showwarning = console._show_warning
folder = pathlib.Path(sys.argv[1])
def size():
    return max((path.stat().st_size for path in folder.glob("jit_cube-*")), default=0)
def compiled():
    jax.clear_caches()
    def cube(x):
        return x**3 + 1
    return float(jax.jit(cube)(2.0))
assert compiled() == 9.0
whole = size()
for path in folder.glob("jit_cube-*-cache"):
    path.write_bytes(path.read_bytes()[: whole // 2])
assert compiled() == 9.0 and size() > 0.9 * whole > 0, (whole, size())
"""


@pytest.mark.slow
def test_half_a_file_is_replaced_without_a_word(tmp_path):
    """As a kill while it is written leaves it."""
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_warnings_are_shown(monkeypatch, capsys):
    for _ in range(2):
        console._show_warning(UserWarning("the disk is nearly full"), UserWarning, "", 0)
    assert capsys.readouterr().err.count("warning: the disk is nearly full") == 1


def test_the_bar_shows_the_speed_of_training_alone(monkeypatch):
    """Two steps per second, with sheets of samples in between that take a minute each."""
    now = [1000.0]
    clock = types.SimpleNamespace(time=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(console, "time", clock)
    monkeypatch.setattr(throughput, "time", clock)
    with console.bar(100, "training") as progress:
        progress._time = clock.time
        speed = throughput.Throughput(CONFIG, progress, None)
        for step in range(1, 101):
            now[0] += 0.5
            speed.update(1, 0.1)
            if step % 20 == 0:
                now[0] += 60.0
                speed.restart()
        shown = progress.format_dict
        # The first update starts the clock.
        assert shown["n"] == 100
        assert shown["elapsed"] == pytest.approx(99 * 0.5)
