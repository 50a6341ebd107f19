import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from ddpm_jax.runs import allocator

CODE = """
import resource, numpy as np
import jax
from ddpm_jax.runs.allocator import keep_freed_memory
told = {told} and keep_freed_memory(jax.devices())
def use():
    block = np.ones(1 << 26, np.uint8)
    block[::4096] += 1
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(told):
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(told=told)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in result.stdout.split()]


def test_freed_memory_is_kept():
    """Ten blocks of 64 MiB, one after another: 16,384 pages each, or the same ones again."""
    told, kept = faults(True)
    if not told:
        pytest.skip("the C library here is not glibc")
    assert kept < 400
    # Huge pages make fewer faults, but more than none.
    assert faults(False)[1] > kept


def test_other_systems_and_accelerators_are_left_alone(monkeypatch):
    gpu = SimpleNamespace(platform="gpu")
    assert allocator.keep_freed_memory([gpu]) is False  # type: ignore[list-item]
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory(jax.devices()) is False
