"""Runs contestants alternately, each in its own process: while one runs, the others wait.

JAX and PyTorch each keep a pool of threads and reserve an accelerator's memory. In one process, the
threads of the one still spin when the other begins, and their memory cannot be measured separately.
In processes that wait for their turn on a pipe, neither disturbs the other.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Corner(NamedTuple):
    """One process's contestants, as timed calls, and the facts that its maker returned."""

    contestants: dict[str, Callable[[], float]]
    facts: dict[str, Any]


class CornerError(RuntimeError):
    """A contestant's process failed; the message holds its traceback."""


@contextlib.contextmanager
def corner(maker: str, **arguments: Any) -> Iterator[Corner]:
    """Starts a process of `maker`, "module:function", and ends it when the block does.

    The function gets `arguments` and returns (contestants, facts), contestants a dict of calls that
    return seconds. Raises CornerError if that or a turn fails.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, maker, arguments), daemon=False)
    process.start()
    there.close()

    def receive() -> Any:
        try:
            kind, value = here.recv()
        except EOFError:
            process.join()
            raise CornerError(f"{maker} ended with exit code {process.exitcode}") from None
        if kind == "error":
            raise CornerError(f"{maker} failed:\n{value}")
        return value

    def turn(name: str) -> float:
        here.send(name)
        return receive()

    try:
        names, facts = receive()
        yield Corner({name: lambda name=name: turn(name) for name in names}, facts)
    finally:
        here.close()
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(pipe: Any, maker: str, arguments: dict[str, Any]) -> None:
    try:
        module, function = maker.split(":")
        contestants, facts = getattr(importlib.import_module(module), function)(**arguments)
        pipe.send(("ready", (list(contestants), facts)))
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            pipe.send(("seconds", contestants[name]()))
    except BaseException:  # noqa: BLE001 - reported to the calling process
        with contextlib.suppress(OSError):
            pipe.send(("error", traceback.format_exc(limit=-6)))
