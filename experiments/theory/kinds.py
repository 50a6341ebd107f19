"""The kinds of generative model as boxes and arrows, and the forward chain as pictures."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from sklearn.datasets import load_sample_image

import ddpm_jax as dj
from ddpm_jax.data import load_digits
from ddpm_jax.visualize import save_rows
from ddpm_jax.visualize.files import DPI, INK, write_figure

SAMPLING = "#d55e00"
LEARNED, FIXED, PLAIN = "#56b4e9", "#e6e8eb", "#ffffff"
WIDTH, HEIGHT, GAP = 1.3, 0.56, 0.62
TOTAL = 12.0

# Boxes from left to right, (text, colour); the label over each arrow; and what is optimised.
KINDS = (
    (
        "GAN",
        [("noise z", PLAIN), ("generator", LEARNED), ("image x", PLAIN), ("critic", LEARNED)],
        ["", "sampling", "or data"],
        "a game: the critic tells samples from data,\nthe generator deceives it; no likelihood",
    ),
    (
        "VAE",
        [("image x", PLAIN), ("encoder", LEARNED), ("latent z", PLAIN), ("decoder", LEARNED)],
        ["", "q(z|x)", ""],
        "a bound on -log p(x):\nKL to the prior + reconstruction",
    ),
    (
        "Flow",
        [
            ("image x", PLAIN),
            ("invertible f", LEARNED),
            ("latent z", PLAIN),
            ("inverse f⁻¹", LEARNED),
        ],
        ["", "same size", ""],
        "log p(x) itself:\nlog p(z) + log |det ∂f/∂x|",
    ),
    (
        "Energy",
        [("image x", PLAIN), ("energy f", LEARNED), ("score -∇f", PLAIN), ("Langevin", FIXED)],
        ["", "", ""],
        "-log p(x) = f(x) + log Z; Z is intractable,\nthe score does not depend on it",
    ),
    (
        "Diffusion",
        [
            ("image x_0", PLAIN),
            ("q: add noise", FIXED),
            ("x_1, …, x_T", PLAIN),
            ("p_θ: denoise", LEARNED),
        ],
        ["", "T steps", ""],
        "a bound on -log p(x_0), one regression\nper step: predict the noise in x_t",
    ),
)


def draw_kinds(path: Path) -> None:
    """§14: one row per kind; blue boxes are learned, grey ones are fixed."""
    height = 1.12
    figure = Canvas(figsize=(TOTAL, height * len(KINDS) + 0.75), dpi=DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, TOTAL)
    axes.set_ylim(-height * len(KINDS) - 0.05, 0.7)
    axes.axis("off")
    axes.text(
        0.15,
        0.42,
        "Five kinds of model: what is learned is blue, and diffusion fixes the encoder (grey)",
        fontsize=12,
        fontweight="bold",
        color=INK,
        va="center",
    )
    for row, (name, boxes, labels, objective) in enumerate(KINDS):
        y = -height * (row + 0.5) + 0.1
        axes.text(0.15, y, name, fontsize=11, fontweight="bold", color=INK, va="center")
        for i, (text, colour) in enumerate(boxes):
            x = 1.25 + i * (WIDTH + GAP)
            axes.add_patch(
                FancyBboxPatch(
                    (x, y - HEIGHT / 2),
                    WIDTH,
                    HEIGHT,
                    boxstyle="round,pad=0,rounding_size=0.08",
                    facecolor=colour,
                    edgecolor=INK if colour != PLAIN else "#9aa0a8",
                    linewidth=1.0,
                    alpha=1.0,
                )
            )
            axes.text(x + WIDTH / 2, y, text, fontsize=9.5, color=INK, ha="center", va="center")
            if i:
                start = x - GAP
                axes.annotate(
                    "",
                    (x - 0.02, y),
                    (start + 0.02, y),
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": SAMPLING if labels[i - 1] == "sampling" else INK,
                        "linewidth": 1.3,
                    },
                )
                label = labels[i - 1]
                if label:
                    axes.text(
                        x - GAP / 2,
                        y + 0.07,
                        label,
                        fontsize=8,
                        color=SAMPLING if label == "sampling" else INK,
                        ha="center",
                    )
        _return_arrow(axes, name, y)
        axes.text(8.65, y, objective, fontsize=8.5, color=INK, va="center")
    write_figure(path, figure)


def _return_arrow(axes, name: str, y: float) -> None:
    """From the last box back to the image, where sampling ends in it."""
    if name == "GAN":
        return
    left, right = 1.25 + WIDTH / 2, 1.25 + 3 * (WIDTH + GAP) + WIDTH / 2
    low = y - HEIGHT / 2
    axes.plot(
        [right, right, left, left],
        [low, low - 0.17, low - 0.17, low - 0.08],
        color=SAMPLING,
        linewidth=1.3,
    )
    axes.annotate(
        "",
        (left, low),
        (left, low - 0.12),
        arrowprops={"arrowstyle": "-|>", "color": SAMPLING, "linewidth": 1.3},
    )
    axes.text(
        (left + right) / 2,
        low - 0.13,
        "sampling",
        fontsize=8,
        color=SAMPLING,
        ha="center",
        va="bottom",
    )


def photograph(size: int = 64) -> np.ndarray:
    """scikit-learn's sample photograph of a flower, its middle, uint8 [size, size, 3]."""
    image = Image.fromarray(load_sample_image("flower.jpg"))
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    middle = image.crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((size, size), Image.Resampling.LANCZOS))


CHAIN = (10, 50, 100, 200, 300, 500, 1000)


def draw_chain(path: Path, seed: int = 0) -> dict[str, list[float]]:
    """§6: a photograph and a digit after t steps of q, magnified alike; shares of signal below."""
    schedule = dj.linear_schedule()
    digit = np.asarray(load_digits("train").images[0])
    digit = np.repeat(np.repeat(digit, 8, axis=0), 8, axis=1)
    pair = [photograph(), np.broadcast_to(digit, (64, 64, 3))]
    key_photo, key_digit = jax.random.split(jax.random.key(seed))
    # The digit's noise is drawn at its own 8×8 pixels.
    small = jax.random.normal(key_digit, (8, 8, 1))
    noises = [
        jax.random.normal(key_photo, (64, 64, 3)),
        jnp.broadcast_to(jnp.repeat(jnp.repeat(small, 8, 0), 8, 1), (64, 64, 3)),
    ]
    rows = []
    for image, noise in zip(pair, noises, strict=True):
        x_0 = dj.from_pixels(jnp.asarray(image))
        t = jnp.asarray(CHAIN) - 1
        shape = (len(CHAIN), *x_0.shape)
        x_t = dj.q_sample(schedule, jnp.broadcast_to(x_0, shape), t, jnp.broadcast_to(noise, shape))
        rows.append(np.concatenate([image[None], np.asarray(dj.to_pixels(x_t))]))
    signal = [1.0, *(float(schedule.signal_scale[t - 1]) for t in CHAIN)]
    captions = [[f"√ᾱ = {share:.2g}" for share in signal]] * 2
    save_rows(
        path,
        np.stack(rows),
        row_labels=["photograph, 64×64", "digit, 8×8"],
        column_labels=["x_0", *(f"t = {t}" for t in CHAIN)],
        captions=captions,
    )
    return {"t": [0, *CHAIN], "signal_scale": signal}
