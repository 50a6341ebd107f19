"""The U-Net and the MLP in float64 NumPy, written from the papers with loops and without Flax.

Slow and plain on purpose: it shares with the package only the names of the parameters.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from ddpm_jax.nn.unet import parameter_shapes


def random_params(network, *example, seed=0):
    """Draws every parameter of a network at random, as a nested dict of float32 arrays.

    Kernels are normal with variance 1 / fan_in, so that no branch is switched off as it is at
    initialisation; scales are about 1, biases and tables about 0.
    """
    rng = np.random.default_rng(seed)
    if len(example) == 2:  # images and a step
        shapes = parameter_shapes(network, example[0].shape[1:])
    else:
        shapes = jax.eval_shape(network.init, jax.random.key(0), *example)["params"]

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        name = path[-1].key
        if name == "kernel":
            noise /= math.sqrt(math.prod(leaf.shape[:-1]))
        elif name == "scale":
            noise = 1 + 0.3 * noise
        elif name == "bias":
            noise *= 0.3
        return noise.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def to_float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def embed_step(t, dim, max_period=10_000.0, order="sin_cos", shift=1):
    half = dim // 2
    row = []
    for wave in order.split("_"):
        for i in range(half):
            omega = math.exp(-math.log(max_period) * i / (half - shift))
            row.append(getattr(math, wave)(float(t) * omega))
    return np.array(row + [0.0] * (dim % 2))


def silu(x):
    return x / (1.0 + np.exp(-x))


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def group_norm(p, x, groups, epsilon=1e-6):
    out = np.empty_like(x)
    size = x.shape[-1] // groups
    for b in range(x.shape[0]):
        for g in range(groups):
            part = x[b, :, :, g * size : (g + 1) * size]
            out[b, :, :, g * size : (g + 1) * size] = (part - part.mean()) / np.sqrt(
                part.var() + epsilon
            )
    return out * p["scale"] + p["bias"]


def conv3x3(p, x, stride=1, before=1, after=1):
    """Window (a, b) of output (i, j) reads input (stride i + a - before, stride j + b - before)."""
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    height = (x.shape[1] - 3) // stride + 1
    width = (x.shape[2] - 3) // stride + 1
    out = np.zeros((x.shape[0], height, width, p["kernel"].shape[-1]))
    for i in range(height):
        for j in range(width):
            window = x[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            out[:, i, j] = np.tensordot(window, p["kernel"], axes=3)
    return out + p["bias"]


def residual_block(p, x, embedding, groups, mask=1.0, epsilon=1e-6, scale_shift=False):
    h = conv3x3(p["conv1"], silu(group_norm(p["norm1"], x, groups, epsilon)))
    e = linear(p["embedding"], silu(embedding))[:, None, None, :]
    if scale_shift:
        scale, shift = e[..., : h.shape[-1]], e[..., h.shape[-1] :]
        h = (1 + scale) * group_norm(p["norm2"], h, groups, epsilon) + shift
    else:
        h = group_norm(p["norm2"], h + e, groups, epsilon)
    h = conv3x3(p["conv2"], silu(h) * mask)
    return (linear(p["shortcut"], x) if "shortcut" in p else x) + h


def attention_block(p, x, groups, epsilon=1e-6, heads=1):
    out = np.empty_like(x)
    normed = group_norm(p["norm"], x, groups, epsilon) if "norm" in p else x
    size = x.shape[-1] // heads
    for b in range(x.shape[0]):
        pixels = normed[b].reshape(-1, x.shape[-1])
        query, key, value = (linear(p[name], pixels) for name in ("query", "key", "value"))
        attended = []
        for part in (slice(i * size, (i + 1) * size) for i in range(heads)):
            weights = np.exp(query[:, part] @ key[:, part].T / math.sqrt(size))
            weights /= weights.sum(axis=1, keepdims=True)
            attended.append(weights @ value[:, part])
        out[b] = linear(p["out"], np.concatenate(attended, axis=1)).reshape(x.shape[1:])
    return x + out


def halve(p, x, padding):
    if p is None:
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return conv3x3(p["conv"], x, stride=2, before=int(padding == "symmetric"))


def double(p, x):
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    return x if p is None else conv3x3(p["conv"], x)


def patches_to_channels(x, p):
    """Channel (u p + v) C + c of position (i, j) is channel c of pixel (i p + u, j p + v)."""
    corners = [x[:, u::p, v::p] for u in range(p) for v in range(p)]
    return np.concatenate(corners, axis=-1)


def channels_to_patches(h, p):
    """The inverse of `patches_to_channels`, pixel by pixel of each patch."""
    channels = h.shape[-1] // p**2
    out = np.empty((h.shape[0], h.shape[1] * p, h.shape[2] * p, channels))
    for u in range(p):
        for v in range(p):
            first = (u * p + v) * channels
            out[:, u::p, v::p] = h[..., first : first + channels]
    return out


def conditions(p, embedding, label, cond, config):
    """Adds the row of each label's table and the projection of each vector."""
    batch = len(embedding)
    if config.num_classes is not None:
        rows = [config.num_classes] * batch if label is None else label
        embedding = embedding + p["label_embedding"]["table"]["embedding"][np.asarray(rows)]
    if config.cond_features is not None:
        vectors = np.zeros((batch, config.cond_features)) if cond is None else cond
        embedding = embedding + linear(p["cond_dense"], np.asarray(vectors, np.float64))
    return embedding


