"""The U-Net against its float64 NumPy reference, published counts, and its own promises."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.nn import UNet, count_parameters
from ddpm_jax.nn.blocks import GroupNorm, ResidualBlock, dropout
from ddpm_jax.nn.unet import parameter_shapes
from tests import reference_unet as reference
from tests.reference_unet import random_params

TINY = UNet(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
    dropout=0.3,
)
ONE_LEVEL = TINY.clone(channel_multipliers=(1,), attention_resolutions=(8,))
SHAPE = (2, 8, 8, 3)


def images(shape=SHAPE, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def example_keys(*indices):
    """One key an example, by its index: the same whichever batch the example is in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.array(indices))


@functools.partial(jax.jit, static_argnums=0)
def apply(unet, params, x, t, label=None, cond=None, dropout_keys=None):
    return unet.apply({"params": params}, x, t, label, cond=cond, dropout_keys=dropout_keys)


@pytest.fixture(scope="module")
def tiny_params():
    return random_params(TINY, images(), 0)


def test_lists_and_tuples_make_the_same_network():
    """A network with lists has a hash, too: it may be a static argument."""
    lists = TINY.clone(channel_multipliers=[1, 2], attention_resolutions=[4])
    tuples = TINY.clone(channel_multipliers=(1, 2), attention_resolutions=(4,))
    assert lists == tuples and hash(lists) == hash(tuples)


def test_parameter_counts_of_the_paper():
    """35.7 M for CIFAR-10 and 114 M for 256×256 (Ho et al. 2020, App. B), to the last number."""
    assert count_parameters(parameter_shapes(UNet(), (32, 32, 3))) == 35_746_307
    large = UNet(channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0)
    params = parameter_shapes(large, (256, 256, 3))
    assert count_parameters(params) == 113_673_219
    attention = sorted(name for name in params if "attention" in name)
    assert attention == ["down_4_attention_0", "down_4_attention_1", "middle_attention"] + [
        f"up_4_attention_{i}" for i in range(3)
    ]


