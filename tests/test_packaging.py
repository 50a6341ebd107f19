"""The wheel and the source archive hold all that the command `ddpm-jax` needs."""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ddpm_jax
from ddpm_jax.programs import cli
from ddpm_jax.programs.weights import pretrained_names

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed (dev extra)"
)


def build(target: str, out: Path, source: Path = ROOT) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built from an unpacked source archive and unpacked as pip does."""
    folder = tmp_path_factory.mktemp("packaging")
    with tarfile.open(build("sdist", folder / "sdist")) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    with zipfile.ZipFile(build("wheel", folder / "wheel", source)) as archive:
        archive.extractall(folder / "site")
    return folder / "site", source


def run(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-m", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_source_archive_has_every_file_of_the_project(installed):
    """What git knows, or at least what the tests and `.ci/run` read."""
    _, source = installed
    names = ["tests/conftest.py", "docs/research.md", "README.md", "mkdocs.yml", ".ci/run"]
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0 and (ROOT / ".git").exists():
        names = [name for name in git.stdout.splitlines() if (ROOT / name).exists()]
        assert len(names) > 500
    assert [name for name in names if not (source / name).exists()] == []


def test_every_extra_that_is_named_exists():
    """In errors and pages; a package of an extra is not one of the default install, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, default = project["optional-dependencies"], project["dependencies"]
    files = [*(ROOT / "ddpm_jax").rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = {
        extra
        for path in files
        for extra in re.findall(r"(?:extra |[ `]'\.)\[(\w+)\]", path.read_text(encoding="utf-8"))
    }
    assert {"hub", "hf", "wandb", "cuda12", "s3"} <= named <= extras.keys()
    # The command of a message installs what its extra would.
    texts = "".join(path.read_text(encoding="utf-8") for path in files)
    commands = re.findall(r'pip install "([^"]+)"[^\n]*extra \[(\w+)\]', texts)
    assert len(commands) == 3 and all([package] == extras[extra] for package, extra in commands)

    def names(lines):
        return {re.match(r"[\w-]+", line)[0] for line in lines}

    for extra in ("hub", "hf", "wandb", "mlflow", "trackio"):
        assert not names(extras[extra]) & names(default)
    # TFDS is one of the project's own packages, and TensorFlow none.
    assert "tensorflow-datasets" in names(default)
    assert not any("tensorflow" in names(lines) for lines in (default, *extras.values()))


def test_the_readme_of_the_package_has_no_relative_link(installed):
    site, _ = installed
    (metadata,) = site.glob("ddpm_jax-*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8").partition("\n\n")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    place = project["urls"]["Repository"]
    assert f"]({place}/blob/main/docs/reliability.md)" in text
    assert f"]({place}/raw/main/docs/results/digits/samples.png)" in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(re.match("https?://|#", target) for target in targets)


def test_the_workflow_runs_the_checks():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert any(step.get("run") == "bash .ci/run" for step in steps)


def test_the_installed_command_knows_every_script(installed, tmp_path):
    site, _ = installed
    result = run(site, tmp_path, "ddpm_jax", "list")
    assert result.returncode == 0, result.stderr
    for script in (ROOT / "experiments").glob("*.py"):
        if "__main__" in script.read_text():
            assert f"  {script.stem.removeprefix('train_')} " in result.stdout, script
    assert "cifar10" in result.stdout and "dpm_solver_pp" in result.stdout
    assert f"(--pretrained): {', '.join(pretrained_names())}\n" in result.stdout


def test_the_installed_command_reads_a_scripts_options(installed, tmp_path):
    site, _ = installed
    result = run(site, tmp_path, "ddpm_jax", "train", "ncsn", "digits", "--help")
    assert result.returncode == 0, result.stderr
    assert "usage: ddpm-jax train ncsn" in result.stdout and "--num-steps" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (["trian", "digits"], "no command. Did you mean train?"),
        (["train", "cifr"], "no preset 'cifr'. Did you mean cifar?"),
        (["train"], "needs a preset"),
        (["train", "--num-steps", "3"], "needs a preset"),
        (["train_digits"], "no command"),
    ],
)
def test_unknown_commands_name_the_known_ones(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["help"], ["train", "--help"], ["train", "-h"]])
def test_help_lists_the_commands(words, capsys):
    cli.main(words)
    printed = capsys.readouterr().out
    assert "usage: ddpm-jax train PRESET" in printed and "  digits  " in printed


def test_the_version_is_one(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"ddpm_jax {ddpm_jax.__version__}\n"
    about = (ROOT / "CITATION.cff").read_text()
    assert f"version: {ddpm_jax.__version__}\n" in about
