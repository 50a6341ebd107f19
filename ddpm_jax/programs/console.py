"""What programs print: messages beside a progress bar, sizes and times in words, short errors."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from ddpm_jax.devices.processes import PeerError, is_leader, pin_single_precision
from ddpm_jax.programs.paths import with_local_paths

C = TypeVar("C")
_program = False
_warned: set[str] = set()


def is_program() -> bool:
    """Whether the process belongs to a program of `run_program`, which may end it.

    A notebook, or another program that calls the functions, must not be ended.
    """
    return _program


def say(message: str) -> None:
    """Prints a line to standard output without tearing a progress bar.

    Of several processes only the first one prints.
    """
    if sys.stdout is None or not is_leader():
        return
    # Not in place of sys.stdout: tqdm clears its bars only for that very object.
    with contextlib.suppress(OSError, ValueError):
        try:
            tqdm.write(message, file=sys.stdout)
        except UnicodeEncodeError as error:
            tqdm.write(_within(error, message), file=sys.stdout)
        sys.stdout.flush()


def _within(error: UnicodeEncodeError, text: str) -> str:
    """The text in the encoding that lacks some of its characters, with ? in their place."""
    return text.encode(error.encoding, "replace").decode(error.encoding)


class _Bar(tqdm):
    """A bar whose clock starts at its first update, which includes the time of compiling."""

    _started = False

    def update(self, n: float | None = 1) -> bool | None:
        """Counts n steps; the first of them do not count as speed."""
        if self.disable or self._started:
            return super().update(n)
        self._started = True
        self.n += n or 0
        self.initial = self.last_print_n = self.n
        self.start_t = self.last_print_t = time.time()
        return self.refresh()

    def exclude(self, seconds: float) -> None:
        """Excludes from the speed a time in which no step was counted."""
        if not self.disable:
            self.start_t += seconds
            self.last_print_t += seconds


def bar(total: int, what: str, *, initial: int = 0, unit: str = "step", leave: bool = True) -> Any:
    """A progress bar on standard error.

    If standard error is no terminal, it prints at most one line every ten seconds.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return _Bar(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        leave=leave,
        dynamic_ncols=True,
        mininterval=0.2 if terminal else 10.0,
        maxinterval=10.0 if terminal else 30.0,
        file=sys.stderr,
        smoothing=0.1,
        disable=sys.stderr is None or not is_leader(),
    )


def quantity(value: float, unit: str = "") -> str:
    """12437000000 → "12.4 G" and the unit."""
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:  # three digits round the rest up to it
            return f"{value / limit:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """93 → "1 min 33 s"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours / 24:.1f} days"


def run_program(
    program: Callable[[C], Any],
    default: C | Mapping[str, tuple[str, C]],
    description: str | None,
    *,
    first: str | None = None,
) -> None:
    """Reads the command line over `default`, and runs `program`; expected errors are one message.

    Of several defaults, {name: (description, default)}, the first word of the command line chooses
    one; without such a word it is `first`.

    Errors caused by the user (wrong values, files, folders) print without a traceback and exit
    with 2. A training run that diverged exits with 1. A run that hangs (`training.watchdog`) and
    results that could not be uploaded exit with 75. Any other error is a bug and keeps its
    traceback. If the output can no longer be printed (a closed pipe, a full disk), the program
    continues without it.
    """
    global _program
    with forgiving_output():
        config = _read_command_line(default, description, first)
        warnings.showwarning, _program = _show_warning, True
        _warned.clear()
        try:
            _run(program, config)
        finally:
            _program = False


def _read_command_line(default: Any, description: str | None, first: str | None) -> Any:
    import tyro

    from ddpm_jax.programs.config_file import apply_config_option

    default, description, words = apply_config_option(default, description, sys.argv[1:])
    if not isinstance(default, Mapping):
        return tyro.cli(type(default), default=default, description=description, args=words)
    if first is not None and (not words or words[0].startswith("--")) and "--help" not in words:
        words = [first, *words]
    return tyro.extras.overridable_config_cli(dict(default), description=description, args=words)


def _run(program: Callable[[C], Any], config: C) -> None:
    from ddpm_jax.programs.buckets import push_outputs
    from ddpm_jax.programs.compilation import CompilationStopped

    try:
        pin_single_precision()
        program(with_local_paths(config))
        push_outputs()
    except CompilationStopped as stopped:
        say(str(stopped))
        sys.stderr.flush()
        # Without waiting for the compiler, which still runs in another thread.
        os._exit(0)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        _leave(130)
    except Exception as error:
        code = _exit_code(error, program)
        if code is None:
            raise
        # The process that failed says so itself.
        what = "ended with the others" if isinstance(error, PeerError) else "error"
        print(f"\n{what}: {error}", file=sys.stderr)
        _leave(code)


def _exit_code(error: Exception, program: Callable) -> int | None:
    """The exit code of an expected error; None for a bug."""
    from ddpm_jax.programs.buckets import UnsentError
    from ddpm_jax.programs.run_directory import RunDirectoryError
    from ddpm_jax.training import DamagedCheckpointError, NonFiniteError

    if isinstance(error, UnsentError):
        return 75
    if isinstance(error, NonFiniteError):
        return 1
    if isinstance(error, (ValueError, TypeError, ImportError)):  # a missing extra is one
        return 2 if _raised_by_us(error, program) else None
    # JAX_PLATFORMS names no platform of this machine, or a driver is missing.
    no_device = isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)
    expected = isinstance(error, (OSError, RunDirectoryError, DamagedCheckpointError, PeerError))
    return 2 if expected or no_device else None


def _leave(code: int) -> NoReturn:
    """Ends the program, without waiting for a thread that is inside the compiler."""
    from ddpm_jax.programs.compilation import is_compiling

    if is_compiling():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class _Forgiving:
    """A stream that drops what cannot be written, and replaces characters it does not have."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(_within(error, text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Within, printing never fails.

    Neither a closed stream, pipe or terminal, a full disk, nor a character that the output's
    encoding does not have ends days of training.
    """
    streams = sys.stdout, sys.stderr
    # Closed ones (>&-) are None; as files of their own they keep their numbers from other files.
    usable = [open(os.devnull, "w") if stream is None else stream for stream in streams]  # noqa: SIM115
    sys.stdout, sys.stderr = map(_Forgiving, usable)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in usable:
            try:
                stream.flush()
            except (OSError, ValueError):
                # Python flushes once more as it ends, and would turn the exit code into 120.
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _raised_by_us(error: BaseException, program: Callable) -> bool:
    """Whether the error was raised by this package or beside the program, not inside a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    files = trace.tb_frame.f_code.co_filename, inspect.getfile(program)
    raised, script = (Path(file).resolve() for file in files)
    # Scripts keep modules beside them or one folder below; a virtual environment is deeper.
    beside = script.parent in (raised.parent, raised.parent.parent)
    return beside or raised.is_relative_to(Path(__file__).resolve().parents[1])


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    from ddpm_jax.programs.compilation import forget_damaged_program

    # Python's own filter forgets what it has shown whenever a library changes the filters.
    if not forget_damaged_program(str(message)) and str(message) not in _warned:
        _warned.add(str(message))
        tqdm.write(f"warning: {message}", file=sys.stderr)
