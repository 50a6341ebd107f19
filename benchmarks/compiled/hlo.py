"""What a compiled program's text says of its cost: kernels, bytes, collectives, estimated cycles.

The text is XLA's optimised HLO, `compiled.as_text()`. An operation of a computation that the device
runs is one kernel; it reads its operands and writes its result once. What a fusion only slices or
gathers counts by the part it reads. A training or sampling program is a loop over steps: the body
of its largest loop is one step, and the rest is done once per dispatch. Inner loops count as often
as the text says they run.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks.trace import read_program

SMALL = 2 * 2**20
"""Kernels that move fewer bytes cost a launch rather than a transfer."""

NOT_RUN = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"),
    *("partition-id", "replica-id", "add-dependency", "domain"),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
MOVES = {"copy", "transpose", "bitcast", "parameter", "reshape", "constant"}
PARTIAL = {"dynamic-slice", "gather", "slice"}
BITS = {"pred": 8, "token": 0, "opaque": 0}


class Instruction(NamedTuple):
    """One line of the text: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


class Kernel(NamedTuple):
    """One operation that the device runs, `times` times per step or per dispatch."""

    instruction: Instruction
    part: str
    read: int
    written: int
    cycles: int
    times: int
    is_copy: bool

    @property
    def bytes(self) -> int:
        """Bytes read and written each time."""
        return self.read + self.written


def bytes_of(type_: str, *, on_chip: bool = True) -> int:
    """The bytes of a type, "bf16[8,32]{1,0}" or a tuple of such.

    `on_chip` False leaves out what TPUs keep in their own vector memory, S(1) in the layout.
    """
    total = 0.0
    pattern = r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?"
    for dtype, dims, layout in re.findall(pattern, type_):
        if not on_chip and "S(1)" in layout:
            continue
        found = re.search(r"\d+", dtype)
        bits = BITS[dtype] if dtype in BITS else int(found[0]) if found else 8
        shape = [int(d.removeprefix("<=")) for d in dims.split(",") if d]
        total += bits * math.prod(shape) / 8
    return int(total)


def _count(type_: str) -> int:
    """The numbers in an array of a type such as "bf16[8,32]{1,0}"."""
    dims = re.search(r"\[([\d,]*)\]", type_)
    return math.prod(int(d) for d in dims[1].split(",") if d) if dims else 0


class Text(NamedTuple):
    """A program's text: the instructions of each computation, in order, and the entry's name."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str) -> Text:
    """Reads a compiled program's text.

    Raises ValueError for text without an entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, here = "", []
    for row in text.splitlines():
        if match := re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", row):
            here = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif match := re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", row):
            here.append(_instruction(match[1], match[2]))
    if not entry:
        raise ValueError("this text holds no ENTRY computation, so it is no compiled program.")
    return Text(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    inside = rest[len(opcode) : end]
    pattern = r"\d+" if opcode == "parameter" else r"%([\w.\-]+)"
    operands = tuple(re.findall(pattern, inside))
    return Instruction(name, type_, opcode, operands, rest[end:])


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


class Program:
    """A compiled program's text, split into what runs per step and what once per dispatch.

    Attributes:
        step: the kernels of one step: the body of the largest loop, or everything without one.
        once: the other kernels.
    """

    def __init__(self, text: str):
        self._computations, entry = parse(text)
        self._parts = read_program(text)
        self._of = {i.name: i for body in self._computations.values() for i in body}
        loops = [i for i in self._computations[entry] if i.opcode == "while"]
        bodies = [list(self._run(self._called(loop, "body"))) for loop in loops]
        rest = [i for i in self._computations[entry] if i.opcode != "while"]
        once = [kernel for i in rest for kernel in self._kernels(i, 1)]
        step = max(bodies, key=len, default=[])
        if len(step) <= len(once) and moved(step) <= moved(once):
            # No loop over steps: short loops are part of the one step there is.
            step = [kernel for i in self._computations[entry] for kernel in self._kernels(i, 1)]
            once = []
        self.step, self.once = step, once

    def _called(self, instruction: Instruction, role: str) -> str:
        match = re.search(rf"\b{role}=%?([\w.\-]+)", instruction.attributes)
        return match[1] if match else ""

    def _inside(self, instruction: Instruction) -> list[Instruction]:
        return self._computations.get(self._called(instruction, "calls"), [])

    def _run(self, name: str, times: int = 1) -> Iterator[Kernel]:
        for instruction in self._computations.get(name, []):
            yield from self._kernels(instruction, times)

    def _kernels(self, instruction: Instruction, times: int) -> Iterator[Kernel]:
        opcode, attributes = instruction.opcode, instruction.attributes
        if opcode in NOT_RUN or opcode.endswith(("-done", "-update")):
            return
        if opcode == "while":
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', attributes)
            trips = int(count[1]) if count else 1
            yield from self._run(self._called(instruction, "body"), times * trips)
        elif opcode == "call":
            yield from self._run(self._called(instruction, "to_apply"), times)
        elif opcode == "conditional":
            names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", attributes)
            if listed := re.search(r"branch_computations=\{([^}]*)\}", attributes):
                names += re.findall(r"%?([\w.\-]+)", listed[1])
            yield from max((list(self._run(name, times)) for name in names), key=moved, default=[])
        elif opcode == "async-start":
            yield from self._run(self._called(instruction, "calls"), times)
        else:
            read, written = self._traffic(instruction)
            part = self._parts.get(instruction.name, "unnamed")
            found = re.search(r'"estimated_cycles":"?(\d+)', attributes)
            cycles = int(found[1]) if found else 0
            yield Kernel(
                instruction,
                part,
                read,
                written,
                # For v5p, libtpu writes numbers just below 2⁶⁴: no estimates.
                cycles if cycles < 2**63 else 0,
                times,
                self._is_copy(instruction),
            )

    def _sizes(self, instruction: Instruction, *, on_chip: bool = True) -> list[int]:
        operands = [self._of.get(o) for o in instruction.operands]
        return [0 if o is None else bytes_of(o.type, on_chip=on_chip) for o in operands]

    def _traffic(self, instruction: Instruction) -> tuple[int, int]:
        """The bytes that an operation reads and writes in the chip's main memory."""
        opcode, sizes = instruction.opcode, self._sizes(instruction, on_chip=False)
        written = bytes_of(instruction.type, on_chip=False)
        if opcode in PARTIAL:
            return (bytes_of(instruction.type) if sizes[0] else 0) + sum(sizes[1:]), written
        if opcode == "dynamic-update-slice":
            update = self._sizes(instruction)[1]
            return sum(sizes[1:]), update if written else 0
        if opcode.endswith("-start") and not opcode.startswith("all-reduce"):
            # The result is a tuple of the operands and what is made of them.
            return sum(sizes), max(0, written - sum(sizes))
        inside = self._inside(instruction)
        for parameter in inside:
            if parameter.opcode != "parameter":
                continue
            number = int(parameter.operands[0])
            users = _users(parameter, inside)
            if not users or number >= len(sizes) or not sizes[number]:
                continue
            if all(i.opcode in PARTIAL for i in users):
                part = sum(_count(i.type) for i in users) / max(1, _count(parameter.type))
                sizes[number] = int(sizes[number] * min(1.0, part))
            elif all(i.opcode == "dynamic-update-slice" for i in users):
                # In place: only the update is written.
                update = sum(self._sizes(i)[1] for i in users)
                written -= min(written, max(0, sizes[number] - update))
                sizes[number] = 0
        return sum(sizes), written

    def _is_copy(self, instruction: Instruction) -> bool:
        # An asynchronous copy moves data to a TPU's vector memory or back, as its kernels need.
        if instruction.opcode in ("copy", "transpose"):
            return True
        opcodes = {i.opcode for i in self._inside(instruction)}
        return instruction.opcode == "fusion" and bool(opcodes) and opcodes <= MOVES

    def collectives(self) -> dict[str, dict[str, float]]:
        """Of one step, by kind: operations, and the bytes that one device sends in a ring.

        A TPU's compiler writes one that runs beside other operations into each of them.
        """
        found: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "bytes": 0.0})
        chains: set[str] = set()
        for kernel in self.step:
            for one in (kernel.instruction, *self._inside(kernel.instruction)):
                if one.opcode.startswith(COLLECTIVES):
                    chain = re.search(r'chain_id="(\d+)"', one.attributes)
                    if chain and chain[1] in chains:
                        continue
                    chains |= {chain[1]} if chain else set()
                    kind = next(k for k in COLLECTIVES if one.opcode.startswith(k))
                    found[kind]["count"] += kernel.times
                    sent = _ring_bytes(kind, sum(self._sizes(one)), _group(one.attributes))
                    found[kind]["bytes"] += kernel.times * sent
        return dict(found)


