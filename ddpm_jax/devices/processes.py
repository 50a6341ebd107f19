"""Several processes as one program: how they join, which one writes, and how they agree.

Every process runs the same code (JAX's multi-controller model). All of them must call whatever
computes over all devices, in the same order. So the processes decide together what one of them
could decide alone, such as whether a folder is writable or a signal has arrived: `on_leader`,
`everywhere` and `Agreed` return or raise in all of them. With one process they cost nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.devices.mesh import all_devices
from ddpm_jax.forward.checks import check_flag, check_function, check_text, check_whole

T = TypeVar("T")
MESSAGE_BYTES = 2048


class PeerError(RuntimeError):
    """Another process failed, so this one stops too."""


def connect(
    *,
    auto: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    bind: str | None = None,
    heartbeat_seconds: int = 100,
    start_seconds: int = 300,
) -> None:
    """Joins the processes of one program; must come before any other use of JAX.

    Without `auto` and without a coordinator, the program is a single process and nothing happens.

    Args:
        auto: let JAX find the other processes: under SLURM, Open MPI, Kubernetes (with the
            `kubernetes` package) and on TPU pods.
        coordinator: otherwise, the "HOST:PORT" at which the others reach process 0.
        num_processes: the number of processes.
        process_id: the number of this process, from 0.
        bind: the "HOST:PORT" that process 0 listens on; None for `coordinator`, and no other
            interface. With `auto`, None leaves the choice to JAX: every interface.
        heartbeat_seconds: a process silent for this long is considered dead, and all processes end.
        start_seconds: how long to wait for the others at the start.

    Raises ValueError for arguments that do not fit together, ConnectionError if the others cannot
    be reached, RuntimeError if JAX has been used before.
    """
    check_flag("connect", "auto", auto)
    for name, value, least in (
        ("num_processes", num_processes, 1),
        ("process_id", process_id, 0),
        ("heartbeat_seconds", heartbeat_seconds, 1),
        ("start_seconds", start_seconds, 1),
    ):
        if value is not None or name.endswith("seconds"):
            check_whole("connect", name, value, least=least)
    for name, text in (("coordinator", coordinator), ("bind", bind)):
        if text is not None:
            check_text("connect", name, text)
    explicit = (coordinator, num_processes, process_id)
    if not auto and all(value is None for value in explicit):
        if bind is not None:
            raise ValueError(f"connect got bind={bind!r} for a single process, which needs none.")
        return
    if auto:
        if any(value is not None for value in explicit):
            raise ValueError(
                f"connect got auto=True and {coordinator=}, {num_processes=}, {process_id=}. "
                "Pass either auto or the other three."
            )
        options: dict[str, Any] = {"coordinator_bind_address": bind}
    else:
        if any(value is None for value in explicit):
            raise ValueError(
                "connect needs coordinator, num_processes and process_id together, got "
                f"{coordinator=}, {num_processes=}, {process_id=}."
            )
        assert coordinator is not None and num_processes is not None and process_id is not None
        _check_address("coordinator", coordinator)
        if bind is not None:
            _check_address("bind", bind)
        if not 0 <= process_id < num_processes:
            raise ValueError(
                f"connect needs 0 <= process_id < num_processes, got {process_id=}, "
                f"{num_processes=}."
            )
        # By default JAX listens on every interface, and the service trusts every client.
        listen = (bind or coordinator) if process_id == 0 else None
        if listen is not None:
            _check_free(listen)
        options = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "coordinator_bind_address": listen,
        }
    where = "that JAX looked for" if auto else f"at {coordinator}"
    remedy = (
        f"All processes must start within {start_seconds} s of each other, with the same "
        "coordinator and the same number of processes."
    )
    try:
        with _deadline(start_seconds, f"the other processes {where} did not all come. {remedy}"):
            jax.distributed.initialize(
                heartbeat_timeout_seconds=heartbeat_seconds,
                initialization_timeout=start_seconds + 60,
                **options,
            )
    except (RuntimeError, ValueError) as error:
        if "before any JAX" in str(error):
            raise RuntimeError(
                "connect must be called before JAX computes anything, even an array or a schedule. "
                "Call it first in the program."
            ) from error
        raise ConnectionError(
            f"this process could not join the others {where}: {error}. {remedy}"
        ) from error


@contextlib.contextmanager
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """Exits with code 2 and a message if the block takes longer.

    JAX would end the process too, but prints a C++ stack instead of a reason; it cannot be caught.
    """
    done = threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            sys.stderr.write(f"\nerror: {message}\n")
            sys.stderr.flush()
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _check_address(name: str, address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(
            f"connect needs {name} as HOST:PORT, got {address!r}. For example 10.0.0.1:1234."
        )


def _check_free(address: str) -> None:
    """Raises ConnectionError if the address cannot be bound; JAX would end the process instead."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        raise ConnectionError(
            f"process 0 cannot listen on {address} ({error.strerror or error}). Choose a free port "
            "and an address of this host."
        ) from error


