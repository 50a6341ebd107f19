"""A run of two processes, one of which is killed or stopped: neither may hang."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path

from tests.faults.harness import Bench, Program, Report, compare, ends_with, steps

PROMISE = (
    "When a process of several dies, or stops, the others end within the heartbeat + 10 s; started "
    "again, all go on from the newest whole checkpoint to the same result. A SIGTERM to one ends "
    "all with exit code 0, and no step is lost."
)
HEARTBEAT = 10
LIMIT = HEARTBEAT + 10
FAULTS = [
    (signal.SIGKILL, 0),
    (signal.SIGSTOP, 1),
    (signal.SIGTERM, 1),
    (signal.SIGKILL, 1),
    (signal.SIGSTOP, 0),
    (signal.SIGTERM, 0),
]


def campaign(bench: Bench) -> Report:
    """12 faults (short: 1), over runs of two processes."""
    report = Report()
    num_steps = 40 if bench.short else 80
    faults = FAULTS[:1] if bench.short else FAULTS * 2
    whole = bench.work / "whole"
    with contextlib.ExitStack() as stack:
        for program in _start(bench, stack, whole, num_steps):
            ended = program.end()
            report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-2000:]}")
    report.counts |= {"faults": 0, "slowest end of a survivor in s": 0.0}
    folder, number = bench.work / "run-0", 0
    for how, rank in faults:
        if steps(folder)[-1:] == [num_steps]:
            compare(report, folder, whole, folder.name)
            number += 1
            folder = bench.work / f"run-{number}"
        _fault(bench, report, folder, num_steps, how, rank)
    with contextlib.ExitStack() as stack:
        for program in _start(bench, stack, folder, num_steps):
            ended = program.end()
            report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-2000:]}")
    compare(report, folder, whole, folder.name)
    return report


def _start(
    bench: Bench, stack: contextlib.ExitStack, folder: Path, num_steps: int
) -> list[Program]:
    """Both processes of a run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [
        stack.enter_context(
            ends_with(
                bench.start(
                    folder,
                    num_steps,
                    output=bench.work / f"{folder.name}.{rank}.out",
                    distributed__coordinator=f"127.0.0.1:{port}",
                    distributed__num_processes=2,
                    distributed__process_id=rank,
                    distributed__heartbeat_seconds=HEARTBEAT,
                )
            )
        )
        for rank in (0, 1)
    ]


def _fault(
    bench: Bench, report: Report, folder: Path, num_steps: int, how: signal.Signals, rank: int
) -> None:
    with contextlib.ExitStack() as stack:
        programs = _start(bench, stack, folder, num_steps)
        struck, survivor = programs[rank], programs[1 - rank]
        begin = max(steps(folder), default=0)
        # In the midst of training, a checkpoint or two after the start.
        wanted = begin + 4 * bench.random.choice((1, 2, 3))
        survivor.until(lambda: max(steps(folder), default=0) >= min(wanted, num_steps))
        time.sleep(bench.chance(0, 0.5))
        kept = max(steps(folder), default=0)
        struck.process.send_signal(how)
        began = time.monotonic()
        report.add("faults")
        report.add_part("faults", f"{how.name} to process {rank}")
        try:
            ended = survivor.end(120)
        except TimeoutError:
            report.expect(False, f"{how.name} to process {rank}: the other hung for two minutes")
            return
        seconds = time.monotonic() - began
        slowest = max(report.counts["slowest end of a survivor in s"], round(seconds, 1))
        report.counts["slowest end of a survivor in s"] = slowest
        what = f"{how.name} to process {rank}"
        report.expect(seconds <= LIMIT, f"{what}: the other ended after {seconds:.1f} s")
        if how is signal.SIGTERM:
            codes = ended.code, struck.end().code
            report.expect(codes == (0, 0), f"{what}: exit codes {codes}: {ended.output[-2000:]}")
        elif steps(folder)[-1:] != [num_steps]:
            report.expect(ended.code != 0, f"{what}: the other ended with 0 before the last step")
        lost = max(0, kept - max(steps(folder), default=0))
        report.add("checkpoints lost", lost)
        report.expect(not lost, f"{what}: step {kept} was saved, and is not there any more")
