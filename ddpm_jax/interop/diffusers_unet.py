"""Converts between UNet2DModel's config.json and the attributes of `UNet`.

Settings for which `UNet` has no attribute are data (FIXED): the values that it computes. A config
with anything else is refused by name, because its weights would fit a network that computes
something else.

A `UNet` with `patch_size` p is a UNet2DModel on images of patches, `pixel_unshuffle(x, p)`, with p²
times the channels and 1/p of the size. PATCH_SIZE records p.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.forward.checks import check_kind, check_shape
from ddpm_jax.interop.tensors import check_names
from ddpm_jax.nn import UNet
from ddpm_jax.nn.checks import check_images

# Setting -> (its value when absent, the values whose function `UNet` computes).
FIXED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "act_fn": ("silu", ("silu", "swish")),
    "center_input_sample": (False, (False,)),
    "class_embed_type": (None, (None,)),
    "downsample_type": ("conv", ("conv",)),
    "mid_block_scale_factor": (1, (1,)),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D",)),
    "time_embedding_type": ("positional", ("positional",)),
    "upsample_type": ("conv", ("conv",)),
}
PADDINGS = {0: "same", 1: "symmetric"}
ORDERS = {False: "sin_cos", True: "cos_sin"}  # of flip_sin_to_cos
SCALE_SHIFTS = {"default": False, "scale_shift": True}
PATCH_SIZE = "_ddpm_jax_patch_size"
"""The setting that records `patch_size`. With this underscore diffusers ignores it in silence, and
saves it again with the model."""
MAX_SIZE = 1 << 16
"""Largest width, size or count accepted; Stable Diffusion's widest layer has 1,280 channels."""
REQUIRED = object()


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIZE


class Setting(NamedTuple):
    """A setting that is read: its value when absent, what fits, and that in words."""

    default: Any
    fits: Callable[[Any], bool] = lambda value: True
    words: str = ""


COUNT = "a whole number above 0"
# Those without a test of their own are compared with others in `_problems`.
READ: dict[str, Setting] = {
    "add_attention": Setting(True, _flag, "true or false"),
    "attention_head_dim": Setting(8),
    "attn_norm_num_groups": Setting(None),
    "block_out_channels": Setting(REQUIRED),
    "down_block_types": Setting(REQUIRED),
    "downsample_padding": Setting(
        1, lambda v: isinstance(v, int) and v in PADDINGS, "only 0 and 1"
    ),
    "dropout": Setting(0.0, lambda v: _number(v) and 0 <= v < 1, "at least 0 and below 1"),
    "flip_sin_to_cos": Setting(True, _flag, "true or false"),
    "freq_shift": Setting(0, lambda v: not _flag(v) and v in (0, 1), "only 0 and 1"),
    "in_channels": Setting(3, _whole, COUNT),
    "layers_per_block": Setting(2, _whole, COUNT),
    "norm_eps": Setting(1e-5, lambda v: _number(v) and 0 < v < 1, "a number between 0 and 1"),
    "norm_num_groups": Setting(32, _whole, COUNT),
    "num_class_embeds": Setting(
        None, lambda v: v is None or (_whole(v) and v > 1), "None, or two rows at least"
    ),
    "out_channels": Setting(3, _whole, COUNT),
    "resnet_time_scale_shift": Setting(
        "default", lambda v: v in (*SCALE_SHIFTS,), f"only {' and '.join(SCALE_SHIFTS)}"
    ),
    "sample_size": Setting(REQUIRED),
    "time_embedding_dim": Setting(None),
    "up_block_types": Setting(REQUIRED),
    PATCH_SIZE: Setting(1, _whole, COUNT),
}
# Settings without effect under those above.
IGNORED = ("num_train_timesteps",)


class NetworkDescription(NamedTuple):
    """A network without its weights, and the images [H, W, C] it was made for."""

    unet: UNet
    image_shape: tuple[int, int, int]