def _users(value: Instruction, inside: list[Instruction]) -> list[Instruction]:
    """What uses a value, number by number converted or not; [] if it is not the first operand."""
    found = []
    for user in inside:
        if value.name in user.operands:
            if user.operands[0] != value.name:
                return []
            found += _users(user, inside) if user.opcode in ("bitcast", "convert") else [user]
    return found


def moved(kernels: Iterable[Kernel]) -> int:
    """The bytes that these kernels read and write."""
    return sum(k.times * k.bytes for k in kernels)


def _ring_bytes(kind: str, size: int, devices: int) -> float:
    """The bytes that one device sends in a ring, for an operand of `size` bytes."""
    share = (devices - 1) / devices
    return {
        "all-reduce": 2 * size * share,
        "all-gather": size * (devices - 1),
        "reduce-scatter": size * share,
        "all-to-all": size * share,
        "collective-permute": float(size),
    }[kind]


def _group(attributes: str) -> int:
    """The devices that communicate with each other: {{0,1},{2,3}} or [2,2]<=[4]."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    return 1


def account(kernels: list[Kernel]) -> dict[str, Any]:
    """Counts kernels, small ones, bytes and cycles, by the part of the program they serve."""
    parts: dict[str, dict[str, int]] = defaultdict(lambda: {"kernels": 0, "bytes": 0, "cycles": 0})
    total = {"kernels": 0, "small": 0, "read": 0, "written": 0, "cycles": 0}
    copies = {"count": 0, "bytes": 0, "cycles": 0}
    for k in kernels:
        total["kernels"] += k.times
        total["small"] += k.times * (k.bytes < SMALL)
        total["read"] += k.times * k.read
        total["written"] += k.times * k.written
        total["cycles"] += k.times * k.cycles
        part = parts[k.part]
        part["kernels"] += k.times
        part["bytes"] += k.times * k.bytes
        part["cycles"] += k.times * k.cycles
        if k.is_copy:
            copies["count"] += k.times
            copies["bytes"] += k.times * k.bytes
            copies["cycles"] += k.times * k.cycles
    by_bytes = sorted(parts.items(), key=lambda item: -item[1]["bytes"])
    return {
        **total,
        "bytes": total["read"] + total["written"],
        "copies": copies,
        "parts": dict(by_bytes),
    }


def largest(kernels: list[Kernel], count: int = 12, by: str = "bytes") -> list[list[Any]]:
    """The kernels that cost most: [name, part, bytes, cycles]."""
    order = sorted(kernels, key=lambda k: -k.times * getattr(k, by))[:count]
    return [[k.instruction.name, k.part, k.times * k.bytes, k.times * k.cycles] for k in order]
