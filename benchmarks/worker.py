"""Runs one benchmark in its own process: `python -m benchmarks.worker NAME PLAN RESULT`.

PLAN is a JSON file; the result is written to RESULT. The name "machine" describes the machine. A
crash ends only this process.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.provenance import Neighbours, describe_machine
from benchmarks.registry import benchmark
from benchmarks.sizes import from_json


def main(name: str, plan_file: str, result_file: str) -> int:
    """Measures and writes {"result", "cpu"} or {"error", "cpu"}; returns the exit code."""
    neighbours = Neighbours()
    reply: dict[str, Any]
    try:
        if name == "machine":
            reply = {"result": describe_machine()}
        else:
            plan = from_json(json.loads(Path(plan_file).read_text()))
            reply = {"result": benchmark(name).measure(plan)}
        # Here, so that a result with a NaN is a failure with a reason too.
        json.dumps(reply, allow_nan=False)
    except Exception as error:
        traceback.print_exc()
        reply = {"error": f"{type(error).__name__}: {error}"}
    reply["cpu"] = neighbours.shares()
    Path(result_file).write_text(json.dumps(reply))
    return int("error" in reply)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