def unet_from_diffusers_config(config: Mapping[str, Any]) -> NetworkDescription:
    """Reads the `UNet` that a UNet2DModel's config.json describes.

    The last of `num_class_embeds` rows is the `UNet`'s "no label", so there is one class fewer. The
    shape is in pixels, also if the config records a patch size.

    Raises ValueError naming every setting, with its value, that `UNet` cannot express or that this
    version does not know.

    >>> from ddpm_jax.interop import unet_from_diffusers_config
    >>> unet, shape = unet_from_diffusers_config({
    ...     "block_out_channels": [32, 64], "sample_size": 16, "norm_num_groups": 8,
    ...     "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2})
    >>> unet.embedding_order, unet.head_channels, shape
    ('cos_sin', 8, (16, 16, 3))
    """
    call = "unet_from_diffusers_config"
    check_names(call, "config", config)
    kind = config.get("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", "UNetUnconditionalModel"):  # its name in the first versions
        raise ValueError(f"{call} needs the config of a UNet2DModel, got _class_name={kind!r}.")
    known = {*FIXED, *READ, *IGNORED}
    given = {n: value for n, value in config.items() if n == PATCH_SIZE or not n.startswith("_")}
    missing = [n for n, setting in READ.items() if setting.default is REQUIRED and n not in given]
    if missing:
        raise ValueError(f"{call} got a config without {missing}. Pass all of config.json.")
    problems = [f"{name}={given[name]!r} (unknown here)" for name in given if name not in known]
    for name, (default, allowed) in FIXED.items():
        value = given.get(name, default)
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            how = "" if name in given else ", its default"
            problems.append(f"{name}={value!r}{how} (only {allowed[0]!r})")
    values = {name: given.get(name, setting.default) for name, setting in READ.items()}
    problems += _problems(values)
    if problems:
        raise ValueError(
            f"{call}: UNet cannot express this network: " + "; ".join(problems) + ". It expresses "
            "google/ddpm-cifar10-32 and the default settings of UNet2DModel, among others."
        )
    widths, (height, width) = values["block_out_channels"], _size(values["sample_size"])
    patch = values[PATCH_SIZE]
    attended = [name.endswith("AttnDownBlock2D") for name in values["down_block_types"]]
    scale_shift = SCALE_SHIFTS[values["resnet_time_scale_shift"]]
    if not values["add_attention"]:
        middle = "none"
    elif scale_shift and values["attn_norm_num_groups"] is None:
        middle = "plain"
    else:
        middle = "normalised"
    head, classes = values["attention_head_dim"], values["num_class_embeds"]
    try:
        unet = UNet(
            channels=widths[0],
            channel_multipliers=tuple(w // widths[0] for w in widths),
            num_res_blocks=values["layers_per_block"],
            attention_resolutions=tuple(height >> i for i, here in enumerate(attended) if here),
            dropout=float(values["dropout"]),
            out_channels=values["out_channels"] // patch**2,
            patch_size=patch,
            num_groups=values["norm_num_groups"],
            num_classes=None if classes is None else classes - 1,
            downsample_padding=PADDINGS[values["downsample_padding"]],
            # A head as wide as every level that has attention is one head.
            head_channels=None if _attended_widths(values) <= {head} else head,
            middle_attention=middle,
            scale_shift=scale_shift,
            embedding_order=ORDERS[values["flip_sin_to_cos"]],
            embedding_shift=int(values["freq_shift"]),
            norm_epsilon=float(values["norm_eps"]),
        )
    except ValueError as error:
        raise ValueError(f"{call} got the settings of no network: {error}") from error
    shape = (height * patch, width * patch, values["in_channels"] // patch**2)
    return NetworkDescription(unet, shape)


def unet_to_diffusers_config(unet: UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Writes the config.json of the UNet2DModel that computes what `unet` does on such images.

    With `unet.patch_size` p it does so on `pixel_unshuffle(x, p)`, and p is kept as PATCH_SIZE.

    Raises ValueError for what UNet2DModel cannot express: `cond`, `context`, resampling without
    convolutions, a first level wider than `channels`, heads of several sizes, and attention in the
    middle that is "plain" without `scale_shift`; and for images that `unet` does not take.

    >>> from ddpm_jax.interop import unet_to_diffusers_config
    >>> unet_to_diffusers_config(dj.UNet(), (32, 32, 3))["block_out_channels"]
    [128, 256, 256, 256]
    """
    call = "unet_to_diffusers_config"
    check_kind(call, "unet", unet, UNet, "such as dj.UNet()")
    *size, channels = check_shape(call, "image_shape", image_shape, "HWC")
    patch = unet.patch_size
    height, width = (length // patch for length in size)
    widths = [unet.channels * m for m in unet.channel_multipliers]
    attended = [height >> level in unet.attention_resolutions for level in range(len(widths))]
    middle = unet.middle_attention
    lacking = {
        "cond_features": (None, "it has no such input"),
        "context_features": (None, "it has no such input"),
        "spatial_rank": (2, "it works on images"),
        "resample_with_conv": (True, "its blocks resample by convolutions"),
    }
    problems = [
        f"{name}={getattr(unet, name)} ({why})"
        for name, (needed, why) in lacking.items()
        if getattr(unet, name) != needed
    ]
    if unet.channel_multipliers[0] != 1:
        problems.append(
            f"channel_multipliers={unet.channel_multipliers} (its first level has `channels`)"
        )
    if middle == "plain" and not unet.scale_shift:
        problems.append("middle_attention='plain' without scale_shift (it normalises there)")
    head = unet.head_channels
    if unet.num_heads > 1:
        heads = {w / unet.num_heads for w, here in zip(widths, attended, strict=True) if here}
        heads |= {widths[-1] / unet.num_heads} if middle != "none" else set()
        head = int(max(heads, default=8))
        if len(heads) > 1:
            problems.append(f"num_heads={unet.num_heads} (its heads have one size at all levels)")
    if problems:
        raise ValueError(f"{call}: UNet2DModel cannot express " + "; ".join(problems) + ".")
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    jax.eval_shape(lambda x: check_images(unet, x), images)
    out_channels = channels if unet.out_channels is None else unet.out_channels
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.35.0",
        **{name: allowed[0] for name, (_, allowed) in FIXED.items()},
        "add_attention": middle != "none",
        "attention_head_dim": head,
        # With scale_shift, None leaves out the normalisation.
        "attn_norm_num_groups": (
            unet.num_groups if unet.scale_shift and middle == "normalised" else None
        ),
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "downsample_padding": _key(PADDINGS, unet.downsample_padding),
        "dropout": float(unet.dropout),
        "flip_sin_to_cos": _key(ORDERS, unet.embedding_order),
        "freq_shift": unet.embedding_shift,
        "in_channels": channels * patch**2,
        "layers_per_block": unet.num_res_blocks,
        "norm_eps": unet.norm_epsilon,
        "norm_num_groups": unet.num_groups,
        "num_class_embeds": None if unet.num_classes is None else unet.num_classes + 1,
        "out_channels": out_channels * patch**2,
        "resnet_time_scale_shift": _key(SCALE_SHIFTS, unet.scale_shift),
        "sample_size": height if height == width else [height, width],
        "time_embedding_dim": None,
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in attended[::-1]],
        **({} if patch == 1 else {PATCH_SIZE: patch}),
    }


def _problems(values: Mapping[str, Any]) -> list[str]:
    """Says what is wrong with the settings that are read."""
    problems = []
    widths, down, up = (
        values[name] for name in ("block_out_channels", "down_block_types", "up_block_types")
    )
    if not (isinstance(widths, (list, tuple)) and widths and all(_whole(w) for w in widths)):
        return [f"block_out_channels={widths!r} (a list of whole numbers)"]
    if any(w % widths[0] for w in widths):
        problems.append(f"block_out_channels={list(widths)} (multiples of the first)")
    for name, blocks, kinds in (
        ("down_block_types", down, ("DownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", up, ("UpBlock2D", "AttnUpBlock2D")),
    ):
        if not isinstance(blocks, (list, tuple)) or len(blocks) != len(widths):
            return [*problems, f"{name}={blocks!r} (a list, one for each of block_out_channels)"]
        # The first versions wrote the same blocks with this prefix.
        strange = sorted({str(b) for b in blocks if str(b).removeprefix("UNetRes") not in kinds})
        if strange:
            problems.append(f"{name} with {strange} (only {' and '.join(kinds)})")
    attended = ["Attn" in str(block) for block in down]
    if attended != ["Attn" in str(block) for block in up][::-1]:
        problems.append(f"up_block_types={list(up)} (the levels of down_block_types, mirrored)")
    head = values["attention_head_dim"]
    if head is not None and (not _whole(head) or any(w % head for w in _attended_widths(values))):
        problems.append(f"attention_head_dim={head!r} (None, or a divisor of every width)")
    if values["attn_norm_num_groups"] not in (None, values["norm_num_groups"]):
        problems.append(f"attn_norm_num_groups={values['attn_norm_num_groups']!r} (only None)")
    problems += [
        f"{name}={values[name]!r} ({setting.words})"
        for name, setting in READ.items()
        if not setting.fits(values[name])
    ]
    if values["time_embedding_dim"] not in (None, 4 * widths[0]):
        problems.append(f"time_embedding_dim={values['time_embedding_dim']!r} (only None)")
    patch = values[PATCH_SIZE]
    problems += [
        f"{name}={values[name]} (a multiple of {PATCH_SIZE}² = {patch**2})"
        for name in ("in_channels", "out_channels")
        if _whole(patch) and _whole(values[name]) and values[name] % patch**2
    ]
    size = _size(values["sample_size"])
    multiple = 2 ** (len(widths) - 1)
    if len(size) != 2 or not all(_whole(n) and n % multiple == 0 for n in size):
        problems.append(f"sample_size={values['sample_size']!r} (multiples of {multiple})")
    return problems


def _size(value: Any) -> tuple[Any, ...]:
    """Height and width of a sample_size, which may be one number for both."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _attended_widths(values: Mapping[str, Any]) -> set[int]:
    """Widths of the levels with attention, the middle included."""
    widths, blocks = values["block_out_channels"], values["down_block_types"]
    attended = {w for w, block in zip(widths, blocks, strict=True) if "Attn" in str(block)}
    return attended | ({widths[-1]} if values["add_attention"] else set())


def _key(names: Mapping[Any, Any], value: Any) -> Any:
    """Inverts a mapping."""
    return next(key for key, name in names.items() if name == value)
