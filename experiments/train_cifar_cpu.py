"""Class-conditional CIFAR-10 in colour on two CPU cores, in hours (2.9 M parameters).

    ddpm-jax train cifar_cpu --data.download
    ddpm-jax sample --run-dir runs/cifar10_small --guidance 2 --label cat

The preset is cifar_cpu, its run directory runs/cifar10_small. The package's model cifar10-small
took 5,400 more steps from there; docs/results/cifar10/small/training_log.md has the command.

The network works on 2×2 patches of the image: 16×16 positions of 64 channels, then 8×8 of 128. It
takes 1.2 GFLOP per training image, a thirtieth of the paper's, and two quiet cores of an AMD EPYC
train on 70 to 83 images per second. Attention is at both heights. Labels are dropped for one image
in ten, for guidance.

The cosine schedule and v keep the loss even over the steps. The variance is learned with the hybrid
loss, which trains the variance with the bound but leaves the gradient of the mean unchanged: images
are as with L_simple, and bits/dim can be reported. There is no dropout, because no image is seen
more than a few dozen times. docs/results/cifar10/small/TRIALS.md has the speeds and short trials.
They decide between 64 and 96 channels only for the first minutes: 64 was chosen because it sees 1.7
times as many images per hour, and computing time is limited.

The learning rate is constant and falls to 0 over the last 4,500 steps. At that speed the 21,500
steps take about five hours; the same command continues after each interruption. To train longer,
give --num-steps. A run before step 17,000 continues with another length if --resume-with-changes is
added.
"""

from pathlib import Path

from ddpm_jax.programs.config import (
    DataConfig,
    DiffusionConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train

CONFIG = TrainConfig(
    run_dir=Path("runs/cifar10_small"),
    num_steps=21_500,
    batch_size=64,
    data=DataConfig(name="cifar10", augment="flip"),
    network=NetworkConfig(
        channels=64,
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
        learning_rate=5e-4,
        warmup_steps=1000,
        decay="linear",
        decay_steps=4500,
        ema_decay=0.9995,
        ema_warmup=True,
    ),
    # On two quiet cores: measured every 14 minutes, drawn every 43, saved every 7.
    report=ReportConfig(
        log_every=25,
        heldout_every=1000,
        heldout_draws=2048,
        sample_every=3000,
        sample_count=36,
        sample_steps=50,
        checkpoint_every=500,
        guidance=2.0,
    ),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
