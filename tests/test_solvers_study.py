"""The study of few-step samplers at a tiny size."""

import json

import numpy as np
import pytest
from PIL import Image

from solvers import SAMPLERS, SolversConfig, exact_ends, solvers


@pytest.mark.slow
def test_the_study_counts_evaluations_and_ranks_orders(tmp_path):
    found = solvers(SolversConfig(out=tmp_path, evaluations=(10,), count=100))
    assert json.loads((tmp_path / "solvers.json").read_text())["results"] == found["results"]
    assert found["results"].keys() == {"even in t", "even in λ"}
    for rows in found["results"].values():
        assert rows.keys() == SAMPLERS.keys()
        for name, row in rows.items():
            cell = row["10"]
            assert cell["evaluations"] == (9 if name == "Heun" else 10), name
            assert ("rms" in cell) == (name not in ("ancestral", "DDIM η=1", "SDE-DPM-Solver++ 2M"))
    # The study's finding: of ten evaluations, even in λ, second order errs less.
    rows = found["results"]["even in λ"]
    assert rows["DPM-Solver++ 2M"]["10"]["rms"] < 0.75 * rows["DDIM η=0"]["10"]["rms"]
    assert all(name in (tmp_path / "solvers.md").read_text() for name in SAMPLERS)
    assert np.std(np.asarray(Image.open(tmp_path / "samples.png").convert("L"))) > 5


def test_exact_ends_lie_on_the_mixture():
    """From far away the flow ends within a few widths of one of the five means."""
    y = 157.0 * np.random.default_rng(0).standard_normal((50, 2))
    ends = exact_ends(y, 157.0)
    np.testing.assert_allclose(np.linalg.norm(ends, axis=1), 1.0, atol=4 * 0.12)


@pytest.mark.parametrize(
    "change, word",
    [({"count": 1}, "count"), ({"evaluations": ()}, "evaluations"), ({"shown_grid": "t"}, "shown")],
)
def test_wrong_flags_are_refused(change, word, tmp_path):
    with pytest.raises(ValueError, match=word):
        solvers(SolversConfig(out=tmp_path / "new", **change))
    assert not (tmp_path / "new").exists()
