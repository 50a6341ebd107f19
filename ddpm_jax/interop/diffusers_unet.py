"""UNet2DModel's config.json and `UNet`: the same network, said in the other's words.

What `UNet` leaves no choice in is data (FIXED): the one value it is built for. Anything else in a
config is refused by name, for the weights would fit a network that computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax.nn import UNet

# Setting -> (what an absent one means, the values whose function `UNet` is).
FIXED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "act_fn": ("silu", ("silu", "swish")),
    "add_attention": (True, (True,)),
    "center_input_sample": (False, (False,)),
    "class_embed_type": (None, (None,)),
    "downsample_type": ("conv", ("conv",)),
    "flip_sin_to_cos": (True, (False,)),
    "freq_shift": (0, (1,)),
    "mid_block_scale_factor": (1, (1,)),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D",)),
    "norm_eps": (1e-5, (1e-6,)),
    "num_class_embeds": (None, (None,)),
    "resnet_time_scale_shift": ("default", ("default",)),
    "time_embedding_type": ("positional", ("positional",)),
    "upsample_type": ("conv", ("conv",)),
}
# Settings that are read; what an absent one means, or REQUIRED.
REQUIRED = object()
READ: dict[str, Any] = {
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": REQUIRED,
    "down_block_types": REQUIRED,
    "downsample_padding": 1,
    "dropout": 0.0,
    "in_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": REQUIRED,
    "time_embedding_dim": None,
    "up_block_types": REQUIRED,
}
# Of no effect under the settings above.
IGNORED = ("num_train_timesteps",)
PADDINGS = {0: "same", 1: "symmetric"}
LARGEST = 1 << 16
"""Of any width, size or count; Stable Diffusion's widest layer has 1,280 channels."""


class NetworkDescription(NamedTuple):
    """A network without its weights, and the images [H, W, C] it was made for."""

    unet: UNet
    image_shape: tuple[int, int, int]


