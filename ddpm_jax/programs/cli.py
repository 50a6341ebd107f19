"""The command `ddpm-jax`: the scripts of `experiments/`, wherever the package is installed.

`ddpm-jax train digits` runs `experiments/train_digits.py`, `ddpm-jax sample` runs
`experiments/sample.py`, with the options of the script. In a clone the scripts lie beside the
package; a wheel carries them inside it.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
import typing
from pathlib import Path

import ddpm_jax
from ddpm_jax.data.registry import known_names
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.console import forgiving_output
from ddpm_jax.programs.weights import pretrained_names

PACKAGE = Path(ddpm_jax.__file__).parent
_GUARD = re.compile(r'^if __name__ == "__main__"', re.MULTILINE)
USAGE = """usage: ddpm-jax train PRESET [OPTIONS]
       ddpm-jax STUDY [OPTIONS]
       ddpm-jax list
       ddpm-jax --version

Try: ddpm-jax train digits, then ddpm-jax sample --sampler ddim --num-steps 20
Every command has --help.
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs one command line; exits with 2 for a command that is unknown."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = words[1:] if words[:1] == ["train"] else words
    if not words or command[:1] in (["-h"], ["--help"], ["help"]):
        return _print(USAGE + "\n" + listing())
    if words[0] in ("--version", "version"):
        return _print(f"ddpm_jax {ddpm_jax.__version__}\n")
    if words[0] == "list":
        return _print(listing())
    presets, studies = commands()
    if words[0] == "train":
        if len(words) < 2 or words[1].startswith("-"):
            _refuse("ddpm-jax train needs a preset", words[1] if len(words) > 1 else "", presets)
        name, known, rest = words[1], presets, words[2:]
        title = f"ddpm-jax train {name}"
    else:
        name, known, rest = words[0], studies, words[1:]
        title = f"ddpm-jax {name}"
    if name not in known:
        if known is presets:
            _refuse(f"ddpm-jax train has no preset {name!r}", name, presets)
        if name in presets:
            _refuse(f"{title!r} is no command", name, studies, f"ddpm-jax train {name}")
        _refuse(f"{title!r} is no command", name, {**studies, "train": Path()})
    script = known[name]
    # What Python does for `python SCRIPT`: its folder comes first, and the options follow its name.
    sys.path.insert(0, str(script.parent))
    sys.argv = [title, *rest]
    spec = importlib.util.spec_from_file_location("__main__", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["__main__"] = module
    spec.loader.exec_module(module)


def commands() -> tuple[dict[str, Path], dict[str, Path]]:
    """The scripts by name: training presets without `train_`, and everything else."""
    scripts = sorted(experiments_folder().glob("*.py"))
    runnable = [path for path in scripts if _GUARD.search(_source(path))]
    presets = {p.stem.removeprefix("train_"): p for p in runnable if p.stem.startswith("train_")}
    return presets, {p.stem: p for p in runnable if not p.stem.startswith("train_")}


def experiments_folder() -> Path:
    """Where the scripts lie: inside an installed package, beside it in a clone."""
    for folder in (PACKAGE / "experiments", PACKAGE.parent / "experiments"):
        if (folder / "train_digits.py").is_file():
            return folder
    raise SystemExit(
        f"error: no experiments/ in {PACKAGE} or beside it. Install ddpm_jax again, from its wheel "
        "or its clone."
    )


def listing() -> str:
    """Presets and studies, a line each; the names of data sets, samplers and pretrained models."""
    presets, studies = commands()
    samplers = typing.get_args(typing.get_type_hints(SamplerOptions)["sampler"])
    lines = ["presets (ddpm-jax train PRESET)"]
    lines += [f"  {name:22} {_summary(path)}" for name, path in presets.items()]
    lines += ["", "studies (ddpm-jax STUDY)"]
    lines += [f"  {name:22} {_summary(path)}" for name, path in studies.items()]
    lines += ["", f"data sets (--data.name): {', '.join(known_names())}"]
    lines += [f"samplers (--sampler): {', '.join(samplers)}"]
    lines += [f"pretrained (--pretrained): {', '.join(pretrained_names())}"]
    return "\n".join(lines) + "\n"


def refuse_module(argv: list[str], orig_argv: list[str]) -> None:
    """Exits with 2 if Python was started as `python -m` with a module that is no program.

    argv       sys.argv while the package is imported: "-m" and the arguments
    orig_argv  the whole command line, in which the module precedes them: `-m NAME` or `-mNAME`
    """
    word = next(iter(orig_argv[-len(argv) :]), "")
    module = re.fullmatch(r"(?:-\w*?m)?(ddpm_jax(?:\.\w+)+)", word)
    if module is None:
        return
    path = PACKAGE.parent.joinpath(*module[1].split(".")).with_suffix(".py")
    # Python itself says that there is no such module, or that it is a package.
    if path.is_file() and not _GUARD.search(_source(path)):
        print(
            f"error: {module[1]} is no program. The programs: python -m ddpm_jax list",
            file=sys.stderr,
        )
        sys.exit(2)


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _summary(path: Path) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(_source(path))) or "").split("\n")[0]


def _print(text: str) -> None:
    with forgiving_output():
        sys.stdout.write(text)


def _refuse(what: str, name: str, known: dict[str, Path], near: str = "") -> typing.NoReturn:
    near = near or "".join(difflib.get_close_matches(name, known, n=1))
    meant = f" Did you mean {near}?" if near else ""
    with forgiving_output():
        sys.stderr.write(f"error: {what}.{meant} Known: {', '.join(sorted(known))}.\n")
    sys.exit(2)
