"""Models on the hub, played by a server on this machine: pushed, pulled, sampled; and refused."""

import dataclasses
import json
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml

import ddpm_jax as dj
from ddpm_jax.interop import hub as client
from ddpm_jax.programs.evaluate import EvaluateConfig, evaluate
from ddpm_jax.programs.initial_weights import begin_with_weights, read_initial_weights
from ddpm_jax.programs.publish import PullConfig, PushConfig, pull, push
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.training_run import TrainingRun
from tests.fake_hub import serving
from tests.small_run import CONFIG, make_run, program

pytest.importorskip("huggingface_hub", reason="needs the extra [hub]")
FILES = ["README.md", "config.json", "samples.png", "weights.safetensors"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("hub") / "run")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "cache") as served:
        yield served


@pytest.fixture
def ada(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token-of-ada")


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )


@pytest.mark.slow
def test_a_pushed_run_comes_back_bit_for_bit(hub, ada, run_dir, tmp_path):
    commit, files = push(PushConfig(run_dir, repository="ada/tiny", sheet_count=4, tag="v1"))
    repository = hub.repositories["ada/tiny"]
    assert sorted(files) == sorted(repository.commits[commit]) == FILES
    assert repository.private and repository.refs["main"] == commit == repository.refs["v1"]
    assert len(repository.commits) == 2  # the empty one, and ours
    folder = pull(PullConfig("ada/tiny", "v1", out=tmp_path / "theirs"))
    assert sorted(p.name for p in folder.iterdir()) == FILES[1:]
    original = dj.load_run(run_dir)
    images = original.sample(3, sampler="ddim", num_steps=4, seed=7)
    for name in (folder, f"hub:ada/tiny@{commit}", "hub:ada/tiny@v1", "hub:ada/tiny"):
        again = dj.load_run(name)
        assert same(again.params, original.params)
        assert (again.sample(3, sampler="ddim", num_steps=4, seed=7) == images).all()
        if name != folder:  # whatever the name, results say the commit
            assert again.provenance()["run"] == f"hub:ada/tiny@{commit}"
    pulled = json.loads((folder / "config.json").read_text())["pulled"]
    assert pulled == {"repository": "ada/tiny", "commit": commit}


@pytest.mark.slow
def test_the_card_says_what_the_model_is(hub, ada, run_dir):
    options = {"features": "pixels", "sampler": "ddim", "num_steps": 2, "count": 10}
    evaluate(EvaluateConfig(run_dir=run_dir, bits_count=0, bootstrap=0, **options))
    config = PushConfig(run_dir, repository="ada/tiny", sheet_count=4, license="apache-2.0")
    commit, _ = push(config)
    card = hub.repositories["ada/tiny"].commits[commit]["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "apache-2.0" and head["library_name"] == "ddpm_jax"
    run = dj.load_run(run_dir)
    fingerprint = run.facts["data"]["fingerprint"]
    for part in (fingerprint, "linear schedule, 20 steps", "learned_range", "4 images: DDIM"):
        assert part in text
    assert "Features pixels" in text and run.checkpoint_sha256[:16] in text
    # The command makes the images of the sheet.
    command = next(line for line in text.split("\n") if line.startswith("ddpm-jax sample"))
    program("sample.py", *command.split()[2:], "--out", "made", "--no-gif")
    from ddpm_jax import visualize

    with np.load("made/samples.npz") as made:
        visualize.save_grid("again.png", made["images"])
    with open("again.png", "rb") as file:
        assert hub.repositories["ada/tiny"].commits[commit]["samples.png"] == file.read()


def test_other_parameters_have_other_figures(hub, ada, run_dir):
    """An evaluation of the averaged parameters is not one of the last ones."""
    commit, files = push(PushConfig(run_dir, repository="ada/last", sheet_count=0, ema=False))
    assert "samples.png" not in files
    card = hub.repositories["ada/last"].commits[commit]["README.md"].decode()
    assert "Features pixels" not in card and "| average | none |" in card


def test_branches_and_visibility(hub, ada, run_dir):
    options = {"repository": "ada/open", "sheet_count": 0}
    first = push(PushConfig(run_dir, public=True, **options)).commit
    second = push(PushConfig(run_dir, branch="half", dtype="float16", **options)).commit
    repository = hub.repositories["ada/open"]
    assert not repository.private
    assert repository.refs == {"main": first, "half": second}
    assert dj.load_run("hub:ada/open@half").name == f"hub:ada/open@{second}"


@pytest.mark.slow
def test_the_programs_take_names_of_the_hub(hub, ada, run_dir, tmp_path):
    program("push.py", "ada/tiny", "--run-dir", run_dir, "--sheet-count", 0)
    program("pull.py", "ada/tiny")
    assert (tmp_path / "runs/tiny/weights.safetensors").is_file()
    steps = ("--sampler", "ddim", "--num-steps", 2, "--count", 2, "--no-gif")
    program("sample.py", "--pretrained", "hub:ada/tiny", *steps)
    commit = hub.repositories["ada/tiny"].refs["main"]
    (made,) = (tmp_path / f"runs/hub-ada-tiny-{commit[:8]}/generated").iterdir()
    assert (made / "grid.png").is_file()
    # From another run's folder, as a name, and again from the folder of weights.
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "new", init_from="hub:ada/tiny")
    run = TrainingRun(config)
    weights = read_initial_weights(config, run.model)
    state, record = begin_with_weights(config, weights, run.model.init())
    assert same(state.params, dj.load_run(run_dir).params)
    assert record["from"] == f"hub:ada/tiny@{commit}"


