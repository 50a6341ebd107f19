"""A device a core: what programs see in a process of their own, and where all is left alone."""

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
from ddpm_jax.programs.training_run import Run
from pathlib import Path
count = json.loads(sys.argv[1])
network = NetworkConfig(
    channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=2
)
config = TrainConfig(
    run_dir=Path(sys.argv[2]), num_steps=200, batch_size=4, data=DataConfig("digits"),
    network=network, devices=DevicesConfig(count=count),
)
run = Run(config)
import jax
run = Run(config)  # a second one sees what the first did
seen = [len(jax.local_devices()), len(run.parallel.devices), len(run.sampling_devices)]
print(json.dumps([*seen, run.parallel.backend]))
"""


def devices_of_a_run(tmp_path, count, **environment):
    """[seen, trained on, sampled on], and the backend, in a process of its own."""
    return json.loads(run(CODE, json.dumps(count), str(tmp_path / "run"), **environment))


def run(code, *arguments, **environment):
    """The last line that a process with nothing chosen prints."""
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**clean, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system names no cores")
def test_a_cpu_trains_as_one_device_and_samples_on_each_core(tmp_path):
    each = min(cpu.MOST, len(os.sched_getaffinity(0)))
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
    code = f"import jax; {before}\nfrom ddpm_jax.devices import cpu\nprint(cpu.one_device_a_core())"
    assert run(code, **environment) == "None"
