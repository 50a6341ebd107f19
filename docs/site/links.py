"""Links from pages to files of the repository outside docs/, which the site does not hold."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown, page, config, files):
    """Points such links at the repository; links to missing files stay, and fail the build."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = about["project"]["urls"]["Repository"]
    folder = Path(page.file.abs_src_path).parent

    def outside(match):
        target = match.group(1)
        if "://" in target:
            return match.group(0)
        path = (folder / target).resolve()
        if path.is_relative_to(ROOT / "docs") and path.is_file():
            return match.group(0)
        if not path.exists() or not path.is_relative_to(ROOT):
            return match.group(0)
        return (
            f"]({repository}/blob/main/{path.relative_to(ROOT).as_posix()}{match.group(2) or ''})"
        )

    return LINK.sub(outside, markdown)
