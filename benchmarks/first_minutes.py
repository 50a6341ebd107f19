"""The time from an install to samples of one's own data, outside the clone:

    python -m benchmarks.first_minutes --out docs/results/first_minutes

It builds the wheel, installs it into a new virtual environment, and samples the pretrained model.
Then it trains on a folder of labelled pictures, and samples a class with guidance. All caches are
empty at the start.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.provenance import ROOT, describe_machine
from benchmarks.render import table

PICTURES = """
from pathlib import Path
from PIL import Image
from ddpm_jax.data import load_digits
data = load_digits("train")
for i, (image, label) in enumerate(zip(data.images, data.labels)):
    place = Path("pictures") / "zero one two three four five six seven eight nine".split()[label]
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(place / f"{i:04}.png")
"""
NETWORK = (
    "--network.channels 32 --network.channel-multipliers 1 2 --network.num-groups 8 "
    "--network.downsample-padding symmetric"
)


@dataclass(frozen=True)
class Options:
    """The options of the benchmark."""

    out: Path = Path("docs/results/first_minutes")
    """Folder of README.md, results.json and the pictures."""
    num_steps: int = 2000
    """Training steps on the folder of pictures."""


def main(options: Options) -> None:
    """Runs every step in a temporary folder, and writes the page."""
    steps: list[dict[str, Any]] = []
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
        environment |= {"DDPM_JAX_CACHE": str(work / "cache"), "PYTHONPATH": ""}
        environment["PATH"] = f"{work / 'venv/bin'}{os.pathsep}{environment['PATH']}"

        def step(what: str, command: str, *, shown: str | None = None) -> None:
            began = time.perf_counter()
            done = subprocess.run(
                command, shell=True, cwd=work, env=environment, capture_output=True, text=True
            )
            seconds = time.perf_counter() - began
            if done.returncode:
                sys.exit(f"{what} failed:\n{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
            steps.append({"step": what, "command": shown or command, "seconds": seconds})
            print(f"{seconds:7.1f} s  {what}", flush=True)

        python = shlex.quote(sys.executable)
        build = f"{python} -m pip wheel -q --no-deps {shlex.quote(str(ROOT))} -w ."
        step("build the wheel", build, shown="pip wheel --no-deps .")
        step(
            "install it",
            f"{python} -m venv venv && venv/bin/python -m pip install -q *.whl",
            shown="pip install ddpm_jax-*.whl",
        )
        few = "--sampler ddim --num-steps 50"
        step("sample the pretrained model", f"ddpm-jax sample --pretrained digits {few}")
        step("write labelled pictures", f"python -c {shlex.quote(PICTURES)}", shown="…")
        step(
            f"train on them, {options.num_steps:,} steps",
            f"ddpm-jax train folder --data.path pictures --data.resolution 8 --run-dir runs/mine "
            f"--num-steps {options.num_steps} --batch-size 32 --optimizer.learning-rate 1e-3 "
            f"--optimizer.warmup-steps 100 --report.final-steps 100 {NETWORK}",
        )
        sample = f"ddpm-jax sample --run-dir runs/mine {few} --count 16 --label three --guidance 2"
        step("sample a class with guidance", sample)
        sheets = {
            "box.png": next(work.glob("runs/pretrained-digits/generated/*/grid.png")),
            "class.png": next(work.glob("runs/mine/generated/*/grid.png")),
        }
        out.mkdir(parents=True, exist_ok=True)
        for name, path in sheets.items():
            shutil.copy(path, out / name)
    results = {"machine": describe_machine(), "steps": steps}
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / "README.md").write_text(render(results, sorted(sheets)))


def render(results: dict[str, Any], sheets: list[str]) -> str:
    """The page in Markdown."""
    machine = results["machine"]
    rows = [
        [s["step"], f"`{s['command']}`" if s["command"] != "…" else "", f"{s['seconds']:.0f} s"]
        for s in results["steps"]
    ]
    titles = {
        "box.png": "The pretrained model",
        "class.png": "The class “three” with guidance 2, after training on the folder",
    }
    pictures = "\n\n".join(f"{titles[name]}:\n\n![{titles[name]}]({name})" for name in sheets)
    return f"""# The first minutes

The time from an install to samples of one's own data, outside the clone, with a new virtual
environment and empty caches. Measured on {machine["cores"]} cores of {machine["processor"]}, Python
{machine["versions"]["python"]}, jax {machine["versions"]["jax"]}. The pictures are scikit-learn's
1,437 training digits, written as PNG files, one folder per class.

`python -m benchmarks.first_minutes --num-steps N` makes this page; every figure is in
`results.json`.

{table(["", "command", "time"], rows)}
{pictures}
"""


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.first_minutes", description=__doc__))
