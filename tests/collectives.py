"""What the collectives of a compiled program move, read from its text."""

import math
import re

BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8}
RESULT = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter)(?:-start)?\(")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")


def bytes_of_collectives(text):
    """Bytes that one device sends by ring algorithms, by kind of collective; scalars left out."""
    found = {"all_gather": 0.0, "all_reduce": 0.0, "reduce_scatter": 0.0}
    for line in text.splitlines():
        match = RESULT.search(line)
        if match is None:
            continue
        arrays = [(kind, shape) for kind, shape in ARRAY.findall(match[1]) if shape]
        if not arrays:
            continue
        size = sum(BYTES[kind] * math.prod(map(int, shape.split(","))) for kind, shape in arrays)
        groups = GROUPS.search(line)
        devices = int(groups[3]) if groups[3] else len(groups[1].split(","))
        ring = (devices - 1) / devices
        # The result of a reduce-scatter is one device's part.
        factor = {"all-gather": ring, "all-reduce": 2 * ring, "reduce-scatter": ring * devices}
        found[match[2].replace("-", "_")] += size * factor[match[2]]
    return found
