"""A disk that is full for more than twenty saves, and then has room again."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.faults.harness import (
    Bench,
    Program,
    Report,
    compare,
    ends_with,
    incoming,
    is_whole,
    steps,
)

PROMISE = (
    "A full disk ends no training and costs no record: an alert says so, the checkpoints before it "
    "stay good, nothing piles up in memory or on the disk, and saving works again once there is "
    "room."
)
SIZE = 24 << 20
WIDER = {"network__channels": 32, "network__num_groups": 8}
"""A state of 2.8 MB: were it kept by every failing save, that would be seen."""
SETTLED, SETTLED_SHORT = 50, 4
"""Failing saves before anything is measured: a process reaches its size only slowly, the sources
that tracebacks show among it."""
SINCE = "after the last failing save, compared with the {}th"
ROOM = 16 << 20
"""Bytes a process may grow by during the failing saves beyond what it grows by during as many that
succeed: less than the state of ten of them. Its memory settles only slowly."""
BEGIN = 24
"""The step from which on the disk is full."""


class Mounted:
    """A file system of 24 MB in memory; a large file takes and gives back its room."""

    name = "tmpfs"

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    def fill(self, program: Program) -> None:
        """Takes the last byte; called again and again, what failing saves give back too."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def clear(self, program: Program) -> None:
        """Gives the room back."""
        (self.folder / "filler").unlink()

    def close(self) -> None:
        """Unmounts."""
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)


class Limited:
    """Where mounting is not allowed: the process may write no byte more to any file."""

    name = "RLIMIT_FSIZE"

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)

    def fill(self, program: Program) -> None:
        """No file may grow."""
        _, hard = resource.prlimit(program.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (1, hard))

    def clear(self, program: Program) -> None:
        """They may again."""
        _, hard = resource.prlimit(program.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (hard, hard))

    def close(self) -> None:
        """Nothing to undo."""


def small_disk(folder: Path) -> Mounted | Limited:
    """A disk that can be filled up, by what this machine allows."""
    try:
        return Mounted(folder)
    except (subprocess.CalledProcessError, FileNotFoundError):
        folder.rmdir()
        return Limited(folder)


def campaign(bench: Bench) -> Report:
    """One run through an outage of 110 failing saves (short: 14), and one that prints to it too."""
    report = Report()
    num_steps, failures = (96, 14) if bench.short else (560, 110)
    reference = bench.reference(num_steps, **_size(bench))
    for printing in (False,) if bench.short else (False, True):
        disk = small_disk(bench.work / f"disk-{printing}")
        try:
            _outage(bench, report, disk, num_steps, reference, printing, failures)
        finally:
            disk.close()
    if not bench.short:
        usual = _usual_growth(bench, num_steps, failures)
        report.counts["additional bytes of memory after as many successful saves"] = usual
        grown = report.counts[f"additional bytes of memory {SINCE.format(SETTLED)}"]
        report.expect(grown <= usual + ROOM, f"memory grew by {grown:,}, usually by {usual:,}")
    return report


def _size(bench: Bench) -> dict[str, int]:
    # The short form measures no memory, and shares the small network's compiled programs.
    return {} if bench.short else WIDER


def _usual_growth(bench: Bench, num_steps: int, saves: int) -> int:
    """What a program grows by over as many saves that succeed."""
    folder = bench.work / "calm"
    with ends_with(bench.start(folder, num_steps, **_size(bench))) as program:
        program.until(lambda: steps(folder)[-1:] >= [BEGIN + 4 * SETTLED])
        early = _resources(program.pid)
        program.until(lambda: steps(folder)[-1:] >= [BEGIN + 4 * saves])
        return _resources(program.pid)["bytes of memory"] - early["bytes of memory"]


def _outage(
    bench: Bench,
    report: Report,
    disk: Mounted | Limited,
    num_steps: int,
    reference: Path,
    printing: bool,
    failures: int,
) -> None:
    report.counts["disk"] = disk.name
    folder = disk.folder / "run"
    # Where what is printed goes to the full disk too, failing saves are not counted by it.
    output = disk.folder / "printed" if printing else bench.work / "printed"
    with ends_with(bench.start(folder, num_steps, output=output, **_size(bench))) as program:
        # After the first sheet and the first held-out loss, whose compilation takes memory too.
        program.until(lambda: steps(folder)[-1:] >= [BEGIN] and not incoming(folder))
        disk.fill(program)
        good = steps(folder)
        if printing:
            seen: set[str] = set()
            _stay_full(disk, program, lambda: seen.update(incoming(folder)) or len(seen) >= 10)
        else:
            settled = SETTLED_SHORT if bench.short else SETTLED
            early = _least_resources(disk, program, settled)
            late = _least_resources(disk, program, failures)
            report.add("failing saves", _failures(program))
            for name, value in early.items():
                grown = late[name] - value
                report.counts[f"additional {name} {SINCE.format(settled)}"] = grown
                if name != "bytes of memory":
                    report.expect(grown <= 2, f"{name} grew: {value} to {late[name]}")
        if not report.expect(program.running(), f"ended: {program.output()[-2000:]}"):
            return
        left = incoming(folder)
        report.expect(len(left) <= 2, f"left behind by failing saves: {left}")
        report.expect(set(good) <= set(steps(folder)), f"{good} were there, now {steps(folder)}")
        for step in steps(folder):
            whole = is_whole(folder / "checkpoints" / str(step))
            report.expect(whole, f"step {step} is not whole on the full disk")
        report.add("checkpoints intact on the full disk", len(steps(folder)))
        disk.clear(program)
        back = program.until(lambda: steps(folder)[-1] > max(good))
        report.expect(back, "no save succeeded after there was room again")
        ended = program.end()
    report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-2000:]}")
    for leak in ("incoming*", "*.tmp"):
        left = list((folder / "checkpoints").glob(leak)) + list(folder.glob(leak))
        report.expect(not left, f"left behind: {left}")
    compare(report, folder, reference, "the run through the outage")


def _stay_full(disk: Mounted | Limited, program: Program, enough: Callable[[], bool]) -> None:
    def happened() -> bool:
        disk.fill(program)
        return enough()

    if not program.until(happened, nap=0.002):
        raise RuntimeError(f"the program ended on the full disk: {program.output()[-2000:]}")


def _failures(program: Program) -> int:
    return program.output().count("could not be written to")


def _least_resources(disk: Mounted | Limited, program: Program, failures: int) -> dict[str, int]:
    """What the process holds between saves: the least seen while the last three of these fail.

    Within a save it holds files, sockets and threads that it gives back; what leaks stays.
    """
    _stay_full(disk, program, lambda: _failures(program) >= failures - 3)
    seen = []

    def enough() -> bool:
        seen.append(_resources(program.pid))
        return _failures(program) >= failures

    _stay_full(disk, program, enough)
    return {name: min(x[name] for x in seen) for name in seen[0]}


def _resources(pid: int) -> dict[str, int]:
    """Open file descriptors, threads and resident memory of a process."""
    status = dict(x.split(":", 1) for x in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "file descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
        "bytes of memory": int(status["VmRSS"].split()[0]) * 1024,
    }
