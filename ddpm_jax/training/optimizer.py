"""The optimiser of the paper as an Optax chain (Ho et al. 2020, App. B, and its released code)."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import optax

from ddpm_jax.forward.checks import check_choice, check_number, check_whole
from ddpm_jax.types import PyTree

Decay = Literal["constant", "cosine", "linear"]


def learning_rate_schedule(
    peak: float,
    *,
    warmup_steps: int,
    num_steps: int,
    decay: Decay = "constant",
    decay_steps: int | None = None,
) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then constant, then a decay to 0 at `num_steps`.

    The decay is a cosine or a line over the last `decay_steps`; with None it begins after the
    warm-up. "constant" has none. A run of constant learning rate can be continued with a decay over
    its last steps, and is then the same as one that was begun with it (the "cooldown" of Hägele et
    al. 2024, arXiv 2405.18392).

    Raises ValueError for values no run could use.
    """
    call = "learning_rate_schedule"
    remedy = "Ho et al. (2020) use 2e-4 on CIFAR-10."
    check_number(call, "peak", peak, remedy, within="(0, inf)")
    check_whole(call, "warmup_steps", warmup_steps, least=0)
    check_whole(call, "num_steps", num_steps)
    check_choice(call, "decay", decay, get_args(Decay))
    if decay_steps is not None:
        check_whole(call, "decay_steps", decay_steps)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps) if warmup_steps else None
    constant = optax.constant_schedule(peak)
    if decay == "constant":
        if decay_steps is not None:
            raise ValueError(
                f"{call} got decay_steps={decay_steps} for a constant learning rate. Choose "
                "decay='linear' or 'cosine' (--optimizer.decay), or leave decay_steps out."
            )
        return warmup or constant
    length = num_steps - warmup_steps if decay_steps is None else decay_steps
    if length < 1 or warmup_steps + length > num_steps:
        raise ValueError(
            f"{call} got a warm-up of {warmup_steps} steps, which leaves "
            f"{max(num_steps - warmup_steps, 0)} of {num_steps} for the {decay} decay"
            + (f" of {length}. " if decay_steps else ". ")
            + "Train longer (--num-steps), or shorten the warm-up (--optimizer.warmup-steps)"
            + (" or the decay (--optimizer.decay-steps)." if decay_steps else ".")
        )
    tail = (
        optax.cosine_decay_schedule(peak, length)
        if decay == "cosine"
        else optax.linear_schedule(peak, 0.0, length)
    )
    parts = {0: warmup or constant, warmup_steps: constant, num_steps - length: tail}
    first, *others = parts
    return optax.join_schedules(list(parts.values()), others) if others else parts[first]


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

    Raises TypeError for what is not a number, ValueError for values no run could use.
    """
    call = "make_optimizer"
    # An infinite limit clips nothing; an infinite rate makes every step NaN, an infinite ε 0.
    if clip_norm is not None:
        check_number(call, "clip_norm", clip_norm, within="(0, inf]")
    if not callable(learning_rate):
        check_number(call, "learning_rate", learning_rate, within="(0, inf)")
    check_number(call, "eps", eps, within="(0, inf)")
    remedy = "--optimizer.betas sets both; Adam's own are 0.9 and 0.999."
    check_number(call, "b1", b1, remedy, within="[0, 1)")
    check_number(call, "b2", b2, remedy, within="[0, 1)")
    remedy = "--optimizer.weight-decay sets it."
    check_number(call, "weight_decay", weight_decay, remedy, within="[0, inf)")
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
