"""What a signal before training, and output that nobody takes, do to a program."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_jax.programs import train as module
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import bar, forgiving_output, say
from ddpm_jax.training import StopRequest
from ddpm_jax.training.loop import StopAtOnce

CONFIG = TrainConfig(run_dir=Path("unused"), num_steps=1)


def later(value):
    return pytest.param(value, marks=pytest.mark.slow)


def interrupt_here():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass
    raise AssertionError("the signal did not interrupt")


def test_where_there_is_nothing_to_save_the_first_signal_interrupts():
    with StopRequest() as stop:
        with pytest.raises(StopAtOnce), stop.at_once():
            interrupt_here()
        assert stop.signal is signal.SIGTERM
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


def a_library(config, data):
    """One that is being imported makes an error of its own of the interrupt."""
    try:
        interrupt_here()
    except StopAtOnce:
        raise TypeError("expected a message argument") from None


@pytest.mark.parametrize("begin", [a_library, lambda config, data: interrupt_here()])
def test_a_signal_before_training_ends_the_program_in_order(monkeypatch, capsys, begin):
    monkeypatch.setattr(module, "TrainingRun", begin)
    module.train(CONFIG)
    assert "stopped by SIGTERM before training" in capsys.readouterr().out


def test_an_error_before_training_is_not_taken_for_a_stop(monkeypatch):
    def wrong(config):
        raise TypeError("wrong")

    monkeypatch.setattr(module, "TrainingRun", wrong)
    with pytest.raises(TypeError, match="wrong"):
        module.train(CONFIG)


class Full:
    """A stream on a full disk."""

    def __init__(self):
        self.full = True
        self.text = ""

    def write(self, text):
        if self.full:
            raise OSError(28, "No space left on device")
        self.text += text
        return len(text)

    def flush(self):
        if self.full:
            raise OSError(28, "No space left on device")

    def isatty(self):
        return False


def test_printing_never_fails(monkeypatch):
    stream = Full()
    monkeypatch.setattr(sys, "stdout", stream)
    with forgiving_output():
        say("lost")
        stream.full = False
        say("kept")
        assert not sys.stdout.isatty()
    assert sys.stdout is stream and stream.text == "kept\n"


@pytest.mark.parametrize(
    "encoding,printed",
    [
        ("utf-8", "8×8 → 日"),
        ("latin-1", "8×8 ? ?"),
        ("cp1252", "8×8 ? ?"),
        ("ascii", "8?8 ? ?"),
        (None, None),
    ],
)
def test_outside_of_a_program_messages_do_not_fail_either(monkeypatch, encoding, printed):
    """`train` called by a script of the user's, whose output is closed or lacks characters."""
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding or "utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    if encoding is None:
        stream.close()
    say("8×8 → 日")
    say("the end")
    if encoding is not None:
        assert content.getvalue().decode(encoding) == f"{printed}\nthe end\n"


