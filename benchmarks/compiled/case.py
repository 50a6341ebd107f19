"""Compiles one program for one chip and prints its account: a process of its own for each.

    python -m benchmarks.compiled.case CHIP PROGRAM DTYPE RESULT [PLAN] [TEXT]

RESULT is a JSON file to be written; PLAN is JSON with changes of the plan; TEXT a file that gets
the compiled program's text.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.compiled.chips import CHIPS, devices_of
from benchmarks.compiled.hlo import Program, account, largest
from benchmarks.sizes import plan_for


def compiled_account(
    chip: str, program: str, dtype: str, text_file: Path | None = None, **changes: Any
) -> dict[str, Any]:
    """The compiler's account of a program on one of the chip's devices, as plain JSON values."""
    import jax

    from benchmarks.compiled.programs import PROGRAMS

    jax.config.update("jax_enable_compilation_cache", False)
    plan = plan_for(CHIPS[chip].platform, quick=False, **{**changes, "dtype": dtype})
    lowered = PROGRAMS[program](plan, devices_of(chip))
    begun = time.perf_counter()
    compiled = lowered.stage.compile()
    seconds = time.perf_counter() - begun
    text = compiled.as_text()
    if text_file is not None:
        text_file.write_text(text)
    parsed = Program(text)
    memory = memory_of(compiled.memory_analysis(), CHIPS[chip].memory)
    step, once = account(parsed.step), account(parsed.once)
    return {
        "compile_s": round(seconds, 1),
        "memory": memory,
        "donated": {"expected": lowered.donated, "aliased": memory["aliased"]},
        "step": step,
        "once": once,
        "collectives": {"expected": lowered.collectives, "found": parsed.collectives()},
        "roofline": roofline(chip, dtype, lowered.flops, step),
        "largest": {"step": largest(parsed.step), "once": largest(parsed.once, 4)},
    }


def memory_of(analysis: Any, available: float) -> dict[str, Any]:
    """Bytes on one device; an argument whose memory the result takes over counts once."""
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    temporary, aliased = analysis.temp_size_in_bytes, analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    peak = arguments + outputs - aliased + temporary + code
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": aliased,
        "temporary": temporary,
        "code": code,
        "peak": peak,
        "fits": peak <= available,
    }


def roofline(
    chip: str, dtype: str, flops: dict[str, float], step: dict[str, Any]
) -> dict[str, float]:
    """Seconds of one step by the data sheet's peaks: arithmetic, memory, and the convolutions' sum.

    They would be reached only by kernels that are perfect; overlapped they take the larger one, one
    after the other the sum.
    """
    about = CHIPS[chip]
    peak = about.peak[dtype]
    arithmetic, memory = sum(flops.values()) / peak, step["bytes"] / about.bandwidth
    moved = sum(of["bytes"] for part, of in step["parts"].items() if part.startswith("convolution"))
    found = {
        "arithmetic_s": arithmetic,
        "memory_s": memory,
        "convolutions_s": flops.get("conv3x3", 0.0) / peak + moved / about.bandwidth,
    }
    if about.clock and step["cycles"]:
        found["estimated_s"] = step["cycles"] / about.clock
    return found


def main(chip: str, program: str, dtype: str, result: str, plan: str = "{}", text: str = "") -> int:
    """Writes the account, or {"error"}; returns the exit code."""
    try:
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(plan).items()}
        file = Path(text) if text else None
        found = compiled_account(chip, program, dtype, file, **changes)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        if not isinstance(error, (RuntimeError, ValueError, NotImplementedError)):
            import traceback

            traceback.print_exc()
    Path(result).write_text(json.dumps(found))
    return int("error" in found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
