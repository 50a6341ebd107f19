"""Argument checks of the pure packages: each raises one error that names the call.

They read Python types, shapes, dtypes and host values, and never traced values, so under jit they
run at trace time only and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ddpm_jax.keys import check_keys
from ddpm_jax.types import SPATIAL_AXES, Array, as_array, describe, host_array

_ARRAYS = (jax.Array, np.ndarray, np.generic)


def check_kind(call: str, name: str, value: Any, kind: type, source: str) -> None:
    """Raises TypeError unless the value is of this class; `source` says what makes one."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{call} needs {name}, a {kind.__name__} ({source}), got {describe(value)}."
        )


def check_text(call: str, name: str, value: Any) -> None:
    """Raises TypeError unless the value is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{call} needs {name}, a string, got {describe(value)}.")


def check_choice(
    call: str, name: str, value: Any, known: Sequence[str | int], remedy: str = ""
) -> None:
    """Raises ValueError unless the value is one of these."""
    if not any(type(value) is type(one) and value == one for one in known):
        *others, last = (f'"{one}"' if isinstance(one, str) else str(one) for one in known)
        wanted = f"{', '.join(others)} or {last}"
        raise ValueError(f"{call} needs {name} {wanted}, got {describe(value)}. {remedy}".rstrip())


def is_number(value: Any) -> bool:
    """Whether this is a real number of the host: no bool, no array, no traced value."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_number(call: str, name: str, value: Any, remedy: str = "", *, within: str = "") -> float:
    """The number as a float, of the interval `within`: "(0, inf)" is finite and above 0.

    An end may have the name of another argument: "(sigma_min=0.1, inf)".

    Raises TypeError unless it is a real number of the host, ValueError outside of the interval.
    """
    if not is_number(value):
        what = f"{name}, a number known before tracing, got {describe(value)}"
        raise TypeError(f"{call} needs {what}. {remedy}".rstrip())
    number = float(value)
    if within:
        low, high = (float(end.rpartition("=")[2]) for end in within[1:-1].split(","))
        left_out = (within[0] == "(" and number == low) or (within[-1] == ")" and number == high)
        if left_out or not low <= number <= high:
            raise ValueError(f"{call} needs {name} in {within}, got {value}. {remedy}".rstrip())
    return number


def check_whole(
    call: str, name: str, value: Any, *, least: int = 1, most: int | None = None, remedy: str = ""
) -> int:
    """The number as an int. Raises ValueError unless it is whole and in least..most."""
    whole = is_number(value) and float(value).is_integer()
    if not whole or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"in {least}..{most}"
        what = f"{name}, a whole number {bounds}, got {describe(value)}"
        raise ValueError(f"{call} needs {what}. {remedy}".rstrip())
    return int(value)


def spatial_axes(call: str, spatial_rank: Any) -> str:
    """The spatial axes of signals (1), images (2) or volumes (3); ValueError for other ranks."""
    if is_number(spatial_rank) and spatial_rank in SPATIAL_AXES:
        return SPATIAL_AXES[spatial_rank]
    raise ValueError(
        f"{call} needs spatial_rank 1 (signals), 2 (images) or 3 (volumes), got "
        f"{describe(spatial_rank)}."
    )


