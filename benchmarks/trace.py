"""Where a compiled program's time goes: a profiler trace, read operation by operation.

The profiler says when each compiled operation ran, and the program's text says which lines of the
source it comes from. Where several run at once, the time is split evenly among them, so that the
parts add up to the time in which anything ran at all; the rest of the wall clock is idle, and is
said to be unexplained. On a CPU a product of matrices is only begun by its operation, and goes on
in threads that the profiler does not see: a gap before its result is used is counted to it.
Operations that XLA fused are counted as what the fusion is mostly for: a
convolution or product inside counts, else what the fusion ends in.
"""

from __future__ import annotations

import glob
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

Segment = tuple[float, float, str]
"""Begin, end, and the operation that ran, on one thread or stream; segments do not overlap."""


class Operation(NamedTuple):
    """What the program's text says of an operation: its kind, scope, and source files."""

    opcode: str
    scope: str
    files: str


class Breakdown(NamedTuple):
    """Seconds per call by part; `covered` is their sum, `wall` the duration of a traced call."""

    parts: dict[str, float]
    covered: float
    wall: float
    largest_unnamed: dict[str, float]


CONVOLUTION = "conv_general_dilated|winograd|patches|upsampled"
# The first rule whose patterns are all found decides; patterns are of (opcode, scope, files).
RULES: tuple[tuple[str, str, str, str], ...] = (
    ("random numbers", "", r"random|threefry|erf_inv|bernoulli|rng", ""),
    ("random numbers", "rng", "", ""),
    ("attention", "", r"attention_?\d*/|middle_attention", ""),
    ("convolution, gradients", "", rf"transpose\(.*({CONVOLUTION})", ""),
    ("convolution, forward", "", CONVOLUTION, ""),
    ("convolution, gradients", "convolution", r"transpose\(", ""),
    ("convolution, forward", "convolution", "", ""),
    ("dense and 1×1", "", r"UNet.*dot_general", ""),
    ("normalisation and SiLU", "", r"/norm\w*/|silu|logistic", ""),
    ("rest of the network", "", r"UNet", ""),
    ("input", "", "", r"programs/build\.py|data/pipeline\.py|pixels\.py"),
    (
        "loss and process",
        "",
        "",
        r"losses/|forward/process\.py|prediction\.py|programs/(model|continuous)\.py|keys\.py",
    ),
    # Last of these, since everything in a step has step.py on its stack.
    ("optimiser and EMA", "", "", r"optax|/state\.py|training/step\.py"),
)
PARTS = tuple(dict.fromkeys(rule[0] for rule in RULES)) + ("other named", "unnamed")


def classify(operation: Operation) -> str:
    """The part an operation belongs to: the first of RULES, "other named", or "unnamed"."""
    for part, opcode, scope, files in RULES:
        if (
            re.search(opcode, operation.opcode)
            and re.search(scope, operation.scope)
            and re.search(files, operation.files)
        ):
            return part
    return "other named" if operation.scope else "unnamed"


def read_program(text: str) -> dict[str, str]:
    """The part of each instruction of a compiled program's text, by the instruction's name."""
    frames = _frames(text)
    bodies, lines = _instructions(text)

    def own(name: str) -> Operation:
        row = lines[name]
        opcode = re.search(r"= (?:\([^=]*?\)|\S+) ([\w\-]+)\(", row)
        scope = re.search(r'op_name="([^"]*)"', row)
        frame = re.search(r"stack_frame_id=(\d+)", row)
        files = frames.get(frame[1], "") if frame else ""
        return Operation(opcode[1] if opcode else "", scope[1] if scope else "", files)

    operands = _operands(lines)
    users = _users(operands)

    def nearest_scope(name: str, neighbours: Mapping[str, list[str]]) -> Operation | None:
        level = [name]
        for _ in range(4):
            level = [n for at in level for n in neighbours.get(at, [])]
            for candidate in level:
                if (found := own(candidate)).scope:
                    return found
        return None

    def part(name: str) -> str:
        operation = own(name)
        called = re.search(r"calls=%?([\w.\-]+)", lines[name])
        inside = [own(i) for i in bodies.get(called[1], [])] if called else []
        heavy = [i for i in inside if i.opcode in ("convolution", "dot", "custom-call")]
        if not operation.scope and not any(i.scope for i in inside):
            # Rewritten by the compiler without a word, as it does with gradients by weights: it
            # serves what uses it, or else what it is made from.
            found = nearest_scope(name, users) or nearest_scope(name, operands)
            if found is not None:
                opcode = heavy[0].opcode if heavy else operation.opcode
                return classify(Operation(opcode, found.scope, found.files))
        named = Counter(classify(i) for i in heavy if i.scope)
        if named:
            return named.most_common(1)[0][0]
        if not operation.scope and any(i.scope for i in inside):
            return Counter(classify(i) for i in inside if i.scope).most_common(1)[0][0]
        return classify(operation)

    return {name: part(name) for name in lines}


def awaited_products(text: str, ran: Container[str]) -> dict[str, frozenset[str]]:
    """For each product of matrices of a CPU's program, the operations in `ran` that use it.

    Those it only reaches through others that are no operations of their own (bitcasts) count, too.
    """
    _, lines = _instructions(text)
    users = _users(_operands(lines))

    def reached(name: str) -> frozenset[str]:
        found, level, seen = set(), list(users.get(name, [])), {name}
        while level:
            user = level.pop()
            if user in ran:
                found.add(user)
            elif user not in seen:
                level += users.get(user, [])
            seen.add(user)
        return frozenset(found)

    return {name: reached(name) for name, row in lines.items() if " dot(" in row and name in ran}


