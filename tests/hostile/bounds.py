"""What a reader may take, and how it may refuse."""

import faulthandler
import os
import resource
import signal
import threading
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

CAMPAIGN = int(os.environ.get("DDPM_JAX_FUZZ", "0"))
MIB = 2**20
DOCUMENTED = (ValueError, TypeError, OSError)
UNBOUNDED = (MemoryError, SystemError)


def examples(count, most=10**9):
    """Settings: `count` examples in the suite, `DDPM_JAX_FUZZ` in a campaign but `most` at most."""
    return settings(
        max_examples=min(CAMPAIGN, most) if CAMPAIGN else count,
        deadline=None,
        derandomize=not CAMPAIGN,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Hang(BaseException):
    """Raised in whatever takes longer than it may; nothing that is caught by name."""


@contextmanager
def bounded(memory=256 * MIB, seconds=20):
    """Gives the code inside so much more address space than is in use, and so many seconds.

    What it asks beyond that fails with MemoryError, as on a machine where it does not fit.
    """

    def stop(*_):
        raise Hang(f"still going on after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    alarmed = threading.current_thread() is threading.main_thread()
    if alarmed:
        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(seconds)
        # What is written in C may not come back to be stopped: then the whole process ends.
        faulthandler.dump_traceback_later(3 * seconds, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if alarmed:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)


def attempt(read, *named, documented=DOCUMENTED, **limits):
    """Returns what `read()` does, or the documented error it raised, which must name a file.

    A reader that turns every error into its own must not have run out of memory either.
    """
    try:
        with bounded(**limits):
            return read()
    except documented as error:
        for cause in causes(error):
            assert not isinstance(cause, UNBOUNDED), f"{cause!r} behind {error!r}"
        assert any(str(name) in str(error) for name in named), f"{error!r} names none of {named}"
        return error


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refused(result):
    return isinstance(result, BaseException)
