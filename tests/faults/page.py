"""Puts the counts of a campaign into docs/reliability.md, so that nobody copies them by hand.

python -m tests.faults.page docs/results/reliability/faults.json docs/reliability.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- counts: {} -->", "<!-- end of counts -->"


def table(result: dict[str, Any]) -> str:
    """The counts of one family as a table, under the command and the facts they belong to."""
    rows = []
    for name, value in result["counts"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {v}" for k, v in value.items())
        rows.append(
            f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value} |"
        )
    machine, versions = result["machine"], result["versions"]
    commit = (result["commit"] or "unknown")[:10]
    if result["changed_since_commit"]:
        commit += " with changes"
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    broken = "broken: " + "; ".join(result["problems"])
    verdict = f"Promise {'kept.' if result['kept'] else broken}"
    return "\n".join(
        [
            f"`{result['command']}` on {result['date'][:10]}, commit {commit}, {libraries}; "
            f"{machine['cores']} cores of {machine['processor']}, {result['seconds']:,.0f} s. "
            f"**{verdict}**",
            "",
            "| | |",
            "|---|---:|",
            *rows,
        ]
    )


def main(results: Path, page: Path) -> int:
    """Rewrites every marked part of the page; 1 when the page and the results disagree."""
    families = json.loads(results.read_text())["families"]
    text = page.read_text()
    marked = set(re.findall(re.escape(BEGIN).replace(r"\{\}", r"(\w+)"), text))
    for name in sorted(marked & set(families)):
        pattern = re.escape(BEGIN.format(name)) + ".*?" + re.escape(END)
        filled = f"{BEGIN.format(name)}\n{table(families[name])}\n{END}"
        text = re.sub(pattern, lambda _, filled=filled: filled, text, flags=re.S)
    page.write_text(text)
    for name in sorted(marked ^ set(families)):
        print(f"{name} is in only one of {results} and {page}", file=sys.stderr)
    return int(marked != set(families))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
