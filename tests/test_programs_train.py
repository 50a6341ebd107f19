"""`train` called from Python: what it returns, and that an interrupt leaves its caller running."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from ddpm_jax.programs import console, pictures, training_session
from ddpm_jax.programs import train as train_module
from ddpm_jax.programs.compilation import CompilationStopped, in_background
from ddpm_jax.programs.config import ReportConfig
from ddpm_jax.programs.generator import Generated, Stopped
from ddpm_jax.programs.run_directory import RunDirectory
from ddpm_jax.programs.train import _last_heldout, train
from ddpm_jax.programs.training_run import HeldOut, TrainingRun
from ddpm_jax.training import Checkpoints, StopRequest
from ddpm_jax.training.logs import read_jsonl
from tests.small_run import CONFIG


def test_compiling_returns_its_result_or_raises_its_error():
    with StopRequest() as stop:
        assert in_background(lambda: 3)(stop) == 3
        with pytest.raises(OSError, match="no compiler"):
            in_background(lambda: (_ for _ in ()).throw(OSError("no compiler")))(stop)


def test_compiling_in_the_background_starts_before_it_is_waited_for():
    begun, go_on = threading.Event(), threading.Event()

    def compile_():
        begun.set()
        return go_on.wait(60)

    wait = in_background(compile_)
    assert begun.wait(60)
    go_on.set()
    with StopRequest() as stop:
        assert wait(stop) is True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_compiling_raises_at_once_and_leaves_the_compiler_running(number):
    finish, finished = threading.Event(), threading.Event()

    def compile_():
        os.kill(os.getpid(), number)
        finish.wait(60)
        finished.set()

    with StopRequest() as stop, pytest.raises(CompilationStopped, match="the same command"):
        in_background(compile_)(stop)
    assert issubclass(CompilationStopped, KeyboardInterrupt)
    assert not finished.is_set()
    finish.set()
    assert finished.wait(60)


def test_a_program_ends_in_order_without_waiting_for_the_compiler():
    code = """
import threading
from ddpm_jax.programs.compilation import CompilationStopped
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.sample import SampleConfig

def program(config):
    threading.Thread(target=threading.Event().wait).start()  # never ends, nor lets Python end
    raise CompilationStopped("stopped while compiling")

run_program(program, SampleConfig(), None)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout) == (0, "stopped while compiling\n"), result.stderr


@pytest.mark.slow
def test_training_returns_what_it_made_after_an_interrupt_too(tmp_path, monkeypatch):
    report = ReportConfig(
        heldout_every=2, heldout_draws=8, sample_every=0, checkpoint_every=2, final_count=2
    )
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run", num_steps=2, report=report)
    compile_steps = training_session.compile_steps

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return compile_steps(*arguments)

    with monkeypatch.context() as patch, pytest.raises(CompilationStopped):
        patch.setattr(training_session, "compile_steps", interrupted)
        train(config)
    result = train(config)
    assert result is not None and result.heldout is not None
    assert (result.run_dir, result.step) == (config.run_dir, 2)
    assert [path.name for path in result.pictures] == ["samples.png", "denoising.gif", "loss.png"]
    assert all(path.stat().st_size > 100 for path in result.pictures)
    # At its start a network predicts next to nothing of ε, whose mean square is 1.
    assert 0.5 < result.heldout.loss < 2.0
    assert train(config) == result


def test_only_a_program_may_be_ended_by_the_watchdog(tmp_path, monkeypatch):
    """A notebook that calls `train` goes on, however long a step takes."""
    seconds = []

    class Stopped(Exception):
        pass

    def watch(timeout, *_, **__):
        seconds.append(timeout)
        raise Stopped

    monkeypatch.setattr(train_module, "Watchdog", watch)
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run")
    with pytest.raises(Stopped):
        train(config)
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(Stopped):
        console.run_program(train, config, None)
    assert seconds == [0, config.devices.watchdog_seconds] and not console.is_program()


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0 B"),
        (999.4, "999 B"),
        (999.7, "1 kB"),
        (1e3, "1 kB"),
        (999_600, "1 MB"),
        (12.4e9, "12.4 GB"),
    ],
)
def test_quantities_have_three_digits(value, text):
    assert console.quantity(value, "B") == text


