"""No network: a server that never answers, names that are not found. Only loopback is spoken to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from tests.faults.harness import SHORT_STEPS, Bench, Ended, Program, Report

PROMISE = (
    "Without a network, whatever would fetch something (CIFAR-10, MNIST, Inception's weights, a "
    "model of the hub) ends with a clear error within 5 s of trying."
)
LIMIT = 5.0


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[int, list[float]]]:
    """Takes connections on a port of this machine and says nothing; notes when they came."""
    came: list[float] = []
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])
                    came.append(time.monotonic())

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], came
    for connection in taken:
        connection.close()


def campaign(bench: Bench) -> Report:
    """Each program against each kind of missing network."""
    report = Report()
    reference = bench.reference(SHORT_STEPS if bench.short else 200)
    cases = {
        "CIFAR-10": ("train_cifar.py", {"data.download": None}),
        "MNIST": ("train_mnist.py", {"data.download": None}),
        "Inception": (
            "evaluate.py",
            {"run-dir": reference, "features": "inception", "download": None},
        ),
        "the hub": (
            "convert.py from-diffusers",
            {"download": "owner/name", "revision": "0" * 40},
        ),
    }
    if bench.short:
        cases = {what: cases[what] for what in ("CIFAR-10", "Inception")}
    kinds = ("silent",) if bench.short else ("silent", "no names", "names that take a minute")
    for kind in kinds:
        for number, (what, (script, flags)) in enumerate(cases.items()):
            where = bench.work / f"{number}-{kinds.index(kind)}"
            flags = {"run-dir": where / "run", "cache-dir": where / "cache", **flags}
            if script.startswith("train"):
                flags["data.cache-dir"] = flags.pop("cache-dir")
            ended, seconds = _one(bench, kind, script, flags, where / "printed")
            report.add("attempts")
            clear = ended.code == 2 and "error:" in ended.output and "Traceback" not in ended.output
            report.add("clear errors with exit code 2", clear)
            report.expect(clear, f"{what}, {kind}: {ended.code}: {ended.output[-1500:]}")
            report.expect(seconds <= LIMIT, f"{what}, {kind}: {seconds:.1f} s")
            report.counts["slowest in s"] = max(report.counts.get("slowest in s", 0), seconds)
    return report


def _one(bench: Bench, kind: str, script: str, flags: dict, output) -> tuple[Ended, float]:
    """The end of a program, and the seconds from its first attempt to its error message."""
    if kind != "silent":
        # The driver notes the moment at which the first name is asked for.
        mark = output.with_name("asked")
        how = "fail" if kind == "no names" else "hang"
        program = bench.script(script, flags, output, {"names": {"how": how, "mark": str(mark)}})
        ended, done = _watch(program)
        asked = float(mark.read_text()) if mark.exists() else float("-inf")
        return ended, round(done - asked, 2)
    with silent_server() as (port, came):
        proxy = f"http://127.0.0.1:{port}"
        env = {"https_proxy": proxy, "http_proxy": proxy, "no_proxy": ""}
        ended, done = _watch(bench.script(script, flags, output, env=env))
        return ended, round(done - came[0], 2) if came else float("inf")


def _watch(program: Program) -> tuple[Ended, float]:
    """The end of a program, and the moment of its error message."""
    program.until(lambda: "error:" in program.output())
    said = time.monotonic()
    return program.end(), said
