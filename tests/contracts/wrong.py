"""The machinery of the nets of wrong calls: kinds of arguments, what can be wrong, and outcomes.

A `Net` has one right call per public function of its rooms, argument by argument, with the kind of
each argument. `WRONG` lists what can be wrong with an argument of a kind. Every row is called with
each of them, and with neighbouring arguments exchanged. The error must be a ValueError or TypeError
raised in a frame of the package, and its message must name the call. Where another outcome is
right, the net's `documented` says what the call means and checks it.
"""

import functools
import inspect
import pathlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax as dj

PACKAGE = str(pathlib.Path(dj.__file__).parent)
T = 8
SCHEDULE = dj.cosine_schedule(T)
RNG = np.random.default_rng(0)
X, NOISE = (jnp.asarray(RNG.uniform(-1, 1, (3, 4, 5, 2)), jnp.float32) for _ in range(2))
KEYS = jax.random.split(jax.random.key(0), 3)


def network(x_t, timesteps):
    return 0.3 * x_t


class Argument(NamedTuple):
    kind: str
    value: Any


class Row(NamedTuple):
    """A right call: positional arguments in the order of the signature, then keywords."""

    function: Any
    arguments: dict[str, Argument]


def row(function, /, **arguments):
    return Row(function, {name: Argument(*pair) for name, pair in arguments.items()})


POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# What can be wrong with an argument, as a function of its right value. `TRACED` hands it over
# under jit instead.
TRACED = object()
NOT_AN_ARRAY = {
    "None": lambda v: None,
    "a string": lambda v: "0.5",
    "a list": lambda v: [v],
    "a schedule": lambda v: SCHEDULE,
    "a dict": lambda v: {"x": v},
}
NOT_REAL = {
    "uint8": lambda v: jnp.ones(jnp.shape(v), jnp.uint8),
    "int32": lambda v: jnp.ones(jnp.shape(v), jnp.int32),
    "bool": lambda v: jnp.ones(jnp.shape(v), bool),
    "complex": lambda v: jnp.ones(jnp.shape(v), jnp.complex64),
    "a key": lambda v: KEYS[0],
}
VALUES = NOT_AN_ARRAY | NOT_REAL
SHAPES = {
    "no batch axis": lambda v: v[0],
    "a batch of one": lambda v: v[:1],
    "an axis of one": lambda v: v[:, :1],
    "swapped axes": lambda v: v.swapaxes(1, 2),
    "an axis more": lambda v: v[None],
    "a Python number": lambda v: 0.3,
}
NOT_A_NUMBER = {
    "None": lambda v: None,
    "a string": lambda v: "0.5",
    "an array": lambda v: jnp.ones(3),
    "complex": lambda v: 1j,
    "nan": lambda v: float("nan"),
    "a bool": lambda v: True,
    "a schedule": lambda v: SCHEDULE,
    "traced": TRACED,
}
NEGATIVE = {"-1": lambda v: -1}
INFINITE = {"inf": lambda v: float("inf")}
STEP_VALUES = {
    "None": lambda v: None,
    "a string": lambda v: "3",
    "floats": lambda v: jnp.asarray(v, jnp.float32),
    "bools": lambda v: jnp.ones(jnp.shape(v), bool),
    "complex": lambda v: jnp.ones(jnp.shape(v), jnp.complex64),
    "a schedule": lambda v: SCHEDULE,
}
STEP_RANGE = {
    "T": lambda v: np.full(jnp.shape(v), T),
    "-1": lambda v: np.full(jnp.shape(v), -1),
}
STEP_SHAPES = {
    "a step per row": lambda v: jnp.zeros(4, int),
    "one step [1]": lambda v: v[:1],
    "steps [B, 1]": lambda v: v[:, None],
}
TIME_VALUES = {
    "None": lambda v: None,
    "a string": lambda v: "0.5",
    "steps": lambda v: jnp.ones(jnp.shape(v), int),
    "bools": lambda v: jnp.ones(jnp.shape(v), bool),
    "complex": lambda v: jnp.ones(jnp.shape(v), jnp.complex64),
    "a schedule": lambda v: SCHEDULE,
    "above 1": lambda v: jnp.full(jnp.shape(v), 1.5),
    "negative": lambda v: -v,
}
OPTION = {
    "None": lambda v: None,
    "a misspelling": lambda v: "eps",
    "a number": lambda v: 3,
    "a list": lambda v: [v],
}
OBJECT = {
    "None": lambda v: None,
    "an array": lambda v: X,
    "a string": lambda v: "linear",
    "a number": lambda v: 1000,
    "a function": lambda v: network,
}
NOT_CONVERTIBLE = {
    "None": lambda v: None,
    "a string": lambda v: "0.5",
    "a schedule": lambda v: SCHEDULE,
    "a dict": lambda v: {"x": v},
}
LADDER = {
    "None": lambda v: None,
    "a string": lambda v: "0.5",
    "complex": lambda v: v + 0j,
    "empty": lambda v: [],
    "two axes": lambda v: v[None],
    "a number": lambda v: 0.5,
    "nan": lambda v: v * np.nan,
    "negative": lambda v: -v,
    "rising": lambda v: v[::-1],
    "a schedule": lambda v: SCHEDULE,
}
WRONG = {
    "events": VALUES | SHAPES,
    "lone": VALUES,
    "values": VALUES,
    "event rows": VALUES | {"no rows": lambda v: v[0], "an axis of one": lambda v: v[:, :, :1]},
    "per example": VALUES | {"a batch of one": lambda v: v[:1], "a column": lambda v: v[:, None]},
    "mean": VALUES | {"per example": lambda v: jnp.ones((3, 4, 5, 2))},
    "steps": STEP_VALUES | STEP_RANGE | STEP_SHAPES,
    "any steps": STEP_VALUES | STEP_RANGE,
    "times": TIME_VALUES
    | {"a time per row": lambda v: jnp.full(4, 0.5), "one time [1]": lambda v: v[:1]},
    "any times": TIME_VALUES,
    "network steps": STEP_VALUES | STEP_SHAPES,
    "step rows": STEP_VALUES
    | STEP_RANGE
    | {"no rows": lambda v: v[0], "short": lambda v: v[:, :1]},
    "process": OBJECT | {"a schedule": lambda v: SCHEDULE},
    "schedule": OBJECT,
    "host schedule": OBJECT | {"traced": TRACED},
    "history": OBJECT | {"a schedule": lambda v: SCHEDULE},
    "function": {k: v for k, v in OBJECT.items() if k != "a function"}
    | {
        "a function of nothing real": lambda v: lambda *_: jnp.ones((3, 4, 5, 2), jnp.int32),
        "a function to None": lambda v: lambda *_: None,
        "a function to a pair": lambda v: lambda x, *_: (x, x),
        "a function to one row": lambda v: lambda x, *_: x[:1] if x.shape[0] > 1 else x[0],
    },
    "callable": {k: v for k, v in OBJECT.items() if k != "a function"},
    "real": VALUES,
    "flags": {
        "None": lambda v: None,
        "numbers": lambda v: jnp.ones(3),
        "a bool": lambda v: True,
        "two axes": lambda v: v[:, None],
        "a schedule": lambda v: SCHEDULE,
    },
    "keys": {
        "None": lambda v: None,
        "one key": lambda v: v[0],
        "a batch of one": lambda v: v[:1],
        "a seed": lambda v: 0,
        "numbers": lambda v: jnp.ones(3),
    },
    "any keys": {
        "None": lambda v: None,
        "one key": lambda v: v[0],
        "a seed": lambda v: 0,
        "numbers": lambda v: jnp.ones(3),
    },
    "whole": NOT_A_NUMBER | NEGATIVE | {"0": lambda v: 0, "1.5": lambda v: 1.5},
    "number": NOT_A_NUMBER | INFINITE,
    "positive": NOT_A_NUMBER | NEGATIVE | INFINITE,
    "many": NOT_A_NUMBER | INFINITE | {"0": lambda v: 0.0},
    "rate": NOT_A_NUMBER | {"0": lambda v: 0.0, "1": lambda v: 1.0},
    "share": NOT_A_NUMBER | NEGATIVE | {"1.5": lambda v: 1.5},
    "percentile": NOT_A_NUMBER
    | {"a fraction": lambda v: 0.995, "0": lambda v: 0, "101": lambda v: 101},
    "target": OPTION,
    "variance": OPTION
    | {
        "integers": lambda v: jnp.zeros(T, int),
        "another T": lambda v: jnp.zeros(T + 1),
        "a table per example": lambda v: jnp.zeros((T, 3)),
    },
    "clip": {
        "no": lambda v: "no",
        "False": lambda v: "False",
        "0": lambda v: 0,
        "-1": lambda v: -1.0,
        "nan": lambda v: float("nan"),
        "inf": lambda v: float("inf"),
        "falling": lambda v: (2, -2),
        "three": lambda v: (-1, 0, 1),
        "strings": lambda v: ("-1", "1"),
        "an array": lambda v: jnp.array([-1.0, 1.0]),
        "complex": lambda v: 1j,
    },
    "dtype": {
        "integers": lambda v: jnp.int32,
        "complex": lambda v: jnp.complex64,
        "bool": lambda v: bool,
    },
    "table": {
        "traced": TRACED,
        "None": lambda v: None,
        "complex": lambda v: v + 0j,
        "strings": lambda v: ["a"] * T,
        "empty": lambda v: [],
        "two axes": lambda v: v[None],
        "a number": lambda v: 0.5,
        "nan": lambda v: np.where(np.arange(T) == 3, np.nan, v),
        "negative": lambda v: -v,
        "a schedule": lambda v: SCHEDULE,
    },
    "numbers": {
        "traced": TRACED,
        "None": lambda v: None,
        "complex": lambda v: v + 0j,
        "one": lambda v: v[:1],
        "two axes": lambda v: v[None],
        "a schedule": lambda v: SCHEDULE,
    },
    "grid": {
        "traced": TRACED,
        "None": lambda v: None,
        "floats": lambda v: v.astype(float),
        "empty": lambda v: v[:0],
        "falling": lambda v: v[::-1],
        "repeated": lambda v: v[[0, 0, 1]],
        "T": lambda v: v + 1,
        "-1": lambda v: v - 1,
        "two axes": lambda v: v[None],
        "a number": lambda v: 5,
    },
    "pixels": NOT_AN_ARRAY
    | {
        "floats": lambda v: jnp.ones(3),
        "int32": lambda v: jnp.ones(3, jnp.int32),
        "a Python number": lambda v: 3,
    },
    "broadcastable": VALUES | {"two rows": lambda v: v[:2]},
    "conditions": {
        "None": lambda v: None,
        "an array": lambda v: v[0],
        "one row": lambda v: (v[0][:1],),
        "two rows": lambda v: (v[0][:2],),
        "a number": lambda v: (3,),
        "text": lambda v: ("a",),
    },
    "shape": {
        "None": lambda v: None,
        "floats": lambda v: (4.5, *v[1:]),
        "an array": lambda v: X,
        "a number": lambda v: 40,
        "empty events": lambda v: (4, 0),
        "strings": lambda v: ("4", "5"),
    },
    "solver": {"a string": lambda v: "dopri5", "a number": lambda v: 5},
    # Names in a check of arguments, and what any value may be.
    "unchecked": {},
    "host values": {"traced": TRACED},
    "convertible": NOT_CONVERTIBLE,
    "any per example": NOT_CONVERTIBLE
    | {"a batch of one": lambda v: v[:1], "a column": lambda v: v[:, None]},
    "like": NOT_AN_ARRAY | SHAPES,
    "batch": NOT_CONVERTIBLE
    | {
        "uint8": lambda v: v.astype(jnp.uint8),
        "complex": lambda v: v + 0j,
        "a key": lambda v: KEYS[0],
        "a Python number": lambda v: 0.3,
    },
    "any numbers": NOT_CONVERTIBLE | {"complex": lambda v: v + 0j, "bools": lambda v: v > 0},
    "number of axes": {
        "None": lambda v: None,
        "a string": lambda v: "4",
        "1.5": lambda v: 1.5,
        "a bool": lambda v: True,
        "too few": lambda v: 0,
        "an array": lambda v: X,
    },
    "seed": {
        "None": lambda v: None,
        "a string": lambda v: "0",
        "1.5": lambda v: 1.5,
        "a bool": lambda v: True,
        "an array": lambda v: jnp.arange(3),
        "complex": lambda v: 1j,
        "a key": lambda v: KEYS[0],
        "a schedule": lambda v: SCHEDULE,
    },
    "key": {
        "None": lambda v: None,
        "keys": lambda v: KEYS,
        "a seed": lambda v: 0,
        "numbers": lambda v: jnp.ones(3),
    },
    "indices": {k: v for k, v in STEP_VALUES.items()}
    | {"one": lambda v: 3, "two axes": lambda v: v[:, None]},
    "tree": {
        "None": lambda v: None,
        "nothing": lambda v: {},
        "a number": lambda v: 3,
        "strings": lambda v: {"kernel": "a"},
        "a function": lambda v: network,
    },
    "option number": {
        "None": lambda v: None,
        "a string": lambda v: "1",
        "2": lambda v: 2,
        "-1": lambda v: -1,
        "a bool": lambda v: True,
        "an array": lambda v: jnp.ones(3),
    },
    "flag": {
        "None": lambda v: None,
        "a string": lambda v: "False",
        "a number": lambda v: 1,
        "an array": lambda v: jnp.ones(3, bool),
        "traced": TRACED,
    },
    "scale": VALUES
    | {
        "a scale per row": lambda v: jnp.ones(4),
        "a scale [1]": lambda v: jnp.ones(1),
        "a column": lambda v: jnp.ones((3, 1)),
        "nan": lambda v: float("nan"),
        "inf": lambda v: np.float32("inf"),
        "one of them nan": lambda v: jnp.array([1.0, jnp.nan, 2.0]),
        "a function to inf": lambda v: lambda timesteps: -jnp.inf,
        "a function to text": lambda v: lambda timesteps: "2",
    },
    "known": VALUES
    | {
        "nan": lambda v: v * jnp.nan,
        "a batch of one": lambda v: v[:1],
        "an axis of one": lambda v: v[:, :1],
        "a batch of two": lambda v: v[:2],
        "an axis more": lambda v: v[None],
    },
    "data on levels": VALUES
    | SHAPES
    | {
        "twice as large": lambda v: 2 * v,
        "0 to 255": lambda v: 127.5 * (v + 1),
        "nan": lambda v: v * jnp.nan,
    },
    "uniform draws": VALUES
    | SHAPES
    | {
        "normal draws": lambda v: 3 * v - 1.5,
        "-1 to 1": lambda v: 2 * v - 1,
        "nan": lambda v: v * jnp.nan,
    },
    "per row": {k: v for k, v in VALUES.items() if k != "int32"}
    | {
        "int32": lambda v: jnp.ones(3, jnp.int32),
        "a value per row": lambda v: jnp.ones(4),
        "one value [1]": lambda v: jnp.ones(1),
    },
    "replayed": VALUES | {"short": lambda v: v[:, :1], "no rows": lambda v: v[0]},
    "rate of Langevin": NOT_A_NUMBER | {"0": lambda v: 0.0, "4": lambda v: 4.0},
    "whole or 0": NOT_A_NUMBER | NEGATIVE | {"1.5": lambda v: 1.5},
    "last step": {k: v for k, v in NOT_A_NUMBER.items() if k != "None"}
    | NEGATIVE
    | {"1.5": lambda v: 1.5, "T": lambda v: T},
    "order": NOT_A_NUMBER | NEGATIVE | {"0": lambda v: 0, "1.5": lambda v: 1.5, "5": lambda v: 5},
    "some schedule": {k: v for k, v in OBJECT.items() if k != "None"} | {"traced": TRACED},
    "some function": {
        "an array": lambda v: X,
        "a string": lambda v: "linear",
        "a function to None": lambda v: lambda *_: None,
        "a function of nothing real": lambda v: lambda *_: jnp.ones((3, 4, 5, 2), jnp.int32),
        "a function to one row": lambda v: lambda x, *_: x[:1],
    },
    "sampler": OBJECT | {"a schedule": lambda v: SCHEDULE, "a maker": lambda v: dj.ddim},
    "state": {"an array": lambda v: X, "None": lambda v: None, "a string": lambda v: "state"},
    "grid steps": {k: v for k, v in STEP_VALUES.items()}
    | {
        "rising": lambda v: v[::-1],
        "with a gap": lambda v: jnp.array([5, 3]),
        "T": lambda v: jnp.array([T, T - 1]),
        "-1": lambda v: jnp.array([0, -1]),
        "one": lambda v: 3,
    },
    "range": {
        "None": lambda v: None,
        "a number": lambda v: 0.5,
        "falling": lambda v: v[::-1],
        "three": lambda v: (0.0, 1.0, 2.0),
        "strings": lambda v: ("0", "1"),
        "nan": lambda v: (float("nan"), 1.0),
        "a string": lambda v: "01",
    },
    "mask": NOT_CONVERTIBLE
    | {"numbers": lambda v: jnp.ones(v.shape), "integers": lambda v: jnp.ones(v.shape, int)},
    "event shape": {
        "None": lambda v: None,
        "floats": lambda v: (4.5, *v[1:]),
        "an array": lambda v: X,
        "a number": lambda v: 40,
        "negative": lambda v: (4, -1),
        "strings": lambda v: ("4", "5"),
        "a schedule": lambda v: SCHEDULE,
    },
    "times of a grid": {
        "traced": TRACED,
        "None": lambda v: None,
        "a string": lambda v: "0.5",
        "complex": lambda v: v + 0j,
        "empty": lambda v: [],
        "two axes": lambda v: v[None],
        "a number": lambda v: 0.5,
        "nan": lambda v: v * np.nan,
        "falling": lambda v: v[::-1],
        "above 1": lambda v: v + 1,
        "negative": lambda v: -v[::-1],
        "a schedule": lambda v: SCHEDULE,
    },
    "data": {
        "traced": TRACED,
        "None": lambda v: None,
        "a string": lambda v: "data",
        "complex": lambda v: v + 0j,
        "one example": lambda v: v[:1],
        "a number": lambda v: 3.0,
        "nan": lambda v: v * np.nan,
        "a schedule": lambda v: SCHEDULE,
    },
    "ladder": LADDER | {"traced": TRACED},
    "ladder of a program": LADDER,
}
# Kinds of arguments that a program computes.
COMPUTED = {
    *("events", "lone", "values", "event rows", "per example", "mean", "real", "batch", "like"),
    *("steps", "any steps", "network steps", "step rows", "grid steps", "times", "any times"),
    *("keys", "any keys", "key", "indices", "schedule", "history", "flags", "replayed", "tree"),
    *("known", "mask", "data on levels", "uniform draws", "pixels", "any numbers", "per row"),
    *("any per example", "convertible"),
}


