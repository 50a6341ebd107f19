"""The command: runs the families, prints a table and writes JSON."""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.faults.harness import ROOT, Bench, Report

# The longest first, for --jobs.
FAMILIES = (
    "kill",
    "edges",
    "term",
    "sampling",
    "flips",
    "disk",
    "nonfinite",
    "data",
    "writers",
    "bucket",
    "network",
    "hang",
    "ranks",
    "goodput",
)
LONG = ("edges", "ranks", "goodput")
"""Left out by --short, unless named by --only."""
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorboardX")


def main() -> int:
    """0 when every promise was kept, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    short = f"a few faults per family; without {', '.join(LONG)}"
    parser.add_argument("--short", action="store_true", help=short)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="NAME")
    parser.add_argument("--out", type=Path, help="where to write the counts, as JSON")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and bits")
    parser.add_argument("--work", type=Path, help="scratch folder to use and to keep")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    options = parser.parse_args()
    # The runs are tiny and read here too: no accelerator for either.
    os.environ["JAX_PLATFORMS"] = "cpu"
    chosen = options.only or [n for n in FAMILIES if not (options.short and n in LONG)]
    work = options.work or Path(tempfile.mkdtemp(prefix="faults-"))
    work.mkdir(parents=True, exist_ok=True)
    results = {}
    try:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            benches = {name: Bench(work / name, options.short, options.seed) for name in chosen}
            running = {pool.submit(_family, name, bench): name for name, bench in benches.items()}
            for done in concurrent.futures.as_completed(running):
                results[running[done]] = done.result()
                if options.out:
                    # After every family: a campaign takes hours, and may itself be interrupted.
                    write(options.out, results, options)
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{'family':10}  {'kept':4}  {'seconds':>7}  counts")
    for name, result in results.items():
        counts = "; ".join(f"{k}: {v}" for k, v in result["counts"].items())
        print(f"{name:10}  {'yes' if result['kept'] else 'NO':4}  {result['seconds']:7}  {counts}")
    broken = [name for name, result in results.items() if not result["kept"]]
    for name in broken:
        print(f"\n{name}:\n  " + "\n  ".join(results[name]["problems"]))
    return 1 if broken else 0


def _family(name: str, bench: Bench) -> dict[str, Any]:
    module = importlib.import_module(f"tests.faults.{name}")
    print(f"=== {name}: {module.PROMISE}", flush=True)
    shutil.rmtree(bench.work, ignore_errors=True)
    bench.work.mkdir(parents=True)
    began = time.monotonic()
    try:
        report: Report = module.campaign(bench)
    except Exception:
        report = Report(problems=[f"the campaign broke off:\n{traceback.format_exc()}"])
        print(report.problems[0], flush=True)
    seconds = round(time.monotonic() - began, 1)
    print(f"    {seconds} s, {report.counts}", flush=True)
    return {
        "promise": module.PROMISE,
        "kept": not report.problems,
        "seconds": seconds,
        "counts": report.counts,
        "problems": report.problems,
    }


def write(path: Path, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes the counts with the machine, versions and date they belong to.

    Families that an earlier call wrote to the file and this one did not run are kept, with the
    facts they were written with.
    """
    facts = {
        "command": f"python -m tests.faults {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "seed": options.seed,
        "short": options.short,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    }
    families = json.loads(path.read_text())["families"] if path.exists() else {}
    families |= {name: {**result, **facts} for name, result in results.items()}
    ordered = {name: families[name] for name in FAMILIES if name in families}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"families": ordered}, indent=2, ensure_ascii=False) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if "model name" in x), platform.machine()
    )


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
