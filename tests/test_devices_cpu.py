"""One device per core, kept memory and CPU quotas, mostly in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_jax.devices import cpu

ROOT = Path(__file__).parent.parent
CODE = """
import json, sys
from ddpm_jax.programs.config import DataConfig, DevicesConfig, NetworkConfig, TrainConfig
from ddpm_jax.programs.training_run import TrainingRun
from pathlib import Path
count = json.loads(sys.argv[1])
network = NetworkConfig(
    channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=2
)
config = TrainConfig(
    run_dir=Path(sys.argv[2]), num_steps=200, batch_size=4, data=DataConfig("digits"),
    network=network, devices=DevicesConfig(count=count),
)
run = TrainingRun(config)
import jax
run = TrainingRun(config)  # a second one sees what the first did
seen = [len(jax.local_devices()), len(run.parallel.devices), len(run.sampling_devices)]
print(json.dumps([*seen, run.parallel.backend]))
"""


MEMORY = """
import resource
from ddpm_jax.devices.cpu import keep_freed_memory
kept = {keep} and keep_freed_memory(16, (32, 32, 3), 128)
import jax, jax.numpy as jnp

# XLA takes its temporaries in a thread of its own: here one block of 64 MiB.
f = jax.jit(lambda a: (a @ a.T @ a).sum())
a = jnp.ones((4096, 64))
for _ in range(5):
    f(a).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    f(a).block_until_ready()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def devices_of_a_run(tmp_path, count, **environment):
    """[seen, trained on, sampled on], and the backend, in a process of its own."""
    return json.loads(run(CODE, json.dumps(count), str(tmp_path / "run"), **environment))


def run(code, *arguments, **environment):
    """The last line printed by a process in which nothing has been chosen."""
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**clean, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system names no cores")
def test_a_cpu_trains_as_one_device_and_samples_on_each_core(tmp_path):
    each = min(cpu.MAX_DEVICES, cpu.usable_cores())
    assert devices_of_a_run(tmp_path, None) == [each, 1, each, "jit"]
    assert devices_of_a_run(tmp_path, 1) == [1, 1, 1, "jit"]


def test_a_number_that_was_chosen_is_kept(tmp_path):
    assert devices_of_a_run(tmp_path, None, JAX_NUM_CPU_DEVICES="4") == [4, 4, 4, "shard_map"]


@pytest.mark.parametrize(
    "before, environment",
    [
        ("jax.local_devices()", {}),
        ("", {"JAX_PLATFORMS": "cuda,cpu"}),
        ("", {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}),
    ],
    ids=["JAX runs", "an accelerator may be there", "XLA was told"],
)
def test_otherwise_nothing_happens(before, environment):
    code = (
        f"import jax; {before}\nfrom ddpm_jax.devices import cpu\nprint(cpu.one_device_per_core())"
    )
    assert run(code, **environment) == "None"


@pytest.mark.slow
def test_freed_memory_is_kept():
    """Ten times a block of 64 MiB, 16,384 pages each: new ones every time, or the same again."""
    kept, faults = map(int, run(MEMORY.format(keep=True)).split())
    if not kept:
        pytest.skip("the C library here is not glibc")
    # Huge pages make fewer faults, but more than none.
    assert faults < int(run(MEMORY.format(keep=False)).split()[1]) / 5


@pytest.fixture
def options(monkeypatch):
    """The options of a C allocator that takes any, in the order in which they are set."""
    found = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda option, value: found.append((option, value)) or 1

    monkeypatch.setattr(cpu.ctypes, "CDLL", Library)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return found


@pytest.mark.parametrize(
    "batch_size, image_shape, channels, kept",
    [
        (32, (8, 8, 1), 32, False),  # train_digits
        (64, (8, 8, 1), 32, False),
        (128, (28, 28, 1), 64, True),  # train_mnist
        (4, (32, 32, 3), 128, True),  # the paper's network, at four images
        (128, (32, 32, 3), 128, True),  # train_cifar
        (64, (256, 256, 3), 128, True),
    ],
)
def test_memory_is_kept_for_large_feature_maps_alone(
    options, batch_size, image_shape, channels, kept
):
    assert cpu.keep_freed_memory(batch_size, image_shape, channels) is kept
    assert len(options) == (3 if kept else 0)


def test_other_systems_and_accelerators_keep_their_allocators(options, monkeypatch):
    large = (128, (32, 32, 3), 128)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert cpu.keep_freed_memory(*large) is False
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(cpu.sys, "platform", "darwin")
    assert cpu.keep_freed_memory(*large) is False
    assert options == []


V1 = "12:memory:/x\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    "groups, files, cores",
    [
        (None, {}, 16),
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000"}, 16),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "300000 100000"}, 3),
        # The path is the host's; the container sees its own group at the top.
        ("0::/system.slice/docker-1.scope\n", {"cpu.max": "200000 100000"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        (
            V1,
            {
                "cpu/docker/abc/cpu.cfs_quota_us": "100000",
                "cpu/docker/abc/cpu.cfs_period_us": "50000",
            },
            2,
        ),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
        ("0::/\n", {"cpu.max": "100000 0"}, 16),
        ("nonsense\n", {"cpu.max": "200000 100000"}, 16),
    ],
)
def test_quotas_of_containers_are_respected(tmp_path, monkeypatch, groups, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpu.usable_cores(tmp_path) == cores
