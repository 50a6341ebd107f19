"""The optimiser of the paper as an Optax chain (Ho et al. 2020, App. B, and its released code)."""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np
import optax

from ddpm_jax.types import PyTree

Decay = Literal["constant", "cosine"]


def learning_rate_schedule(
    peak: float, *, warmup_steps: int, num_steps: int, decay: Decay = "constant"
) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then constant, or a cosine to 0 at `num_steps`.

    Raises ValueError for values no run could use.
    """
    if not (peak > 0 and warmup_steps >= 0):
        raise ValueError(
            f"learning_rate_schedule needs peak > 0 and warmup_steps >= 0, got {peak=}, "
            f"{warmup_steps=}. "
            "Ho et al. (2020) use 2e-4 and 5000 on CIFAR-10."
        )
    if decay == "constant":
        if warmup_steps == 0:
            return optax.constant_schedule(peak)
        return optax.linear_schedule(0.0, peak, warmup_steps)
    if decay != "cosine":
        raise ValueError(f"learning_rate_schedule knows 'constant' and 'cosine', got {decay!r}.")
    if num_steps <= warmup_steps:
        raise ValueError(
            f"learning_rate_schedule got a warm-up of {warmup_steps} steps, which leaves none of "
            f"{num_steps} for the cosine decay. Train longer, or shorten the warm-up."
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, num_steps)


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam, or AdamW, on gradients clipped by their global norm; `clip_norm=None` does not clip.

    With `weight_decay` λ each step also subtracts learning_rate · λ · w from the arrays that
    `decays` picks (Loshchilov, Hutter 2019, in the form of PyTorch and Optax). The optimiser's
    state does not depend on λ.

    Raises ValueError for values no run could use.
    """
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"make_optimizer needs clip_norm > 0 or None, got {clip_norm}.")
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ValueError(
            f"make_optimizer needs b1 and b2 in [0, 1) (--optimizer.betas), got {b1} and {b2}. "
            "Adam's own are 0.9 and 0.999."
        )
    if not 0 <= weight_decay < np.inf:
        raise ValueError(
            "make_optimizer needs a finite weight_decay >= 0 (--optimizer.weight-decay), got "
            f"{weight_decay}."
        )
    adam = optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)
    if weight_decay:
        # optax.adamw would add a part to the state, and a run could not change its weight decay.
        scale = _with_weight_decay(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), weight_decay)
        adam = optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
    return adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)


def decays(params: PyTree) -> PyTree:
    """Which arrays decay: kernels and embedding tables do, vectors (biases, scales) do not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _with_weight_decay(
    scale: optax.GradientTransformation, weight_decay: float
) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(weight_decay, mask=decays)

    def update(updates, state, params=None):
        assert params is not None  # the training step passes them
        updates, state = scale.update(updates, state, params)
        return decay.update(updates, decay.init(params), params)[0], state

    return optax.GradientTransformation(scale.init, update)
