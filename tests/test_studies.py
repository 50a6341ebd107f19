"""The studies on a tiny run: their numbers against what must hold for any network."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import interpolate
from ddpm_jax.data import from_arrays, load_digits
from ddpm_jax.evaluation import rms_difference, rms_pairwise
from ddpm_jax.programs import outputs
from ddpm_jax.programs.chunks import common_chunk, depth_counts
from ddpm_jax.programs.trained_run import TrainedRun
from ddpm_jax.samplers import ddim_encode
from inpaint import MASKS, measure, read_mask
from neighbours import NeighboursConfig, study_neighbours, summary
from tests.small_run import make_run, program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def study(trained, tmp_path, monkeypatch):
    """Runs a study on that run and returns its JSON and its folder."""

    claimed = []
    monkeypatch.setattr(outputs, "taken_in", lambda folder, names: claimed.extend(names) or [])

    def run(name, *arguments, out="out", devices=1):
        folder = tmp_path / out
        where = (f"--run-dir={trained}", f"--out={folder}", f"--num-devices={devices}")
        program(f"{name}.py", *where, *arguments)
        others = {path.name for path in folder.iterdir()} - {*claimed}
        # The first of a row of numbered pictures stands for the others.
        assert all(re.fullmatch(r"(pair|shared)-[1-9]\d*\.png", other) for other in others)
        return json.loads((folder / f"{name}.json").read_text()), folder

    return run


THEIRS = {
    "inpaint.py": "completions.npz",
    "interpolate.py": "pair-0.png",
    "likelihood.py": "terms.png",
    "neighbours.py": "neighbours.png",
    "progressive.py": "shared-0.png",
    "steps_vs_quality.py": "samples.png",
    "guidance.py --num-steps=2": "guidance.png",
    "sample.py --count=2": "grid.png",
    "evaluate.py --count=10 --features=pixels": "pixels.json",
    "export.py": "program",
    "export.py ": "program.json",
    "convert.py to-weights": "config.json",
    "convert.py to-weights ": "weights.safetensors",
    "convert.py to-diffusers": "model_index.json",
    "convert.py to-diffusers ": "unet/config.json",
    "convert.py to-diffusers  ": "scheduler/scheduler_config.json",
    "train_classifier.py": "weights.safetensors",
    "solvers.py": "solvers.md",
    "rivals_2d.py": "rivals.png",
    "rivals_digits.py": "samples.png",
    "toy_2d.py": "field.png",
}
QUICK = "--sampler=ddim --num-steps=2"
WITHOUT_RUN = ("train_classifier.py", "solvers.py", "rivals_2d.py", "rivals_digits.py", "toy_2d.py")


@pytest.mark.parametrize("call,theirs", THEIRS.items())
def test_what_is_no_earlier_result_is_not_replaced(trained, tmp_path, capsys, call, theirs):
    script, *arguments = call.split()
    file = tmp_path / "out" / theirs
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    out = tmp_path / "out" / "program" if script == "export.py" else tmp_path / "out"
    runs = script not in WITHOUT_RUN
    where = [f"--run-dir={trained}"] * runs + [f"--out={out}"]
    with pytest.raises(SystemExit) as stopped:
        program(script, *arguments, *where)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in error
    assert f"has {theirs.partition('/')[0]} of something else" in error and "--out" in error
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "theirs"


@pytest.mark.parametrize(
    "call,replaced",
    [
        ("convert.py to-weights", "config.json, weights.safetensors"),
        ("convert.py to-diffusers", "unet, scheduler, ddpm_jax.json"),
        (f"export.py {QUICK}", "program, program.json"),
        (f"sample.py --count=2 {QUICK} --no-gif", "grid.png, samples.npz"),
        (
            f"neighbours.py --count=4 {QUICK}",
            "neighbours.png, distances.png, neighbours.json",
        ),
    ],
)
def test_an_earlier_result_is_replaced_and_that_is_said(trained, tmp_path, capsys, call, replaced):
    script, *arguments = call.split()
    out = tmp_path / "out" / "program"
    where = out.parent if script == "export.py" else out
    line = f"replacing {replaced} of an earlier call in {where}\n"
    for earlier in (False, True):
        program(script, *arguments, f"--run-dir={trained}", f"--out={out}")
        assert (line in capsys.readouterr().out) == earlier


@pytest.mark.parametrize("per_class, fits", [(9, False), (20, True)])
def test_interpolation_goes_without_a_classifier_of_few_images(capsys, per_class, fits):
    labels = np.repeat([0, 1], per_class)
    values = np.random.default_rng(0).integers(0, 99, (2 * per_class, 2, 2, 1))
    images = (values + 100 * labels[:, None, None, None]).astype(np.uint8)
    train = from_arrays(images, labels, holdout=0)("train")
    assert (interpolate._classifier(train, 0) is not None) == fits
    assert ("each of at least 10 images" in capsys.readouterr().out) != fits


class Killed(BaseException):
    """A kill, after which nothing is cleaned up that matters here."""


@pytest.mark.parametrize(
    "call",
    [
        "convert.py to-weights",
        "convert.py to-diffusers",
        f"export.py {QUICK}",
        f"sample.py --count=2 {QUICK} --no-gif",
        "evaluate.py --count=10 --features=pixels --bits-count=0 " + QUICK,
        f"neighbours.py --count=4 {QUICK}",
    ],
)
def test_what_a_killed_call_left_is_replaced_by_the_next(trained, tmp_path, monkeypatch, call):
    """Killed after its first file, then after its second."""
    script, *arguments = call.split()
    out = tmp_path / "out" / "program"
    replace, written = os.replace, []

    def killed(source, target):
        replace(source, target)
        if out.parent in Path(target).parents:
            written.append(target)
            if len(written) == 1 or len(written) == 3:
                raise Killed

    monkeypatch.setattr(os, "replace", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            program(script, *arguments, f"--run-dir={trained}", f"--out={out}")
    assert len(written) == 3
    program(script, *arguments, f"--run-dir={trained}", f"--out={out}")


def picture(path):
    return np.asarray(Image.open(path).convert("L"))


def test_interpolation_after_one_step_is_the_cross_fade_and_after_all_forgets(study):
    arguments = ["--first", "0", "9", "--second", "200", "300", "--points=3", "--corrections=3"]
    result, out = study("interpolate", *arguments, "--depths", "0.05", "0.5", "1")
    methods = result["methods"]
    assert list(methods)[0] == "cross-fade" and list(methods)[-1].startswith("DDIM")
    assert result["pairs"] == [[0, 200], [9, 300]] and result["lambda"] == [0, 0.5, 1]
    assert methods["cross-fade"]["rms_to_cross_fade"] == [0, 0, 0]
    # √(1-ᾱ_0) is 0.01, or 1.3 grey levels; and a network that errs in ε errs as little in x_0.
    first, middle, whole = (methods[f"DDPM, t = {t}"] for t in (0, 9, 19))
    assert max(first["rms_to_cross_fade"]) < 3
    for end in ("rms_to_source_at_0", "rms_to_source_at_1"):
        assert first[end] < middle[end] < whole[end] and whole[end] > 50
        assert methods[list(methods)[-1]][end] < 0.2 * whole[end]
    assert sorted(p.name for p in out.glob("pair-*.png")) == ["pair-0.png", "pair-1.png"]
    assert (out / "confidence.png").exists()

    # The sources' own distances, by brute force.
    heldout, train = (load_digits(split).images.astype(float) for split in ("heldout", "train"))
    expected = [
        np.mean([np.sqrt(np.square(train - heldout[i]).sum((1, 2, 3))).min() for i in indices])
        for indices in ([0, 9], [200, 300])
    ]
    got = methods["cross-fade"]["distance_to_nearest_training_image"]
    np.testing.assert_allclose([got[0], got[-1]], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "batch_size,devices,rows",
    [(4, 1, 4), (3, 2, 2), (64, 4, 2)],
)
def test_interpolation_encodes_a_batch_at_a_time(trained, monkeypatch, batch_size, devices, rows):
    """Of 3 pairs, each device encodes so many images per call, and no latent changes by that."""
    seen = []

    def recorded(grid, denoise, x_0, **options):
        seen.append(len(x_0))
        return ddim_encode(grid, denoise, x_0, **options)

    monkeypatch.setattr(interpolate, "ddim_encode", recorded)
    ends = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8, 1)).astype(np.float32)

    def latents(batch_size, devices):
        config = interpolate.InterpolateConfig(trained, batch_size=batch_size, num_devices=devices)
        run, done = TrainedRun(config), []
        found = interpolate._latents(config, run, run.schedule, ends, None, {}, done.append)
        assert sum(done) == 6 * 2 * 20
        return found

    found = latents(batch_size, devices)
    assert seen == [rows]
    np.testing.assert_allclose(found, latents(64, 1), atol=1e-4)


def test_progressive_generation_settles_with_t(study):
    arguments = ["--count=6", "--rows=2", "--columns=3", "--shared=2", "--copies=3"]
    arguments += ["--depths", "1", "0.5", "0.05"]
    result, out = study("progressive", *arguments)
    again, other = study("progressive", *arguments, "--batch-size=4", out="again", devices=2)
    changed, _ = study("progressive", *arguments, "--seed=1", out="changed")
    followed, shared = result["x_0_hat"], result["shared"]
    assert followed["t"] == list(range(19, -1, -1)) and shared["t"] == [19, 9, 0]
    # The last step draws no noise: x̂_0 at t = 0 is the sample, and all that share x_0 are one.
    assert followed["rms_to_sample"][-1] < 1e-3 and shared["rms_between_samples"][-1] < 1e-3
    assert followed["rms_to_sample"][0] > followed["rms_to_sample"][10] > 1
    assert shared["rms_between_samples"][0] > shared["rms_between_samples"][1] > 1
    np.testing.assert_allclose(
        again["shared"]["rms_between_samples"], shared["rms_between_samples"], rtol=1e-3, atol=1e-3
    )
    assert changed["shared"]["rms_between_samples"][0] != shared["rms_between_samples"][0]
    a, b = (picture(folder / "shared-1.png").astype(int) for folder in (out, other))
    assert np.abs(a - b).max() <= 1 and not (out / "shared-2.png").exists()


def test_inpainting_keeps_the_known_part_and_only_that(study, tmp_path):
    known = np.zeros((8, 8), np.uint8)
    known[2:, :5] = 255
    Image.fromarray(known).save(tmp_path / "mask.png")
    arguments = [f"--mask={tmp_path / 'mask.png'}", "--images", "3", "50", "--completions=3"]
    result, out = study("inpaint", *arguments, "--num-resamples=2")
    values = np.load(out / "completions.npz")
    np.testing.assert_array_equal(values["known"], known == 255)
    truth = load_digits("heldout").images[[3, 50]]
    np.testing.assert_array_equal(values["images"], truth)
    gap = values["completions"].astype(int) - truth[:, None]
    assert (gap[:, :, 2:, :5] == 0).all() and result["largest_error_where_known"] == 0
    hidden = (known == 0)[..., None]
    np.testing.assert_allclose(
        result["rms_to_truth"], np.sqrt(np.square(gap[:, :, hidden]).mean()), rtol=1e-9
    )
    mean = load_digits("train").images.mean(0)
    np.testing.assert_allclose(
        result["rms_of_training_mean_to_truth"],
        np.sqrt(np.square(truth - mean)[:, hidden].mean()),
        rtol=1e-9,
    )
    assert result["rms_between_completions"] > 1 and result["share_known"] == 30 / 64
    again, _ = study("inpaint", *arguments, "--num-resamples=2", out="again")
    assert again["rms_to_truth"] == result["rms_to_truth"]


def test_neighbours_are_those_of_brute_force_and_copies_are_counted(study, tmp_path):
    train = load_digits("train").images
    noisy = np.clip(train[7].astype(int) + 3, 0, 255).astype(np.uint8)
    samples = np.stack([255 - train[0], noisy, train[11], train[1400]])
    np.savez(tmp_path / "samples.npz", images=samples)
    result, _ = study("neighbours", f"--samples={tmp_path / 'samples.npz'}", "--rows=3")
    assert result["samples"]["images"] == result["heldout_images"]["images"] == 4
    assert result["samples"]["exact_copies"] == 2 and result["heldout_images"]["exact_copies"] == 0
    assert result["samples"]["share_much_nearer_to_one"] == 0.75
    worst = result["most_suspicious"]
    assert [row["sample"] for row in worst] == [2, 3, 1]
    assert [row["training_images"][0] for row in worst] == [11, 1400, 7]
    exact = np.sqrt(np.square(train.astype(float) - noisy).sum((1, 2, 3)))
    np.testing.assert_allclose(worst[2]["distances"], np.sort(exact)[:6], rtol=1e-6)
    heldout = load_digits("heldout").images[[0, 119, 239, 359]].astype(float)
    nearest = [np.sqrt(np.square(train - x).sum((1, 2, 3))).min() for x in heldout]
    np.testing.assert_allclose(result["median_distance_of_heldout"], np.median(nearest), rtol=1e-6)


def test_a_study_returns_what_it_wrote(trained, tmp_path):
    images = load_digits("train").images[:5]
    np.savez(tmp_path / "samples.npz", images=images)
    out = tmp_path / "out"
    config = NeighboursConfig(run_dir=trained, out=out, samples=tmp_path / "samples.npz")
    samples, found, numbers, files = study_neighbours(config)
    np.testing.assert_array_equal(samples, images)
    indices, distances = found["samples"]
    assert indices[:, 0].tolist() == [0, 1, 2, 3, 4] and (distances[:, 0] == 0).all()
    assert sorted(files) == sorted(out.iterdir()) and len(files) == 3
    written = json.loads((out / "neighbours.json").read_text())
    assert written["samples"] == numbers["samples"] and numbers["samples"]["exact_copies"] == 5


def test_new_samples_are_searched_too(study):
    result, out = study(
        "neighbours", "--count=5", "--rows=2", "--batch-size=4", "--neighbours=1", "--label=3"
    )
    assert result["samples"]["images"] == 5 and len(result["most_suspicious"]) == 2
    assert picture(out / "neighbours.png").size and (out / "distances.png").exists()


@pytest.mark.parametrize(
    "script,arguments,words",
    [
        ("interpolate.py", ["--run-dir=/nonexistent"], "not a run directory"),
        ("interpolate.py", ["--pairs=0"], "--pairs"),
        ("interpolate.py", ["--depths", "0"], "--depths"),
        ("interpolate.py", ["--first", "1"], "--second"),
        ("interpolate.py", ["--first", "1", "--second", "360"], "360"),
        ("interpolate.py", ["--num-steps=21"], "num_steps"),
        ("interpolate.py", ["--label=10"], "0..9"),
        ("progressive.py", ["--copies=1"], "--copies"),
        ("progressive.py", ["--shared=65"], "--shared"),
        ("progressive.py", ["--depths", "1.5"], "--depths"),
        ("inpaint.py", ["--mask=middle"], "centre"),
        ("inpaint.py", ["--mask=/nonexistent.png"], "nonexistent.png"),
        ("inpaint.py", ["--images", "-1"], "--images"),
        ("inpaint.py", ["--num-resamples=0"], "--num-resamples"),
        ("inpaint.py", ["--count=361"], "--count"),
        ("neighbours.py", ["--samples=/nonexistent.npz"], "--samples"),
        ("neighbours.py", ["--neighbours=1438"], "--neighbours"),
        ("neighbours.py", ["--sampler=ddim", "--eta=2"], "eta"),
    ],
)
def test_wrong_flags_get_one_clear_error(trained, tmp_path, capsys, script, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        program(script, f"--run-dir={trained}", f"--out={tmp_path}", *arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert words in message and message.count("error:") == 1 and "Traceback" not in message
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("script", ["solvers.py", "toy_2d.py", "rivals_2d.py", "rivals_digits.py"])
def test_a_wrong_seed_leaves_nothing(tmp_path, capsys, script):
    with pytest.raises(SystemExit) as stopped:
        program(script, f"--out={tmp_path / 'out'}", "--seed=-1")
    assert stopped.value.code == 2 and "a seed in 0..2³²-1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_masks_hide_what_their_names_say(tmp_path):
    shape = (6, 9, 3)
    hidden = {name: ~read_mask(name, shape, 0)[..., 0] for name in MASKS}
    assert hidden["left"][:, :4].all() and not hidden["left"][:, 4:].any()
    assert hidden["right"][:, 5:].all() and not hidden["right"][:, :5].any()
    assert hidden["top"][:3].all() and not hidden["top"][3:].any()
    assert hidden["bottom"][3:].all() and not hidden["bottom"][:3].any()
    rows, columns = (hidden["centre"].any(axis=axis) for axis in (1, 0))
    assert np.array_equal(rows, rows[::-1]) and np.array_equal(columns, columns[::-1])
    assert hidden["centre"][2, 4] and not hidden["centre"][0].any()
    assert hidden["random"].sum() == 27
    assert (read_mask("random", shape, 1) != read_mask("random", shape, 0)).any()
    Image.new("L", (9, 5)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="5×9"):
        read_mask(str(tmp_path / "small.png"), shape, 0)
    Image.new("L", (9, 6), 255).save(tmp_path / "white.png")
    with pytest.raises(ValueError, match="hides nothing"):
        read_mask(str(tmp_path / "white.png"), shape, 0)


def test_pairwise_differences_by_brute_force():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 6, 1))
    where = np.random.default_rng(1).random((5, 6, 1)) < 0.5
    squares = [
        np.square(group[i] - group[j])[where]
        for group in images
        for i in range(4)
        for j in range(i)
    ]
    np.testing.assert_allclose(rms_pairwise(images, where), np.sqrt(np.mean(squares)))
    truth, known = images[:, 0], ~where
    got = measure(truth, images, known, np.zeros((5, 6, 1)))
    expected = np.sqrt(np.square(images - truth[:, None])[:, :, where].mean())
    np.testing.assert_allclose(got["rms_to_truth"], expected)
    assert got["largest_error_where_known"] > 0
    with pytest.raises(ValueError, match="nothing"):
        rms_difference(images, images, np.zeros((5, 6, 1), bool))


def test_copies_are_recognised_by_their_lonely_neighbour():
    row = summary(np.array([[0.0, 5.0], [1.0, 2.9], [1.0, 3.1], [4.0, 4.0]], np.float32))
    assert row["exact_copies"] == 1 and row["share_much_nearer_to_one"] == 0.5
    assert row["smallest"] == 0 and row["median"] == 1 and row["images"] == 4


def test_chunks_divide_every_walk():
    assert common_chunk([200, 150, 100, 25]) == 5 and common_chunk([1000, 125]) == 25
    assert common_chunk([199, 150]) == 1 and common_chunk([20]) == 1
    assert depth_counts(20, (0.001, 0.5, 1), "--depths") == [1, 10, 20]