def unet_from_diffusers_config(config: Mapping[str, Any]) -> NetworkDescription:
    """The `UNet` that a UNet2DModel's config.json describes.

    Raises ValueError naming every setting, with its value, that `UNet` cannot express or that this
    version does not know.
    """
    call = "unet_from_diffusers_config"
    kind = config.get("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", "UNetUnconditionalModel"):  # its name in the first versions
        raise ValueError(f"{call} needs the config of a UNet2DModel, got _class_name={kind!r}.")
    known = {*FIXED, *READ, *IGNORED}
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    missing = [name for name, value in READ.items() if value is REQUIRED and name not in given]
    if missing:
        raise ValueError(f"{call} got a config without {missing}. Pass all of config.json.")
    problems = [f"{name}={given[name]!r} (unknown here)" for name in given if name not in known]
    for name, (default, allowed) in FIXED.items():
        value = given.get(name, default)
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            how = "" if name in given else ", its default"
            problems.append(f"{name}={value!r}{how} (only {allowed[0]!r})")
    values = {name: given.get(name, default) for name, default in READ.items()}
    problems += _problems(values)
    if problems:
        raise ValueError(
            f"{call}: this network is not one that UNet can express: " + "; ".join(problems) + ". "
            "UNet is DDPM's own: google/ddpm-cifar10-32 and its like have these settings."
        )
    widths, height, width = values["block_out_channels"], *_size(values["sample_size"])
    attended = [name.endswith("AttnDownBlock2D") for name in values["down_block_types"]]
    unet = UNet(
        channels=widths[0],
        channel_multipliers=tuple(w // widths[0] for w in widths),
        num_res_blocks=values["layers_per_block"],
        attention_resolutions=tuple(height >> i for i, here in enumerate(attended) if here),
        dropout=float(values["dropout"]),
        out_channels=values["out_channels"],
        num_groups=values["norm_num_groups"],
        downsample_padding=PADDINGS[values["downsample_padding"]],
    )
    return NetworkDescription(unet, (height, width, values["in_channels"]))


def unet_to_diffusers_config(unet: UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The config.json of the UNet2DModel that computes what `unet` does on such images.

    Raises ValueError for what UNet2DModel cannot express: labels (DDPMPipeline passes none),
    resampling without convolutions, a first level wider than `channels`.
    """
    height, width, channels = image_shape
    problems = []
    if unet.num_classes is not None:
        problems.append(f"num_classes={unet.num_classes} (DDPMPipeline passes no labels)")
    if not unet.resample_with_conv:
        problems.append("resample_with_conv=False (its blocks resample by convolutions)")
    if unet.patch_size != 1:
        problems.append(f"patch_size={unet.patch_size} (it works on pixels)")
    if unet.channel_multipliers[0] != 1:
        problems.append(
            f"channel_multipliers={unet.channel_multipliers} (its first level has `channels`)"
        )
    if problems:
        raise ValueError(
            "unet_to_diffusers_config: UNet2DModel cannot express " + "; ".join(problems) + "."
        )
    levels = range(len(unet.channel_multipliers))
    attended = [height >> level in unet.attention_resolutions for level in levels]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.35.0",
        **{name: allowed[0] for name, (_, allowed) in FIXED.items()},
        "attention_head_dim": None,
        "attn_norm_num_groups": None,
        "block_out_channels": [unet.channels * m for m in unet.channel_multipliers],
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "downsample_padding": {v: k for k, v in PADDINGS.items()}[unet.downsample_padding],
        "dropout": float(unet.dropout),
        "in_channels": channels,
        "layers_per_block": unet.num_res_blocks,
        "norm_num_groups": unet.num_groups,
        "out_channels": channels if unet.out_channels is None else unet.out_channels,
        "sample_size": height if height == width else [height, width],
        "time_embedding_dim": None,
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in attended[::-1]],
    }


def _problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings that are read, in words."""
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
        # The prefix is how the first versions spelt the same blocks.
        strange = sorted({str(b) for b in blocks if str(b).removeprefix("UNetRes") not in kinds})
        if strange:
            problems.append(f"{name} with {strange} (only {' and '.join(kinds)})")
    attended = ["Attn" in str(block) for block in down]
    if attended != ["Attn" in str(block) for block in up][::-1]:
        problems.append(f"up_block_types={list(up)} (the levels of down_block_types, mirrored)")
    heads = {w for w, here in zip(widths, attended, strict=True) if here} | {widths[-1]}
    head = values["attention_head_dim"]
    if head is not None and any(head != width for width in heads):
        problems.append(f"attention_head_dim={head!r} (only None: one head)")
    if values["attn_norm_num_groups"] not in (None, values["norm_num_groups"]):
        problems.append(f"attn_norm_num_groups={values['attn_norm_num_groups']!r} (only None)")
    if values["time_embedding_dim"] not in (None, 4 * widths[0]):
        problems.append(f"time_embedding_dim={values['time_embedding_dim']!r} (only None)")
    padding = values["downsample_padding"]
    if not (isinstance(padding, int) and padding in PADDINGS):
        problems.append(f"downsample_padding={padding!r} (only 0 and 1)")
    for name in ("in_channels", "layers_per_block", "norm_num_groups", "out_channels"):
        if not _whole(values[name]):
            problems.append(f"{name}={values[name]!r} (a whole number above 0)")
    drop = values["dropout"]
    if isinstance(drop, bool) or not isinstance(drop, (int, float)) or not 0 <= drop < 1:
        problems.append(f"dropout={drop!r} (a share from 0 to below 1)")
    size = _size(values["sample_size"])
    multiple = 2 ** (len(widths) - 1)
    if len(size) != 2 or not all(_whole(n) and n % multiple == 0 for n in size):
        problems.append(f"sample_size={values['sample_size']!r} (multiples of {multiple})")
    return problems


def _size(value: Any) -> tuple[Any, ...]:
    """Height and width of a sample_size, which may be one number for both."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST
