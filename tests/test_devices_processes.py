"""Two and four processes over loopback against one: the same batches, noise, losses and images, and
checkpoints that pass from one number of processes to another."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax.devices import processes
from ddpm_jax.training import DataParallel
from tests import several_processes as several

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (2, 4)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What two processes of two devices left, and after them four processes of one device."""
    root = tmp_path_factory.mktemp("hosts")
    found = {}
    for count in COUNTS:
        folder = root / str(count)
        folder.mkdir()
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(4 // count),
        }
        port = free_port()
        command = [sys.executable, "-m", "tests.several_processes", str(port), str(count)]
        processes = [
            subprocess.Popen(
                [*command, str(i), str(folder)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(count)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output[-3000:]
        found[count] = folder
    return found


def arrays(folder, name, process=0):
    with np.load(folder / f"{name}-{process}.npz") as file:
        return [file[key] for key in file.files if key.startswith("arr_")]


@pytest.fixture(scope="module")
def one():
    return DataParallel("jit", tuple(jax.devices()[:1]))


@pytest.fixture(scope="module")
def reference(one, tmp_path_factory):
    """Fifty steps of one process on one device: (parameters and optimiser state, losses)."""
    _, state, losses = several.go_on(tmp_path_factory.mktemp("one"), one, 50, 0)
    return several.parameters(state), losses


def trained(folder, process=0):
    with np.load(folder / f"trained-{process}.npz") as file:
        return dict(file)


@pytest.mark.slow
def test_losses_of_fifty_steps_agree(folders, reference):
    """Of two processes from the start, of four from the checkpoint of step 3 that the two left."""
    expected = reference[1]
    assert expected[-5:].mean() < expected[:5].mean()
    for count, start in ((2, 0), (4, 3)):
        for process in range(count):
            found = trained(folders[count], process)
            assert found["start"] == start
            np.testing.assert_allclose(found["losses"], expected[start:], rtol=1e-4)


@pytest.mark.slow
def test_batches_and_noise_are_identical(folders):
    expected = several.drawn(DataParallel("shard_map", tuple(jax.devices()[:4])))
    for count in COUNTS:
        for process in range(count):
            for got, wanted in zip(arrays(folders[count], "drawn", process), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_every_process_gets_the_same_images(folders):
    made, frames = several.images(jax.devices()[:1])
    for count in COUNTS:
        for process in range(count):
            theirs, their_frames = arrays(folders[count], "images", process)
            assert theirs.shape == (7, 8, 8, 1) and their_frames.shape == frames.shape
            assert np.abs(theirs.astype(int) - made).max() <= 1


@pytest.mark.slow
def test_checkpoints_go_from_two_processes_to_four_and_to_one(folders, one, reference):
    """Two processes save step 3; four go on, each with half of the parameters; one reads that."""
    for process in range(4):
        found = trained(folders[4], process)
        split = found["held"] < found["sizes"]
        np.testing.assert_array_equal(found["held"][split] * 2, found["sizes"][split])
        assert split.sum() > 5
        for got, wanted in zip(arrays(folders[4], "trained", process), reference[0], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    checkpoints = folders[2].parent / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["3", "50"]
    start, state, _ = several.go_on(checkpoints, one, 50, 0)
    assert start == 50
    for got, wanted in zip(several.parameters(state), arrays(folders[4], "trained"), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_processes_agree(folders, count):
    found = [
        json.loads((folders[count] / f"agreements-{i}.json").read_text()) for i in range(count)
    ]
    last = count - 1
    for process, said in enumerate(found):
        assert said["result"] == {"from": 0}
        own, other = ["OSError", "no room in 0"], ["PeerError", "process 0: no room in 0"]
        assert said["leader"] == (own if process == 0 else other)
        own = ["OSError", f"no room in {last}"]
        other = ["PeerError", f"process {last}: OSError: no room in {last}"]
        assert said["everywhere"] == (own if process == last else other)
        # Asked of the last process at the second turn, known to all at the third.
        assert said["stop"] == [False, False, True, True]


@pytest.mark.parametrize(
    "options,words",
    [
        ({"coordinator": "127.0.0.1:1"}, "together"),
        ({"auto": True, "process_id": 0}, "auto=True"),
        ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "process_id"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 0, "bind": "h:x"}, "bind"),
        ({"bind": "127.0.0.1:1"}, "single process"),
        ({"auto": True, "heartbeat_seconds": 0}, "heartbeat_seconds"),
    ],
)
def test_flags_that_do_not_go_together_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        processes.connect(**options)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"cannot listen on {address}.*free port"):
            processes.connect(coordinator=address, num_processes=2, process_id=0)


def test_processes_that_do_not_come_are_missed():
    code = (
        "from ddpm_jax.devices import processes\n"
        f"processes.connect(coordinator='127.0.0.1:{free_port()}', num_processes=2, process_id=1,"
        " start_seconds=2)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert "did not all come" in result.stderr and "within 2 s" in result.stderr


def test_the_coordinator_listens_where_it_is_told_and_nowhere_else():
    """Seen from the kernel's table of listening sockets while process 0 waits for the others."""
    port = free_port()
    code = (
        "from ddpm_jax.devices import processes\n"
        f"processes.connect(coordinator='127.0.0.1:{port}', num_processes=2, process_id=0)"
    )
    table = Path("/proc/net/tcp6"), Path("/proc/net/tcp")
    if not table[1].exists():
        pytest.skip("no /proc/net/tcp here to see sockets in")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        try:
            addresses = set()
            while not addresses and process.poll() is None:
                rows = [line.split() for t in table if t.exists() for line in t.open()][1:]
                addresses = {
                    row[1].split(":")[0]
                    for row in rows
                    if row[1].endswith(f":{port:04X}") and row[3] == "0A"
                }
        finally:
            process.kill()
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert addresses and addresses <= loopback


@pytest.mark.parametrize(
    ("call", "work", "error"),
    [
        ("everywhere", "fail", FileNotFoundError),
        ("on_leader", "fail", FileNotFoundError),
        ("on_leader", "return", TypeError),
    ],
)
def test_a_process_fails_only_after_it_told_the_others(monkeypatch, call, work, error):
    """Otherwise they wait for its message; here of a path that is not UTF-8, or is no JSON."""
    path, told = Path("/data/f\udcff"), []

    def tell(message):
        told.append(message.tobytes().rstrip(b"\0").decode())
        return message[None] if call == "everywhere" else message

    monkeypatch.setattr(processes, "num_processes", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", tell)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", tell)

    def fail():
        raise FileNotFoundError(f"{path} does not exist")

    with pytest.raises(error):
        getattr(processes, call)(fail if work == "fail" else lambda: path)
    assert len(told) == 1 and ("udcff" in told[0] if work == "fail" else "failed" in told[0])