def check_floating_dtype(call: str, dtype: Any) -> None:
    """Raises TypeError unless the dtype is a real floating-point one."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{call} needs a floating-point dtype, got {dtype}: tables of another dtype lose their "
            "values. Leave dtype out for float32."
        )


def host_table(call: str, name: str, values: Any, *, integer: bool = False) -> np.ndarray:
    """A table [T] as a NumPy array: float64, or the integers as they are.

    Raises TypeError for traced values and for values that are not real numbers, and ValueError for
    a table that is empty or not one-dimensional.
    """
    table = _array_of(call, name, values)
    if table.ndim != 1 or table.size == 0:
        raise ValueError(f"{call} needs {name}, a table of shape [T], got shape {table.shape}.")
    if table.dtype.kind not in ("iu" if integer else "fiu") and table.dtype != jnp.bfloat16:
        kind = "integers" if integer else "real numbers"
        raise TypeError(f"{call} needs {name}, a table [T] of {kind}, got {describe(values)}.")
    return table if integer else table.astype(np.float64)


def host_numbers(call: str, name: str, values: Any) -> np.ndarray:
    """Real numbers of any shape as a NumPy array of their own dtype, without a copy if it is one.

    Raises TypeError for traced values and for values that are not real numbers.
    """
    array = _array_of(call, name, values)
    if array.dtype.kind not in "fiu" and array.dtype != jnp.bfloat16:
        raise TypeError(f"{call} needs {name}, an array of real numbers, got {describe(values)}.")
    return array


def host_pixels(call: str, images: Any, axes: str = "NHWC") -> np.ndarray:
    """Images as a uint8 NumPy array with these axes, none of them empty.

    Raises TypeError for traced values and any other dtype, since what is made of floats would
    depend on their range and rounding; ValueError for another shape.
    """
    pixels = _array_of(call, "images", images)
    if pixels.dtype != np.uint8:
        remedy = (
            "Map model values in [-1, 1] to pixels first: ddpm_jax.forward.pixels.to_pixels(x)."
        )
        if pixels.dtype.kind in "iu":
            remedy = "If all are from 0 to 255, images.astype(np.uint8) converts them."
        raise TypeError(f"{call} needs uint8 images, got dtype {pixels.dtype}. {remedy}")
    if pixels.ndim != len(axes) or pixels.size == 0:
        raise ValueError(
            f"{call} needs images [{', '.join(axes)}] with no axis empty, got shape "
            f"{pixels.shape}. One image is images[None], and greyscale has a last axis of one: "
            "images[..., None]."
        )
    return pixels


def _array_of(call: str, name: str, values: Any) -> np.ndarray:
    """The values as a NumPy array; that of no number for a ragged list."""
    try:
        return host_array(call, name, values)
    except ValueError:
        return np.asarray(None)


def real_table(call: str, name: str, values: Any) -> Any:
    """A table [T]: a traced one in float32 or wider, with its values unread; else `host_table`'s.

    Raises as `host_table` does, but for traced values.
    """
    if not isinstance(values, jax.core.Tracer):
        return host_table(call, name, values)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{call} needs {name}, a table of shape [T], got shape {values.shape}.")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"{call} needs {name}, a table [T] of real numbers, got {describe(values)}."
        )
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def check_real(call: str, **arrays: Any) -> None:
    """Raises TypeError unless each is a floating-point array, or a real number of the host."""
    for name, value in arrays.items():
        if is_number(value) and not isinstance(value, np.integer):
            continue
        if not isinstance(value, _ARRAYS):
            raise TypeError(f"{call} needs {name}, an array, got {describe(value)}.")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            remedy = "Convert it by .astype(jnp.float32)."
            if value.dtype == jnp.uint8:
                remedy = "Pixels in 0..255 become data in [-1, 1] by from_pixels."
            elif jnp.issubdtype(value.dtype, jnp.complexfloating):
                remedy = "Stack the parts of complex numbers: jnp.stack([z.real, z.imag])."
            raise TypeError(
                f"{call} needs real floating-point values for {name}, got {describe(value)}. "
                + remedy
            )


def check_same_shape(call: str, **arrays: Any) -> tuple[int, ...]:
    """The shape that all these events have. Raises ValueError where they differ.

    Also raises TypeError as `check_real` does. Broadcasting would hide a missing batch axis or a
    wrong number of channels.
    """
    check_real(call, **arrays)
    shapes = {name: jnp.shape(value) for name, value in arrays.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{call} needs {' and '.join(shapes)} of one shape, got {got}. Nothing is broadcast: "
            "a batch is [B, ...] everywhere."
        )
    return next(iter(shapes.values()))


def check_broadcastable(call: str, **arrays: Any) -> None:
    """Raises as `check_real`, and ValueError for shapes that do not broadcast."""
    check_real(call, **arrays)
    shapes = {name: jnp.shape(value) for name, value in arrays.items()}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{call} needs shapes that broadcast, got {got}.") from error


def check_steps(
    call: str, t: Any, num_timesteps: int | None, batch: tuple[int, ...] | None = None
) -> None:
    """Checks steps t: integers in 0..T-1, of shape [] or `batch` = [B].

    Raises TypeError for other dtypes, and ValueError for other shapes and for host values outside
    of the process. `num_timesteps` None leaves the range open, `batch` None the shape.
    """
    try:
        host = None if isinstance(t, jax.Array) else np.asarray(t)  # tracers are jax.Arrays
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            f"{call} needs steps t, an array, got a {type(t).__name__} of traced values: "
            "jnp.stack(t) makes an array of them."
        ) from None
    dtype = t.dtype if host is None else host.dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"{call} needs steps t, 0-based integers, got {describe(t)}. Continuous time in [0, 1] "
            "is not a step: multiply by T and round first."
        )
    if batch is not None and np.shape(t) not in ((), batch):
        raise ValueError(
            f"{call} needs steps t of shape {batch}, one per example, or [] for one shared by all; "
            f"got shape {np.shape(t)}."
        )
    if host is None or num_timesteps is None or not host.size:
        return
    if not 0 <= host.min() <= host.max() < num_timesteps:
        raise ValueError(
            f"{call} needs steps t in 0..{num_timesteps - 1}, got {host.min()}..{host.max()}. "
            "Steps are 0-based: the papers' step 1 is t = 0."
        )


def check_flag(call: str, name: str, value: Any) -> None:
    """Raises TypeError unless the value is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{call} needs {name}, True or False, got {describe(value)}.")