def test_a_reader_that_went_away_is_no_error():
    program = (
        "from ddpm_jax.programs.console import forgiving_output, say\n"
        "with forgiving_output():\n"
        "    input()\n"
        "    say('nobody reads this')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stdin and process.stderr
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def run_script(folder, text):
    script = folder / "program.py"
    script.write_text(text, encoding="utf-8")
    return subprocess.run([sys.executable, script], capture_output=True, timeout=50)


def test_a_second_signal_while_compiling_ends_the_program_at_once(tmp_path):
    """Without the interpreter's own end, which aborts where a thread is inside the compiler."""
    done = run_script(
        tmp_path,
        "import atexit, os, signal, sys, time\n"
        "from ddpm_jax.programs.compilation import in_background\n"
        "from ddpm_jax.programs.config import SamplerOptions\n"
        "from ddpm_jax.programs.console import run_program\n"
        "from ddpm_jax.training import StopRequest\n"
        "def compile_():\n"
        "    for number in (signal.SIGTERM, signal.SIGINT):\n"
        "        os.kill(os.getpid(), number)\n"
        "    time.sleep(60)\n"
        "def program(config):\n"
        "    atexit.register(print, 'ended by the interpreter')\n"
        "    with StopRequest() as stop:\n"
        "        in_background(compile_)(stop)\n"
        "run_program(program, SamplerOptions(), None)\n",
    )
    assert done.returncode == 130 and b"interrupted" in done.stderr, done.stderr
    assert done.stdout == b""


def test_an_error_while_compiling_does_not_wait_for_the_compiler(tmp_path):
    done = run_script(
        tmp_path,
        "import time\n"
        "from ddpm_jax.programs.compilation import in_background\n"
        "from ddpm_jax.programs.config import SamplerOptions\n"
        "from ddpm_jax.programs.console import run_program\n"
        "def program(config):\n"
        "    in_background(lambda: time.sleep(60))\n"
        "    raise ValueError('other weights')\n"
        "run_program(program, SamplerOptions(), None)\n",
    )
    assert done.returncode == 2 and b"error: other weights" in done.stderr, done.stderr


def test_a_platform_that_is_not_there_is_one_message():
    code = "from ddpm_jax.programs.cli import main; main()"
    words = ["sample", "--pretrained", "digits", "--count", "1"]
    environment = {**os.environ, "JAX_PLATFORMS": "abacus"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "error: Unable to initialize backend" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
@pytest.mark.parametrize("within", [True, False])
def test_closed_streams_are_no_error(monkeypatch, closed, within):
    """What Python makes of `>&-` and of a program without a terminal: the stream is None."""
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    with forgiving_output() if within else contextlib.nullcontext():
        say("nobody reads this")
        with bar(3, "sampling") as progress:
            progress.update(3)
        if within:
            print("nor this", file=sys.stderr)
    assert all(getattr(sys, name) is None for name in closed)


@pytest.mark.parametrize(
    "arguments", [["list"], *map(later, [["--help"], ["--version"], ["lists"]])]
)
@pytest.mark.parametrize("output", ["/dev/full", "ascii", "closed"])
def test_the_command_prints_where_it_can(arguments, output):
    redirected = {"/dev/full": ">/dev/full 2>&1", "closed": ">&- 2>&-", "ascii": ""}[output]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if output == "ascii":
        environment |= {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = f"exec {sys.executable} -m ddpm_jax {' '.join(arguments)} {redirected}"
    done = subprocess.run(command, shell=True, env=environment, capture_output=True)
    assert done.returncode == (2 if arguments == ["lists"] else 0), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "encoding", ["ascii", *map(later, ["utf-8", "latin-1", "cp1252", "shift_jis"])]
)
@pytest.mark.parametrize("locale", ["C", later("C.UTF-8")])
def test_no_character_ends_a_program(encoding, locale, tmp_path):
    """What the output's encoding does not have is replaced, and files are UTF-8 all the same."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ddpm_jax.files import write_json\n"
        "from ddpm_jax.programs.console import bar, forgiving_output, say\n"
        "with forgiving_output():\n"
        "    say('8×8, √ᾱ_T = 0.1 → 0.2')\n"
        "    print('\\udcff β 日本', file=sys.stderr)\n"
        "    with bar(3, 'training ×') as progress:\n"
        "        progress.update(3)\n"
        "    write_json(Path(sys.argv[1]), {'data': '8×8 → 日本'})\n"
        "    say('the end')\n"
    )
    environment = {
        **os.environ,
        "PYTHONIOENCODING": encoding,
        "LC_ALL": locale,
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "JAX_PLATFORMS": "cpu",
    }
    path, script = tmp_path / "x.json", tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run([sys.executable, script, path], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "the end" in done.stdout.decode(encoding)
    assert "8×8 → 日本" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("closed file")])
def test_a_terminal_that_is_gone_is_no_error(monkeypatch, error):
    class Gone(Full):
        def write(self, text):
            raise error

        def flush(self):
            raise error

    monkeypatch.setattr(sys, "stdout", Gone())
    with forgiving_output():
        say("nobody reads this")
    assert isinstance(sys.stdout, Gone)
