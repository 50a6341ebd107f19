"""The floors of the house: a module imports only from floors below its own, or from its own
room."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "ddpm_jax"

# Predictions and losses stand on the forward process, so the second and third floors have a
# mezzanine each.
FLOORS = {
    "types": 0.0,
    "pixels": 0.5,
    "keys": 0.5,
    "schedules": 1.0,
    "normal": 1.0,
    "nn": 1.0,
    "gaussian": 2.0,
    "prediction": 2.5,
    "guidance": 2.7,
    "optimal_variance": 2.7,
    "continuous": 2.7,
    "bound": 2.7,
    "bridge": 2.7,
    "losses": 3.0,
    "likelihood": 3.0,
    "probability_flow": 3.0,
    "samplers": 3.0,
    "score": 3.0,
    # Processes and meshes: no diffusion, but no pure functions either.
    "hosts": 3.5,
    # Files and nothing else: what every room of the fourth floor opens its files with.
    "reading": 3.5,
    "training": 4.0,
    "generation": 4.0,
    "data": 4.0,
    # Reads images and weights as data does.
    "evaluation": 4.5,
    "interop": 4.0,
    "export": 4.0,
    "visualize": 4.0,
    "runs": 5.0,
}
# What floors 0 to 3 may import from outside: they are traced by whoever calls them.
CORE_LIBRARIES = {"jax", "flax", "numpy"}
# The adaptive ODE solver is a library's; imported where it is called, so the core stays light.
EXTRA_LIBRARIES = {"probability_flow": {"diffrax"}}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it out"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path):
    here = room(path)
    if here == "__init__":
        return
    assert here in FLOORS, f"{path} is in no room that the table knows"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ddpm_jax":
            there = parts[1]
            assert there == here or FLOORS[there] < FLOORS[here], f"{path} imports {name}"
        elif FLOORS[here] <= 3 and parts[0] not in sys.stdlib_module_names:
            allowed = CORE_LIBRARIES | EXTRA_LIBRARIES.get(here, set())
            assert parts[0] in allowed, f"{path} imports {name} on a floor that is traced"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_jit_and_printing_stay_upstairs(path):
    source = path.read_text()
    # A program may say how many devices a CPU is, before JAX is used: one file does.
    if path.relative_to(PACKAGE).as_posix() != "runs/cores.py":
        assert "config.update" not in source, "jax.config belongs to experiments and tests"
    if room(path) != "__init__" and FLOORS[room(path)] <= 3:
        for node in ast.walk(ast.parse(source)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in {"jax.jit", "jax.pmap", "jax.shard_map", "print"}, (
                f"{path}: {called}"
            )


def test_importing_the_core_loads_no_heavy_library():
    heavy = [
        "orbax",
        "optax",
        "matplotlib",
        "PIL",
        "sklearn",
        "scipy.stats",
        "tqdm",
        "tensorboardX",
        "diffrax",
    ]
    code = (
        "import jax, flax, sys; before = set(sys.modules); import ddpm_jax; "
        f"print(sorted({set(heavy)!r} & (set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
