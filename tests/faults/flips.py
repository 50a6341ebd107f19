"""Single flipped bits, cut and missing files, in whichever file of the newest checkpoint."""

from __future__ import annotations

import collections
import shutil
import warnings
from pathlib import Path

import jax

from ddpm_jax.programs.run_directory import RunDirectory
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training import Checkpoints
from tests.faults.harness import SHORT_STEPS, Bench, Report, compare, digest, digest_of, steps

PROMISE = (
    "Any flipped bit, and any truncated or missing file, in any file of a checkpoint is noticed "
    "when it is read; training resumes from the newest intact checkpoint, and the damaged one is "
    "kept aside and named."
)


def campaign(bench: Bench) -> Report:
    """200 flips (short: 20), every file cut and deleted once, and whole programs on some."""
    report = Report()
    flips, programs, num_steps = (20, 0, SHORT_STEPS) if bench.short else (200, 10, 200)
    reference = bench.reference(num_steps)
    whole = reference / "checkpoints"
    newest, before = steps(reference)[-1], steps(reference)[-2]
    config, _ = RunDirectory(reference).read()
    run = TrainingRun(config)
    like = run.parallel.placeholder(run.model.init_shapes())
    expected = digest(reference, before)
    files = sorted(p.relative_to(whole / str(newest)) for p in (whole / str(newest)).rglob("*"))
    files = [f for f in files if (whole / str(newest) / f).is_file()]
    full = [f for f in files if (whole / str(newest) / f).stat().st_size]
    kinds = collections.Counter()

    def try_out(what: str, name: Path, damage) -> None:
        folder = bench.work / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        for step in (before, newest):
            shutil.copytree(whole / str(step), folder / str(step))
        damage(folder / str(newest) / name)
        with warnings.catch_warnings(record=True) as said, Checkpoints(folder) as checkpoints:
            warnings.simplefilter("always")
            state = checkpoints.restore(like)
        report.add(what)
        words = " ".join(str(w.message) for w in said)
        problems = {
            "another state restored": _digest(state) != expected,
            "not kept aside": not (folder / f"{newest}.damaged").is_dir(),
            "not named": f"/{newest}" not in words or "damaged" not in words,
        }
        report.add("noticed, kept aside and named", not any(problems.values()))
        for problem, found in problems.items():
            report.expect(not found, f"{what}, {name}: {problem}")

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[bench.random.randrange(len(content))] ^= 1 << bench.random.randrange(8)
        path.write_bytes(content)

    for number in range(flips):
        # Every file once, then at random.
        name = full[number] if number < len(full) else bench.random.choice(full)
        kinds[_kind(name)] += 1
        try_out("bits flipped", name, flip)
    for name in full:
        try_out("files truncated", name, lambda p: p.write_bytes(p.read_bytes()[:-1]))
    for name in files:
        try_out("files deleted", name, Path.unlink)
    report.counts["flips by kind of file"] = dict(sorted(kinds.items()))

    for number in range(programs):
        folder = bench.work / f"run-{number}"
        shutil.copytree(reference, folder)
        flip(folder / "checkpoints" / str(newest) / bench.random.choice(full))
        ended = bench.start(folder, num_steps).end()
        report.add("programs started on a flipped bit")
        report.expect(
            ended.code == 0 and f"continuing from step {before}" in ended.output,
            f"exit code {ended.code}: {ended.output[-1000:]}",
        )
        report.expect((folder / "checkpoints" / f"{newest}.damaged").is_dir(), "not kept aside")
        compare(report, folder, reference, f"flip {number}")
    return report


def _digest(state) -> str:
    """The digest of a restored state, named as Orbax names what it reads by itself."""
    fields = {n: getattr(state, n) for n in state.__dataclass_fields__}
    fields["key"] = jax.random.key_data(fields["key"])
    named = jax.tree_util.tree_leaves_with_path(_plain(fields))
    import numpy as np

    return digest_of({jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in named})


def _plain(tree):
    """Tuples as lists and named tuples as dictionaries, as checkpoints hold them."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {name: _plain(getattr(tree, name)) for name in tree._fields}
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    return [_plain(x) for x in tree] if isinstance(tree, (list, tuple)) else tree


def _kind(name: Path) -> str:
    if name.name in ("manifest.json", "_METADATA", "_CHECKPOINT_METADATA", "_sharding"):
        return name.name
    return "array bytes" if "d" in name.parts else "Orbax's index and marks"
