"""Formulations of a 3×3 convolution and its gradients, layer by layer.

`python -m benchmarks.convolution` prints, and writes with `--output`, GFLOP/s on DDPM's layers: the
forward pass and the gradients with respect to input and kernel, at stride 1, on doubled images and
at stride 2; as `lax` derives them, as `ddpm_jax.nn.convolution` does, and in forms that lost
(`NOTES.md`).
Operations are those of the plain convolution, so a form that needs fewer may pass the peak.

Both wall time and processor time are reported: on a machine with neighbours only the second says
what a form costs. `--loop` puts each inside a loop, where XLA's CPU backend rewrites nothing.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.common import say
from benchmarks.provenance import stamp
from ddpm_jax.devices.cpu import keep_freed_memory
from ddpm_jax.nn.convolution.dispatch import convolution, upsampled_convolution
from ddpm_jax.nn.convolution.patches import convolution_by_patches
from ddpm_jax.nn.convolution.winograd import winograd_convolution
from ddpm_jax.types import Array

FORM = ("NHWC", "HWIO", "NHWC")
Formula = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        batch: images.
        rounds: times each form is measured, in turns.
        loop: inside a loop of one round.
        losers: also forms that the package does not use, and Winograd's everywhere, its gradients
            as JAX derives them.
        sizes: "height, channels in, channels out" of the layers.
        output: where the JSON goes.
    """

    batch: int = 16
    rounds: int = 7
    loop: bool = False
    losers: bool = False
    sizes: tuple[tuple[int, int, int], ...] = (
        (32, 128, 128),
        (32, 256, 128),
        (16, 512, 256),
        (16, 256, 256),
        (8, 256, 256),
        (4, 256, 256),
    )
    output: Path | None = None


def lax_convolution(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The plain convolution, padded as DDPM pads: one all round, at stride 2 below and right."""
    pads = ((0, 1),) * 2 if stride == 2 else ((1, 1),) * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=FORM)


def doubled(x: Array, kernel: Array) -> Array:
    """The plain convolution of the image with its pixels repeated."""
    return lax_convolution(x.repeat(2, axis=1).repeat(2, axis=2), kernel)


def parts(formula: Formula) -> dict[str, Callable[[Array, Array, Array], Array]]:
    """The three things to time, as functions of (x, kernel, gradient of the output)."""
    return {
        "forward": lambda x, kernel, g: formula(x, kernel),
        "by input": lambda x, kernel, g: jax.vjp(lambda x: formula(x, kernel), x)[1](g)[0],
        "by kernel": lambda x, kernel, g: jax.vjp(lambda k: formula(x, k), kernel)[1](g)[0],
    }


def looped(part: Callable[..., Array], x: Array, kernel: Array, g: Array) -> Callable[..., Array]:
    """`part` inside a loop of one round, its inputs hanging on the loop's state."""
    shape = jax.eval_shape(part, x, kernel, g)

    def run(x: Array, kernel: Array, g: Array) -> Array:
        def body(_, last: Array) -> Array:
            unit = 1.0 + last.ravel()[0]
            return part(x * unit, kernel * unit, g * unit)

        return jax.lax.fori_loop(0, 1, body, jnp.zeros(shape.shape, shape.dtype))

    return run


def layers(options: Options) -> dict[str, tuple[dict[str, Formula], tuple[int, int, int], int]]:
    """{name: (formulas, size, output height)} of everything that is asked for."""
    result = {}
    for height, channels, out in options.sizes:
        size, name = (height, channels, out), f"{height}×{height} {channels}→{out}"
        formulas: dict[str, Formula] = {
            "lax": lax_convolution,
            "ours": lambda x, k: convolution(x, k, (1, 1), "SAME"),
        }
        if options.losers:
            by_patches = functools.partial(
                convolution_by_patches, strides=(1, 1), pads=((1, 1), (1, 1))
            )
            formulas |= {"winograd": winograd_convolution, "patches": by_patches}
        result[name] = (formulas, size, height)
        if channels == out:
            formulas = {
                "lax": doubled,
                "ours": lambda x, k: upsampled_convolution(x, k, (1, 1), "SAME"),
            }
            result[name + " doubled"] = (formulas, size, 2 * height)
            formulas = {
                "lax": lambda x, k: lax_convolution(x, k, 2),
                "ours": lambda x, k: convolution(x, k, (2, 2), ((0, 1), (0, 1))),
            }
            result[name + " halved"] = (formulas, size, height // 2)
    return result


def measure(options: Options) -> dict[str, Any]:
    """{layer: {part: {form: {wall_s, processor_s, gflops_wall, gflops_core}}}}, medians."""
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {}
    for name, (formulas, (height, channels, out), out_height) in layers(options).items():
        shapes = (
            (options.batch, height, height, channels),
            (3, 3, channels, out),
            (options.batch, out_height, out_height, out),
        )
        inputs = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
        operations = 2 * 9 * channels * out * options.batch * out_height**2
        result[name] = {}
        for part in ("forward", "by input", "by kernel"):
            compiled = {}
            for form, formula in formulas.items():
                function = parts(formula)[part]
                if options.loop:
                    function = looped(function, *inputs)
                compiled[form] = jax.jit(function).lower(*inputs).compile()
            times = in_turns(compiled, inputs, options.rounds)
            result[name][part] = {
                form: {
                    "wall_s": wall,
                    "processor_s": processor,
                    "gflops_wall": operations / wall / 1e9,
                    "gflops_core": operations / processor / 1e9,
                }
                for form, (wall, processor) in times.items()
            }
            row = ", ".join(
                f"{form} {one['gflops_wall']:.0f} ({one['gflops_core']:.0f} a core)"
                for form, one in result[name][part].items()
            )
            say(f"{name:28s} {part:10s} GFLOP/s: {row}")
    return result


def in_turns(
    compiled: dict[str, Any], inputs: tuple[Array, ...], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median wall and processor seconds of each, after one round that is not counted."""
    times: dict[str, list[tuple[float, float]]] = {form: [] for form in compiled}
    for number in range(-1, rounds):
        for form, function in compiled.items():
            begun = time.perf_counter(), time.process_time()
            jax.block_until_ready(function(*inputs))
            taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
            if number >= 0:
                times[form].append(taken)
    medians = {form: np.median(np.array(each), axis=0) for form, each in times.items()}
    return {form: (float(wall), float(cpu)) for form, (wall, cpu) in medians.items()}


def main(options: Options) -> None:
    """Measures, and writes the JSON if a path was given."""
    # As every program with a network of this size does.
    keep_freed_memory(options.batch, (32, 32), 128)
    result = {**stamp(), "loop": options.loop, "batch": options.batch, "layers": measure(options)}
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.convolution", description=__doc__))
