"""Floating-point operations of the U-Net, counted by hand from its attributes.

A product of [m, k] and [k, n] is 2mkn. Convolutions and products only: normalisation, activations
and sums are under 1 % of them. A training step is three times the forward pass: one for the output,
one for the gradient with respect to the input, one for that with respect to the weights.
"""

from __future__ import annotations

from collections import Counter

from ddpm_jax.nn import UNet


def unet_flops(unet: UNet, size: int, channels: int = 3) -> dict[str, float]:
    """Operations of one image's forward pass by kind: conv3x3, conv1x1, attention, dense.

    Parallel to `UNet.__call__`, for images of size × size; with convolutions where it resamples.
    """
    count: Counter[str] = Counter()
    embedding = 4 * unet.channels

    def conv(height: int, c_in: int, c_out: int) -> int:
        count["conv3x3"] += 2 * 9 * c_in * c_out * height * height
        return c_out

    def block(height: int, c_in: int, level: int) -> int:
        c_out = unet.channels * unet.channel_multipliers[level]
        conv(height, c_in, c_out)
        conv(height, c_out, c_out)
        count["dense"] += 2 * embedding * c_out
        if c_in != c_out:
            count["conv1x1"] += 2 * c_in * c_out * height * height
        return c_out

    def attend(height: int, width: int) -> None:
        places = height * height
        count["conv1x1"] += 4 * 2 * width * width * places
        count["attention"] += 2 * 2 * places * places * width

    heights = [size >> level for level in range(len(unet.channel_multipliers))]
    last = len(heights) - 1
    count["dense"] += 2 * unet.channels * embedding + 2 * embedding * embedding
    h = conv(size, channels, unet.channels)
    skips = [h]
    for level, height in enumerate(heights):
        for _ in range(unet.num_res_blocks):
            h = block(height, h, level)
            if height in unet.attention_resolutions:
                attend(height, h)
            skips.append(h)
        if level != last:
            h = conv(height // 2, h, h)
            skips.append(h)
    h = block(heights[last], h, last)
    attend(heights[last], h)
    h = block(heights[last], h, last)
    for level in reversed(range(len(heights))):
        for _ in range(unet.num_res_blocks + 1):
            h = block(heights[level], h + skips.pop(), level)
            if heights[level] in unet.attention_resolutions:
                attend(heights[level], h)
        if level != 0:
            h = conv(2 * heights[level], h, h)
    conv(size, h, channels if unet.out_channels is None else unet.out_channels)
    return {name: float(value) for name, value in count.items()}