CASES = {
    "attention at the coarse level": (TINY, SHAPE),
    "attention in the middle only": (TINY.clone(attention_resolutions=()), SHAPE),
    "padding as PyTorch pads": (TINY.clone(downsample_padding="symmetric"), SHAPE),
    "resampling without convolutions": (TINY.clone(resample_with_conv=False), SHAPE),
    "labels": (TINY.clone(num_classes=3, out_channels=6), SHAPE),
    "three levels, two blocks, two attentions, wide images": (
        TINY.clone(channel_multipliers=(1, 2, 3), num_res_blocks=2, attention_resolutions=(8, 2)),
        (2, 8, 12, 1),
    ),
    "patches of 2×2 pixels": (TINY.clone(patch_size=2, out_channels=6), (2, 16, 8, 3)),
    "patches of 3×3 pixels": (TINY.clone(patch_size=3, attention_resolutions=()), (2, 6, 12, 1)),
    "guided-diffusion's settings": (
        TINY.clone(
            downsample_padding="symmetric",
            num_heads=2,
            scale_shift=True,
            embedding_order="cos_sin",
            embedding_shift=0,
            norm_epsilon=1e-2,  # 1e-5 could not be told from 1e-6
        ),
        SHAPE,
    ),
    "diffusers' defaults, attention at two widths, unnormalised in the middle": (
        TINY.clone(
            attention_resolutions=(8, 4),
            head_channels=4,
            middle_attention="plain",
            embedding_shift=0,
        ),
        SHAPE,
    ),
    "no attention, vectors as conditions": (
        TINY.clone(middle_attention="none", attention_resolutions=(), cond_features=5),
        SHAPE,
    ),
    "groups of one channel under scale and shift": (
        TINY.clone(num_groups=8, scale_shift=True, num_classes=2),
        SHAPE,
    ),
    "one level": (TINY.clone(channel_multipliers=(2,), attention_resolutions=(5,)), (2, 5, 3, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_float64_reference(name):
    """Every parameter is random, so that no branch is closed; float32 rounding is what is left."""
    unet, shape = CASES[name]
    x, t = images(shape), np.array([3, 40])
    label = np.array([2, 0]) if unet.num_classes else None
    cond = images((2, unet.cond_features), seed=4) if unet.cond_features else None
    params = random_params(unet, x, 0)
    got = apply(unet, params, x, t, label, cond)
    truth = reference.unet(params, x, t, label, cond, config=unet)
    assert got.dtype == jnp.float32
    assert np.std(truth) > 0.3
    np.testing.assert_allclose(got, truth, atol=1e-5, rtol=0)


def test_gradients_match_finite_differences_in_float64(tiny_params):
    """Along a random direction v, the gradient against (f(p + hv) - f(p - hv)) / 2h."""
    x, t, h = images(), np.array([3, 40]), 1e-5
    direction = random_params(TINY, x, 0, seed=7)
    cotangent = images(seed=3)

    def truth(sign):
        moved = jax.tree.map(
            lambda p, v: p.astype(np.float64) + sign * h * v, tiny_params, direction
        )
        return np.sum(reference.unet(moved, x, t, config=TINY) * cotangent)

    def f(params):
        return jnp.sum(TINY.apply({"params": params}, x, t) * cotangent)

    slope = (truth(1) - truth(-1)) / (2 * h)
    gradient = jax.jit(jax.grad(f))(tiny_params)
    dots = jax.tree.map(lambda g, v: np.vdot(np.float64(g), v), gradient, direction)
    assert abs(slope) > 1
    np.testing.assert_allclose(sum(jax.tree.leaves(dots)), slope, rtol=1e-4)


def test_rows_do_not_meet():
    """Row i of a batch under dropout is the row alone with the same key."""
    x, t = images((3, 8, 8, 3)), np.array([0, 7, 31])
    params = random_params(ONE_LEVEL, x, 0)
    batch = apply(ONE_LEVEL, params, x, t, dropout_keys=example_keys(0, 1, 2))
    for i in range(3):
        row = slice(i, i + 1)
        alone = apply(ONE_LEVEL, params, x[row], t[row], dropout_keys=example_keys(i))
        np.testing.assert_allclose(batch[row], alone, atol=1e-5)
    other = apply(ONE_LEVEL, params, x[2:], t[2:], dropout_keys=example_keys(0))
    assert np.abs(batch[2:] - other).max() > 0.1


def test_dropout_does_not_depend_on_devices():
    """Eight devices with two rows each draw the masks that one device draws for sixteen rows."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x, keys = jnp.ones((16, 40)), example_keys(*range(16))
    whole = dropout(x, 0.4, keys, ("a",))
    split = jax.jit(lambda x, keys: dropout(x, 0.4, keys, ("a",)))(
        jax.device_put(x, sharding), jax.device_put(keys, sharding)
    )
    assert len(split.sharding.device_set) == 8
    np.testing.assert_array_equal(whole, split)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_dropout_the_linen_way(make_key):
    """`rngs` draws one mask per row: the masks of the row's index folded into the module's key."""
    x, t = np.repeat(images((1, 8, 8, 3)), 3, axis=0), np.array([7, 7, 7])
    params = random_params(ONE_LEVEL, x, 0)

    @functools.partial(jax.jit, static_argnums=1)
    def run(rngs, rows):
        return ONE_LEVEL.apply({"params": params}, x[:rows], 7, rngs=rngs)

    got = run({"dropout": make_key(0)}, 3)
    assert np.abs(got - apply(ONE_LEVEL, params, x, t)).max() > 0.1
    assert np.abs(got[0] - got[1]).max() > 0.1 and np.abs(got[1] - got[2]).max() > 0.1
    assert np.abs(got - run({"dropout": make_key(1)}, 3)).max() > 0.1
    np.testing.assert_allclose(got[:2], run({"dropout": make_key(0)}, 2), atol=1e-5)
    with pytest.raises(ValueError, match="UNet got dropout_keys and rngs"):
        rngs = {"dropout": make_key(0)}
        ONE_LEVEL.apply({"params": params}, x, t, dropout_keys=example_keys(0, 1, 2), rngs=rngs)


def test_dropout_rate_scale_and_streams():
    """Entries are 0 or 1 / (1 - rate), kept at that rate to 5 sigma, rows and layers unrelated."""
    rate, shape = 0.3, (4, 10_000)
    keys = example_keys(0, 1, 2, 3)
    masks = [np.asarray(dropout(jnp.ones(shape), rate, keys, (name,))) for name in ("a", "b")]
    for mask in masks:
        kept = mask != 0
        np.testing.assert_allclose(mask[kept], 1 / (1 - rate), rtol=1e-6)
        sigma = np.sqrt(rate * (1 - rate) / shape[1])
        np.testing.assert_allclose(kept.mean(axis=1), 1 - rate, atol=5 * sigma)
    rows = np.concatenate(masks) != 0
    agreement = (rows[:, None] == rows[None]).mean(axis=2)[~np.eye(8, dtype=bool)]
    np.testing.assert_allclose(agreement, rate**2 + (1 - rate) ** 2, atol=0.03)


def test_dropout_streams_outlive_the_process():
    """A stream is the checksum of the layer's path, so a resumed run draws what it had drawn."""
    key = jax.random.fold_in(jax.random.key(5), 3)
    key = jax.random.fold_in(key, zlib.crc32(b"net/down_0_block_0"))
    expected = jax.random.bernoulli(key, 0.5, (64,)) * 2.0
    got = dropout(jnp.ones((1, 64)), 0.5, example_keys(3), ("net", "down_0_block_0"))
    np.testing.assert_array_equal(got[0], expected)


def test_dropout_sits_after_the_second_normalisation():
    block = ResidualBlock(channels=8, num_groups=4, dropout=0.5, dtype=jnp.float32)
    x, embedding = images((2, 4, 4, 4)), images((2, 16))
    keys = example_keys(0, 1)
    params = random_params(block, x, embedding, None)
    mask = dropout(jnp.ones((2, 4, 4, 8)), 0.5, keys, ())
    got = jax.jit(block.apply)({"params": params}, x, embedding, keys)
    truth = reference.residual_block(
        reference.to_float64(params), np.float64(x), embedding, 4, np.asarray(mask)
    )
    np.testing.assert_allclose(got, truth, atol=1e-5)


def test_no_dropout_without_keys_or_without_a_rate():
    """Nothing is drawn at all: the programs are free of random bits."""
    keys = example_keys(0, 1)
    for unet, more, draws in (
        (TINY, {}, 0),
        (TINY.clone(dropout=0.0), {"dropout_keys": keys}, 0),
        (TINY.clone(dropout=0.0), {"rngs": {"dropout": jax.random.key(0)}}, 0),
        (TINY, {"dropout_keys": keys}, 8),  # 2 blocks down, 2 between, 4 up
        (TINY, {"rngs": {"dropout": jax.random.key(0)}}, 8),
    ):
        variables = jax.eval_shape(unet.init, jax.random.key(0), images(), 0)
        program = jax.make_jaxpr(functools.partial(unet.apply, **more))(variables, images(), 0)
        names = [equation.primitive.name for equation in _equations(program.jaxpr)]
        assert names.count("random_bits") == draws


def test_labels():
    """None is the last row of the table; a label outside the table gives NaN in its row alone."""
    unet = ONE_LEVEL.clone(num_classes=3)
    x = np.repeat(images((1, 8, 8, 3)), 7, axis=0)
    params = random_params(unet, x, 0)
    got = np.asarray(apply(unet, params, x, 5, np.array([3, 0, 1, 4, -1, -2, -5])))
    np.testing.assert_allclose(got[0], apply(unet, params, x, 5)[0], atol=1e-5)
    assert np.abs(got[0] - got[1]).max() > 0.1 and np.abs(got[1] - got[2]).max() > 0.1
    assert np.isfinite(got[:3]).all() and np.isnan(got[3:]).all()


def test_vectors_as_conditions():
    """None is zeros for all, and so is a row of zeros for one example."""
    unet = ONE_LEVEL.clone(cond_features=4)
    x = np.repeat(images((1, 8, 8, 3)), 3, axis=0)
    params = random_params(unet, x, 0)
    cond = np.stack([np.zeros(4), np.ones(4), np.arange(4.0)]).astype(np.float32)
    got, none = apply(unet, params, x, 5, cond=cond), apply(unet, params, x, 5)
    np.testing.assert_allclose(got[0], none[0], atol=1e-5)
    assert np.abs(got[1] - none[1]).max() > 0.1 and np.abs(got[2] - got[1]).max() > 0.1


def test_groups_of_one_channel():
    """Normalising each channel by itself removes what is added to it; a scale and shift stay."""
    change = {"num_groups": 8, "attention_resolutions": ()}
    with pytest.warns(UserWarning, match="blocks of 8 channels: .* removes the embedding of t"):
        TINY.clone(**change)
    with pytest.raises(ValueError, match="blocks of 8 channels: .* removes the embedding of t"):
        TINY.clone(**change, channel_multipliers=(1, 1))
    block = ResidualBlock(channels=8, num_groups=8, dropout=0.0, dtype=jnp.float32)
    x = images((2, 4, 4, 8))
    for module, differs in ((block, False), (block.clone(scale_shift=True), True)):
        params = random_params(module, x, images((2, 16)), None)
        one, other = (
            module.apply({"params": params}, x, images((2, 16), seed=seed), None) for seed in (1, 2)
        )
        moved = np.abs(one - other).max()
        assert moved > 0.1 if differs else moved < 1e-4


def test_group_norm_survives_a_mean_far_above_the_spread():
    """Mean 1000 and spread 1: variance as E[x²] - E[x]² has lost 6 % of itself to float32 here."""
    x = 1000 + images((2, 8, 8, 8))
    norm = GroupNorm(num_groups=2)
    params = random_params(norm, x)
    truth = reference.group_norm(reference.to_float64(params), np.float64(x), 2)
    np.testing.assert_allclose(norm.apply({"params": params}, x), truth, atol=1e-3)


def test_initialisation():
    """Kernels uniform with variance 2 s / (fan_in + fan_out); s = 1e-10 where a branch closes."""
    unet = UNet(channels=32, channel_multipliers=(1,), num_res_blocks=1, num_groups=8)
    key = jax.random.key(0, impl="unsafe_rbg")  # its draws compile in a fraction of the time
    variables = jax.jit(unet.init)(key, jnp.zeros((1, 16, 16, 3)), 0)
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        if path[-1] != "kernel":
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(path[-1] == "scale")))
            continue
        closes = path[-2] in ("conv2", "conv_out", "out")
        fans = np.prod(leaf.shape[:-2]) * (leaf.shape[-2] + leaf.shape[-1])
        bound = np.sqrt(3 * (1e-10 if closes else 1.0) * 2 / fans)
        assert np.abs(leaf).max() <= bound
        np.testing.assert_allclose(np.std(leaf), bound / np.sqrt(3), rtol=0.1)


def test_bfloat16():
    """bfloat16 has 8 bits: near the float32 output, not equal to it, and float32 outside."""
    half, x, t = ONE_LEVEL.clone(dtype=jnp.bfloat16), images(), np.array([3, 40])
    params = random_params(half, x, 0)
    shapes = jax.eval_shape(half.init, jax.random.key(0), x, t)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}

    full, rounded = apply(ONE_LEVEL, params, x, t), apply(half, params, x, t)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(rounded - full) / np.linalg.norm(full) < 0.03


