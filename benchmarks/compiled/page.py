"""The page about compiled programs, made from results.json alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.compiled.chips import CHIPS
from benchmarks.render import size, table

HEAD = """# Programs compiled for GPUs and TPUs

**The compiler's account, not a measurement.** Nothing on this page has run on the named chips. JAX
compiled each program ahead of time with the chip's own compiler. The compiled program shows the
memory that it reserves, the operations that it launches, and the bytes that it reads and writes.
These counts are exact and repeatable. The times are derived from them with data sheets and the
compiler's estimates.

`python -m benchmarks --only compiled` makes this page; every figure is in `results.json`. A step is
one step of the loop in a dispatch, for 128 images in total in training and 256 in sampling. The
network is that of DDPM for CIFAR-10 unless the name says otherwise.

- **kernels**: operations launched per step; **small**: those that move less than 2 MiB.
- **moved**: size of the operands and results of all kernels of a step, in GB.
- **at entry**: copies and changes of layout that a dispatch makes once, before its first step.
- **donated**: whether the new state reuses the memory of the old one.
- **lower bound**: time per step according to the data sheet: the larger of arithmetic and memory
  time, and their sum; **convolutions**: their share of this sum.
- **estimated**: the compiler's own estimate, available only for TPUs; operations for which it gives
  none are not in it.
"""


def write_page(page: dict[str, Any], folder: Path) -> None:
    """Writes results.json and README.md."""
    draft = folder / ".results.json.tmp"
    draft.write_text(json.dumps(page, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    os.replace(draft, folder / "results.json")
    (folder / "README.md").write_text(render(page))


def render(page: dict[str, Any]) -> str:
    """The page in Markdown."""
    programs: dict[str, dict[str, Any]] = {}
    for name, entry in page["cases"].items():
        program, chip, dtype = name.split(" | ")
        programs.setdefault(program, {})[f"{chip}, {dtype}"] = entry
    text = HEAD
    for program, entries in programs.items():
        text += f"\n## {program[0].upper()}{program[1:]}\n\n" + _table(entries)
        text += "".join(_collectives(name, e) for name, e in entries.items())
        text += "".join(_parts(name, e) for name, e in entries.items())
    if page["left_out"]:
        text += "\n## Left out\n\n" + _left_out(page["left_out"])
    return text


def _left_out(reasons: dict[str, str]) -> str:
    """A list of programs: the reason, and the chips and precisions to which it applies."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, reason in reasons.items():
        program, chip, dtype = name.split(" | ")
        groups.setdefault((program, reason), {}).setdefault(chip, []).append(dtype)
    lines = []
    for (program, reason), chips in groups.items():
        which = "; ".join(f"{chip} {', '.join(dtypes)}" for chip, dtypes in chips.items())
        lines.append(f"- **{program}**, {reason}: {which}\n")
    return "".join(lines)


def _table(entries: dict[str, Any]) -> str:
    header = ["", "memory", "temporary", "fits", "donated", "kernels", "small", "moved", "at entry"]
    rows = []
    for name, e in entries.items():
        memory, step, copies, line = e["memory"], e["step"], e["once"]["copies"], e["roofline"]
        donated = e["donated"]["expected"]
        entry = f"{copies['count']}, {copies['bytes'] / 1e6:,.1f} MB"
        if copies["cycles"]:
            entry += f", {copies['cycles']:,} cycles"
        estimated = f"{step['cycles'] / 1e6:.1f} M cycles" if step["cycles"] else ""
        if "estimated_s" in line:
            estimated += f", {1e3 * line['estimated_s']:.1f} ms"
        arithmetic, moved = line["arithmetic_s"], line["memory_s"]
        rows.append(
            [
                name,
                size(memory["peak"]),
                size(memory["temporary"]),
                "yes" if memory["fits"] else f"no: {CHIPS[name.split(',')[0]].memory / 1e9:.0f} GB",
                "" if not donated else "yes" if donated <= memory["aliased"] else "no",
                f"{step['kernels']:,}",
                f"{step['small']:,}",
                f"{step['bytes'] / 1e9:.2f}",
                entry,
                f"{1e3 * max(arithmetic, moved):.1f} … {1e3 * (arithmetic + moved):.1f} ms",
                f"{line['convolutions_s'] / (arithmetic + moved):.0%}",
                estimated,
            ]
        )
    header += ["lower bound", "convolutions", "estimated"]
    return table(header, rows)


def _collectives(name: str, entry: dict[str, Any]) -> str:
    found, expected = entry["collectives"]["found"], entry["collectives"]["expected"]
    if not expected:
        return ""
    said = ", ".join(f"{k} {v['count']} × ({v['bytes'] / 1e6:.1f} MB)" for k, v in found.items())
    due = ", ".join(f"{k} {v / 1e6:.1f} MB" for k, v in expected.items() if v)
    return f"\n{name}, collectives per step and device: {said or 'none'}; by hand: {due}.\n"


def _parts(name: str, entry: dict[str, Any]) -> str:
    step = entry["step"]
    cycles = step["cycles"]
    header = ["", "kernels", "GB", "share of bytes"] + ["share of cycles"] * bool(cycles)
    rows = []
    for part, of in step["parts"].items():
        row = [part, f"{of['kernels']:,}", f"{of['bytes'] / 1e9:.2f}"]
        row += [f"{of['bytes'] / step['bytes']:.0%}"]
        rows.append(row + ([f"{of['cycles'] / cycles:.0%}"] if cycles else []))
    commit = f"{entry['date']}, commit {entry['commit']}"
    return f"\n**{name}**, by part ({commit}):\n\n" + table(header, rows)
