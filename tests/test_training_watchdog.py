import os
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.training.watchdog import EXIT_CODE, Watchdog


class Ended:
    """Stands in for the end of the process."""

    def __init__(self):
        self.codes, self.came = [], threading.Event()

    def __call__(self, code):
        self.codes.append(code)
        self.came.set()


def test_silence_ends_the_process_with_a_report(tmp_path, capsys):
    end = Ended()
    with Watchdog(0.2, tmp_path, end=end) as watchdog:
        watchdog.beat(7, "the data of step 8")
        assert end.came.wait(30)
    assert end.codes == [EXIT_CODE] == [os.EX_TEMPFAIL]
    report = (tmp_path / "hang-7.txt").read_text()
    assert "waiting for the data of step 8" in report.splitlines()[0]
    # The stacks of all threads: this one stands in the line that waits.
    assert "test_silence_ends" in report and "_watch" in report
    error = capsys.readouterr().err
    assert "the data of step 8" in error and "hang-7.txt" in error


def test_beats_and_pauses_keep_it_quiet(tmp_path):
    end = Ended()
    with Watchdog(0.8, tmp_path, name="process-1", end=end) as watchdog:
        for step in range(12):
            time.sleep(0.1)
            watchdog.beat(step, "the next one")
        with watchdog.paused(), watchdog.paused():
            time.sleep(1.2)
        # The clock starts anew after a pause.
        time.sleep(0.1)
        assert not end.codes
        assert end.came.wait(30)
    assert os.listdir(tmp_path) == ["hang-11-process-1.txt"]


def test_nothing_is_left_of_it(tmp_path):
    with Watchdog(60, tmp_path) as watchdog:
        watchdog.beat(1, "nothing")
        assert "watchdog" in {thread.name for thread in threading.enumerate()}
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    assert os.listdir(tmp_path) == []


def test_zero_is_never(tmp_path):
    with Watchdog(0, tmp_path):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("inf")])
def test_an_impossible_timeout_is_refused(tmp_path, timeout):
    with pytest.raises(ValueError, match="Watchdog needs a timeout"):
        Watchdog(timeout, tmp_path)


def in_a_process(hang, folder):
    program = (
        "import ctypes, time\n"
        "from ddpm_jax.training.watchdog import Watchdog\n"
        f"with Watchdog(0.3, {str(folder)!r}) as watchdog:\n"
        "    watchdog.beat(3, 'a library')\n"
        f"    {hang}\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )


def test_a_report_that_cannot_be_written_does_not_keep_it_alive(tmp_path):
    result = in_a_process("time.sleep(60)", tmp_path / "missing")
    assert result.returncode == EXIT_CODE
    assert "could not be written" in result.stderr and "Current thread" in result.stderr


def test_a_library_that_keeps_pythons_lock_is_ended_too(tmp_path):
    """No Python thread runs then, this watchdog's neither: a timer in C ends the process."""
    result = in_a_process("ctypes.PyDLL(None).sleep(60)", tmp_path)
    assert result.returncode == 1
    assert "Timeout" in result.stderr