def test_what_bfloat16_leaves_in_float32():
    """Every convolution but the last runs in bfloat16; no softmax or normalisation does."""
    half = TINY.clone(dtype=jnp.bfloat16)
    variables = jax.eval_shape(half.init, jax.random.key(0), images(), 0)
    program = jax.make_jaxpr(half.apply)(variables, images(), 0)
    dtypes = {"conv_general_dilated": [], "exp": [], "rsqrt": []}
    for equation in _equations(program.jaxpr):
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name].append(equation.invars[0].aval.dtype)
    convolutions = dtypes.pop("conv_general_dilated")
    assert set(convolutions[:-1]) == {jnp.dtype(jnp.bfloat16)} and convolutions[-1] == jnp.float32
    assert set(dtypes["exp"]) == set(dtypes["rsqrt"]) == {jnp.dtype(jnp.float32)}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from _equations(inner.jaxpr)


def test_patches_change_only_the_ends():
    """The first convolution reads p² C channels, the last writes p² C'; all else is the same."""
    shapes = {
        p: jax.eval_shape(
            TINY.clone(patch_size=p, attention_resolutions=(8 // p,), out_channels=6).init,
            jax.random.key(0),
            jnp.zeros(SHAPE),
            0,
        )["params"]
        for p in (1, 2)
    }
    flat = {p: traverse_util.flatten_dict(tree, sep="/") for p, tree in shapes.items()}
    assert flat[1].keys() == flat[2].keys()
    changed = {name for name in flat[1] if flat[1][name].shape != flat[2][name].shape}
    assert changed == {"conv_in/kernel", "conv_out/kernel", "conv_out/bias"}
    assert flat[2]["conv_in/kernel"].shape == (3, 3, 12, 8)
    assert flat[2]["conv_out/kernel"].shape == (3, 3, 8, 24)


def test_learned_variances_of_patches_stay_with_their_pixels():
    """The last bias alone, C mean channels and C variance channels for each pixel of a patch."""
    unet = TINY.clone(patch_size=2, out_channels=6, attention_resolutions=())
    params = random_params(unet, images(), 0)
    params["conv_out"]["kernel"] = np.zeros_like(params["conv_out"]["kernel"])
    params["conv_out"]["bias"] = np.arange(24, dtype=np.float32)
    got = apply(unet, params, images(), np.array([3, 40]))
    for u in range(2):
        for v in range(2):
            pixel = 6 * (2 * u + v) + np.arange(6)
            np.testing.assert_array_equal(got[:, u::2, v::2], np.broadcast_to(pixel, (2, 4, 4, 6)))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"patch_size": 0}, "whole patch_size of at least 1, got 0"),
        ({"patch_size": 1.5}, r"patch_size of at least 1, got 1\.5"),
        ({"dropout": 1.0}, r"0 <= dropout < 1, got dropout=1\.0"),
        ({"dropout": -0.1}, r"got dropout=-0\.1"),
        ({"downsample_padding": "valid"}, r"\('same', 'symmetric'\), got 'valid'"),
        ({"middle_attention": True}, r"\('normalised', 'plain', 'none'\), got True"),
        ({"embedding_order": "cos"}, "'sin_cos' or 'cos_sin', got 'cos'"),
        ({"embedding_shift": 2}, "shift 0 or 1, got 2"),
        ({"num_heads": 0}, "positive num_heads"),
        ({"head_channels": 0}, "positive num_heads and head_channels, got 1 and 0"),
        ({"num_heads": 2, "head_channels": 4}, "Give one of them"),
        ({"norm_epsilon": 0.0}, "norm_epsilon > 0, got 0.0"),
        ({"cond_features": 0}, "cond_features >= 1, got 0"),
        ({"channel_multipliers": ()}, "at least one level"),
        ({"num_res_blocks": 0}, "one block per level"),
        ({"num_classes": 0}, "num_classes >= 1, got 0"),
        ({"num_groups": 5}, "blocks of 8 channels, which num_groups=5"),
        ({"channels": 10, "num_groups": 5, "channel_multipliers": (1, 1.1)}, "of 11.0 channels"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**change)


