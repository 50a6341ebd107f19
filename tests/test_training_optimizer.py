"""Adam and AdamW: against Optax's own, in closed form, and what a checkpoint knows of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import learning_rate_schedule, make_optimizer
from ddpm_jax.training.optimizer import decays

RATE = learning_rate_schedule(1e-2, warmup_steps=3, num_steps=20)
PARAMS = {
    "conv": {"kernel": jnp.linspace(-1.0, 1.0, 24).reshape(2, 3, 4), "bias": jnp.ones(4)},
    "norm": {"scale": jnp.full(4, 2.0)},
}


def gradients(step):
    return jax.tree.map(lambda p: jnp.sin(3.0 * p + step), PARAMS)


def trained(optimizer, steps=8, grads=gradients):
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        updates, state = optimizer.update(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_without_weight_decay_it_is_adam_bit_for_bit():
    for clip in (0.1, None):
        plain = optax.adam(RATE, b1=0.8, b2=0.95)
        plain = plain if clip is None else optax.chain(optax.clip_by_global_norm(clip), plain)
        ours = make_optimizer(RATE, clip_norm=clip, b1=0.8, b2=0.95, weight_decay=0.0)
        assert_same(trained(ours), trained(plain))


def test_with_weight_decay_it_is_adamw_of_kernels():
    ours, state = trained(make_optimizer(RATE, clip_norm=None, weight_decay=0.3))
    theirs, _ = trained(optax.adamw(RATE, weight_decay=0.3, mask=decays))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
    adam, like = trained(make_optimizer(RATE, clip_norm=None))
    assert_same(ours["norm"], adam["norm"])
    assert jnp.abs(ours["conv"]["kernel"] - adam["conv"]["kernel"]).max() > 1e-3
    # A run may change its weight decay: the state has the same arrays in the same places.
    assert jax.tree.structure(state) == jax.tree.structure(like)


def test_without_gradients_kernels_shrink_by_the_rates_alone():
    none = jax.tree.map(jnp.zeros_like, PARAMS)
    params, _ = trained(make_optimizer(RATE, weight_decay=0.5), 8, lambda step: none)
    share = np.prod([1.0 - 0.5 * float(RATE(step)) for step in range(8)])
    np.testing.assert_allclose(
        params["conv"]["kernel"], share * PARAMS["conv"]["kernel"], rtol=1e-6, atol=1e-8
    )
    assert_same((params["conv"]["bias"], params["norm"]), (PARAMS["conv"]["bias"], PARAMS["norm"]))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"weight_decay": -1.0}, "--optimizer.weight-decay"),
        ({"weight_decay": float("nan")}, "--optimizer.weight-decay"),
        ({"weight_decay": float("inf")}, "--optimizer.weight-decay"),
        ({"b1": 1.0}, "--optimizer.betas"),
        ({"b2": -0.1}, "--optimizer.betas"),
        ({"b2": float("nan")}, "--optimizer.betas"),
        ({"eps": float("inf")}, r"needs eps in \(0, inf\), got inf"),
        ({"learning_rate": float("inf")}, r"needs learning_rate in \(0, inf\)"),
        ({"learning_rate": float("nan")}, r"needs learning_rate in \(0, inf\)"),
        ({"clip_norm": float("nan")}, r"needs clip_norm in \(0, inf\], got nan"),
    ],
)
def test_values_that_no_run_could_use_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**{"learning_rate": RATE} | options)
