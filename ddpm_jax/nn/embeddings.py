"""How a network reads its conditions: the step t through sinusoids, a label through a table.

With half = dim // 2 and ω_i = max_period^(-i / (half - 1)), i = 0 … half-1,

    embedding(t) = [sin(ω_0 t), …, sin(ω_{half-1} t), cos(ω_0 t), …, cos(ω_{half-1} t)].

Rivals in circulation put the cosines first, or divide by half in place of half - 1. Weights trained
with one order are useless with another, so there is no switch: this is the order of DDPM.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array, ArrayLike


def sinusoidal_embedding(t: ArrayLike, dim: int, max_period: float = 10_000.0) -> Array:
    """Embeds t [...], integers or floats, as float32 [..., dim]: sines, then cosines.

    The wavelengths run geometrically from 2π to 2π max_period, both included. An odd `dim` ends in
    one zero. Float32 holds the angle ω t to about 6e-8 t radians.

    Raises ValueError when `dim` is below 4 (one frequency has no geometric ladder) or `max_period`
    is not above 1. Source: Ho et al. 2020, Appendix B, after Vaswani et al. 2017, §3.5.
    """
    if dim < 4:
        raise ValueError(
            f"sinusoidal_embedding needs dim >= 4, got {dim=}: its frequencies run from 1 to "
            "1 / max_period, so it takes two at least, each with a sine and a cosine. "
            "DDPM uses 128."
        )
    if not max_period > 1:
        raise ValueError(
            f"sinusoidal_embedding needs max_period > 1, got {max_period=}. DDPM uses 10000."
        )
    half = dim // 2
    # On the host in float64: a float32 exp is off by a few units in the last place, and t ≈ 1000
    # turns that into 1e-4 of a radian.
    exponents = np.arange(half, dtype=np.float64) / (half - 1)
    frequencies = np.exp(-np.log(max_period) * exponents).astype(np.float32)
    t = jnp.asarray(t)
    angles = t.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * t.ndim + (half,))
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    if dim % 2:
        embedding = jnp.pad(embedding, [(0, 0)] * t.ndim + [(0, 1)])
    return embedding


def broadcast_steps(call: str, t: ArrayLike, batch: int) -> Array:
    """Returns t as [batch], from [batch] or a scalar; raises ValueError for any other shape."""
    t = jnp.asarray(t)
    if t.shape not in ((), (batch,)):
        raise ValueError(
            f"{call} needs one step t an example, shape ({batch},), or a scalar for all, "
            f"got shape {t.shape}."
        )
    return jnp.broadcast_to(t, (batch,))


class LabelEmbedding(nn.Module):
    """A table of num_classes + 1 learned rows, the last of which stands for "no label"."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label: ArrayLike | None, batch: int) -> Array:
        """Looks up labels [batch] in 0 … num_classes, or "no label" for None: [batch, features].

        Labels beyond the table give NaN, never a wrong row. Raises ValueError for another shape.
        """
        if label is None:
            label = self.num_classes
        elif jnp.shape(label) != (batch,):
            raise ValueError(
                f"A network needs one label an example, shape ({batch},), got shape "
                f"{jnp.shape(label)}. Pass integers 0 … {self.num_classes - 1}, and "
                f"{self.num_classes} for examples without a label."
            )
        indices = jnp.broadcast_to(jnp.asarray(label), (batch,))
        return nn.Embed(self.num_classes + 1, self.features, name="table")(indices)


def check_label(call: str, label: ArrayLike | None, num_classes: int | None) -> None:
    """Raises ValueError for a label on an unconditional network, which would ignore it."""
    if label is not None and num_classes is None:
        raise ValueError(
            f"{call} got a label but num_classes=None: an unconditional network would ignore it. "
            f"Build {call}(num_classes=...), or leave the label out."
        )


def check_num_classes(call: str, num_classes: int | None) -> None:
    """Raises ValueError unless `num_classes` is None or positive."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(
            f"{call} needs num_classes >= 1, got {num_classes}. "
            "Leave it None for an unconditional network."
        )
