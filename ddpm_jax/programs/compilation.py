"""Compiling in the background, so that a stop does not have to wait for the compiler."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ddpm_jax.devices import processes
from ddpm_jax.training import StopRequest

T = TypeVar("T")


class CompilationStopped(KeyboardInterrupt):
    """A signal arrived while something was being compiled.

    The compiler cannot be interrupted: it continues in a background thread, and the interpreter
    waits for it at exit. A program that has nothing else to do may use `os._exit`.
    """


def unless_stopped(compile_: Callable[[], T], stop: StopRequest) -> T:
    """Returns `compile_()`, called in another thread.

    Raises CompilationStopped as soon as `stop` is requested; of several processes none does, so
    that none leaves the others waiting, and they stop after the first step.
    """
    results: list[Any] = []

    def work():
        try:
            results.append(compile_())
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            results.append(error)

    thread = threading.Thread(target=work, name="compile", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if processes.num_processes() == 1 and stop() and thread.is_alive():
            # A thread inside the compiler must not outlive the interpreter: that would abort.
            atexit.register(thread.join)
            raise CompilationStopped(
                "stopped while compiling; nothing was lost, the same command goes on"
            )
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]
