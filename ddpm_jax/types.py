"""The vocabulary every module shares: arrays, keys, the denoiser, and how shapes are read.

Shape legend, used by every docstring:

    B           batch
    H, W, C     height, width, channels (images are NHWC); signals are [L, C], volumes [D, H, W, C]
    T           number of steps of the diffusion process
    S           number of steps of a sampler's grid
    [B, ...]    a batch of events of any shape: images, vectors, or plain scalars [B]
    t           int32 step of a schedule, [B] for one step per example or [] for one step shared by
                all; 0-based, so the code's t is the papers' t+1
    timesteps   int32 [B], the numbers a network or denoiser is called with: `schedule.timesteps[t]`
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import TracerArrayConversionError

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
Key = jax.Array  # a typed key, as `jax.random.key` makes them
Device = Any  # a jax.Device: that name is a function's value to type checkers
PyTree = Any

SPATIAL_AXES = {1: "L", 2: "HW", 3: "DHW"}
"""The spatial axes of signals, images and volumes, by their number."""


class ApplyFn(Protocol):
    """A network with its parameters bound: `apply_fn(x_t, timesteps) -> output`.

    `timesteps` [B] are the numbers of the process the network was trained on
    (`schedule.timesteps[t]`), whatever grid a sampler uses.
    """

    def __call__(self, x_t: Array, timesteps: Array, /) -> Array:
        """Evaluates the network."""
        ...


class Denoised(NamedTuple):
    """The estimate of x_0 [B, ...], with the network's raw variance output [B, ...] if it has one.

    A denoiser returns this if its network also learned the variance of the reverse step; a denoiser
    without variance output may return the plain array x̂_0.

    >>> dj.Denoised(jnp.zeros((2, 3)), variance_output=jnp.ones((2, 3))).x_0.shape
    (2, 3)
    """

    x_0: Array
    variance_output: Array | None = None


class Denoiser(Protocol):
    """A network seen through its estimate of the clean data: `denoise(x_t, timesteps) -> x̂_0`.

    `timesteps` [B] are numbers of the full process the denoiser belongs to, as for `ApplyFn`.
    Returns x̂_0 [B, ...] of x_t's shape, or `Denoised` if a variance output comes with it.
    """

    def __call__(self, x_t: Array, timesteps: Array, /) -> Array | Denoised:
        """Estimates x_0."""
        ...


class LevelScore(Protocol):
    """A noise-conditional score: `(y [B, ...], level int32 [B]) -> ∇ log p_σ(y)` [B, ...].

    `level` counts the noise levels, 0 for the largest.
    """

    def __call__(self, y: Array, level: Array, /) -> Array:
        """Evaluates the score."""
        ...


def x_0_of(denoised: Array | Denoised, x_t: Array) -> Array:
    """The x̂_0 [B, ...] in what a denoiser returned for x_t [B, ...], with its shape checked.

    Raises TypeError for anything but a floating-point array or `Denoised`, and ValueError if x̂_0 or
    the variance output is not of x_t's shape.

    >>> dj.types.x_0_of(dj.Denoised(jnp.zeros((2, 3))), jnp.ones((2, 3))).shape
    (2, 3)
    """
    x_0, variance_output = denoised if isinstance(denoised, Denoised) else (denoised, None)
    _check_estimate("x_0", x_0, x_t)
    if variance_output is not None:
        _check_estimate("variance_output", variance_output, x_t)
    return x_0


def _check_estimate(name: str, value: Any, x_t: Array) -> None:
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            "a denoiser must return x̂_0 as a floating-point array, or "
            f"Denoised(x_0, variance_output); got {describe(value)} for {name}."
        )
    if not hasattr(x_t, "shape"):
        raise TypeError(f"a denoiser must return {name} for an array x_t, got {describe(x_t)}.")
    if jnp.shape(value) != jnp.shape(x_t):
        raise ValueError(
            f"a denoiser must return {name} of x_t's shape {jnp.shape(x_t)}, got "
            f"{jnp.shape(value)}. A network that learned its variance is split by "
            "make_denoiser(..., variance='learned_range')."
        )


def describe(value: Any) -> str:
    """A short description of a value of the wrong kind, for error messages."""
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    name = getattr(value, "__name__", None)
    if callable(value) and name:
        return f"the function {name}"
    return f"a {type(value).__name__}"


def host_array(call: str, name: str, value: ArrayLike, dtype: Any = None) -> np.ndarray:
    """The value as a NumPy array; TypeError, in the name of the call, if it is traced."""
    try:
        return np.asarray(value, dtype)
    except TracerArrayConversionError:
        raise TypeError(
            f"{call} runs on the host, in float64: {name} must be concrete, got a traced array. "
            "Call it outside jit, grad or vmap, and use its result inside."
        ) from None


def as_array(call: str, name: str, value: ArrayLike) -> Array:
    """The value as an array; TypeError, in the name of the call, for what is not numbers."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{call} needs {name}, an array, got {describe(value)}.") from None


def per_example(call: str, name: str, value: ArrayLike, x: Array) -> Array:
    """`value` as an array [B], from [B] or []; ValueError, in the name of the call, otherwise."""
    value, x = as_array(call, name, value), as_array(call, "events", x)
    if x.ndim == 0 or value.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{call} needs events [B, ...] and one {name} per example, [B], or [] for one shared "
            f"by all; got events of shape {x.shape} and {name} of shape {value.shape}."
        )
    return jnp.broadcast_to(value, x.shape[:1])


def bcast_right(x: ArrayLike, ndim: int) -> Array:
    """Appends axes of size one to x until it has `ndim` axes, so that [B] meets [B, H, W, C].

    Raises ValueError when x already has more axes than `ndim`, TypeError for other kinds.

    >>> dj.types.bcast_right(jnp.arange(2), 4).shape
    (2, 1, 1, 1)
    """
    x = as_array("bcast_right", "x", x)
    if not isinstance(ndim, int) or isinstance(ndim, bool):
        raise TypeError(f"bcast_right needs ndim, a number of axes, got {describe(ndim)}.")
    if x.ndim > ndim:
        raise ValueError(
            f"bcast_right cannot fit shape {x.shape} into {ndim} axes: it appends axes and drops "
            "none. Per-example values have shape [B] (or []), and events [B, ...]."
        )
    return jnp.reshape(x, x.shape + (1,) * (ndim - x.ndim))


def mean_per_example(x: Array) -> Array:
    """Averages x [B, ...] over every axis but the first, in float32 or wider: [B].

    Raises TypeError unless x is a floating-point array with a batch axis.

    >>> dj.types.mean_per_example(jnp.ones((2, 4, 4, 3))).shape
    (2,)
    """
    x = _wide_events("mean_per_example", x)
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def sum_per_example(x: Array) -> Array:
    """Sums x [B, ...] over every axis but the first, in float32 or wider: [B].

    float16 ends at 65504, which the squared norm of a large image exceeds. Raises as
    `mean_per_example` does.

    >>> dj.types.sum_per_example(jnp.ones((2, 4, 4, 3)))
    Array([48., 48.], dtype=float32)
    """
    x = _wide_events("sum_per_example", x)
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _wide_events(call: str, x: Array) -> Array:
    """Real x [B, ...] in float32 or wider; TypeError, in the name of the call, for other x."""
    x = as_array(call, "x", x)
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{call} needs real x [B, ...], got {describe(x)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
