"""Cutting the steps of a sampler's grid into equal chunks, one per compiled call."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ddpm_jax.forward.checks import check_text, check_whole, is_number
from ddpm_jax.types import describe


def chunk_length(num_steps: int, target_chunks: int) -> int:
    """The largest divisor of num_steps that makes at least `target_chunks` chunks, or 1."""
    num_steps = check_whole("chunk_length", "num_steps", num_steps)
    target_chunks = check_whole("chunk_length", "target_chunks", target_chunks)
    limit = max(1, num_steps // target_chunks)
    return max(d for d in range(1, limit + 1) if num_steps % d == 0)


def common_chunk(counts: Sequence[int], target_chunks: int = 40) -> int:
    """Steps per compiled call that divide all counts, about target_chunks calls for the largest."""
    if not isinstance(counts, Sequence) or not counts:
        raise TypeError(f"common_chunk needs counts, numbers of steps, got {describe(counts)}.")
    counts = [check_whole("common_chunk", "counts", count) for count in counts]
    target_chunks = check_whole("common_chunk", "target_chunks", target_chunks)
    divisor = math.gcd(*counts)
    return chunk_length(divisor, math.ceil(target_chunks * divisor / max(counts)))


def depth_counts(num_steps: int, shares: Sequence[float], flag: str) -> list[int]:
    """The number of steps that each share of a grid amounts to, at least one.

    Raises ValueError that names the flag, for shares outside (0, 1] and for none.
    """
    num_steps = check_whole("depth_counts", "num_steps", num_steps)
    check_text("depth_counts", "flag", flag)
    if not isinstance(shares, Sequence) or not all(map(is_number, shares)):
        raise TypeError(f"{flag} takes shares of the process, numbers, got {describe(shares)}.")
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise ValueError(
            f"{flag} takes shares of the process in (0, 1], 1 for all of it, got {shares}."
        )
    return [max(1, round(share * num_steps)) for share in shares]
