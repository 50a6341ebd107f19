"""What the compilers of GPUs and TPUs make of the package's programs, without such a device.

`python -m benchmarks --only compiled` compiles everything; `python -m benchmarks.compiled --help`
lists how to choose chips and programs. Each case is compiled in a process of its own. A case that
cannot be compiled is recorded with the reason, and an account that stands on the page is kept until
its case is compiled again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import say
from benchmarks.compiled.chips import CHIPS, DTYPES, missing
from benchmarks.compiled.page import write_page
from benchmarks.provenance import ROOT, stamp, versions

FOLDER = ROOT / "docs" / "results" / "benchmarks" / "compiled"
SCHEMA = 1
SMALL: dict[str, Any] = {
    "channels": 32,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "num_groups": 8,
    "batch_size": 16,
    "steps": 3,
    "sample_batch": 16,
}
"""The changes of the plan for --quick and for tests."""
ONE_DEVICE = (
    "training, 1 device",
    "ancestral sampling",
    "DDIM sampling",
    "held-out loss",
    "Inception features",
)
SEVERAL_DEVICES = (
    "training, shard_map",
    "training, FSDP",
    "training, pmap",
    "training, 256×256, remat, FSDP",
)


@dataclass(frozen=True)
class Choice:
    """Which programs to compile for which chips."""

    chips: tuple[str, ...] = ()
    """Names of chips; all if empty."""
    programs: tuple[str, ...] = ()
    """Names of programs, or how they begin; all if empty."""
    dtypes: tuple[str, ...] = ()
    """The precisions of the network; both if empty."""
    out: Path | None = None
    """Folder of results.json and README.md; None for docs/results/benchmarks/compiled, or
    runs/benchmarks/compiled-quick with --quick."""
    minutes: float = 30.0
    """Minutes for each program."""
    quick: bool = False
    """A small network: shows that everything compiles; kept apart from the page."""


def cases(choice: Choice) -> list[tuple[str, str, str]]:
    """(chip, program, dtype) of everything chosen, in the order of the page.

    Raises ValueError for a name that nothing has.
    """
    programs = (*ONE_DEVICE, *SEVERAL_DEVICES)
    for given, known in (
        (choice.chips, tuple(CHIPS)),
        (choice.dtypes, DTYPES),
    ):
        if unknown := set(given) - set(known):
            raise ValueError(
                f"there is no {sorted(unknown)[0]!r}; choose among {', '.join(known)}."
            )
    chosen = [p for p in programs if not choice.programs or p.startswith(choice.programs)]
    if not chosen:
        raise ValueError(f"no program is called {choice.programs}: {'; '.join(programs)}.")
    return [
        (chip, program, dtype)
        for program in chosen
        for chip in choice.chips or CHIPS
        for dtype in choice.dtypes or DTYPES
        # NVIDIA's topologies have one device; features are computed in float32 alone.
        if not (program in SEVERAL_DEVICES and CHIPS[chip].platform == "cuda")
        and not (program == "Inception features" and dtype != "float32")
    ]


def run(choice: Choice) -> int:
    """Compiles what is chosen and renews the page after each case; returns the exit code.

    It is 1 if a case with an installed compiler did not compile.
    """
    quick = ROOT / "runs" / "benchmarks" / "compiled-quick"
    out = choice.out or (quick if choice.quick else FOLDER)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    page: dict[str, Any] = {"schema": SCHEMA, "cases": {}}
    if file.exists() and (old := json.loads(file.read_text())).get("schema") == SCHEMA:
        page = old
    page.setdefault("left_out", {})
    failed = []
    for chip, program, dtype in cases(choice):
        name = f"{program} | {chip} | {dtype}"
        if reason := missing(chip):
            if name not in page["cases"]:
                page["left_out"][name] = reason
            continue
        begun = time.monotonic()
        plan = SMALL if choice.quick else {}
        found = _compile(chip, program, dtype, plan, 60 * choice.minutes)
        say(f"{name}: {found.get('error', 'compiled')} ({time.monotonic() - begun:.0f} s)")
        page["left_out"].pop(name, None)
        if "error" in found:
            failed.append(name)
            page["left_out"][name] = found["error"]
            page["cases"].pop(name, None)
        else:
            page["cases"][name] = {**stamp(), "versions": _versions(), **found}
        write_page(page, out)
    write_page(page, out)
    if failed:
        say(f"did not compile: {'; '.join(failed)}")
    return int(bool(failed))


def _compile(
    chip: str, program: str, dtype: str, plan: dict[str, Any], limit: float
) -> dict[str, Any]:
    """The account of one case, from a process of its own; {"error"} if there is none."""
    with tempfile.TemporaryDirectory(prefix="compiled-") as scratch:
        result = Path(scratch) / "account.json"
        command = [sys.executable, "-m", "benchmarks.compiled.case"]
        # No real device takes part, so JAX itself stays on the CPU.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        try:
            process = subprocess.run(
                [*command, chip, program, dtype, str(result), json.dumps(plan)],
                cwd=ROOT,
                env=environment,
                timeout=limit,
                stderr=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not compiled within {limit / 60:.0f} minutes"}
        if not result.exists():
            return {"error": f"its compiler ended with exit code {process.returncode}"}
        return json.loads(result.read_text())


def _versions() -> dict[str, str]:
    return {k: v for k, v in versions().items() if k in ("jax", "jaxlib", "libtpu")}
