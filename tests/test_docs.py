"""The code in the documentation runs, and is as short as it says."""

import ast
import pathlib
import re

import jax
import pytest

from tests.faults import page
from tests.faults.harness import Report

ROOT = pathlib.Path(__file__).resolve().parents[1]


def code_of(name: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.S | re.M)
    return "\n".join(blocks)


SMALLER = {
    "dj.UNet()": "dj.UNet(channels=16, num_groups=8, channel_multipliers=(1,),"
    " attention_resolutions=())",
    "32, 32, 3": "8, 8, 3",
}


HOW_TO = [
    page.relative_to(ROOT).as_posix()
    for page in sorted(ROOT.glob("docs/howto/*.md"))
    if "```python" in page.read_text()
]


LATER = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("docs/index.md", "docs/research.md", *HOW_TO)
]


@pytest.mark.parametrize("name", ["README.md", *LATER])
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = code_of(name)
    for full, small in SMALLER.items():
        code = code.replace(full, small)
    # As a reader would run it, without the flags this suite turns on.
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        exec(compile(code, name, "exec"), {"__name__": "page"})


def test_the_examples_are_short():
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(code_of("docs/research.md")))
        if isinstance(node, ast.FunctionDef)
    }
    assert lengths["sigmoid_weighting"] < 20 and lengths["adams_bashforth"] < 20


def test_the_tables_of_reliability_are_those_of_the_campaigns(tmp_path):
    text, copy = (ROOT / "docs/reliability.md").read_text(), tmp_path / "reliability.md"
    copy.write_text(re.sub(r"^\| .* \| [\d,.]+ \|$", "| stale | 0 |", text, flags=re.M))
    assert page.main(ROOT / "docs/results/reliability/faults.json", copy) == 0
    tables = re.compile("<!-- counts: .*?<!-- end of counts -->", re.S)
    assert tables.findall(copy.read_text()) == tables.findall(text)


def test_a_part_of_a_count_stands_right_after_it():
    report = Report({"kills": 2, "restarts": 1})
    for part in ("late", "early", "late"):
        report.add_part("kills", part)
    rows = {"kills": 2, "… late": 2, "… early": 1, "restarts": 1}
    assert list(report.counts.items()) == list(rows.items())
