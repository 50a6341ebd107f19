"""How a network reads its conditions: the step t, a label, a vector.

With half = dim // 2 and ω_i = max_period^(-i / (half - shift)), i = 0 … half-1, the step is

    embedding(t) = [sin(ω_0 t), …, sin(ω_{half-1} t), cos(ω_0 t), …, cos(ω_{half-1} t)].

DDPM has shift = 1. Other projects have shift = 0 or put the cosines first. Weights trained with
one convention are useless with another, and do not show which they need.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ddpm_jax.nn.blocks import dense
from ddpm_jax.types import Array, ArrayLike


def sinusoidal_embedding(
    t: ArrayLike,
    dim: int,
    max_period: float = 10_000.0,
    *,
    order: str = "sin_cos",
    shift: int = 1,
) -> Array:
    """Embeds t [...], integers or floats, as float32 [..., dim]: sines and cosines of ω_i t.

    The wavelengths 2π / ω_i run geometrically from 2π to 2π max_period, both included for the
    `shift` of 1. The `order` "sin_cos" puts the sines first, "cos_sin" the cosines. An odd `dim`
    ends in one zero. Float32 represents the angle ω t to about 6e-8 t radians.

    Raises ValueError for `dim` below 4 (one frequency is no geometric sequence), `max_period` not
    above 1, or another `order` or `shift`. Source: Ho et al. 2020, Appendix B, after Vaswani et al.
    2017, §3.5; guided-diffusion and diffusers' default: "cos_sin" and 0.

    >>> dj.nn.sinusoidal_embedding(jnp.array([0, 10]), dim=4).shape
    (2, 4)
    """
    if dim < 4:
        raise ValueError(
            f"sinusoidal_embedding needs dim >= 4, got {dim=}: it needs at least two frequencies, "
            "each with a sine and a cosine. DDPM uses 128."
        )
    if not max_period > 1:
        raise ValueError(
            f"sinusoidal_embedding needs max_period > 1, got {max_period=}. DDPM uses 10000."
        )
    check_embedding("sinusoidal_embedding", order, shift)
    half = dim // 2
    # On the host in float64: a float32 exp is off by a few units in the last place, and t ≈ 1000
    # turns that into 1e-4 of a radian.
    exponents = np.arange(half, dtype=np.float64) / (half - shift)
    frequencies = np.exp(-np.log(max_period) * exponents).astype(np.float32)
    t = jnp.asarray(t)
    angles = t.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * t.ndim + (half,))
    waves = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(waves if order == "sin_cos" else waves[::-1], axis=-1)
    if dim % 2:
        embedding = jnp.pad(embedding, [(0, 0)] * t.ndim + [(0, 1)])
    return embedding


def broadcast_steps(call: str, t: ArrayLike, batch: int) -> Array:
    """Returns t as [batch], from [batch] or a scalar.

    Raises ValueError for any other shape and TypeError for what is no number.
    """
    t = jnp.asarray(t)
    if t.shape not in ((), (batch,)):
        raise ValueError(
            f"{call} needs one step t per example, shape ({batch},), or a scalar for all, "
            f"got shape {t.shape}."
        )
    if not (jnp.issubdtype(t.dtype, jnp.integer) or jnp.issubdtype(t.dtype, jnp.floating)):
        raise TypeError(f"{call} needs steps t that are integers or floats, got {t.dtype}.")
    return jnp.broadcast_to(t, (batch,))


class LabelEmbedding(nn.Module):
    """A table of num_classes + 1 learned rows, the last of which stands for "no label"."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label: ArrayLike | None, batch: int) -> Array:
        """Looks up labels [batch] in 0 … num_classes; None is "no label": [batch, features].

        Labels outside the table give NaN, never a wrong row.
        """
        indices = jnp.broadcast_to(self.num_classes if label is None else label, (batch,))
        return nn.Embed(self.num_classes + 1, self.features, name="table")(indices)


def add_conditions(
    module: Any, embedding: Array, label: ArrayLike | None, cond: ArrayLike | None
) -> Array:
    """Adds the embeddings of the labels and vectors that `module` takes to embedding [B, E].

    For the compact method of a network with attributes `num_classes` and `cond_features`.

    Raises ValueError for a condition that the network does not take and for another shape,
    TypeError for another dtype.
    """
    batch, features = embedding.shape
    check_conditions(module, batch, label, cond)
    if module.num_classes is not None:
        table = LabelEmbedding(module.num_classes, features, name="label_embedding")
        embedding += table(label, batch)
    if module.cond_features is not None:
        vectors = jnp.zeros((batch, module.cond_features)) if cond is None else jnp.asarray(cond)
        embedding += dense(features, jnp.float32, name="cond_dense")(vectors)
    return embedding


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


def check_num_conditions(module: Any) -> None:
    """Raises ValueError unless `num_classes` and `cond_features` are None or positive."""
    for name in ("num_classes", "cond_features"):
        value = getattr(module, name)
        if value is not None and value < 1:
            raise ValueError(
                f"{type(module).__name__} needs {name} >= 1, got {value}. "
                "Leave it None for a network without this condition."
            )


def check_embedding(call: str, order: str, shift: int) -> None:
    """Raises ValueError for an unknown order or shift of the sinusoidal embedding."""
    if order not in ("sin_cos", "cos_sin"):
        raise ValueError(
            f"{call} needs the order 'sin_cos' or 'cos_sin', got {order!r}. DDPM has 'sin_cos'."
        )
    if shift not in (0, 1):
        raise ValueError(f"{call} needs the shift 0 or 1, got {shift!r}. DDPM has 1.")
