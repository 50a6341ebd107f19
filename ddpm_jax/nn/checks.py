"""What the networks refuse: attributes and inputs that cannot work, each with one clear error.

Everything checked here is static (shapes, dtypes, attributes), so it costs nothing under `jit`.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp

from ddpm_jax.types import Array, ArrayLike, per_example


def check_dropout(call: str, rate: float) -> None:
    """Raises ValueError unless 0 <= rate < 1."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(
            f"{call} needs 0 <= dropout < 1, got dropout={rate}. It is the share of activations "
            "dropped (DDPM: 0.1 on CIFAR-10, 0 elsewhere), not the share kept."
        )


def check_float(call: str, x: Any) -> None:
    """Raises TypeError unless x is an array of floating-point numbers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        remedy = "Map them to [-1, 1] with from_pixels" if x.dtype == jnp.uint8 else "Convert them"
        raise TypeError(f"{call} needs floating-point inputs, got {x.dtype}. {remedy}.")


def broadcast_steps(call: str, t: ArrayLike, x: Array) -> Array:
    """Returns t as [B], from [B] or a scalar, for x [B, ...].

    Raises ValueError for any other shape and TypeError for what is no number.
    """
    t = per_example(call, "step t", t, x)
    if not (jnp.issubdtype(t.dtype, jnp.integer) or jnp.issubdtype(t.dtype, jnp.floating)):
        raise TypeError(f"{call} needs steps t that are integers or floats, got {t.dtype}.")
    return t


def check_conditions(
    module: Any, batch: int, label: ArrayLike | None, cond: ArrayLike | None
) -> None:
    """Raises ValueError or TypeError for conditions that the network `module` cannot take."""
    call, num_classes = type(module).__name__, module.num_classes
    for name, value, attribute in (
        ("label", label, "num_classes"),
        ("cond", cond, "cond_features"),
    ):
        if value is not None and getattr(module, attribute) is None:
            raise ValueError(
                f"{call} got a {name} but {attribute}=None: such a network would ignore it. "
                f"Build {call}({attribute}=...), or leave the {name} out."
            )
    if label is not None:
        if jnp.shape(label) != (batch,):
            raise ValueError(
                f"{call} needs one label per example, shape ({batch},), got shape "
                f"{jnp.shape(label)}. Pass integers 0 … {num_classes - 1}, and {num_classes} for "
                "examples without a label."
            )
        if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
            raise TypeError(
                f"{call} needs integer labels, got {jnp.result_type(label)}. Convert them with "
                "label.astype('int32'); one-hot labels with label.argmax(-1)."
            )
    if cond is not None:
        if jnp.shape(cond) != (batch, module.cond_features):
            raise ValueError(
                f"{call} needs one vector cond per example, shape ({batch}, "
                f"{module.cond_features}), got shape {jnp.shape(cond)}. Set cond_features to the "
                "length of the vectors."
            )
        if not jnp.issubdtype(jnp.result_type(cond), jnp.floating):
            raise TypeError(f"{call} needs a floating-point cond, got {jnp.result_type(cond)}.")


def given_context(
    unet: Any, batch: int, context: Array | None, mask: Array | None
) -> tuple[Array | None, Array | None]:
    """The tokens and their mask; (None, None) for a network that takes none.

    Raises ValueError or TypeError for tokens or a mask that the network cannot take.
    """
    features = unet.context_features
    if features is None:
        if context is not None or mask is not None:
            raise ValueError(
                "UNet got a context but context_features=None: such a network would ignore it. "
                "Build UNet(context_features=...), or leave the context out."
            )
        return None, None
    if context is None:
        if mask is not None:
            raise ValueError("UNet got a context_mask without a context. Pass the tokens, too.")
        return jnp.zeros((batch, 1, features)), jnp.zeros((batch, 1), bool)
    shape = jnp.shape(context)
    if len(shape) != 3 or (shape[0], shape[2]) != (batch, features) or not shape[1]:
        raise ValueError(
            f"UNet needs a context of tokens, shape ({batch}, L, {features}), L >= 1, got shape "
            f"{shape}. None stands for no tokens."
        )
    if not jnp.issubdtype(jnp.result_type(context), jnp.floating):
        raise TypeError(f"UNet needs a floating-point context, got {jnp.result_type(context)}.")
    if mask is None:
        return context, None
    if jnp.shape(mask) != shape[:2] or jnp.result_type(mask) != jnp.bool_:
        raise ValueError(
            f"UNet needs a context_mask of bool, shape {shape[:2]}, True for tokens to attend to, "
            f"got {jnp.result_type(mask)} of shape {jnp.shape(mask)}."
        )
    return context, jnp.asarray(mask)


def check_num_conditions(module: Any) -> None:
    """Raises ValueError unless `num_classes`, `cond_features`, … are None or positive."""
    for name in ("num_classes", "cond_features", "context_features"):
        value = getattr(module, name, None)
        if value is not None and value < 1:
            raise ValueError(
                f"{type(module).__name__} needs {name} >= 1, got {value}. "
                "Leave it None for a network without this condition."
            )


def check_embedding(call: str, order: str, shift: int) -> None:
    """Raises ValueError for an unknown order or shift of the sinusoidal embedding."""
    if not isinstance(order, str) or order not in ("sin_cos", "cos_sin"):
        raise ValueError(
            f"{call} needs the order 'sin_cos' or 'cos_sin', got {order!r}. DDPM has 'sin_cos'."
        )
    if not isinstance(shift, int) or isinstance(shift, bool) or shift not in (0, 1):
        raise ValueError(f"{call} needs the shift 0 or 1, got {shift!r}. DDPM has 1.")


def num_heads(unet: Any, width: int) -> int:
    """Returns the attention heads of a level of `width` channels.

    Raises ValueError where they cannot be equal.
    """
    size = width / unet.num_heads if unet.head_channels is None else unet.head_channels
    if width % size or size % 1:
        raise ValueError(
            f"UNet(num_heads={unet.num_heads}, head_channels={unet.head_channels}) cannot split "
            f"{width} channels into equal heads. Choose a divisor of the width of every level with "
            "attention."
        )
    return int(width // size)


def check_configuration(unet: Any) -> None:
    """Raises ValueError for attributes that no input could make work."""
    check_dropout("UNet", unet.dropout)
    check_num_conditions(unet)
    check_embedding("UNet", unet.embedding_order, unet.embedding_shift)
    for name, choices, remark in (
        ("downsample_padding", ("same", "symmetric"), "'same' pads only below and on the right"),
        ("middle_attention", ("normalised", "plain", "none"), "DDPM has 'normalised'"),
        ("spatial_rank", (1, 2, 3), "Images have 2"),
    ):
        if getattr(unet, name) not in choices:
            raise ValueError(
                f"UNet needs {name} to be one of {choices}, got {getattr(unet, name)!r}. {remark}."
            )
    if not unet.channel_multipliers or unet.num_res_blocks < 1:
        raise ValueError(
            "UNet needs at least one level and one block per level, got channel_multipliers="
            f"{unet.channel_multipliers}, num_res_blocks={unet.num_res_blocks}. "
            "DDPM uses (1, 2, 2, 2) and 2."
        )
    attention = unet.attention_resolutions or unet.middle_attention != "none"
    if unet.context_features is not None and not attention:
        raise ValueError(
            f"UNet(context_features={unet.context_features}) has no attention to see the context "
            "with. Give it attention_resolutions or middle_attention."
        )
    if not isinstance(unet.patch_size, int) or unet.patch_size < 1:
        raise ValueError(
            f"UNet needs a whole patch_size of at least 1, got {unet.patch_size!r}. 1 works on "
            "pixels, 2 on patches of 2×2 pixels."
        )
    if unet.num_heads < 1 or (unet.head_channels is not None and unet.head_channels < 1):
        raise ValueError(
            f"UNet needs positive num_heads and head_channels, got {unet.num_heads} and "
            f"{unet.head_channels}. DDPM has one head: 1 and None."
        )
    if unet.num_heads > 1 and unet.head_channels is not None:
        raise ValueError(
            f"UNet got num_heads={unet.num_heads} and head_channels={unet.head_channels}. Give one "
            "of them: a number of heads, or their size."
        )
    if not unet.norm_epsilon > 0:
        raise ValueError(f"UNet needs norm_epsilon > 0, got {unet.norm_epsilon}. DDPM has 1e-6.")
    widths = [unet.channels * m for m in unet.channel_multipliers]
    for width in [unet.channels, *widths]:
        if width < 1 or unet.num_groups < 1 or width % unet.num_groups:
            raise ValueError(
                f"UNet(channels={unet.channels}, channel_multipliers={unet.channel_multipliers}) "
                f"has blocks of {width} channels, which num_groups={unet.num_groups} does not "
                "divide. Choose num_groups to divide `channels`, a quarter of it for example."
            )
    if unet.num_groups in widths and not unet.scale_shift:
        message = (
            f"UNet(num_groups={unet.num_groups}) has blocks of {unet.num_groups} channels: "
            "normalising each channel by itself removes the embedding of t there. Choose a smaller "
            "num_groups, a quarter of `channels` for example."
        )
        if set(widths) == {unet.num_groups}:
            raise ValueError(message)
        warnings.warn(message, stacklevel=4)


def check_images(unet: Any, x: Array) -> None:
    """Raises ValueError or TypeError for images that the U-Net cannot take."""
    rank = unet.spatial_rank
    if x.ndim != rank + 2:
        wanted = {1: "signals [B, L, C]", 2: "images [B, H, W, C]", 3: "volumes [B, D, H, W, C]"}
        ranks = {3: 1, 4: 2, 5: 3}
        other = f", or build UNet(spatial_rank={ranks[x.ndim]})" if x.ndim in ranks else ""
        raise ValueError(
            f"UNet needs {wanted[rank]}, got shape {x.shape}. "
            f"Add the batch axis with x[None], or the channel axis with x[..., None]{other}."
        )
    check_float("UNet", x)
    height, space = x.shape[1], x.shape[1:-1]
    size = "×".join(map(str, space))
    halvings, patch = len(unet.channel_multipliers) - 1, unet.patch_size
    multiple = patch * 2**halvings
    # PyTorch's order of axes, in all likelihood.
    swapped = rank == 2 and height <= 4 < min(x.shape[2], x.shape[3])
    hint = " Images [B, C, H, W] need x.transpose(0, 2, 3, 1) first." if swapped else ""
    events, sides = {
        1: ("signals", "their lengths"),
        2: ("images", "height and width"),
        3: ("volumes", "depth, height and width"),
    }[rank]
    if min(space) < 1 or any(length % multiple for length in space):
        first = "" if patch == 1 else f"takes patches of {patch}×{patch} pixels and "
        smaller = "" if patch == 1 else " or a smaller patch_size"
        raise ValueError(
            f"UNet {first}halves its {events} {halvings} times, so {sides} must be "
            f"multiples of {multiple}, got {size}. Pad or resize the {events}, or use "
            f"fewer channel_multipliers{smaller}.{hint}"
        )
    heights = [height // patch >> level for level in range(halvings + 1)]
    absent = sorted(set(unet.attention_resolutions) - set(heights))
    if absent:
        patches = "" if patch == 1 else f" in patches of {patch}×{patch}"
        raise ValueError(
            f"UNet never reaches attention_resolutions {absent}: on images of {size}"
            f"{patches} its heights are {heights}. Choose among those, or () for attention in the "
            f"middle only.{hint}"
        )
