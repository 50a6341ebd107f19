"""The rule of every --out: a program replaces its own earlier results alone, and says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddpm_jax.files import write_json
from ddpm_jax.programs.buckets import shown, taken_in
from ddpm_jax.programs.console import say
from ddpm_jax.programs.run_directory import RunDirectoryError, make_writable


def claim(folder: Path, taken: Sequence[str], *, ours: bool) -> None:
    """Says that these files of the folder are replaced; RunDirectoryError if they are not `ours`.

    Args:
        folder: a local folder, or one that stands for a bucket's.
        taken: which of the files to be written are already there; see `taken_in`.
        ours: whether an earlier call of the same program wrote them.
    """
    if taken and not ours:
        raise RunDirectoryError(
            f"{shown(folder)} has {', '.join(taken)} of something else. Choose another place with "
            "--out. Nothing was changed."
        )
    if taken:
        say(f"replacing {', '.join(taken)} of an earlier call in {shown(folder)}")


def study_folder(
    name: str, files: Sequence[str], out: Path | None, root: Path = Path("runs")
) -> Path:
    """Makes the folder of a study, `out` or ROOT/NAME, for these files and, last of all, NAME.json.

    Where there is such a JSON, the other files are a study's, too; in ROOT/NAME all of them are.
    Elsewhere an empty one comes first: what a killed study left is replaced by the next.

    Raises RunDirectoryError for a folder with other files of these names, or that cannot be
    written.
    """
    folder, mark = out or root / name, f"{name}.json"
    ours = folder == root / name or bool(taken_in(folder, [mark]))
    claim(folder, taken_in(folder, [*files, mark]), ours=ours)
    make_writable(folder)
    if folder != root / name and not (folder / mark).exists():
        write_json(folder / mark, {})
    return folder
