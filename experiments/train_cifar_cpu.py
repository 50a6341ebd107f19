"""Class-conditional CIFAR-10 in colour on two CPU cores, over days (6.4 M parameters).

    python experiments/train_cifar_cpu.py --data.download
    python experiments/sample.py --run-dir runs/cifar10_small --guidance 2 --label 3

The network works on 2×2 patches of the image, 16×16 positions of 96 channels and 8×8 of 192: it
takes 2.4 GFLOP per training image, about a fifteenth of the paper's, at 109 GFLOP/s on two cores of
an AMD EPYC, 45 images/s. On pixels, 64 channels take 3.6 GFLOP. Attention is at both heights, and
the labels are dropped for one image in ten, for guidance.

The cosine schedule and v keep the loss even over the steps. The variance is learned by the hybrid
loss, whose bound leaves the mean alone: the pictures are those of L_simple, and there are bits/dim.
No dropout, since no image is seen more than some hundred times. The learning rate is constant, so
that the run may be ended or extended at any step. 100,000 steps take about 40 hours; the same
command goes on after each interruption. docs/results/cifar10/small/TRIALS.md has the speeds, and
short trials; the width was chosen for the length of the run, and these cannot say whether rightly.
"""

from pathlib import Path

from ddpm_jax.runs.config import (
    DataConfig,
    DiffusionConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from ddpm_jax.runs.console import run_program
from ddpm_jax.runs.train import train

CONFIG = TrainConfig(
    run_dir=Path("runs/cifar10_small"),
    num_steps=100_000,
    batch_size=64,
    data=DataConfig(name="cifar10", flip=True),
    network=NetworkConfig(
        channels=96,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(16, 8),
        dropout=0.0,
        patch_size=2,
        class_conditional=True,
    ),
    diffusion=DiffusionConfig(
        schedule="cosine",
        target="v",
        variance="learned_range",
        loss="hybrid",
        label_dropout=0.1,
    ),
    # The average forgets the initialisation while its decay grows, and then spans 2,000 steps.
    optimizer=OptimizerConfig(
        learning_rate=3e-4, warmup_steps=1000, ema_decay=0.9995, ema_warmup=True
    ),
    # On two quiet cores: measured every 12 minutes, drawn every 35, saved every 6.
    report=ReportConfig(
        log_every=25,
        heldout_every=500,
        heldout_draws=2048,
        sample_every=1500,
        sample_count=36,
        sample_steps=50,
        checkpoint_every=250,
        guidance=2.0,
    ),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
