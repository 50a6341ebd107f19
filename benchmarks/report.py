"""results.json, pictures and README.md: the page is made from the JSON alone.

python -m benchmarks.report FOLDER        # makes the pictures and README.md again
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.registry import NAMES, benchmark
from benchmarks.render import span, table


def write_page(page: dict[str, Any], folder: Path) -> str | None:
    """Writes results.json, the pictures and README.md; returns what went wrong in drawing."""
    draft = folder / ".results.json.tmp"
    draft.write_text(json.dumps(page, indent=1, allow_nan=False) + "\n")
    os.replace(draft, folder / "results.json")
    return draw_page(page, folder)


def draw_page(page: dict[str, Any], folder: Path) -> str | None:
    """Writes the pictures and README.md of a page."""
    problems, sections = [], []
    for name in NAMES:
        entry = page["benchmarks"].get(name)
        if entry is None:
            continue
        try:
            sections.append(_section(name, entry, folder))
        except Exception as error:
            problems.append(f"{name} could not be drawn: {type(error).__name__}: {error}")
            sections.append(f"## {name}\n\n{problems[-1]}\n")
    text = "\n".join([_head(page), *sections])
    (folder / "README.md").write_text(text.rstrip() + "\n")
    return "; ".join(problems) or None


def _head(page: dict[str, Any]) -> str:
    about, entries = page["machine"], page["benchmarks"]
    quick = any(entry["plan"].get("quick") for entry in entries.values())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    processor = about["processor"] if about["device"] == "cpu" else about["device"]
    side = "{0}×{0}".format
    sizes = [side(n) for n in sorted({entry["plan"]["image_size"] for entry in entries.values()})]
    rows = [_row(name, entries[name]) for name in NAMES if name in entries]
    return (
        f"# Benchmarks: {processor}, {' and '.join(sizes)} images\n\n"
        + "**Tiny sizes: this shows that everything runs, and no speed.**\n\n" * quick
        + "Made by `python -m benchmarks`. `benchmarks/README.md` explains what is measured and "
        "how to read the tables. `results.json` holds all figures and every single time.\n\n"
        f"{about['device_count']} × {about['device']}; {about['cores']} cores of "
        f"{about['processor']}, {about['memory_gib']} GiB, {about['system']}. {versions}.\n\n"
        + table(
            ["", "result", "took", "date", "commit", "other programs", "stolen"],
            rows,
        )
        + "\nThe last two columns give the share of all cores that other programs used during the "
        "measurement, and the share that the host of the virtual machine took. Do not trust times "
        "on a CPU if either is above a few per cent. Benchmarks ran at different times and "
        "commits; compare times only within one section.\n"
    )


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    if entry["status"] == "ok":
        found = benchmark(name).line(entry["result"])
    else:
        found = "**failed**: " + entry["reason"].splitlines()[-1].replace("|", "/")
    cpu = entry.get("cpu") or {}
    shares = [cpu.get("others"), cpu.get("stolen")]
    return [
        f"[{name}](#{name})",
        found,
        span(entry["seconds"]),
        entry["date"],
        entry["commit"] or "?",
        *("?" if share is None else f"{share:.0%}" for share in shares),
    ]


def _section(name: str, entry: dict[str, Any], folder: Path) -> str:
    head = f"## {name}\n\n{benchmark(name).title}.\n\n"
    if entry["status"] != "ok":
        return head + f"Failed:\n\n```\n{entry['reason']}\n```\n"
    result = entry["result"]
    pictures = benchmark(name).draw(result, folder)
    shown = "".join(f"\n![{Path(picture).stem}]({picture})\n" for picture in pictures)
    plan = entry["plan"]
    sizes = (
        f"{plan['image_size']}×{plan['image_size']} images, {plan['channels']} channels × "
        f"{tuple(plan['multipliers'])}, batch {plan['batch_size']}, {plan['dtype']}, "
        f"{plan['rounds']} rounds of {plan['steps']} step{'s' * (plan['steps'] > 1)}, unless "
        "stated otherwise.\n\n"
    )
    return head + sizes + benchmark(name).page(result) + shown


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.exit(draw_page(json.loads((place / "results.json").read_text()), place))
