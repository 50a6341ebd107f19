"""The layers of the package: who imports whom, and what the pure rooms never do."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ddpm_jax"
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS = [layer.split(" | ") for layer in CONTRACT["contracts"][0]["layers"]]
# Pure functions, traced by whoever calls them.
PURE = {"types", "keys", "forward", "nn", "denoisers", "likelihood", "losses", "samplers", "score"}
PURE_LIBRARIES = {"jax", "flax", "numpy"}
# The adaptive ODE solver is a library's; imported where it is called, so the core stays light.
EXTRA_LIBRARIES = {"likelihood/adaptive_ode.py": {"diffrax"}}
MODULES = sorted(PACKAGE.rglob("*.py"))
PURE_MODULES = [p for p in MODULES if p.relative_to(PACKAGE).parts[0].removesuffix(".py") in PURE]


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it out"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_keep_the_contract():
    linter = pathlib.Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed (the dev extra)")
    result = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_readmes_table_is_the_contract():
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "README.md").read_text(), re.M)
    assert [re.findall(r"`(\w+)`", rooms) for _, rooms in rows] == LAYERS
    assert [int(number) for number, _ in rows] == list(range(len(LAYERS), 0, -1))


def test_every_pure_room_is_a_layer():
    assert PURE <= {room for layer in LAYERS for room in layer}


@pytest.mark.parametrize("path", PURE_MODULES, ids=name_of)
def test_pure_rooms_import_array_libraries_only(path):
    allowed = PURE_LIBRARIES | EXTRA_LIBRARIES.get(name_of(path), set()) | {"ddpm_jax"}
    for name in imports(path):
        library = name.split(".")[0]
        assert library in allowed or library in sys.stdlib_module_names, f"{path} imports {name}"


@pytest.mark.parametrize("path", PURE_MODULES, ids=name_of)
def test_pure_rooms_neither_compile_nor_print(path):
    for node in ast.walk(ast.parse(path.read_text())):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert called not in {"jax.jit", "jax.pmap", "jax.shard_map", "print"}, f"{path}: {called}"


def test_few_files_configure_jax():
    """The number of a CPU's devices, and where programs keep what they compile."""
    configuring = {name_of(p) for p in MODULES if "config.update" in p.read_text()}
    assert configuring == {
        *("devices/cpu.py", "devices/processes.py", "programs/compilation.py"),
    }


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