def _instructions(text: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """{computation: its instructions}, and {instruction: its line}, of a program's text."""
    bodies: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    here = ""
    for row in text.splitlines():
        if match := re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", row):
            here = match[1]
            bodies[here] = []
        elif match := re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = ", row):
            lines[match[1]] = row
            bodies.setdefault(here, []).append(match[1])
    return bodies, lines


def _operands(lines: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        name: [o for o in re.findall(r"%([\w.\-]+)", row.split(" = ", 1)[1]) if o in lines]
        for name, row in lines.items()
    }


def _users(operands: Mapping[str, list[str]]) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for name, sources in operands.items():
        for source in sources:
            users.setdefault(source, []).append(name)
    return users


def _frames(text: str) -> dict[str, str]:
    """{frame: the source files on its stack, joined}, from the tables at a program's head."""
    files = dict(re.findall(r'^(\d+) "([^"]*)"$', _section(text, "FileNames"), re.M))
    places = {
        i: files.get(file, "")
        for i, file in re.findall(
            r"^(\d+) \{file_name_id=(\d+)", _section(text, "FileLocations"), re.M
        )
    }
    parents = {
        i: (place, parent)
        for i, place, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
            _section(text, "StackFrames"),
            re.M,
        )
    }
    joined = {}
    for start in parents:
        names, at, seen = [], start, set()
        while at in parents and at not in seen:
            seen.add(at)
            place, at = parents[at]
            names.append(places.get(place, ""))
        joined[start] = " ".join(dict.fromkeys(names))
    return joined


def _section(text: str, title: str) -> str:
    match = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.M)
    return match[1] if match else ""


def innermost(events: Iterable[Segment]) -> list[Segment]:
    """Nested events of one thread as segments without overlap, each named by its innermost."""
    segments: list[Segment] = []
    stack: list[tuple[float, str]] = []
    now = 0.0

    def advance(until: float) -> None:
        nonlocal now
        while stack and stack[-1][0] <= until:
            end, name = stack.pop()
            if end > now:
                segments.append((now, end, name))
                now = end
        if stack and until > now:
            segments.append((now, until, stack[-1][1]))
        now = max(now, until)

    for begin, end, name in sorted(events, key=lambda e: (e[0], -e[1])):
        advance(begin)
        stack.append((end, name))
    advance(float("inf"))
    return segments


def share(
    threads: Iterable[Iterable[Segment]], awaited: Mapping[str, frozenset[str]] | None = None
) -> dict[str, float]:
    """Time of each operation, split evenly where several threads are busy at once.

    `awaited` are operations that go on unseen, with those that use their results: a gap in which
    nothing runs is counted to the last one begun and not yet used. It may have ended before, so
    that is the most it can have taken.
    """
    awaited = awaited or {}
    marks = []
    for number, segments in enumerate(threads):
        for begin, end, name in segments:
            marks += [(begin, 1, number, name), (end, 0, number, name)]
    busy: dict[int, str] = {}
    unseen: dict[str, None] = {}  # in the order they began
    totals: dict[str, float] = defaultdict(float)
    last = 0.0
    for moment, starts, number, name in sorted(marks):
        active = list(busy.values()) or list(unseen)[-1:]
        for operation in active:
            totals[operation] += (moment - last) / len(active)
        last = moment
        if starts:
            busy[number] = name
            unseen = dict.fromkeys(p for p in unseen if p != name and name not in awaited[p])
            if awaited.get(name):
                unseen[name] = None
        else:
            busy.pop(number, None)
    return dict(totals)


def break_down(run: Callable[[], Any], program: str, calls: int) -> Breakdown:
    """Traces `calls` calls of `run`, which waits for its result, and sums by part."""
    import jax
    from jax.profiler import ProfileData, ProfileOptions

    parts_of = read_program(program)
    options = ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            wall = (time.perf_counter() - begun) / calls
        file = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0]
        threads = _threads(ProfileData.from_file(file), parts_of)
    ran = {name for thread in threads for _, _, name in thread}
    shares = share(threads, awaited_products(program, ran))
    operations = {name: 1e-9 * ns / calls for name, ns in shares.items()}
    parts: dict[str, float] = defaultdict(float)
    for name, seconds in operations.items():
        parts[parts_of[name]] += seconds
    unnamed = {n: s for n, s in operations.items() if parts_of[n] in ("other named", "unnamed")}
    largest = dict(sorted(unnamed.items(), key=lambda item: -item[1])[:5])
    return Breakdown({p: parts[p] for p in PARTS}, sum(parts.values()), wall, largest)


def _threads(profile: Any, known: Mapping[str, str]) -> list[list[Segment]]:
    """The compiled operations of each thread or stream; of the devices' only, if any reported."""
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    threads = []
    for plane in devices or planes:
        for row in plane.lines:
            events = []
            for event in row.events:
                name = next((v for k, v in event.stats if k == "hlo_op"), None)
                if name in known:
                    begin = float(event.start_ns)
                    events.append((begin, begin + float(event.duration_ns), str(name)))
            if events:
                threads.append(innermost(events))
    return threads