def pin_random_numbers() -> None:
    """Uses JAX's default form of threefry, whatever the environment says.

    With another JAX_THREEFRY_PARTITIONABLE or JAX_RANDOM_SEED_OFFSET every draw changes, so that a
    seed would give other images.
    """
    jax.config.update("jax_threefry_partitionable", True)
    jax.config.update("jax_random_seed_offset", 0)


def pin_single_precision() -> None:
    """Uses float32, whatever JAX_ENABLE_X64 says: in float64 every draw would change."""
    jax.config.update("jax_enable_x64", False)


def num_processes() -> int:
    """The number of processes; does not initialise the devices if there is only one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_leader() -> bool:
    """Whether this is process 0, the one that writes files."""
    return num_processes() == 1 or jax.process_index() == 0


def everywhere(work: Callable[[], T]) -> T:
    """Runs `work` in every process and returns this process's result.

    If it fails in one process, it fails in all: there with its own error, elsewhere with PeerError.
    """
    check_function("everywhere", "work", work, "without arguments")
    if num_processes() == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - raised again below, after telling the others
        failure = error
    message = _message("" if failure is None else f"{type(failure).__name__}: {failure}")
    messages = multihost_utils.process_allgather(message)
    if failure is not None:
        raise failure
    texts = [_text(row) for row in np.asarray(messages)]
    failed = [f"process {i}: {text}" for i, text in enumerate(texts) if text]
    if failed:
        raise PeerError("; ".join(failed))
    return result  # type: ignore[return-value]


def on_leader(work: Callable[[], T]) -> T:
    """Runs `work` in process 0 only; every process gets its result.

    The result must be plain JSON of at most 2 kB. If `work` fails, process 0 raises its error and
    the others raise PeerError.
    """
    check_function("on_leader", "work", work, "without arguments")
    if num_processes() == 1:
        return work()
    text, failure = "", None
    if is_leader():
        try:
            text = json.dumps({"result": work()})
        except Exception as error:  # noqa: BLE001 - raised again below, after telling the others
            failure = error
            text = json.dumps({"failed": str(failure)})
    message = _message(text)
    answer = json.loads(_text(np.asarray(multihost_utils.broadcast_one_to_all(message))))
    if failure is not None:
        raise failure
    if "failed" in answer:
        raise PeerError(f"process 0: {answer['failed']}")
    return answer["result"]


def _message(text: str) -> np.ndarray:
    # Paths that are not UTF-8 have half surrogates in Python.
    content = text.encode(errors="backslashreplace")
    if len(content) > MESSAGE_BYTES:
        # Only error messages get this long; a truncated result would not be valid JSON.
        content = (
            json.dumps({"failed": text[: MESSAGE_BYTES // 4]}).encode()
            if text.startswith("{")
            else content[:MESSAGE_BYTES]
        )
    return np.frombuffer(content.ljust(MESSAGE_BYTES, b"\0"), np.uint8)


def _text(row: np.ndarray) -> str:
    return row.tobytes().rstrip(b"\0").decode(errors="replace")


class Agreed:
    """A flag shared by all processes: `Agreed(read)()` is True once `read()` was True in any.

    All processes must call it equally often. Each call returns what the previous call read, so that
    no call waits for the devices. Once True, the flag stays True.
    """

    def __init__(self, read: Callable[[], bool]):
        check_function("Agreed", "read", read, "() -> bool")
        self._read, self._value, self._pending = read, False, None
        if num_processes() > 1:
            mesh = Mesh(np.array(all_devices(1)), ("process",), axis_types=(AxisType.Auto,))
            self._rows = NamedSharding(mesh, PartitionSpec("process"))
            whole = NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(lambda flags: flags.any(), out_shardings=whole)

    def __call__(self) -> bool:
        """The flag as of the previous call."""
        if num_processes() == 1:
            return self._read()
        if self._pending is not None:
            self._value |= bool(self._pending)
        own = np.array([self._read()])
        flags = jax.make_array_from_process_local_data(self._rows, own)
        self._pending = self._any(flags)
        return self._value
