"""The notebooks run, and hold what they showed."""

import json
import pathlib

import jax
import matplotlib
import pytest

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NAMES = ["digits", "mathematics"]


def code_cells(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source_of(name):
    return "\n".join("".join(cell["source"]) for cell in code_cells(name))


def test_the_mathematics_is_right():
    code = compile(source_of("mathematics"), "mathematics.ipynb", "exec")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    try:
        # As a reader would run it, without the flags this suite turns on.
        with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
            exec(code, {"__name__": "notebook"})
    finally:
        plt.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_holds_what_it_showed(name):
    """Its code compiles; every cell was run, in this order, without errors; there are pictures."""
    compile(source_of(name), name, "exec")
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_no_other_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
