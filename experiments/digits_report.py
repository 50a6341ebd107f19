"""How good are the digits? Held-out loss, Fréchet distances, and a classifier's confidence.

Two references beside each number show its scale: real held-out digits in place of samples, and
draws from a Gaussian with the training set's mean and covariance. All three sets have equally many
images, because the Fréchet distance is larger for fewer images. `train_digits.py` and its relatives
end with this report.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_jax import evaluation
from ddpm_jax.devices import processes
from ddpm_jax.files import write_json
from ddpm_jax.programs import pictures
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import say
from ddpm_jax.programs.diffusion import loss_name
from ddpm_jax.programs.train import train
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training import StopRequest, TrainState


def train_and_report(config: TrainConfig) -> dict[str, Any] | None:
    """Trains on the digits and returns the report; None if training was stopped before its end.

    Raises ValueError for other data, whose labels the table needs, and whatever `train` raises.
    """
    if config.data.name != "digits":
        raise ValueError(
            f"this script's report is about the digits, got --data.name {config.data.name}. Train "
            "other data with their own script: train_mnist.py, train_cifar.py, …"
        )
    reports = []
    train(config, finish=lambda *finished: reports.append(report_digits(*finished)))
    return reports[0] if reports else None


def report_digits(run: TrainingRun, state: TrainState, stop: StopRequest) -> dict[str, Any]:
    """Prints the table, writes it to report.json, and returns what it wrote."""
    real, heldout = run.train_data, run.heldout_data
    count = len(heldout.images)
    samples = pictures.draw_images(
        run.generator,
        state.ema_params,
        "sampling for the table",
        seed=(run.config.seed + 1) % 2**32,
        count=count,
        # The batch size of the last sheet, whose program is already compiled.
        batch_size=run.config.report.final_count,
        labels=run.model.cycled_labels(count),
        should_stop=stop,
    ).images
    gaussian = evaluation.fitted_gaussian_images(real.images, count, seed=run.config.seed)
    rows = {"samples": samples, "held-out digits": heldout.images, "fitted Gaussian": gaussian}
    classify = evaluation.fit_classifier(real.images, real.labels)
    truth = evaluation.moments(evaluation.pixel_features(real.images))
    table = {}
    for name, images in rows.items():
        probabilities = classify(images)
        features = evaluation.pixel_features(images)
        distances = evaluation.nearest_neighbours(images, real.images).distances[:, 0]
        table[name] = {
            "frechet_pixels": evaluation.frechet_distance(truth, evaluation.moments(features)),
            "share_confident": evaluation.share_confident(probabilities, 0.9),
            "label_counts": np.bincount(probabilities.argmax(1), minlength=10).tolist(),
            "median_distance_to_nearest_training_image": float(np.median(distances)),
        }
    draws = run.config.report.heldout_draws
    losses = {
        "held out": run.heldout_loss(state.ema_params, heldout, draws, stop),
        "on training images": run.heldout_loss(state.ema_params, real, draws, stop),
    }
    name = loss_name(run.config.diffusion)
    report = {
        "step": int(state.step),
        "images_per_row": count,
        "loss": {"name": name, **{k: v.loss for k, v in losses.items()}},
        "bits_per_dim_estimate": {k: v.bits_per_dim for k, v in losses.items()},
        "rows": table,
    }
    processes.on_leader(lambda: write_json(run.directory.root / "report.json", report))
    say("")
    for title, field in ((name, "loss"), ("estimate of the bound in bits/dim", "bits_per_dim")):
        say(f"{title}: " + ", ".join(f"{getattr(v, field):.4f} {k}" for k, v in losses.items()))
    say(f"{'':17}  Fréchet distance  classifier > 90 % sure  distance to nearest")
    say(f"{f'{count} images of':17}  to training set   (share)                 training image")
    for name, row in table.items():
        say(
            f"{name:17}  {row['frechet_pixels']:16.3f}  {row['share_confident']:22.3f}  "
            f"{row['median_distance_to_nearest_training_image']:19.2f}"
        )
    say("")
    return report