@pytest.mark.slow
def test_a_commit_in_the_cache_needs_no_network(hub, ada, run_dir):
    commit = push(PushConfig(run_dir, repository="ada/tiny", sheet_count=0)).commit
    wanted = dj.load_run(f"hub:ada/tiny@{commit}").params
    asked = len(hub.asked)
    assert same(dj.load_run(f"hub:ada/tiny@{commit}").params, wanted)
    assert len([line for line in hub.asked[asked:] if line.startswith("GET /ada")]) == 0
    hub.refuse[""] = (503, {})
    assert same(dj.load_run(f"hub:ada/tiny@{commit}").params, wanted)
    with pytest.raises(ConnectionError, match="fetch ada/tiny at main"):
        dj.load_run("hub:ada/tiny")


REFUSALS = {
    "permission": ("create", (403, {}), PermissionError, "does not permit it"),
    "payment": ("create", (402, {}), OSError, "storage is full"),
    "large": ("PUT /storage", (413, {}), OSError, "too large"),
    "full": ("commit", (507, {}), OSError, "storage is full"),
    "read-only": ("commit", (403, {}), PermissionError, "HF_TOKEN, with a token that may"),
    "metadata": ("validate", (400, {}), (OSError, ValueError), "push to ada/tiny"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_push_changes_nothing(hub, ada, run_dir, name, monkeypatch):
    place, answer, error, message = REFUSALS[name]
    commit = hub.repository("ada/tiny", {"notes.json": b"{}"})
    hub.refuse[place] = answer
    if name in ("permission", "payment"):
        del hub.repositories["ada/tiny"]
    with pytest.raises(error, match=message):
        push(PushConfig(run_dir, repository="ada/tiny", sheet_count=0))
    if name not in ("permission", "payment"):
        repository = hub.repositories["ada/tiny"]
        assert repository.refs == {"main": commit}
        assert repository.commits[commit] == {"notes.json": b"{}"}


def test_a_push_needs_a_token_before_anything_is_loaded(hub, tmp_path, monkeypatch):
    wanted = PushConfig(tmp_path / "no run", repository="ada/tiny")
    with pytest.raises(PermissionError, match="without a token.*hf auth login.*HF_TOKEN"):
        push(wanted)
    monkeypatch.setenv("HF_TOKEN", "forged")
    with pytest.raises(PermissionError, match="does not permit it"):
        push(wanted)
    monkeypatch.setenv("HF_TOKEN", "token-of-bob")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        push(wanted)
    assert hub.repositories == {}


def test_another_owners_repository_is_not_written(hub, run_dir, monkeypatch):
    commit = hub.repository("ada/tiny", {})
    monkeypatch.setenv("HF_TOKEN", "token-of-bob")
    with pytest.raises(PermissionError, match="cannot push to ada/tiny.*permit"):
        push(PushConfig(run_dir, repository="ada/tiny", sheet_count=0))
    assert hub.repositories["ada/tiny"].refs["main"] == commit


WRONG_OPTIONS = {
    "repository": ["", "tiny", "ada/tiny/more", None, 3],
    "branch": ["", "a b", "a..b", 3],
    "tag": ["", "v 1", "-v1", "v1.lock", True],
    "license": ["", "apache 2.0", "mit\ntags: []", None],
    "message": [3, b"text"],
    "sheet_count": [-1, 1.5, "16"],
    "dtype": ["bfloat16", None],
    "public": [1, "yes"],
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_a_wrong_option_is_refused_before_anything_is_asked_or_written(hub, ada, name, tmp_path):
    right = PushConfig(tmp_path / "run", repository="ada/tiny", out=tmp_path / "out")
    for wrong in WRONG_OPTIONS[name]:
        with pytest.raises(ValueError, match=rf"{name.replace('_', '.')}|OWNER/NAME"):
            push(dataclasses.replace(right, **{name: wrong}))
    for wrong in ("", "a b", 3):
        with pytest.raises(ValueError, match="revision"):
            pull(PullConfig("ada/tiny", wrong, out=tmp_path / "out"))
    assert hub.asked == [] and hub.repositories == {} and not list(tmp_path.iterdir())


def test_what_is_pushed_replaces_no_file_of_something_else(hub, ada, run_dir, tmp_path):
    config = PushConfig(run_dir, repository="ada/tiny", sheet_count=0, out=tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    with pytest.raises(RunDirectoryError, match="has README.md of something else.*--out"):
        push(config)
    assert (tmp_path / "out/README.md").read_text() == "mine" and hub.repositories == {}
    (tmp_path / "out/README.md").unlink()
    push(config)
    push(dataclasses.replace(config, dtype="float16"))
    with pytest.raises(FileNotFoundError, match="publish got files"):
        client.publish("ada/tiny", {"x.json": tmp_path / "none"}, "message")


def test_a_tag_in_use_is_named_after_the_push(hub, ada, run_dir):
    push(PushConfig(run_dir, repository="ada/tiny", sheet_count=0, tag="v1"))
    with pytest.raises(OSError, match="cannot tag the pushed commit .* of ada/tiny as v1"):
        push(PushConfig(run_dir, repository="ada/tiny", sheet_count=0, tag="v1", dtype="float16"))


def unreadable(hub, monkeypatch):
    """What cannot be pulled: {name of the repository: (revision, error, message)}."""
    hub.repository("ada/hidden", {}, private=True)
    hub.repository("ada/gated", {"config.json": b"{}", "weights.safetensors": b"x"})
    hub.repositories["ada/gated"].gated = True
    parts = ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json")
    hub.repository("ada/pipeline", dict.fromkeys(parts, b"{}"))
    hub.repository("ada/pickles", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.repository("ada/empty", {})
    hub.repository("ada/other", {"config.json": b"{}", "weights.safetensors": b"x"})
    large = {"config.json": b" " * (client.JSON_BYTES + 1), "weights.safetensors": b"x"}
    hub.repository("ada/large", large)
    return {
        "ada/none": (None, FileNotFoundError, "it does not exist, or it is private"),
        "ada/hidden": (None, FileNotFoundError, "HF_TOKEN, with a token that may read it"),
        "ada/gated": (None, PermissionError, "gated. Accept its terms"),
        "ada/empty": ("v9", FileNotFoundError, "no such branch, tag or commit"),
        "ada/pipeline": (None, ValueError, "diffusers. Import it with ddpm-jax convert"),
        "ada/pickles": (None, ValueError, "has no config.json and weights.safetensors"),
        "ada/other": (None, RunDirectoryError, "cannot be understood"),
        "ada/large": (None, ValueError, "the limit is 4,194,304"),
        "../../etc": (None, ValueError, "OWNER/NAME, got"),
        "": (None, ValueError, "OWNER/NAME, got"),
    }


def test_what_cannot_be_pulled_leaves_nothing(hub, tmp_path, monkeypatch):
    for name, (revision, error, message) in unreadable(hub, monkeypatch).items():
        with pytest.raises(error, match=message):
            pull(PullConfig(name, revision, out=tmp_path / "out"))
        assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["cache"])


def test_damage_on_the_way_is_refused(hub, ada, run_dir, tmp_path):
    commit = push(PushConfig(run_dir, repository="ada/tiny", sheet_count=0)).commit
    files = hub.repositories["ada/tiny"].commits[commit]
    for name in ("config.json", "weights.safetensors"):
        hub.send[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        with pytest.raises(ValueError, match=f"{name} of ada/tiny at {commit} arrived with"):
            pull(PullConfig("ada/tiny", out=tmp_path / "out"))
        hub.send.clear()
    assert not (tmp_path / "out").exists()
    pull(PullConfig("ada/tiny", out=tmp_path / "out"))


def test_a_folder_in_use_is_kept(hub, ada, run_dir, tmp_path):
    push(PushConfig(run_dir, repository="ada/tiny", sheet_count=0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RunDirectoryError, match="not empty"):
        pull(PullConfig("ada/tiny", out=tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("where", ["name look-up", "answer", "nobody"])
def test_silence_ends_in_a_few_seconds(hub, monkeypatch, where, tmp_path):
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        if where == "name look-up":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
        if where == "nobody":
            silent.close()
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="cannot fetch ada/tiny at main.*by other means"):
            pull(PullConfig("ada/tiny", out=tmp_path / "out"))
    assert time.monotonic() - began < 2
    assert not (tmp_path / "out").exists()


def test_an_answer_of_something_else_is_named(hub, tmp_path):
    hub.repository("ada/tiny", {})
    answers = [b"<html>log in here</html>", b"[]", b"{}", b'{"id": 1, "siblings": [{"a": 1}]}']
    for hub.listing in answers:
        with pytest.raises(ValueError, match="ada/tiny at main"):
            pull(PullConfig("ada/tiny", out=tmp_path / "out"))


def test_without_the_library_the_extra_is_named(tmp_path):
    """Both programs, and a name of the hub, in a process that cannot import huggingface_hub."""
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from ddpm_jax.programs.publish import *\n"
        "import ddpm_jax as dj\n"
        "calls = [lambda: push(PushConfig(repository='a/b')), lambda: pull(PullConfig('a/b')),\n"
        "         lambda: dj.load_run('hub:a/b')]\n"
        "for call in calls:\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.count('pip install "huggingface_hub>=1.0" (extra [hub])') == 3, ended.stderr
