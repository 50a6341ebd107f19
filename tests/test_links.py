"""Links of the documentation: files, pictures, headings, functions and tests exist."""

import ast
import functools
import importlib
import pathlib
import re
import types
import unicodedata

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = (
    *("keys", "types", "forward", "nn", "denoisers", "losses", "likelihood", "samplers", "score"),
    *("data", "evaluation", "training", "interop", "visualize"),
)
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


def prose(text):
    """A page without its code, in which brackets are no links."""
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def links(text):
    """(text, target) of every link and picture."""
    return re.findall(r"\[([^\]]*)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose(text))


def anchors(text):
    """The targets that headings are on GitHub, where they are the site's as well."""
    counts, found = {}, set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(text), flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", unicodedata.normalize("NFC", plain).lower())
        slug = slug.replace(" ", "-")
        count = counts[slug] = counts.get(slug, -1) + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


@functools.cache
def names_in(path):
    """What a module defines at its top."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def broken_links(page, text):
    """Relative targets that do not exist, or whose page has no such heading."""
    broken = []
    for _, target in links(text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        here = (
            anchors(text if file == page else file.read_text())
            if file.suffix == ".md" and file.exists()
            else ()
        )
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in here):
            broken.append(target)
    return broken


def missing_names(page, text):
    """[`name`](file.py) where the file neither defines the name nor bears it."""
    missing = []
    for words, target in links(text):
        name = re.fullmatch(r"`([\w.]+)`", words)
        if not name or not target.endswith(".py"):
            continue
        file = (page.parent / target).resolve()
        if name[1] != file.name and not (file.exists() and name[1] in names_in(file)):
            missing.append(f"{name[1]} in {target}")
    return missing


def missing_tests(page, text):
    """`test_…` that no test file linked from the page defines."""
    files = {(page.parent / target).resolve() for _, target in links(text)}
    tests = [file for file in files if file.name.startswith("test_") and file.exists()]
    defined = {test.name for test in tests}.union(*map(names_in, tests))
    return sorted(set(re.findall(r"`(test_\w+(?:\.py)?)`", text)) - defined)


CHECKS = (broken_links, missing_names, missing_tests)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_exists(page):
    text = page.read_text()
    found = {check.__name__: check(page, text) for check in CHECKS}
    assert not any(found.values()), found


def test_what_is_missing_is_found(tmp_path):
    page = tmp_path / "page.md"
    text = (
        "# A `page`, here\n## Twice\n## Twice\n[a](#a-page-here) [b](#twice-1) [c](page.md#twice)\n"
        "[gone](#gone) ![picture](gone.png) [other](page.md#gone) [site](https://example.org/x)\n"
        "[`absent`](code.py) [`present`](code.py) [`test_code.py`](test_code.py)\n"
        "`test_gone` `test_it`\n"
        "```\n[code](is/no.link)\n```\n"
    )
    page.write_text(text)
    (tmp_path / "code.py").write_text("present = 1\n")
    (tmp_path / "test_code.py").write_text("def test_it(): ...\n")
    assert broken_links(page, text) == ["#gone", "gone.png", "page.md#gone"]
    assert missing_names(page, text) == ["absent in code.py"]
    assert missing_tests(page, text) == ["test_gone"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_api_pages_have_every_public_name(room):
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    module = importlib.import_module(f"ddpm_jax.{room}")
    homes = {
        value.__module__
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, types.FunctionType | type)
    }
    ours = {home for home in homes if home.startswith("ddpm_jax.")}
    assert ours and all(f"::: {home}\n" in f"{pages}\n" for home in ours), sorted(
        home for home in ours if f"::: {home}\n" not in f"{pages}\n"
    )
