"""What a run writes as it goes: one JSON line a record, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, [] when there is none; a last line cut short by a kill is
    left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise ValueError(f"{path}, line {number + 1} is not JSON: {line[:80]!r}") from error
    return records


class RunLog:
    """Appends records to `<folder>/log.jsonl` and scalars to `<folder>/tensorboard/`; a context
    manager.

    Opened at the step a run resumes from, it drops what an earlier, killed process wrote beyond
    that step, so that the log of an interrupted run reads as that of an uninterrupted one.
    """

    def __init__(self, folder: str | Path, resume_step: int = 0):
        self.path = Path(folder) / "log.jsonl"
        kept = [record for record in read_jsonl(self.path) if record.get("step", 0) <= resume_step]
        fresh = self.path.with_suffix(".jsonl.tmp")
        fresh.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(fresh, self.path)
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(
            str(Path(folder) / "tensorboard"),
            purge_step=resume_step + 1,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc_info) -> None:
        self._file.close()
        self._board.close()

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a record of this kind at this step."""
        return any(r["kind"] == kind and r["step"] == step for r in read_jsonl(self.path))

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes one record of this kind ("train", "heldout", …) at this step."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
