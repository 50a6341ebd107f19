"""Fits a small network to any loss, in one compiled scan over the training steps.

Every batch is drawn fresh from the density. There is no training set to memorise, so the remaining
error comes from the objective, the network and the number of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.keys import example_keys
from ddpm_jax.nn import MLP
from ddpm_jax.programs.chunks import chunk_length
from ddpm_jax.training import learning_rate_schedule, make_optimizer
from ddpm_jax.training.optimizer import Decay
from ddpm_jax.types import Array, Key, PyTree

OnProgress = Callable[[int], Any]


@dataclass(frozen=True)
class FitConfig:
    """Size of the network and its training."""

    num_steps: int = 2000
    """Training steps."""
    batch_size: int = 256
    """Examples per step, drawn fresh."""
    learning_rate: float = 3e-3
    """Adam's peak learning rate."""
    features: int = 64
    """Width of the network's hidden layers."""
    num_layers: int = 2
    """Residual layers of the network, with two linear maps each."""
    decay: Decay = "cosine"
    """Decay of the learning rate after its warm-up."""

    def network(self) -> MLP:
        """The network of this size."""
        return MLP(features=self.features, num_layers=self.num_layers)


class Fitted(NamedTuple):
    """A trained network and its history.

    params   the parameters
    losses   [N], the mean loss of every step
    steps    [W], the steps after which it was watched
    watched  [W, ...], what `watch` returned there; None without it
    """

    params: PyTree
    losses: np.ndarray
    steps: np.ndarray
    watched: Any


def init_params(config: FitConfig, key: Key, dim: int) -> PyTree:
    """Fresh parameters of the network for vectors [B, dim]."""
    return _compiled_init(config.features, config.num_layers)(
        key, jnp.zeros((1, dim)), jnp.zeros((1,), jnp.int32)
    )


@functools.cache
def _compiled_init(features: int, num_layers: int) -> Callable[..., PyTree]:
    return jax.jit(FitConfig(features=features, num_layers=num_layers).network().init)


def score_network(config: FitConfig, params: PyTree, scale: float = 1.0) -> Callable[[Array], Any]:
    """`x [B, D] -> s [B, D]`: the network's output at x/scale and t = 0, taken as the score."""
    return lambda x: config.network().apply(params, x / scale, 0)


def fit(
    loss_fn: Callable[[PyTree, Key], Array],
    params: PyTree,
    key: Key,
    config: FitConfig,
    *,
    watch: Callable[[PyTree], Any] | None = None,
    reports: int = 20,
    on_progress: OnProgress = lambda steps: None,
) -> Fitted:
    """Minimises the mean of `loss_fn(params, keys [B]) -> [B]` by Adam.

    Args:
        loss_fn: draws its examples and noise from the keys, one key per example.
        params: where to start.
        key: batch i of step s draws from `fold_in(fold_in(key, s), i)`.
        config: steps, batch size, learning rate.
        watch: `params -> arrays`, evaluated before the first step and after every part.
        reports: the least number of parts that the steps are cut into.
        on_progress: called with the number of steps done since the last call.

    Raises ValueError for counts below one.
    """
    if config.num_steps < 1 or config.batch_size < 1:
        raise ValueError(
            f"fit needs num_steps >= 1 and batch_size >= 1, got {config.num_steps} and "
            f"{config.batch_size}."
        )
    learning_rate = learning_rate_schedule(
        config.learning_rate,
        warmup_steps=config.num_steps // 20,
        num_steps=config.num_steps,
        decay=config.decay,
    )
    optimizer = make_optimizer(learning_rate, clip_norm=None)
    chunk = chunk_length(config.num_steps, reports)

    def one_step(carry, step):
        params, state = carry
        keys = example_keys(jax.random.fold_in(key, step), jnp.arange(config.batch_size))
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(loss_fn(p, keys)))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def part(carry, first):
        return jax.lax.scan(one_step, carry, first + jnp.arange(chunk))

    observe = None if watch is None else jax.jit(watch)
    carry, losses, steps = (params, optimizer.init(params)), [], [0]
    observed = [] if observe is None else [jax.device_get(observe(params))]
    for first in range(0, config.num_steps, chunk):
        carry, loss = part(carry, first)
        losses.append(np.asarray(loss))
        steps.append(first + chunk)
        if observe is not None:
            observed.append(jax.device_get(observe(carry[0])))
        on_progress(chunk)
    watched = jax.tree.map(lambda *values: np.stack(values), *observed) if observed else None
    return Fitted(carry[0], np.concatenate(losses), np.array(steps), watched)
