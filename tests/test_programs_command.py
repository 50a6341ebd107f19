"""`python -m ddpm_jax` is a program, and its modules are not."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_jax
from ddpm_jax.programs.cli import main, refuse_module

MODULES = [
    module.name
    for module in pkgutil.walk_packages(ddpm_jax.__path__, "ddpm_jax.")
    if not module.ispkg and not module.name.endswith("__main__")
]


def start(*words, before=()):
    """What `python -m WORDS` does while the package is imported."""
    refuse_module(["-m", *words[1:]], [sys.executable, *before, "-m", *words])


def test_no_module_but_the_command_is_a_program(capsys):
    assert len(MODULES) > 130
    for name in MODULES:
        with pytest.raises(SystemExit) as stopped:
            start(name, "--help")
        assert stopped.value.code == 2
        assert f"error: {name} is no program" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["ddpm_jax", "train", "digits"],
        ["ddpm_jax.__main__", "list"],
        ["ddpm_jax", "ddpm_jax.nn.unet"],
        ["pytest", "ddpm_jax.nn.unet", "-k", "ddpm_jax.keys"],
        ["ddpm_jax.nn.no_such_module"],  # Python says so itself, as it does of a package
        ["ddpm_jax.nn"],
        ["ddpm_jaxes.nn.unet"],
    ],
)
def test_programs_are_left_alone(words):
    start(*words)
    start(*words, before=["-X", "dev", "-W", "error"])


@pytest.mark.parametrize(
    "argv,orig_argv",
    [
        (["-m"], [sys.executable, "-mddpm_jax.keys"]),
        (["-m", "a", "b"], [sys.executable, "-Xdev", "-um", "ddpm_jax.keys", "a", "b"]),
        (["-m", "a"], [sys.executable, "-uImddpm_jax.keys", "a"]),
    ],
)
def test_short_options_may_be_joined(argv, orig_argv):
    with pytest.raises(SystemExit):
        refuse_module(argv, orig_argv)


@pytest.mark.parametrize("argv", [[""], ["-c"], ["-m"], ["-m", "a", "b", "c"]])
@pytest.mark.parametrize("orig_argv", [[], ["host"]])
def test_interpreters_within_other_programs_are_left_alone(argv, orig_argv):
    refuse_module(argv, orig_argv)


@pytest.mark.parametrize(
    "words, meant",
    [
        (["digits"], "Did you mean ddpm-jax train digits? Known: "),
        (["smaple"], "Did you mean sample? Known: "),
        (["train", "digit"], "Did you mean digits? Known: "),
        (["xyzzy"], "'ddpm-jax xyzzy' is no command. Known: "),
    ],
)
def test_the_nearest_command_is_named(words, meant, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and meant in capsys.readouterr().err


def test_python_says_so():
    command = [sys.executable, "-m", "ddpm_jax.programs.sample", "--count", "3"]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(ddpm_jax.__file__).parents[1]
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert "python -m ddpm_jax list" in ended.stderr and "Traceback" not in ended.stderr