def computed(row: Row) -> dict[str, Any]:
    """The arguments of a right call that a program computes; the others are options."""
    return {name: a.value for name, a in row.arguments.items() if a.kind in COMPUTED}


def same(result, right) -> bool:
    return bool(jax.tree.all(jax.tree.map(jnp.array_equal, result, right)))


def close(result, right) -> bool:
    return bool(
        jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-3), result, right))
    )


def call(row: Row, changed: dict[str, Any]):
    """Calls the row's function, positionally where its signature allows."""
    values = {name: changed.get(name, a.value) for name, a in row.arguments.items()}
    parameters = inspect.signature(row.function).parameters
    positional = [
        values.pop(name)
        for name in list(values)
        if name in parameters and parameters[name].kind in POSITIONAL
    ]
    return row.function(*positional, **values)


def outcome(name: str, make, *others: str) -> str:
    """ "" for an error of ours that names the call, else what happened instead."""
    public = name.split("(")[0]
    try:
        with jax.numpy_rank_promotion("allow"):
            result = make()
    except (ValueError, TypeError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if not frame.filename.startswith(PACKAGE):
            return f"raised elsewhere, {pathlib.Path(frame.filename).name}: {error}"[:200]
        names = (
            public.rpartition(".")[2],
            "apply_fn",
            "a denoiser must return",
            "--data.",
            *others,
        )
        named = any(said in str(error) for said in names)
        return "" if named else f"the call is not named: {error}"[:200]
    except Exception as error:  # another kind of error: not ours
        return f"{type(error).__name__}: {error}"[:200]
    return f"returned {jax.tree.map(jnp.shape, result)}"[:200]


def public_names(rooms: Sequence[ModuleType], classes: bool) -> set[str]:
    """Their functions and, if wanted, their classes other than records (tuples) and errors."""

    def counts(value: Any) -> bool:
        if inspect.isclass(value):
            return classes and not issubclass(value, tuple | BaseException)
        return inspect.isfunction(value)

    return {
        name
        for room in rooms
        for name, value in vars(room).items()
        if not name.startswith("_") and counts(value) and value.__module__.startswith("ddpm_jax.")
    }


class Net(NamedTuple):
    """The rows of some packages, and what documented calls mean.

    rooms       the packages; their public functions need rows, and their classes if `classes`
    documented  (row, argument, what is wrong) -> (meaning, a check of (result, right result))
    elsewhere   public names without a row, and why
    kinds       what can be wrong with an argument of each kind
    passed_on   functions that pass their arguments to another, which errors name instead
    methods     classes whose public methods need rows, too, as "Class.method"
    """

    rooms: Sequence[ModuleType]
    rows: Mapping[str, Row]
    documented: Mapping[tuple[str, str, str], tuple[str, Any]]
    elsewhere: Mapping[str, str] = {}
    kinds: Mapping[str, Mapping[str, Any]] = WRONG
    classes: bool = False
    passed_on: Mapping[str, str] = {}
    methods: Sequence[type] = ()

    def missing(self) -> set[str]:
        """Public names without a row, and rows of names that are gone."""
        rows = {name for name in self.rows if "(" not in name}
        methods = {
            f"{kind.__name__}.{name}"
            for kind in self.methods
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and not name.startswith("_")
        }
        known = rows | self.elsewhere.keys()
        return (public_names(self.rooms, self.classes) | methods) ^ known

    def wrong_calls(self, name: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """(argument, what is wrong, the call) for a row."""
        row = self.rows[name]
        for argument, (kind, value) in row.arguments.items():
            for wrong, change in self.kinds[kind].items():
                if change is TRACED:
                    yield (
                        argument,
                        wrong,
                        lambda a=argument, v=value: jax.jit(lambda w: call(row, {a: w}))(v),
                    )
                else:
                    made = lambda a=argument, v=value, c=change: call(row, {a: c(v)})  # noqa: E731
                    yield argument, wrong, made
        parameters = inspect.signature(row.function).parameters
        ordered = [a for a in row.arguments if parameters[a].kind in POSITIONAL]
        for one, two in zip(ordered, ordered[1:], strict=False):
            if row.arguments[one].kind != row.arguments[two].kind:
                swap = {one: row.arguments[two].value, two: row.arguments[one].value}
                yield f"{one}, {two}", "exchanged", lambda swap=swap: call(row, swap)

    def faults(self, name: str) -> list[str]:
        """Wrong calls of a row that neither raise an error of ours nor mean what they should."""
        bad, right = [], functools.cache(lambda: call(self.rows[name], {}))
        for argument, wrong, make in self.wrong_calls(name):
            if (name, argument, wrong) in self.documented:
                meaning, check = self.documented[name, argument, wrong]
                if not check(make(), right()):
                    bad.append(f"{argument}: {wrong}: should mean {meaning}")
            elif said := outcome(name, make, *self.passed_on.get(name, "").split()):
                bad.append(f"{argument}: {wrong}: {said}")
        return bad

    def with_whole_numbers(self) -> list[str]:
        """The rows that have a whole number."""
        return [
            name
            for name, row in self.rows.items()
            if any(type(value) is int for _, value in row.arguments.values())
        ]

    def refused_floats(self, name: str) -> list[str]:
        """Whole numbers of a row that as floats, 4.0 for 4, fail elsewhere than in a check of ours.

        `check_whole` accepts such a float, since 1e3 is a whole number; what follows must take its
        integer.
        """
        row, bad = self.rows[name], []
        for argument, (_, value) in row.arguments.items():
            if type(value) is int:
                make = lambda a=argument, v=value: call(row, {a: float(v)})  # noqa: E731
                said = outcome(name, make, *self.passed_on.get(name, "").split())
                if said and not said.startswith("returned"):
                    bad.append(f"{argument}: {said}")
        return bad

    def unreached(self) -> set[tuple[str, str, str]]:
        """Documented meanings of calls that are not made."""
        made = {(name, a, w) for name in self.rows for a, w, _ in self.wrong_calls(name)}
        return self.documented.keys() - made
