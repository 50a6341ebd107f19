"""Several processes as one program: who joins, who writes, and what all of them agree on.

Every process runs the same code (JAX's multi-controller model), and whatever computes over all
devices must be called by all of them, in the same order. So a decision that one process could take
alone (a folder it may not write, a signal it got) is taken here for all: `on_leader`, `everywhere`
and `Agreed` return or raise the same on each of them. With one process they cost nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from ddpm_jax.types import Array, Device, PyTree

T = TypeVar("T")
MESSAGE_BYTES = 2048
AXES = ("data", "fsdp")
"""The axes of every mesh: batches are split over both, parameters over the second only."""


class PeerError(RuntimeError):
    """Another process could not go on, so this one does not either."""


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
    """Joins the processes of one program, before JAX has been used for anything else.

    Args:
        auto: let JAX find the others: under SLURM, Open MPI, Kubernetes (with its `kubernetes`
            package) and on TPU pods.
        coordinator: else "HOST:PORT" of process 0, as the others reach it.
        num_processes: how many there are.
        process_id: which of them this one is, from 0.
        bind: the "HOST:PORT" process 0 listens on; None for `coordinator` itself, and nothing else
            on that host. With `auto`, None is JAX's own choice: every interface.
        heartbeat_seconds: a process not heard of for so long is dead, and ends all.
        start_seconds: how long to wait for the others at the start.

    Raises ValueError for flags that do not go together, ConnectionError where the others cannot be
    joined, RuntimeError where JAX was used before.
    """
    explicit = (coordinator, num_processes, process_id)
    if not auto and all(value is None for value in explicit):
        if bind is not None:
            raise ValueError(f"connect got bind={bind!r} for a single process, which needs none.")
        return
    if heartbeat_seconds < 1 or start_seconds < 1:
        raise ValueError(
            "connect needs heartbeat_seconds >= 1 and start_seconds >= 1, got "
            f"{heartbeat_seconds=}, {start_seconds=}."
        )
    if auto:
        if any(value is not None for value in explicit):
            raise ValueError(
                f"connect got auto=True and {coordinator=}, {num_processes=}, {process_id=}. "
                "Either JAX finds the processes, or all three say where they are."
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
        # JAX would listen on every interface of the host: the service trusts whoever reaches it.
        listen = (bind or coordinator) if process_id == 0 else None
        if listen is not None:
            _check_free(listen)
        options = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "coordinator_bind_address": listen,
        }
    where = "that JAX was to find" if auto else f"at {coordinator}"
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
                "connect must be called before JAX computes anything, an array or a schedule even. "
                "Call it first in the program."
            ) from error
        raise ConnectionError(
            f"this process could not join the others {where}: {error}. {remedy}"
        ) from error


@contextlib.contextmanager
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with 2 and a message where the block takes longer.

    JAX would end it too, with a stack of C++ in the place of a reason; no exception gets through.
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
    """Raises ConnectionError where nobody could listen: JAX's own service would end the process."""
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


def num_processes() -> int:
    """How many processes there are; does not wake the devices where there is but one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_leader() -> bool:
    """Whether this is the process that writes: number 0."""
    return num_processes() == 1 or jax.process_index() == 0


def all_devices(count: int | None = None) -> list[Device]:
    """The devices of all processes, or the first `count` of each, process by process.

    Neighbours belong to one process: each then owns one run of rows of every batch. (JAX numbers
    the chips of a TPU pod by their place in the torus, which mixes the processes.)
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if count is None:
        return devices
    own = [[d for d in devices if d.process_index == p] for p in range(jax.process_count())]
    return [device for part in own for device in part[:count]]


