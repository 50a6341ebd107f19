"""The U-Net and the MLP in float64 NumPy, written from the papers with loops and without Flax.

Slow and plain on purpose: it shares with the package only the names of the parameters.
"""

from __future__ import annotations

import math

import jax
import numpy as np


def random_params(network, *example, seed=0):
    """Draws every parameter of a network at random, as a nested dict of float32 arrays.

    Kernels are normal with variance 1 / fan_in, so that no branch is switched off as it is at
    initialisation; scales are about 1, biases and tables about 0.
    """
    rng = np.random.default_rng(seed)
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


def embed_step(t, dim, max_period=10_000.0):
    half = dim // 2
    row = []
    for wave in (math.sin, math.cos):
        for i in range(half):
            row.append(wave(float(t) * math.exp(-math.log(max_period) * i / (half - 1))))
    return np.array(row + [0.0] * (dim % 2))


def silu(x):
    return x / (1.0 + np.exp(-x))


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def group_norm(p, x, groups):
    out = np.empty_like(x)
    size = x.shape[-1] // groups
    for b in range(x.shape[0]):
        for g in range(groups):
            part = x[b, :, :, g * size : (g + 1) * size]
            out[b, :, :, g * size : (g + 1) * size] = (part - part.mean()) / np.sqrt(
                part.var() + 1e-6
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


def residual_block(p, x, embedding, groups, mask=1.0):
    h = conv3x3(p["conv1"], silu(group_norm(p["norm1"], x, groups)))
    h = h + linear(p["embedding"], silu(embedding))[:, None, None, :]
    h = conv3x3(p["conv2"], silu(group_norm(p["norm2"], h, groups)) * mask)
    return (linear(p["shortcut"], x) if "shortcut" in p else x) + h


def attention_block(p, x, groups):
    out = np.empty_like(x)
    normed = group_norm(p["norm"], x, groups)
    for b in range(x.shape[0]):
        pixels = normed[b].reshape(-1, x.shape[-1])
        query, key, value = (linear(p[name], pixels) for name in ("query", "key", "value"))
        weights = np.exp(query @ key.T / math.sqrt(x.shape[-1]))
        weights /= weights.sum(axis=1, keepdims=True)
        out[b] = linear(p["out"], weights @ value).reshape(x.shape[1:])
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


def unet(params, x, t, label=None, *, config):
    """Runs the network that `config`, a UNet, describes on x [B, H, W, C] and t [B] in float64."""
    x = patches_to_channels(np.asarray(x, np.float64), config.patch_size)
    p, x, groups = to_float64(params), np.asarray(x, np.float64), config.num_groups
    levels = len(config.channel_multipliers)
    attended = [x.shape[1] // 2**level in config.attention_resolutions for level in range(levels)]
    embedding = np.stack([embed_step(step, config.channels) for step in t])
    embedding = linear(p["time_dense_1"], silu(linear(p["time_dense_0"], embedding)))
    if config.num_classes is not None:
        rows = [config.num_classes] * len(x) if label is None else label
        embedding = embedding + p["label_embedding"]["table"]["embedding"][np.asarray(rows)]

    h = conv3x3(p["conv_in"], x)
    kept = [h]
    for level in range(levels):
        for i in range(config.num_res_blocks):
            h = residual_block(p[f"down_{level}_block_{i}"], h, embedding, groups)
            if attended[level]:
                h = attention_block(p[f"down_{level}_attention_{i}"], h, groups)
            kept.append(h)
        if level < levels - 1:
            h = halve(p.get(f"down_{level}_downsample"), h, config.downsample_padding)
            kept.append(h)
    h = residual_block(p["middle_block_0"], h, embedding, groups)
    h = attention_block(p["middle_attention"], h, groups)
    h = residual_block(p["middle_block_1"], h, embedding, groups)
    for level in range(levels - 1, -1, -1):
        for i in range(config.num_res_blocks + 1):
            h = np.concatenate([h, kept.pop()], axis=-1)
            h = residual_block(p[f"up_{level}_block_{i}"], h, embedding, groups)
            if attended[level]:
                h = attention_block(p[f"up_{level}_attention_{i}"], h, groups)
        if level > 0:
            h = double(p.get(f"up_{level}_upsample"), h)
    assert not kept
    h = conv3x3(p["conv_out"], silu(group_norm(p["norm_out"], h, groups)))
    return channels_to_patches(h, config.patch_size)


def mlp(params, x, t, label=None, *, config):
    """Runs the perceptron that `config`, an MLP, describes on x [B, D] and t [B] in float64."""
    p, h = to_float64(params), np.asarray(x, np.float64)
    embedding = np.stack(
        [embed_step(step, config.embedding_features, config.max_period) for step in t]
    )
    embedding = linear(p["time_dense"], embedding)
    if config.num_classes is not None:
        rows = [config.num_classes] * len(x) if label is None else label
        embedding = embedding + p["label_embedding"]["table"]["embedding"][np.asarray(rows)]
    h = linear(p["dense_in"], h)
    for i in range(config.num_layers):
        layer = p[f"layer_{i}"]
        r = linear(layer["dense_0"], silu(h)) + linear(layer["embedding"], silu(embedding))
        h = h + linear(layer["dense_1"], silu(r))
    return linear(p["dense_out"], silu(h))
