"""The README for package indexes, where links relative to the repository would be broken."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CustomMetadataHook(MetadataHookInterface):
    """Sets the readme of the package."""

    def update(self, metadata: dict) -> None:
        """Hatchling calls this with the table [project]."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        readme = with_absolute_links(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}


def with_absolute_links(text: str, repository: str) -> str:
    """Markdown with absolute links to the repository's main branch; images link to raw files."""

    def absolute(match: re.Match) -> str:
        image, label, target = match.groups()
        view = "raw" if image else "blob"
        return f"{image}[{label}]({repository}/{view}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)", absolute, text)