def make_mesh(devices: Sequence[Device], parameter_shards: int = 1) -> Mesh:
    """The devices as a mesh [data, fsdp]; parameters are split over the second axis.

    Devices that share the parameters are neighbours, on one host as far as it reaches.
    """
    # Not jax.make_mesh: on TPU boards it reorders the devices, and pmap would not follow.
    grid = np.array(devices).reshape(-1, parameter_shards)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """Puts host values on devices: NumPy arrays, the same in every process."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree)


def spread(tree: PyTree, sharding: Sharding) -> PyTree:
    """Arrays wherever they are, laid out as `sharding` says: to replicate a sharded tree, say."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.jit(lambda leaves: leaves, out_shardings=sharding)(tree)


def fetch(tree: PyTree) -> PyTree:
    """Arrays as NumPy arrays, whole, in every process."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated or not isinstance(leaf.sharding, NamedSharding):
            return leaf
        return spread(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))

    return jax.device_get(jax.tree.map(whole, tree))


def own_rows(size: int) -> slice:
    """The rows of a batch of `size` that this process's devices hold."""
    share = size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def everywhere(work: Callable[[], T]) -> T:
    """Runs `work` in every process and returns its own result.

    Where it fails in one, it fails in all: there with its own error, elsewhere with PeerError.
    """
    if num_processes() == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - raised again below, once the others know
        failure = error
    told = _message("" if failure is None else f"{type(failure).__name__}: {failure}")
    heard = multihost_utils.process_allgather(told)
    if failure is not None:
        raise failure
    texts = [_text(row) for row in np.asarray(heard)]
    failed = [f"process {i}: {text}" for i, text in enumerate(texts) if text]
    if failed:
        raise PeerError("; ".join(failed))
    return result  # type: ignore[return-value]


def on_leader(work: Callable[[], T]) -> T:
    """Runs `work` in process 0 alone; every process gets its result, or its failure.

    The result must be plain JSON and short (2 kB). Raises the leader's own error there, PeerError
    elsewhere.
    """
    if num_processes() == 1:
        return work()
    result, failure = None, None
    if is_leader():
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again below, once the others know
            failure = error
    answer = {"failed": str(failure)} if failure is not None else {"result": result}
    told = _message(json.dumps(answer) if is_leader() else "")
    heard = json.loads(_text(np.asarray(multihost_utils.broadcast_one_to_all(told))))
    if failure is not None:
        raise failure
    if "failed" in heard:
        raise PeerError(f"process 0: {heard['failed']}")
    return heard["result"]


def _message(text: str) -> np.ndarray:
    content = text.encode()
    if len(content) > MESSAGE_BYTES:
        # Only messages of errors grow long; a result cut short would not be JSON any more.
        content = (
            json.dumps({"failed": text[: MESSAGE_BYTES // 4]}).encode()
            if text.startswith("{")
            else content[:MESSAGE_BYTES]
        )
    return np.frombuffer(content.ljust(MESSAGE_BYTES, b"\0"), np.uint8)


def _text(row: np.ndarray) -> str:
    return row.tobytes().rstrip(b"\0").decode(errors="replace")


class Agreed:
    """A flag that all processes see alike: `Agreed(ask)()` is true once `ask()` was in any of them.

    All must call it equally often. What is asked in one call is answered in the next, so no call
    waits for the devices; True stays True.
    """

    def __init__(self, ask: Callable[[], bool]):
        self._ask, self._answer, self._pending = ask, False, None
        if num_processes() > 1:
            first = [d for d in all_devices(1)]
            mesh = Mesh(np.array(first), ("process",), axis_types=(AxisType.Auto,))
            self._rows = NamedSharding(mesh, PartitionSpec("process"))
            whole = NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(lambda flags: flags.any(), out_shardings=whole)

    def __call__(self) -> bool:
        """The flag, as of the call before."""
        if num_processes() == 1:
            return self._ask()
        if self._pending is not None:
            self._answer |= bool(self._pending)
        own = np.array([self._ask()])
        flags = jax.make_array_from_process_local_data(self._rows, own)
        self._pending = self._any(flags)
        return self._answer
