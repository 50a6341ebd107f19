import subprocess
import sys

import pytest

from ddpm_jax.devices import allocator
from ddpm_jax.programs import console
from ddpm_jax.programs.sample import SampleConfig

CODE = """
import resource
from ddpm_jax.devices.allocator import keep_freed_memory
told = {told} and keep_freed_memory()
import jax, jax.numpy as jnp

# XLA takes its temporaries in a thread of its own: here one block of 64 MiB.
f = jax.jit(lambda a: (a @ a.T @ a).sum())
a = jnp.ones((4096, 64))
for _ in range(5):
    f(a).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    f(a).block_until_ready()
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(told):
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(told=told)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in result.stdout.split()]


def test_freed_memory_is_kept():
    """Ten times a block of 64 MiB, 16,384 pages each: every time anew, or the same ones again."""
    told, kept = faults(True)
    if not told:
        pytest.skip("the C library here is not glibc, or an accelerator may be there")
    # Huge pages make fewer faults, but more than none.
    assert kept < faults(False)[1] / 5


def test_every_program_begins_with_it(monkeypatch):
    order = []
    monkeypatch.setattr(console, "keep_freed_memory", lambda: order.append("allocator"))
    monkeypatch.setattr(sys, "argv", ["program"])
    console.run_program(lambda config: order.append(config), SampleConfig(), None)
    assert order == ["allocator", SampleConfig()]


def test_other_systems_and_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert allocator.keep_freed_memory() is False
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False