@pytest.mark.parametrize(
    "change,shape,t,more,message",
    [
        ({}, (8, 8, 3), 0, {}, r"\[B, H, W, C\], got shape \(8, 8, 3\)"),
        ({}, (2, 8, 7, 3), 0, {}, "multiples of 2, got 8×7"),
        ({"channel_multipliers": (1, 1, 1, 1)}, (2, 28, 28, 1), 0, {}, "multiples of 8, got 28×28"),
        ({}, (2, 0, 8, 3), 0, {}, "multiples of 2, got 0×8"),
        ({"patch_size": 2}, (2, 8, 10, 3), 0, {}, "2×2 pixels and halves .* of 4, got 8×10"),
        ({"patch_size": 2, "attention_resolutions": (8,)}, SHAPE, 0, {}, r"2×2 its .* \[4, 2\]"),
        ({"attention_resolutions": (16,)}, SHAPE, 0, {}, r"\[16\].*8×8 its heights are \[8, 4\]"),
        ({"attention_resolutions": (4,)}, (2, 16, 4, 3), 0, {}, r"\[4\].* are \[16, 8\]"),
        ({"attention_resolutions": (8, 2)}, SHAPE, 0, {}, r"attention_resolutions \[2\]"),
        ({}, SHAPE, np.zeros(3), {}, r"one step t per example.*step t of shape \(3,\)"),
        ({}, SHAPE, np.zeros((2, 1)), {}, r"step t of shape \(2, 1\)"),
        ({}, SHAPE, 0, {"label": np.zeros(2, int)}, "label but num_classes=None"),
        ({"num_classes": 3}, SHAPE, 0, {"label": 1}, r"shape \(2,\), got shape \(\)"),
        ({}, SHAPE, 0, {"dropout_keys": example_keys(0)}, r"shape \(2,\), got shape \(1,\)"),
        ({}, SHAPE, 0, {"dropout_keys": jax.random.key(0)}, r"shape \(2,\), got shape \(\)"),
        ({}, SHAPE, 0, {"dropout_keys": np.zeros((2, 2), np.uint32)}, "typed dropout_keys"),
        ({}, SHAPE, 0, {"cond": np.zeros((2, 3))}, "cond but cond_features=None"),
        (
            {"cond_features": 4},
            SHAPE,
            0,
            {"cond": np.zeros((2, 3))},
            r"\(2, 4\), got shape \(2, 3\)",
        ),
        ({"cond_features": 4}, SHAPE, 0, {"cond": np.zeros(4)}, r"\(2, 4\), got shape \(4,\)"),
        ({"head_channels": 6}, SHAPE, 0, {}, "cannot split 16 channels into equal heads"),
        ({"num_heads": 32}, SHAPE, 0, {}, "cannot split 16 channels into equal heads"),
        ({}, (2, 3, 32, 32), 0, {}, r"multiples of 2, got 3×32.*need x.transpose\(0, 2, 3, 1\)"),
        ({"attention_resolutions": (8,)}, (2, 4, 32, 32), 0, {}, r"need x.transpose\(0, 2, 3, 1\)"),
    ],
)
def test_impossible_inputs_are_refused(change, shape, t, more, message):
    unet = TINY.clone(**change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: unet.init(jax.random.key(0), jnp.zeros(shape), t, **more))


