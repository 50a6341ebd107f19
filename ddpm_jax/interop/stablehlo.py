"""A whole sampler as one serialised StableHLO program, which JAX alone loads and runs.

    exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
    images = exported.call(x_T)            # uint8 [B, H, W, C]

The program holds the loop over all steps, the network, its weights if they are baked in, and the
rounding to pixels. It is compiled where it is run. Compiled executables are never written or read,
because they are arbitrary machine code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp

from ddpm_jax.files import read_json_object, user_path, write_atomically, write_json
from ddpm_jax.forward.checks import (
    check_choice,
    check_flag,
    check_function,
    check_kind,
    check_shape,
    check_whole,
)
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.samplers import Sampler, initial_noise, sample
from ddpm_jax.samplers.base import check_sampler
from ddpm_jax.types import Array, Denoiser, PyTree

Inputs = Literal["x_T", "x_T_noise", "seed"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
INPUTS: tuple[Inputs, ...] = ("x_T", "x_T_noise", "seed")


def export_sampler(
    sampler: Sampler,
    denoiser_of: Callable[..., Denoiser],
    params: PyTree,
    shape: tuple[int, ...],
    *,
    inputs: Inputs = "x_T",
    batch_size: int | None = None,
    label: int | None = None,
    conditions: Mapping[str, Sequence[int | str]] | None = None,
    bake: bool = True,
    platforms: Sequence[str] | None = None,
) -> jax.export.Exported:
    """Exports sampling over the sampler's whole grid, to uint8 images [B, *shape].

    The program's arguments:

    inputs="x_T"        x_T [B, *shape] and, if the sampler draws noise, seed uint32 []
    inputs="x_T_noise"  x_T, and the noise of every step as `samplers.sample` takes it
    inputs="seed"       seed and first, both uint32 []: images first … first+B-1 of that seed, as
                        the sampling program makes them; needs a batch_size

    followed by the `conditions`, one argument each.

    Args:
        sampler: any sampler; "x_T_noise" needs one that draws noise.
        denoiser_of: `denoiser_of(params, labels, **conditions) -> denoise`, labels being [B] or
            None.
        params: of the network.
        shape: of one image, [H, W, C].
        inputs: see above.
        batch_size: B; None leaves it open, so that one program serves every B ≥ 1.
        label: the class of all images, None for none.
        conditions: the shapes per image of the other conditions, by name, such as {"cond": (D,),
            "context": ("L", D)}; a name in place of a number leaves that size open. They are
            float32, but masks ("…_mask") are bool.
        bake: True: the weights are constants of the program. False: `params` is its first
            argument, with the tree structure given here.
        platforms: where it may run, of "cpu", "cuda", "rocm", "tpu"; None for where JAX runs now.

    Raises ValueError for unknown inputs or inputs that do not go with the sampler or batch size.
    """
    call = "export_sampler"
    check_sampler(call, sampler)
    check_function(call, "denoiser_of", denoiser_of, "(params, labels) -> denoise")
    shape = check_shape(call, "shape", shape)
    check_flag(call, "bake", bake)
    if label is not None:
        label = check_whole(call, "label", label, least=0)
    if platforms is not None and not (
        isinstance(platforms, tuple | list) and set(platforms) <= set(PLATFORMS) and platforms
    ):
        raise ValueError(f"{call} needs platforms, some of {PLATFORMS}, got {platforms!r}.")
    check_choice(call, "inputs", inputs, INPUTS)
    if inputs == "x_T_noise" and not sampler.stochastic:
        raise ValueError(
            "export_sampler got inputs='x_T_noise' for a sampler that draws none. Use 'x_T'."
        )
    if inputs == "seed" and batch_size is None:
        raise ValueError(
            "export_sampler with inputs='seed' needs a batch_size: no argument of the program "
            "says how many images to make."
        )
    if batch_size is not None:
        batch_size = check_whole(call, "batch_size", batch_size)

    shapes = dict(conditions or {})

    B, sizes = _sizes(batch_size, shapes)
    x_T = jax.ShapeDtypeStruct((B, *shape), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.uint32)
    draws = (sampler.num_draws,) if sampler.num_draws > 1 else ()
    noise = jax.ShapeDtypeStruct((sampler.num_steps, *draws, B, *shape), jnp.float32)
    arguments = {
        "x_T": {"x_T": x_T, **({"seed": number} if sampler.stochastic else {})},
        "x_T_noise": {"x_T": x_T, "noise": noise},
        "seed": {"seed": number, "first": number},
    }[inputs]
    given = [
        jax.ShapeDtypeStruct(
            (B, *(sizes[n] if isinstance(n, str) else int(n) for n in sizes_of)),
            jnp.bool_ if name.endswith("_mask") else jnp.float32,
        )
        for name, sizes_of in shapes.items()
    ]

    def program(params: PyTree, *given: Array) -> Array:
        own = dict(zip(arguments, given, strict=False))
        x_T, seed, first, noise = (own.get(name) for name in ("x_T", "seed", "first", "noise"))
        named = dict(zip(shapes, given[len(own) :], strict=True))
        keys: Any = None
        if seed is not None:
            images = jnp.arange(B if x_T is None else x_T.shape[0], dtype=jnp.uint32)
            keys = example_keys(make_key(seed), (0 if first is None else first) + images)
        if x_T is None:
            x_T = initial_noise(keys, shape)
            keys = keys if sampler.stochastic else None
        labels = None if label is None else jnp.full(x_T.shape[:1], label, jnp.int32)
        return to_pixels(
            sample(sampler, denoiser_of(params, labels, **named), x_T, keys=keys, noise=noise)
        )

    if bake:
        whole = jax.jit(lambda *given: program(params, *given))
        return jax.export.export(whole, platforms=platforms)(*arguments.values(), *given)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    whole = jax.jit(program)
    return jax.export.export(whole, platforms=platforms)(params, *arguments.values(), *given)


def _sizes(batch_size: int | None, shapes: Mapping[str, Sequence[int | str]]) -> tuple[Any, Any]:
    """The batch size, and the open sizes of the shapes by name, as symbols of one scope."""
    for condition, shape in shapes.items():
        for size in shape:
            if not isinstance(size, str):
                check_whole("export_sampler", f"conditions[{condition!r}]", size)
            elif not size.isidentifier():
                raise ValueError(
                    "export_sampler names open sizes by identifiers, such as 'L', got "
                    f"{size!r} in conditions[{condition!r}]."
                )
    names = sorted({size for shape in shapes.values() for size in shape if isinstance(size, str)})
    # Prefixed, since a name may be that of the batch, or one of JAX's operators, such as `max`.
    open_sizes = [*(["b"] if batch_size is None else []), *(f"size_{name}" for name in names)]
    symbols: Any = jax.export.symbolic_shape(", ".join(open_sizes)) if open_sizes else ()
    B = symbols[0] if batch_size is None else batch_size
    return B, dict(zip(names, symbols[len(symbols) - len(names) :], strict=True))


def save_program(
    path: str | Path, exported: jax.export.Exported, about: Mapping[str, Any] | None = None
) -> None:
    """Writes the program to `path`, and its size, sha256, arguments and `about` to `path`.json."""
    path = user_path(path, "save_program")
    check_kind("save_program", "exported", exported, jax.export.Exported, "`export_sampler`")
    check_kind("save_program", "about", about or {}, Mapping, "facts by name")
    data = bytes(exported.serialize())
    facts = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "arguments": [str(aval) for aval in exported.in_avals],
        "results": [str(aval) for aval in exported.out_avals],
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "jax": jax.__version__,
        **(about or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    facts_path = path.with_name(path.name + ".json")
    # The facts first: a kill between the two leaves them without their program, which a reader
    # refuses and the next call completes, never a program that nobody can tell from another's.
    write_json(facts_path, facts)
    write_atomically(path, data)


def load_program(path: str | Path) -> jax.export.Exported:
    """Reads a program that `save_program` wrote; run it with `.call(...)`.

    Raises FileNotFoundError, or ValueError for a file that is no such program, or was cut short or
    changed (checked by size and sha256 if `path`.json is beside it).
    """
    path = user_path(path, "load_program")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. `save_program` writes such files.")
    data = path.read_bytes()
    facts_path = path.with_name(path.name + ".json")
    if facts_path.is_file():
        try:
            facts = read_json_object(facts_path)
            wanted = (facts["bytes"], facts["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{facts_path} cannot be read ({error!r}). Remove it to load unchecked."
            ) from error
        if (len(data), hashlib.sha256(data).hexdigest()) != wanted:
            raise ValueError(
                f"{path} has {len(data):,} bytes and not the content that was written, "
                f"{wanted[0]:,} bytes with sha256 {wanted[1]}. Copy it again, with its .json."
            )
    try:
        return jax.export.deserialize(bytearray(data))
    # JAX's reader fails on a damaged flatbuffer with exceptions of any kind.
    except Exception as error:
        raise ValueError(
            f"{path} is no exported program, or was cut short ({error}); it has {len(data):,} "
            "bytes. Or a newer version of JAX wrote it."
        ) from error