def check_batch(call: str, **arrays: Any) -> tuple[Array, ...]:
    """These events [B, ...] as arrays. Raises as `check_same_shape`; TypeError for one event []."""
    if not check_same_shape(call, **arrays):
        raise TypeError(f"{call} needs {' and '.join(arrays)} [B, ...], got a number.")
    return tuple(jnp.asarray(value) for value in arrays.values())


def check_draws(
    call: str, keys: Any, noise: Any, batch: int, shape: tuple[int, ...], layout: str
) -> None:
    """Raises unless there is either one key per example or the noise that the keys stand for.

    `shape` is the noise's, and `layout` says it in words.
    """
    if (keys is None) == (noise is None):
        raise ValueError(
            f"{call} draws noise: pass either keys [B], one per example "
            f"(example_keys(key, jnp.arange(B))), or noise {layout} = {shape} to replay; got "
            f"{'both' if keys is not None else 'neither'}."
        )
    if keys is not None:
        check_keys(call, keys, batch)
        return
    drawn = as_array(call, "noise", noise)
    if drawn.shape != shape or not jnp.issubdtype(drawn.dtype, jnp.floating):
        raise ValueError(
            f"{call} needs floating-point noise {layout} = {shape}, in the order of the steps, got "
            f"{describe(noise)}."
        )


def check_per_example(
    call: str,
    name: str,
    value: Any,
    x: Array,
    remedy: str = "Sum over the event's axes, not over the batch.",
) -> None:
    """Raises TypeError or ValueError unless the value is [B], real numbers of events x [B, ...]."""
    check_real(call, **{name: value})
    if jnp.shape(value) != x.shape[:1]:
        raise ValueError(
            f"{call} needs {name} [B], one number per example: x has shape {x.shape}, {name} "
            f"{jnp.shape(value)}. {remedy}"
        )


def check_function(call: str, name: str, value: Any, signature: str) -> None:
    """Raises TypeError unless the value can be called."""
    if not callable(value):
        raise TypeError(f"{call} needs {name}, a function {signature}, got {describe(value)}.")


def host_values(x: Any) -> np.ndarray | None:
    """The values of x where the host can read them; None for traced or distributed arrays."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
        return None
    return np.asarray(x)


def check_shape(call: str, name: str, shape: Any, axes: str | None = None) -> tuple[int, ...]:
    """The shape as a tuple, with the `axes`, or any number of axes if `axes` is None.

    Raises TypeError unless it has a positive whole number for each axis.
    """
    if (
        not isinstance(shape, tuple | list)
        or len(shape) != len(axes or shape)
        or not all(is_number(n) and float(n).is_integer() and n > 0 for n in shape)
    ):
        got = shape if isinstance(shape, tuple | list) else describe(shape)
        names = f" [{', '.join(axes)}]" if axes else ""
        raise TypeError(f"{call} needs {name}{names} of whole numbers above 0, got {got}.")
    return tuple(map(int, shape))


def check_finite(call: str, **arrays: Any) -> None:
    """Raises ValueError for NaN or infinity in values that the host can read."""
    for name, value in arrays.items():
        host = host_values(value)
        if host is not None and not np.isfinite(host.astype(np.float64)).all():
            raise ValueError(f"{call} needs finite {name}, got {describe(value)} with NaN or ±∞.")


def is_finite_number(value: Any) -> bool:
    """Whether this is a finite real number of the host."""
    return is_number(value) and math.isfinite(value)