@pytest.mark.parametrize(
    "change,dtype,t,more,message",
    [
        ({}, np.uint8, 0, {}, "floating-point inputs, got uint8. Map them .* from_pixels"),
        ({}, np.int32, 0, {}, "floating-point inputs, got int32"),
        ({}, np.float32, np.array([True, False]), {}, "integers or floats, got bool"),
        ({"num_classes": 3}, np.float32, 0, {"label": np.zeros(2)}, "integer labels, got float"),
        ({"num_classes": 3}, np.float32, 0, {"label": np.ones(2, bool)}, "labels, got bool"),
        ({"cond_features": 3}, np.float32, 0, {"cond": np.ones((2, 3), int)}, "cond, got int"),
    ],
)
def test_impossible_dtypes_are_refused(change, dtype, t, more, message):
    unet = TINY.clone(**change)
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(lambda: unet.init(jax.random.key(0), jnp.zeros(SHAPE, dtype), t, **more))


@pytest.mark.slow
def test_rematerialisation_keeps_less_and_changes_no_numbers():
    """The same loss and gradient; fewer numbers kept for the backward pass."""
    x, t, keys = images((2, 8, 8, 3)), jnp.arange(2), example_keys(0, 1)
    params = random_params(ONE_LEVEL, x, 0)

    def loss_of(unet):
        def loss(params):
            output = unet.apply({"params": params}, x, t, dropout_keys=keys)
            return jnp.mean(jnp.square(output))

        return loss

    def kept(loss):
        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward)) - count_parameters(params)

    plain, remat = loss_of(ONE_LEVEL), loss_of(ONE_LEVEL.clone(remat=True))
    assert kept(remat) < 0.5 * kept(plain)
    value, grads = jax.jit(jax.value_and_grad(plain))(params)
    value_remat, grads_remat = jax.jit(jax.value_and_grad(remat))(params)
    np.testing.assert_allclose(value_remat, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads_remat), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