def unet(params, x, t, label=None, cond=None, *, config):
    """Runs the network that `config`, a UNet, describes on x [B, H, W, C] and t [B] in float64."""
    x = patches_to_channels(np.asarray(x, np.float64), config.patch_size)
    p, groups = to_float64(params), config.num_groups
    epsilon = config.norm_epsilon
    levels = len(config.channel_multipliers)
    attended = [x.shape[1] // 2**level in config.attention_resolutions for level in range(levels)]
    wave = {"order": config.embedding_order, "shift": config.embedding_shift}
    embedding = np.stack([embed_step(step, config.channels, **wave) for step in t])
    embedding = linear(p["time_dense_1"], silu(linear(p["time_dense_0"], embedding)))
    embedding = conditions(p, embedding, label, cond, config)

    def block(name, h):
        return residual_block(
            p[name], h, embedding, groups, epsilon=epsilon, scale_shift=config.scale_shift
        )

    def attend(name, h):
        heads = config.num_heads
        if config.head_channels is not None:
            heads = h.shape[-1] // config.head_channels
        return attention_block(p[name], h, groups, epsilon, heads)

    h = conv3x3(p["conv_in"], x)
    kept = [h]
    for level in range(levels):
        for i in range(config.num_res_blocks):
            h = block(f"down_{level}_block_{i}", h)
            if attended[level]:
                h = attend(f"down_{level}_attention_{i}", h)
            kept.append(h)
        if level < levels - 1:
            h = halve(p.get(f"down_{level}_downsample"), h, config.downsample_padding)
            kept.append(h)
    h = block("middle_block_0", h)
    if config.middle_attention != "none":
        assert ("norm" in p["middle_attention"]) == (config.middle_attention == "normalised")
        h = attend("middle_attention", h)
    h = block("middle_block_1", h)
    for level in range(levels - 1, -1, -1):
        for i in range(config.num_res_blocks + 1):
            h = np.concatenate([h, kept.pop()], axis=-1)
            h = block(f"up_{level}_block_{i}", h)
            if attended[level]:
                h = attend(f"up_{level}_attention_{i}", h)
        if level > 0:
            h = double(p.get(f"up_{level}_upsample"), h)
    assert not kept
    h = conv3x3(p["conv_out"], silu(group_norm(p["norm_out"], h, groups, epsilon)))
    return channels_to_patches(h, config.patch_size)


def mlp(params, x, t, label=None, cond=None, *, config):
    """Runs the perceptron that `config`, an MLP, describes on x [B, D] and t [B] in float64."""
    p, h = to_float64(params), np.asarray(x, np.float64)
    embedding = np.stack(
        [embed_step(step, config.embedding_features, config.max_period) for step in t]
    )
    embedding = conditions(p, linear(p["time_dense"], embedding), label, cond, config)
    h = linear(p["dense_in"], h)
    for i in range(config.num_layers):
        layer = p[f"layer_{i}"]
        r = linear(layer["dense_0"], silu(h)) + linear(layer["embedding"], silu(embedding))
        h = h + linear(layer["dense_1"], silu(r))
    return linear(p["dense_out"], silu(h))
