"""One question, put in a process of its own: `python -m benchmarks.worker NAME PLAN ANSWER`.

PLAN is a JSON file, and ANSWER the one the result is written to. The name "machine" writes what
the machine is. A crash ends this process alone.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.catalogue import question
from benchmarks.plan import from_json
from benchmarks.provenance import Neighbours, describe_machine


def main(name: str, plan_file: str, answer_file: str) -> int:
    """Measures and writes {"result", "cpu"} or {"error", "cpu"}; returns the exit code."""
    neighbours = Neighbours()
    answer: dict[str, Any]
    try:
        if name == "machine":
            answer = {"result": describe_machine()}
        else:
            plan = from_json(json.loads(Path(plan_file).read_text()))
            answer = {"result": question(name).measure(plan)}
        # Here, so that a result with a NaN is a failure with a reason too.
        json.dumps(answer, allow_nan=False)
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    answer["cpu"] = neighbours.shares()
    Path(answer_file).write_text(json.dumps(answer))
    return int("error" in answer)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