def test_a_bar_does_not_count_the_time_until_its_first_update():
    """999 seconds of compiling and one step, then twenty in 100 seconds."""
    with console.bar(100, "steps", initial=7) as progress:
        progress.start_t -= 999
        progress.last_print_t -= 999
        progress.update(1)
        assert (progress.n, progress.format_dict["rate"]) == (8, None)
        assert progress.format_dict["elapsed"] < 10
        progress.last_print_t -= 100
        progress.update(20)
        assert progress.n == 28
        assert progress.format_dict["rate"] == pytest.approx(0.2, rel=0.1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose last step is saved, before anything of that step was measured or drawn."""
    report = ReportConfig(heldout_every=2, heldout_draws=8, sample_every=2, final_count=2)
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = dataclasses.replace(CONFIG, run_dir=folder, num_steps=2, report=report)
    run = TrainingRun(config)
    run.directory.write(run.config, run.facts)
    with Checkpoints(run.directory.checkpoints) as checkpoints:
        checkpoints.save(2, run.model.init().replace(step=jax.numpy.int32(2)))
    return config


@pytest.fixture
def drawn(monkeypatch):
    """What is measured and drawn, without computing it."""
    calls = []

    def heldout_loss(run, params, data, draws, should_stop):
        calls.append("heldout")
        if should_stop():
            raise Stopped
        return HeldOut(1.0, 4.0)

    def draw_images(generator, params, title, *, count, **options):
        calls.append(title)
        if options["should_stop"]():
            raise Stopped
        images = np.zeros((count, 8, 8, 1), np.uint8)
        return Generated(images, images[None] if "frames_of" in options else None)

    monkeypatch.setattr(TrainingRun, "heldout_loss", heldout_loss)
    monkeypatch.setattr(pictures, "draw_images", draw_images)
    return calls


def test_what_a_stop_interrupted_at_the_last_step_is_done_by_the_next_start(
    finished, drawn, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__call__", lambda stop: True)
        assert train(finished).heldout is None
    result = train(finished)
    assert result.heldout == HeldOut(1.0, 4.0) and (result.run_dir / "samples").is_dir()
    assert drawn[-3:] == ["heldout", "samples at step 2", "sampling"]
    again = len(drawn)
    assert train(finished) == result and drawn[again:] == ["sampling"]
    # The log has no step of training to draw a curve of.
    assert [path.name for path in result.pictures] == ["samples.png", "denoising.gif"]
    assert "loss" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("then", ["moved", "moved and its name taken"])
def test_a_run_whose_folder_is_moved_goes_on_there(tmp_path, then):
    report = ReportConfig(
        heldout_every=0, sample_every=2, sample_count=2, checkpoint_every=2, final_count=2
    )
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run", num_steps=4, report=report)
    other = RunDirectory(tmp_path / "run")

    def move(kind, step, values):
        if step == 1:
            (tmp_path / "run").rename(tmp_path / "moved")
            if "taken" in then:
                other.acquire()

    report = dataclasses.replace(report, log_every=1)
    config = dataclasses.replace(config, report=report)
    with pytest.warns(UserWarning, match="was moved to .*; the run goes on there"):
        result = train(config, on_record=move)
    other.release()
    assert result.run_dir == tmp_path / "moved"
    assert {path.parent for path in result.pictures} == {tmp_path / "moved"}
    names = {"checkpoints/2", "checkpoints/4", "samples/step_0000002.png", "config.json"}
    assert all((tmp_path / "moved" / name).exists() for name in names)
    left = [path.name for path in (tmp_path / "run").rglob("*")] if "taken" in then else []
    assert left == ([".lock"] if "taken" in then else []) and len(os.listdir(tmp_path)) < 3
    steps = [record["step"] for record in read_jsonl(tmp_path / "moved" / "log.jsonl")]
    assert steps == [1, 2, 3, 4]


def test_notes_in_a_log_are_no_records(tmp_path):
    lines = ['{"note": "warmer room"}', '{"kind": "train", "step": 1, "loss": 2.0}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert _last_heldout(tmp_path) is None
    pictures.save_loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png", "a run")
    assert (tmp_path / "loss.png").exists()
