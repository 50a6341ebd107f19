"""Which examples each training step sees, as a pure function of (seed, step)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ddpm_jax.forward.checks import check_whole


@dataclass(frozen=True)
class ShuffledIndices:
    """Indices of a training step's examples: `ShuffledIndices(N, B, seed)(step)` is int32 [B].

    Training reads one endless sequence of positions p = step·B + i, 0 ≤ i < B. Position p is entry
    p mod N of the permutation of epoch p // N, and each epoch has its own permutation, drawn from
    (seed, epoch). So every epoch visits each example once, no example is dropped if B does not
    divide N, a batch may straddle epochs, and resuming needs only the step.

    num_examples  N, 1 ≤ N < 2³¹
    batch_size    B ≥ 1, the global batch of all processes; it may exceed N
    seed          0 ≤ seed < 2⁶⁴
    """

    num_examples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        call = "ShuffledIndices"
        for name, least in (("num_examples", 1), ("batch_size", 1), ("seed", 0)):
            value = check_whole(call, name, getattr(self, name), least=least)
            object.__setattr__(self, name, value)
        if self.num_examples >= 2**31:
            raise ValueError(
                f"ShuffledIndices needs 1 ≤ num_examples < 2**31, got {self.num_examples}: "
                "indices are int32. Pass len(dataset.images)."
            )
        if self.seed >= 2**64:
            raise ValueError(
                f"ShuffledIndices needs 0 ≤ seed < 2**64, got {self.seed}: it is half of a "
                "128-bit Philox key."
            )
        # Two: a batch that straddles epochs needs both, and consecutive chunks use them again.
        draw = functools.lru_cache(maxsize=2)(
            functools.partial(permutation, self.num_examples, self.seed)
        )
        object.__setattr__(self, "_permutation", draw)

    def __reduce__(self):
        return type(self), (self.num_examples, self.batch_size, self.seed)

    def __call__(self, step: int) -> np.ndarray:
        """Returns the example indices of global training step `step` ≥ 0: int32 [B]."""
        return self.chunk(step, 1)[0]

    def chunk(self, step: int, length: int) -> np.ndarray:
        """Returns the indices of the `length` steps from `step` on: int32 [length, B]."""
        step = check_whole("ShuffledIndices.chunk", "step", step, least=0)
        length = check_whole("ShuffledIndices.chunk", "length", length)
        position, pieces = step * self.batch_size, []
        end = position + length * self.batch_size
        while position < end:
            epoch, offset = divmod(position, self.num_examples)
            count = min(end - position, self.num_examples - offset)
            pieces.append(self._permutation(epoch)[offset : offset + count])  # type: ignore
            position += count
        return np.concatenate(pieces).reshape(length, self.batch_size)

    def epoch(self, step: int) -> int:
        """Returns the epoch, from 0, in which the first example of `step` lies: step·B // N."""
        return int(step) * self.batch_size // self.num_examples


def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the permutation of 0..N-1 that belongs to (seed, epoch): int32 [N], read-only.

    It sorts N raw 64-bit words of Philox4x64-10 with key (seed, epoch) (Salmon et al. 2011). NumPy
    keeps the raw words of its bit generators unchanged between versions, which it does not promise
    for `Generator.permutation`. So a run resumed under a newer NumPy sees the same batches.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(words, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order
