"""Likelihood, steps against quality, and evaluation of a tiny run, made again by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import evaluation
from ddpm_jax.data import load_digits
from ddpm_jax.programs.config import SamplerOptions
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


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver_pp_sde"])
def test_stepping_outside_of_the_program_draws_the_same_images(folder, run, name):
    sampler = run.sampler(SamplerOptions(name, num_steps=6))
    config = StepsConfig(run_dir=folder, count=7, batch_size=4)
    outside = _draw(run, _network(run), sampler, config).astype(int)
    inside = run.generator(sampler)(run.params, seed=0, count=7, labels=run.labels(7)).images
    assert np.abs(outside - inside.astype(int)).max() <= 1


def test_steps_against_quality_measures_every_cell(folder, tmp_path):
    arguments = ["--steps", "3", "--count=20", "--batch-size=20", "--show=2"]
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
EVALUATE += ["--bits-count=4", "--bootstrap=5"]


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


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--count=3"], "--count"),
        (["--bits-count=1"], "--bits-count"),
        (["--features=inception"], "--download"),
        (["--features=inception", "--inception=/nonexistent.pth"], "no file"),
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
