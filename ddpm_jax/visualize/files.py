"""What every picture passes through: a checked path, and writing that is done whole or not."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

DPI = 150
INK = "#30343b"


def checked_path(caller: str, path: PathLike, suffix: str) -> Path:
    """Returns the path, or raises ValueError where its ending would belie what is written to it."""
    target = Path(path)
    if target.suffix.lower() != suffix:
        raise ValueError(
            f"{caller} writes {suffix} files, got path {os.fspath(path)!r}. "
            f"Name it {target.stem + suffix!r}."
        )
    return target


def write_file(target: Path, buffer: io.BytesIO) -> None:
    """Makes the folder of `target` and puts the buffer's bytes there in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, since a rename is one step only within a file system; opened plainly, unlike
    # by tempfile, so that the file gets the permissions all others get.
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        draft.write_bytes(buffer.getbuffer())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_figure(target: Path, figure: Figure) -> None:
    """Draws a figure without pyplot and writes it as PNG, in pixels exactly its size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    # Named here, since a user's matplotlibrc may ask for another format or a trimmed figure.
    FigureCanvasAgg(figure).print_png(buffer)
    write_file(target, buffer)
