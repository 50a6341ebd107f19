"""Likelihood, steps against quality, and evaluation of a tiny run, made again by hand."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax as dj
from ddpm_jax import evaluation
from ddpm_jax.data import load_digits
from ddpm_jax.programs import denoiser_errors, shards
from ddpm_jax.programs.bound import measure_bound
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.generator import Generator
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from steps_vs_quality import StepsConfig, _draw, _network
from tests.small_run import make_run, program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(folder):
    return TrainedRun(RunOptions(run_dir=folder))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_the_likelihood_table_is_the_librarys_bound(folder, run, tmp_path):
    arguments = ["--count=12", "--batch-size=5", "--flow-count=4", "--tolerance=1e-3"]
    program("likelihood.py", f"--run-dir={folder}", f"--out={tmp_path}", *arguments)
    result = json.loads((tmp_path / "likelihood.json").read_text())["held out"]
    data = load_digits("heldout")
    x_0 = dj.from_pixels(data.images[:12])
    keys = dj.example_keys(jax.random.key(0), jnp.arange(12, dtype=jnp.uint32))
    bound = dj.variational_bound(
        run.model.schedule,
        run.model.bind(run.params, label=data.labels[:12]),
        x_0,
        keys,
        variance="learned_range",
    )
    row = result["bound"]["learned_range"]
    mean, error = dj.likelihood.mean_and_standard_error(bound.total)
    np.testing.assert_allclose(row["bits_per_dim"], mean, rtol=1e-4)
    np.testing.assert_allclose(row["standard_error"], error, rtol=1e-3)
    np.testing.assert_allclose(row["rate"] + row["distortion"], mean, rtol=1e-4)
    np.testing.assert_allclose(result["terms"]["learned_range"], bound.terms.mean(1), rtol=1e-3)
    curve = dj.rate_distortion(bound)
    got = result["rate_distortion"]
    np.testing.assert_allclose(got["rate_bits_per_dim"], curve.rate, rtol=1e-3)
    np.testing.assert_allclose(got["distortion_rmse_255"], curve.distortion, rtol=1e-3)
    # Of the fixed variances the analytic one is least, up to the noise of its estimate.
    fixed = [result["bound"][kind]["bits_per_dim"] for kind in ("fixed_large", "fixed_small")]
    assert result["bound"]["analytic"]["bits_per_dim"] < min(fixed) + 0.05
    assert 0 < result["flow"]["bits_per_dim"] < 20 and result["flow"]["images"] == 4
    assert (tmp_path / "terms.png").exists() and (tmp_path / "rate_distortion.png").exists()


def test_fewer_steps_per_image_are_entries_of_the_whole_bound(run):
    T = run.model.schedule.num_timesteps
    options = {"variances": {"own": run.config.diffusion.variance}, "data": run.heldout_data}
    options |= {"count": 2 * T + 1, "batch_size": 7, "name": "bound"}
    whole = measure_bound(run, **options)
    some = measure_bound(run, **options, steps_per_image=2)
    group = T // 2
    images = np.arange(T) % group  # which image of a group has this step
    assert (whole.num_images, some.num_images) == (2 * T + 1, 2 * T)
    for column in range(4):
        rows = group * column + images
        at = np.arange(T), rows
        np.testing.assert_allclose(some.terms["own"][:, column], whole.terms["own"][at], rtol=1e-4)
        np.testing.assert_allclose(some.x_0_mse[:, column], whole.x_0_mse[at], rtol=1e-4)
        prior = whole.prior[group * column : group * (column + 1)].mean()
        np.testing.assert_allclose(some.prior[column], prior, rtol=1e-6)
    for wrong, named in [(0, "got 0"), (T + 1, "divide"), (3, "divide"), (1, "images, got 10")]:
        with pytest.raises(ValueError, match=named):
            measure_bound(run, **{**options, "count": 10}, steps_per_image=wrong)


def test_measured_errors_are_kept_for_their_checkpoint_alone(folder):
    mse = TrainedRun(RunOptions(run_dir=folder)).x_0_mse
    path = folder / "x_0_mse-ema-0.json"
    kept = json.loads(path.read_text())
    np.testing.assert_array_equal(kept["x_0_mse"], mse)
    # At the first step x̂_0 is nearly x_0, at the last an untrained ε says nothing of it.
    assert mse[0] < 0.01 < 0.1 < mse[-1]
    path.write_text(json.dumps({**kept, "x_0_mse": [0.5] * 20}))
    np.testing.assert_array_equal(TrainedRun(RunOptions(run_dir=folder)).x_0_mse, [0.5] * 20)
    path.write_text(json.dumps({**kept, "x_0_mse": [0.5] * 20, "checkpoint_sha256": "another"}))
    np.testing.assert_array_equal(TrainedRun(RunOptions(run_dir=folder)).x_0_mse, mse)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"x_0_mse": [0.5]}', '{"x_0_mse": "none"}', '{"x_0_mse": [{}]}', None]
)
def test_damaged_measured_errors_are_measured_again(tmp_path, capsys, content):
    path = tmp_path / "x_0_mse-ema-0.json"
    assert denoiser_errors._kept(path, {}, 2) is None
    path.mkdir() if content is None else path.write_text(content)
    assert denoiser_errors._kept(path, {}, 2) is None
    assert f"warning: {path} cannot be read (" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver_pp_sde"])
def test_stepping_outside_of_the_program_draws_the_same_images(folder, run, name):
    sampler = run.sampler(SamplerOptions(name, num_steps=6))
    config = StepsConfig(run_dir=folder, count=7, batch_size=4)
    outside = _draw(run, _network(run), sampler, config).astype(int)
    inside = run.generator(sampler)(run.params, seed=0, count=7, labels=run.labels(7)).images
    assert np.abs(outside - inside.astype(int)).max() <= 1


def test_steps_against_quality_measures_every_cell(folder, tmp_path):
    arguments = ["--steps", "3", "--count=20", "--batch-size=20", "--show=2", "--bootstrap=2"]
    program("steps_vs_quality.py", f"--run-dir={folder}", f"--out={tmp_path}", *arguments)
    result = json.loads((tmp_path / "steps_vs_quality.json").read_text())
    assert len(result["rows"]) == 7 and result["rows"]["Heun"]["3"]["evaluations"] == 5
    assert set(result["rows"]["DDIM η=0"]) == {"3", "20"}
    # An untrained network is further from the digits than held-out digits are.
    floor = result["held out"]["frechet_pixels"]
    for cells in result["rows"].values():
        assert all(cell["frechet_pixels"] > floor for cell in cells.values())
    assert (tmp_path / "quality.png").exists() and (tmp_path / "samples.png").exists()


EVALUATE = ["--count=30", "--sampler=ddim", "--num-steps=3", "--spacing=trailing"]
EVALUATE += ["--bits-count=4", "--bootstrap=5", "--batch-size=6"]


def test_an_evaluation_is_what_its_samples_give_and_survives_lost_shards(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("ddpm_jax.programs.shards.SHARD", 12)
    arguments = [f"--run-dir={folder}", f"--out={tmp_path}", *EVALUATE]
    program("evaluate.py", *arguments)
    first = json.loads((tmp_path / "pixels.json").read_text())
    shards = sorted((tmp_path / "shards").iterdir())
    assert [path.name for path in shards] == ["000000.npz", "000012.npz", "000024.npz"]
    images = np.concatenate([np.load(path)["images"] for path in shards])
    train = load_digits("train").images
    a, b = (evaluation.moments(evaluation.pixel_features(x)) for x in (train, images))
    samples = first["samples"]
    np.testing.assert_allclose(samples["frechet"], evaluation.frechet_distance(a, b), rtol=1e-6)
    real, made = (evaluation.pixel_features(x).astype(np.float32) for x in (train, images))
    assert samples["precision"] == evaluation.precision_recall(real, made).precision
    assert samples["coverage"] == evaluation.density_coverage(real, made).coverage
    row = (tmp_path / "pixels.md").read_text()
    assert first["fewer_than_published"] and "not comparable" in row and "spacing trailing" in row
    assert first["held_out"]["frechet"] < samples["frechet"]
    # A shard that is gone, one cut short, and one that is none, are sampled again, the same.
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    shards[2].write_bytes(b"no zip")
    program("evaluate.py", *arguments)
    again = json.loads((tmp_path / "pixels.json").read_text())
    assert again == first
    with pytest.raises(SystemExit) as stopped:
        program("evaluate.py", *arguments, "--seed=1")
    assert stopped.value.code == 2


@pytest.fixture
def few_images(monkeypatch):
    """Cuts both splits to so many images."""
    from ddpm_jax.programs import trained_run

    load = trained_run.load_data

    def cut(train, heldout):
        def load_few(config, split, **options):
            data, count = (
                load(config, split, **options),
                {"train": train, "heldout": heldout}[split],
            )
            labels = data.labels[:count]
            return data._replace(images=data.images[:count], labels=labels)

        monkeypatch.setattr(trained_run, "load_data", load_few)

    return cut


# Sets of 2 have a spread; three and five nearest neighbours need 4 and 6.
@pytest.mark.parametrize(
    "train,heldout,samples_have,heldout_have",
    [
        (2, 1, {"frechet", "kid"}, set()),
        (5, 2, {"frechet", "kid", "precision", "recall"}, {"frechet", "kid"}),
        (40, 0, {"frechet", "kid", "precision", "recall", "density", "coverage"}, set()),
        (40, 1, {"frechet", "kid", "precision", "recall", "density", "coverage"}, set()),
        (40, 4, {"frechet", "kid", "precision", "recall", "density", "coverage"}, {"recall"}),
        (40, 6, {"frechet", "kid", "precision", "recall", "density", "coverage"}, {"coverage"}),
    ],
)
def test_what_few_images_cannot_give_is_left_out_and_named(
    folder, tmp_path, few_images, capsys, train, heldout, samples_have, heldout_have
):
    few_images(train, heldout)
    options = ["--sampler=ddim", "--num-steps=2", "--bits-count=3", "--bootstrap=3"]
    program("evaluate.py", f"--run-dir={folder}", f"--out={tmp_path}", *options)
    result = json.loads((tmp_path / "pixels.json").read_text())
    every = {"frechet", "kid", "precision", "recall", "density", "coverage"}
    assert result["count"] == 10
    samples, held = result["samples"], result["held_out"]
    assert every & samples.keys() == samples_have and heldout_have <= held.keys()
    assert every - samples.keys() == samples.get("left_out", {}).keys()
    assert every - held.keys() == held.get("left_out", {}).keys()
    assert (result["bits_per_dim"] is None) == (heldout < 2)
    printed = capsys.readouterr().out
    missing = {*samples.get("left_out", ()), *held.get("left_out", ())}
    assert ("left out" in printed) == bool(missing)


def test_where_nothing_can_be_measured_nothing_is_sampled(folder, tmp_path, few_images, capsys):
    few_images(1, 1)
    with pytest.raises(SystemExit) as stopped:
        program("evaluate.py", f"--run-dir={folder}", f"--out={tmp_path}", "--num-steps=2")
    assert stopped.value.code == 2 and not list(tmp_path.rglob("*.npz"))
    assert "nothing can be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script,least",
    [
        ("likelihood.py", 2),
        ("interpolate.py", 2),
        ("steps_vs_quality.py", 2),
        ("inpaint.py", 1),
        ("neighbours.py", 1),
    ],
)
def test_studies_of_held_out_images_need_some(folder, tmp_path, few_images, capsys, script, least):
    few_images(40, least - 1)
    with pytest.raises(SystemExit) as stopped:
        program(script, f"--run-dir={folder}", f"--out={tmp_path / 'out'}")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
    assert f"at least {least} held-out images are needed" in error and "--data.holdout" in error


PLAN = {"seed": 0, "data": {"name": "faces/train", "fingerprint": "a", "class_names": ["x", "y"]}}


@pytest.mark.parametrize(
    "change,same",
    [
        ({"data": {**PLAN["data"], "name": "scratch/faces/train"}}, True),
        ({"data": {**PLAN["data"], "class_names": ["a", "b"]}}, True),
        ({"run": "elsewhere", "device": "TPU", "jax": "9"}, True),
        ({"data": {**PLAN["data"], "fingerprint": "b"}}, False),
        ({"seed": 1}, False),
        ({"guidance_interval": [0.3, 3.0]}, False),
    ],
)
def test_data_and_run_of_a_plan_are_known_by_content_not_by_name(tmp_path, change, same):
    shards.remember_plan(tmp_path, PLAN)
    assert (shards.content_of(PLAN) == shards.content_of({**PLAN, **change})) == same
    if same:
        shards.remember_plan(tmp_path, {**PLAN, **change})
    else:
        with pytest.raises(RunDirectoryError, match=f"other settings .{next(iter(change))}"):
            shards.remember_plan(tmp_path, {**PLAN, **change})
        # In either order: the samples of an option are not those of a call without it.
        shards.remove_shards(tmp_path)
        shards.remember_plan(tmp_path, {**PLAN, **change})
        with pytest.raises(RunDirectoryError, match=f"other settings .{next(iter(change))}"):
            shards.remember_plan(tmp_path, PLAN)


def test_shards_without_a_plan_are_nobodys(tmp_path, monkeypatch):
    """As a kill during the removal of shards left them: they may be of any settings."""
    (tmp_path / "shards").mkdir()
    shards.remember_plan(tmp_path, PLAN)
    (tmp_path / "shards" / "000000.npz").write_bytes(b"images")
    with monkeypatch.context() as patch:
        patch.setattr(shards.shutil, "rmtree", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shards.remove_shards(tmp_path)
    with pytest.raises(RunDirectoryError, match="other settings"):
        shards.remember_plan(tmp_path, {**PLAN, "seed": 1})
    (tmp_path / "plan.json").unlink()
    with pytest.raises(RunDirectoryError, match="there is no plan.json with their settings"):
        shards.remember_plan(tmp_path, PLAN)
    shards.remove_shards(tmp_path)
    shards.remember_plan(tmp_path, PLAN)
    shards.remove_shards(tmp_path)
    assert not list(tmp_path.iterdir())


class Progress:
    """A bar that only counts."""

    def __init__(self, total, *_, **__):
        self.total, self.done = total, 0
        BARS.append(self)

    def update(self, steps):
        self.done += steps

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


BARS: list[Progress] = []


@pytest.mark.parametrize("count,batch", [(10, 4), (13, 5), (12, 12), (3, 8)])
def test_the_bar_of_sampling_ends_at_the_end(run, tmp_path, monkeypatch, count, batch):
    BARS.clear()
    monkeypatch.setattr(shards, "bar", Progress)
    monkeypatch.setattr(shards, "SHARD", 6)
    generator = run.generator(run.sampler(SamplerOptions("ddim", num_steps=2)))
    for _ in range(2):
        shards.sample_shards(run, generator, tmp_path, count=count, batch_size=batch)
    assert [bar.done for bar in BARS] == [bar.total for bar in BARS] == [2 * count] * 2


SAMPLE = ["--sampler=ddim", "--num-steps=3", "--count=10", "--batch-size=4", "--format=both"]


@pytest.mark.parametrize("kills", [[0], [1], [2], [0, 1, 1]])
def test_sampling_goes_on_after_a_kill_and_gives_exactly_the_same(
    folder, tmp_path, monkeypatch, kills
):
    monkeypatch.setattr(shards, "SHARD", 4)
    whole, out = tmp_path / "whole", tmp_path / "out"
    program("sample.py", f"--run-dir={folder}", f"--out={whole}", *SAMPLE)
    write = np.savez_compressed

    for shards_before in kills:
        left = [None] * shards_before

        def killed(file, *, images, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            write(file, images=images)

        with monkeypatch.context() as patch:
            patch.setattr(np, "savez_compressed", killed)
            with pytest.raises(SystemExit) as stopped:
                program("sample.py", f"--run-dir={folder}", f"--out={out}", *SAMPLE)
        assert stopped.value.code == 130
    kept = len(list((out / "shards").glob("*.npz")))
    assert kept == sum(kills)
    starts = []
    call = Generator.__call__

    def counted(self, *arguments, start, **options):
        starts.append(start)
        return call(self, *arguments, start=start, **options)

    monkeypatch.setattr(Generator, "__call__", counted)
    program("sample.py", f"--run-dir={folder}", f"--out={out}", *SAMPLE)
    assert starts == [0, 4, 8][kept:]
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert names == {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    for name in names - {Path("samples.npz")}:
        assert (whole / name).read_bytes() == (out / name).read_bytes(), name
    images = [np.load(folder / "samples.npz")["images"] for folder in (whole, out)]
    np.testing.assert_array_equal(*images)
    pngs = [np.asarray(Image.open(out / f"images/{i:06d}.png")) for i in range(10)]
    np.testing.assert_array_equal(np.stack(pngs)[..., None], images[0])


def test_a_gif_that_an_interrupted_call_left_out_is_not_named(
    folder, tmp_path, monkeypatch, capsys
):
    def interrupted(*_):
        raise KeyboardInterrupt

    arguments = [f"--run-dir={folder}", f"--out={tmp_path}", *SAMPLE]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shards, "read_shards", interrupted)
        program("sample.py", *arguments, "--no-gif")
    program("sample.py", *arguments)
    assert not (tmp_path / "denoising.gif").exists()
    assert "denoising.gif" not in capsys.readouterr().out


def test_slow_sampling_is_written_after_every_batch(folder, run, tmp_path, monkeypatch):
    """Files of any sizes are read, their gaps are filled, and no image is drawn twice."""
    generator = run.generator(run.sampler(SamplerOptions("ddim", num_steps=2)))
    drawn = []
    call = Generator.__call__

    def counted(self, *arguments, start, **options):
        drawn.append(start)
        return call(self, *arguments, start=start, **options)

    monkeypatch.setattr(Generator, "__call__", counted)
    shards.sample_shards(run, generator, tmp_path, count=13, batch_size=5)
    (whole,) = shards.read_shards(tmp_path, 13, (8, 8, 1))
    assert drawn == [0, 5, 10]
    monkeypatch.setattr(shards, "SECONDS", 0)
    out = tmp_path / "slow"
    out.mkdir()
    shards.sample_shards(run, generator, out, count=12, batch_size=5)
    files = sorted((out / "shards").iterdir())
    assert [path.stem for path in files] == ["000000", "000005", "000010"]
    files[1].unlink()
    drawn.clear()
    shards.sample_shards(run, generator, out, count=13, batch_size=4)
    assert drawn == [5, 9, 12]
    np.testing.assert_array_equal(np.concatenate([*shards.read_shards(out, 13, (8, 8, 1))]), whole)


def test_unfinished_samples_of_other_settings_are_not_mixed(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "plan.json").write_text(json.dumps({"seed": 9}))
    with pytest.raises(SystemExit) as stopped:
        program("sample.py", f"--run-dir={folder}", f"--out={tmp_path}", *SAMPLE)
    assert stopped.value.code == 2 and "seed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_more_images_go_on_from_fewer(folder, tmp_path, monkeypatch):
    """Image i does not depend on how many there are, so the plan does not name the count."""
    monkeypatch.setattr(shards, "SHARD", 4)
    monkeypatch.setattr(shards, "remove_shards", lambda out: None)
    arguments = [f"--run-dir={folder}", f"--out={tmp_path}", *SAMPLE]
    program("sample.py", *arguments, "--count=8")
    eight = np.load(tmp_path / "samples.npz")["images"]
    program("sample.py", *arguments, "--count=11")
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["images"][:8], eight)


def test_large_images_come_in_small_files():
    assert shards.shard_size((32, 32, 3)) == shards.SHARD
    assert 100 < shards.shard_size((256, 256, 3)) < 200
    assert shards.shard_size((8192, 8192, 3)) == 1


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--count=3"], "--count"),
        (["--bits-count=1"], "--bits-count"),
        (["--features=inception"], "--download"),
        (["--features=inception", "--inception=/nonexistent.pth"], "not a file"),
        (["--eta=1"], "--sampler ddim"),
        (["--guidance=2", "--batch-size=0"], "--batch-size"),
    ],
)
def test_what_cannot_be_evaluated_is_said_at_once(folder, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        program("evaluate.py", f"--run-dir={folder}", f"--out={tmp_path}", *arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and not list(tmp_path.rglob("*.npz"))
