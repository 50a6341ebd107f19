"""The time from an install to samples of one's own data, outside the clone:

    python -m benchmarks.first_minutes --out docs/results/first_minutes

It builds the wheel, installs it into a new virtual environment, and samples the pretrained model.
Then it trains on a folder of labelled pictures, samples a class with guidance, and exports a model
folder for diffusers. With `--torch-python`, an interpreter that has PyTorch and diffusers, the code
that the export printed samples this folder, and our sampler must give the same from the same noise.
All caches are empty at the start.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
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
# Put after the code that the export printed.
SAVE = """
import diffusers, numpy
torch.manual_seed(0)
numpy.savez("diffusers.npz", x_0=x, x_T=torch.randn(x.shape))
print(torch.__version__, diffusers.__version__)
"""
COMPARE = """
import jax, numpy as np, ddpm_jax as dj
from ddpm_jax.visualize import save_grid
run, saved = dj.load_run("runs/mine"), np.load("diffusers.npz")
x_T, theirs = (saved[name].transpose(0, 2, 3, 1) for name in ("x_T", "x_0"))
steps = dj.spaced_timesteps(run.schedule.num_timesteps, 50, "leading")
sampler = dj.ddim(dj.respace(run.schedule, steps))
denoise = run.denoiser(run.labels(16, "three"), guidance=2.0)
ours = np.asarray(jax.jit(lambda x: dj.sample(sampler, denoise, x))(x_T))
assert theirs.shape == ours.shape == (16, 8, 8, 1) and np.isfinite(theirs).all(), theirs.shape
save_grid("diffusers.png", np.asarray(dj.to_pixels(theirs)))
print(np.abs(ours - theirs).max())
"""
TOLERANCE = 1e-3
"""Largest difference allowed between diffusers' samples and ours; images range over [-1, 1]."""
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
    torch_python: Path | None = None
    """An interpreter with PyTorch and diffusers, for the last step; None to skip this step."""


def main(options: Options) -> None:
    """Runs every step in a temporary folder, and writes the page."""
    steps: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
        environment |= {"DDPM_JAX_CACHE": str(work / "cache"), "PYTHONPATH": ""}
        environment["PATH"] = f"{work / 'venv/bin'}{os.pathsep}{environment['PATH']}"

        def step(what: str, command: str, *, shown: str | None = None) -> str:
            began = time.perf_counter()
            done = subprocess.run(
                command, shell=True, cwd=work, env=environment, capture_output=True, text=True
            )
            seconds = time.perf_counter() - began
            if done.returncode:
                sys.exit(f"{what} failed:\n{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
            steps.append({"step": what, "command": shown or command, "seconds": seconds})
            print(f"{seconds:7.1f} s  {what}", flush=True)
            return done.stdout

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
        export = "ddpm-jax convert to-diffusers --run-dir runs/mine --out model"
        printed = step("export a model folder for diffusers", export)
        sheets = {
            "pretrained.png": next(work.glob("runs/pretrained-digits/generated/*/grid.png")),
            "class.png": next(work.glob("runs/mine/generated/*/grid.png")),
        }
        results: dict[str, Any] = {"machine": describe_machine(), "load": load, "steps": steps}
        if options.torch_python is not None:
            interpreter = shlex.quote(str(options.torch_python))
            code = shlex.quote(torch_code(printed, work / "pictures", "three"))
            versions = step("sample it with diffusers", f"{interpreter} -c {code}", shown="…")
            compared = step("sample it here", f"python -c {shlex.quote(COMPARE)}", shown="…")
            torch, diffusers = versions.split()[-2:]
            results["diffusers"] = {
                "torch": torch,
                "diffusers": diffusers,
                "largest_difference": float(compared.split()[-1]),
                "tolerance": TOLERANCE,
            }
            if not results["diffusers"]["largest_difference"] <= TOLERANCE:
                sys.exit(f"diffusers' samples differ from ours: {results['diffusers']}")
            sheets["diffusers.png"] = work / "diffusers.png"
        out.mkdir(parents=True, exist_ok=True)
        for name, path in sheets.items():
            shutil.copy(path, out / name)
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / "README.md").write_text(render(results, sorted(sheets)))


def torch_code(printed: str, pictures: Path, name: str) -> str:
    """The code that the export printed, for the class of this name, with seed 0."""
    code = textwrap.dedent("\n".join(x for x in printed.splitlines() if x.startswith("    ")))
    # Classes are in the order of their folders' names.
    label = sorted(path.name for path in pictures.iterdir()).index(name)
    code, replaced = re.subn(r"(?<=guidance = )0(?=, )", str(label), code)
    code, seeded = re.subn(r"^x = ", "torch.manual_seed(0)\nx = ", code, flags=re.M)
    if (replaced, seeded) != (1, 1):
        sys.exit(f"the export printed no code for diffusers:\n{printed}")
    return code + SAVE


def render(results: dict[str, Any], sheets: list[str]) -> str:
    """The page in Markdown."""
    machine = results["machine"]
    rows = [
        [s["step"], f"`{s['command']}`" if s["command"] != "…" else "", f"{s['seconds']:.0f} s"]
        for s in results["steps"]
    ]
    titles = {
        "pretrained.png": "The pretrained model",
        "class.png": "The class “three” with guidance 2, after training on the folder",
        "diffusers.png": "The same class and guidance in diffusers, from the exported folder",
    }
    compared = ""
    if "diffusers" in results:
        theirs = results["diffusers"]
        compared = f"""The code that the export prints sampled the folder with diffusers
{theirs["diffusers"]} on PyTorch {theirs["torch"]}. From the same noise, our DDIM gives the same
images; the largest difference is {theirs["largest_difference"]:.0e}, of a range of 2.

"""
    pictures = "\n\n".join(f"{titles[name]}:\n\n![{titles[name]}]({name})" for name in sheets)
    return f"""# The first minutes

The time from an install to samples of one's own data, outside the clone, with a new virtual
environment and empty caches. Measured on {machine["cores"]} cores of {machine["processor"]}, Python
{machine["versions"]["python"]}, jax {machine["versions"]["jax"]}. Other programs were using the
machine: its load average before the start was {results["load"]:.1f}. The pictures are
scikit-learn's 1,437 training digits, written as PNG files, one folder per class.

`python -m benchmarks.first_minutes --num-steps N --torch-python PYTHON` makes this page; every
figure is in `results.json`.

{table(["", "command", "time"], rows)}
{compared}{pictures}
"""


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.first_minutes", description=__doc__))
