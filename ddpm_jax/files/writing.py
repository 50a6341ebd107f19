"""Writing files in one move."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Any) -> None:
    """Writes JSON in one move: a reader or a kill never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ~ expanded; that of an unknown user is left as it is."""
    return Path(os.path.expanduser(path))
