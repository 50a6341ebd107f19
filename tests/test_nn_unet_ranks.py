"""The U-Net on signals and volumes, and its attention to tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import UNet
from ddpm_jax.nn.blocks import AttentionBlock, Downsample, Upsample
from ddpm_jax.nn.space_to_depth import depth_to_space, space_to_depth
from ddpm_jax.nn.unet import parameter_shapes
from tests.reference_unet import random_params

SMALL = UNet(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
    dropout=0.0,
)
T = np.array([3, 40])


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lifted(leaf):
    """A kernel of one axis more, which moves nothing along it: 0 off its middle."""
    if leaf.ndim < 3:
        return leaf
    wider = np.zeros((3, *leaf.shape), leaf.dtype)
    wider[1] = leaf
    return wider


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("rank", [1, 2])
def test_an_event_repeated_along_a_new_axis_gives_its_output_repeated(rank, padding):
    """Convolutions, norms, attention, halving and doubling of one rank are those of the next."""
    unet = SMALL.clone(spatial_rank=rank, downsample_padding=padding)
    x = normal(2, *(8,) * rank, 3)
    params = random_params(unet, x, 0)
    wanted = jax.jit(unet.apply)({"params": params}, x, T)
    assert wanted.shape == x.shape and np.std(np.asarray(wanted)) > 0.1
    above = SMALL.clone(spatial_rank=rank + 1, downsample_padding=padding)
    repeated = np.repeat(x[:, None], 8, axis=1)
    got = jax.jit(above.apply)({"params": jax.tree.map(lifted, params)}, repeated, T)
    np.testing.assert_allclose(got, np.repeat(wanted[:, None], 8, axis=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 3])
def test_resampling_without_convolutions_is_means_and_repeats_of_every_rank(rank):
    x = normal(2, *(4,) * rank, 3)
    down = Downsample(False, "same", jnp.float32).apply({}, x)
    pairs = x.reshape(2, *(n for _ in range(rank) for n in (2, 2)), 3)
    axes = tuple(range(2, 2 * rank + 1, 2))
    np.testing.assert_allclose(down, pairs.mean(axes), atol=1e-6)
    up = Upsample(False, jnp.float32).apply({}, x)
    index = np.arange(8) // 2
    np.testing.assert_array_equal(up, x[np.ix_(range(2), *(index,) * rank, range(3))])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_patches_of_every_rank_go_where_the_formula_says(rank):
    p, x = 2, np.arange(2 * 4**rank * 3, dtype=np.float32).reshape(2, *(4,) * rank, 3)
    h = np.asarray(space_to_depth(x, p))
    assert h.shape == (2, *(2,) * rank, 3 * p**rank)
    np.testing.assert_array_equal(depth_to_space(h, p), x)
    offset = (1, 0, 1)[:rank]
    first = 3 * int("".join(map(str, offset)), 2)
    inside = tuple(slice(o, None, 2) for o in offset)
    np.testing.assert_array_equal(h[..., first : first + 3], x[(slice(None), *inside)])


def test_cross_attention_is_its_formula():
    """In NumPy: two heads, four tokens, one of them masked for the second example."""
    block, x = AttentionBlock(None, jnp.float32, num_heads=2), normal(2, 3, 2, 4)
    tokens, mask = normal(2, 4, 5, seed=2), np.array([[1, 1, 1, 1], [1, 0, 1, 1]], bool)
    params = random_params(block, x, tokens, mask)
    got = block.apply({"params": params}, x, tokens, mask)

    def project(name, of):
        return of @ params[name]["kernel"] + params[name]["bias"]

    h = x.reshape(2, 6, 4)
    query, key, value = project("query", h), project("key", tokens), project("value", tokens)
    heads = []
    for part in (slice(0, 2), slice(2, 4)):
        logits = query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(2)
        weights = np.exp(logits) * mask[:, None, :]
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[..., part])
    wanted = x + project("out", np.concatenate(heads, -1)).reshape(x.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    # One token is attended to by all: the same vector is added everywhere.
    one = block.apply({"params": params}, x, tokens[:, :1]) - x
    vector = project("out", project("value", tokens[:, :1]))[:, None]
    np.testing.assert_allclose(one, np.broadcast_to(vector, x.shape), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def conditioned():
    unet = SMALL.clone(context_features=5, num_heads=2)
    x, tokens = normal(2, 8, 8, 3), normal(2, 4, 5, seed=2)
    params = random_params(unet, x, 0)
    apply = jax.jit(
        lambda tokens, mask: unet.apply({"params": params}, x, T, context=tokens, context_mask=mask)
    )
    plain = jax.jit(unet.apply)({"params": params}, x, T)
    return params, apply, tokens, plain


def test_tokens_have_no_order_and_masked_ones_no_value(conditioned):
    _, apply, tokens, plain = conditioned
    mask = np.array([[1, 1, 0, 1], [0, 1, 1, 0]], bool)
    wanted = apply(tokens, mask)
    assert np.abs(wanted - plain).max() > 0.05
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(tokens[:, order], mask[:, order]), wanted, atol=1e-4)
    other = np.where(mask[..., None], tokens, 100.0).astype(np.float32)
    np.testing.assert_allclose(apply(other, mask), wanted, atol=1e-4)
    shorter = apply(tokens[:, [0, 1, 3]], np.array([[1, 1, 1], [0, 1, 0]], bool))
    np.testing.assert_allclose(shorter[0], wanted[0], atol=1e-4)


def test_no_context_is_that_of_examples_without_any_token(conditioned):
    _, apply, tokens, plain = conditioned
    mask = np.array([[0, 0, 0, 0], [1, 1, 1, 1]], bool)
    got = apply(tokens, mask)
    np.testing.assert_allclose(got[0], plain[0], atol=1e-4)
    assert np.abs(got[1] - plain[1]).max() > 0.05


def test_a_context_adds_blocks_and_changes_no_other(conditioned):
    params = conditioned[0]
    without = parameter_shapes(SMALL, (8, 8, 3))
    added = {f"{name}_context" for name in without if "attention" in name}
    assert set(params) == set(without) | added and len(added) == 4
    for name in without:
        assert jax.tree.map(jnp.shape, params[name]) == jax.tree.map(jnp.shape, without[name])


@pytest.mark.parametrize(
    "change, shape, more, error, message",
    [
        (
            {"spatial_rank": 4},
            None,
            {},
            ValueError,
            r"spatial_rank to be one of \(1, 2, 3\), got 4",
        ),
        ({"spatial_rank": 1}, (2, 8, 8, 3), {}, ValueError, r"\[B, L, C\].*spatial_rank=2"),
        ({"spatial_rank": 3}, (8, 8, 8, 3), {}, ValueError, r"\[B, D, H, W, C\].*Add the batch"),
        ({"spatial_rank": 3}, (1, 8, 6, 7, 3), {}, ValueError, "multiples of 2, got 8×6×7"),
        ({"context_features": 0}, None, {}, ValueError, "context_features >= 1, got 0"),
        (
            {"context_features": 5, "attention_resolutions": (), "middle_attention": "none"},
            None,
            {},
            ValueError,
            "no attention to see the context",
        ),
        ({}, (2, 8, 8, 3), {"context": np.zeros((2, 1, 5))}, ValueError, "context_features=None"),
        (
            {"context_features": 5},
            (2, 8, 8, 3),
            {"context": np.zeros((2, 5))},
            ValueError,
            r"\(2, L, 5\).*\(2, 5\)",
        ),
        (
            {"context_features": 5},
            (2, 8, 8, 3),
            {"context": np.zeros((2, 3, 5), int)},
            TypeError,
            "floating-point context, got int",
        ),
        (
            {"context_features": 5},
            (2, 8, 8, 3),
            {"context": np.zeros((2, 3, 5)), "context_mask": np.ones((2, 3))},
            ValueError,
            r"bool, shape \(2, 3\).*got float",
        ),
        (
            {"context_features": 5},
            (2, 8, 8, 3),
            {"context_mask": np.ones((2, 3), bool)},
            ValueError,
            "context_mask without a context",
        ),
    ],
)
def test_what_cannot_work_is_refused(change, shape, more, error, message):
    with pytest.raises(error, match=message):
        unet = SMALL.clone(**change)
        jax.eval_shape(lambda: unet.init(jax.random.key(0), jnp.zeros(shape), 0, **more))
