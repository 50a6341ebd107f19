"""What the generative models share: an interface, a network, one training loop, and a size.

All models see data x [B, d], are trained by Adam for as many steps on as many examples, and get the
width at which their parameters come closest to a common number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.training import learning_rate_schedule, make_optimizer
from ddpm_jax.types import Array, Key, PyTree

WIDTHS = (2, 1024)
"""The range in which `with_parameters` looks for a width."""


class Rival(NamedTuple):
    """A generative model of vectors of length d, as functions of its parameters.

    Attributes:
        name: as tables and figures print it.
        init: `key [] -> params`.
        gradient: `(params, x [B, d], key []) -> (loss [], gradient)`, the gradient like params.
        sample: `(params, keys [N]) -> x [N, d]`; row i depends on keys[i] alone.
        evaluations: network evaluations per sample.
        log_density: kind of number -> `(params, x [B, d], keys [B]) -> log p(x)` [B] in nats, a
            bound or an estimate, as the kind says. Empty for a model that has none.
        b1: Adam's decay of the first moment.
    """

    name: str
    init: Callable[[Key], PyTree]
    gradient: Callable[[PyTree, Array, Key], tuple[Array, PyTree]]
    sample: Callable[[PyTree, Key], Array]
    evaluations: int
    log_density: Mapping[str, Callable[[PyTree, Array, Key], Array]]
    b1: float = 0.9


class Perceptron(nn.Module):
    """x [B, d] -> [B, out], by `depth` hidden layers of `width` and SiLU.

    With `zero` the last layer starts at 0, and so does the output.
    """

    width: int
    out: int
    depth: int = 2
    zero: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies the layers."""
        for _ in range(self.depth):
            x = nn.silu(nn.Dense(self.width)(x))
        kernel_init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        return nn.Dense(self.out, kernel_init=kernel_init)(x)


def descend(loss: Callable[[PyTree, Array, Key], Array]) -> Callable:
    """The `gradient` of a model that minimises the mean of one loss [B]."""
    return jax.value_and_grad(lambda params, x, key: jnp.mean(loss(params, x, key)))


def num_parameters(rival: Rival) -> int:
    """How many numbers are trained."""
    shapes = jax.eval_shape(rival.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def with_parameters(make: Callable[[int], Rival], parameters: int) -> Rival:
    """`make(width)` at the width whose number of parameters is closest to `parameters`."""
    low, high = WIDTHS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if num_parameters(make(middle)) > parameters else (middle, high)
    return min((make(low), make(high)), key=lambda r: abs(num_parameters(r) - parameters))


def equal_models(
    makers: Sequence[Callable[[int, int], Rival]], dim: int, parameters: int
) -> list[Rival]:
    """`make(dim, width)` of each maker, as wide as it takes for `parameters`.

    Raises ValueError if any two of them differ by more than 5 %.
    """
    models = [with_parameters(functools.partial(make, dim), parameters) for make in makers]
    counts = {model.name: num_parameters(model) for model in models}
    if max(counts.values()) > 1.05 * min(counts.values()):
        raise ValueError(
            f"--parameters={parameters}: whole widths do not bring the models within 5 % of "
            f"each other, the closest are {counts}. Use more parameters, or slightly other ones."
        )
    return models


def make_trainer(
    rival: Rival, num_steps: int, batch_size: int, learning_rate: float
) -> Callable[[Array, Key], tuple[PyTree, Array]]:
    """`(data [M, d], key []) -> (params, losses [num_steps])`, compiled, one scan over the steps.

    A step draws its batch from the data with replacement. The learning rate rises over the first
    twentieth and then falls to 0 along a cosine.
    """
    rate = learning_rate_schedule(
        learning_rate, warmup_steps=num_steps // 20, num_steps=num_steps, decay="cosine"
    )
    optimizer = make_optimizer(rate, b1=rival.b1)

    @jax.jit
    def train(data: Array, key: Key):
        key_init, key_steps = jax.random.split(key)

        def one_step(carry, step):
            params, state = carry
            key_batch, key_loss = jax.random.split(jax.random.fold_in(key_steps, step))
            x = data[jax.random.randint(key_batch, (batch_size,), 0, len(data))]
            loss, gradient = rival.gradient(params, x, key_loss)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), loss

        params = rival.init(key_init)
        start = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(one_step, start, jnp.arange(num_steps))
        return params, losses

    return train
