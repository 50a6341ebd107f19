"""The configuration of a run, as frozen dataclasses: every field is a command-line option and a
line of JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ddpm_jax.data.registry import check_name
from ddpm_jax.denoisers.prediction import Target, VarianceKind
from ddpm_jax.forward import Spacing


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    name: str = "digits"
    """digits (1,797 of 8×8), cifar10, cifar100, mnist, fashion_mnist, svhn; folder or arrays, at
    `path`; tfds:NAME; hf:NAME_OR_FOLDER; or your function of the split, package.module:function."""
    path: Path | None = None
    """Local file or folder. None looks in the cache, then for a prepared TFDS data set."""
    cache_dir: Path | None = None
    """Where decoded images are kept; None for the user's cache folder."""
    download: bool = False
    """Whether the data may be fetched from its official address, its checksum verified."""
    resolution: int | str | None = None
    """Size that images are resized and centre-cropped to: 64, or HEIGHTxWIDTH such as 48x64."""
    channels: Literal["auto", 1, 3] = "auto"
    """1 for grey, 3 for RGB; auto is grey if all images are stored so."""
    labels: str = "auto"
    """Where the labels of your own images come from: a .csv or .json file, or none; auto: class
    folders or dataset.json, for class-conditional networks."""
    holdout: float = 0.1
    """Share of the images held out from training, if the data have no such split; 0 for none."""
    augment: Literal["none", "flip", "pad_crop", "flip_pad_crop"] = "none"
    """flip: mirror each training image left to right with probability ½; pad_crop: shift it by up
    to 4 pixels, padded by reflection."""


@dataclass(frozen=True)
class NetworkConfig:
    """The U-Net of Ho et al. 2020, App. B; the defaults are its CIFAR-10 size."""

    channels: int = 128
    """Channels at the highest resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels at each level, as multiples; its length is the number of resolutions."""
    num_res_blocks: int = 2
    """Residual blocks at each level on the way down; one more on the way up."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights at which the residual blocks are followed by self-attention; patches count as
    pixels."""
    dropout: float = 0.1
    """Share of activations dropped in each residual block while training."""
    num_groups: int = 32
    """Groups of every GroupNorm; must divide all channel counts, and be fewer."""
    downsample_padding: Literal["same", "symmetric"] = "same"
    """Where convolutions of stride 2 are padded: below and right, as DDPM does, or all around."""
    num_heads: int = 1
    """Attention heads at every level."""
    head_channels: int | None = None
    """Channels per attention head, in place of a number of heads."""
    middle_attention: Literal["normalised", "plain", "none"] = "normalised"
    """Attention between the way down and the way up; plain is without GroupNorm."""
    scale_shift: bool = False
    """Let the embedding scale and shift each block's second normalisation, not add to its input."""
    embedding_order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    """Which half of the step's embedding comes first; cos_sin in guided-diffusion and diffusers."""
    embedding_shift: int = 1
    """Its frequencies are max_period^(-i / (half - shift)); 0 in guided-diffusion and diffusers."""
    norm_epsilon: float = 1e-6
    """ε of every GroupNorm; PyTorch's default is 1e-5."""
    patch_size: int = 1
    """The network takes square patches of this many pixels per side as its pixels; 1 for none."""
    class_conditional: bool = False
    """Embed the label beside the step; some labels are dropped while training, for guidance."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters, statistics, softmax and loss stay float32."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The process, and what the network predicts of it."""

    schedule: Literal[
        "linear",
        "quadratic",
        "constant",
        "warmup10",
        "warmup50",
        "jsd",
        "cosine",
        "sigmoid",
        "geometric",
    ] = "linear"
    """Noise schedule; the paper's is linear. geometric: NCSN's ladder of noise levels."""
    num_timesteps: int = 1000
    """T, the number of steps."""
    beta_start: float = 1e-4
    """First β of the schedules that have one; belongs to T = 1000, scale it by 1000/T."""
    beta_end: float = 0.02
    """Last β; likewise."""
    sigma_max: float = 2.0
    """Largest σ of the schedule geometric, for data in [-1, 1]: twice what [0, 1] would have."""
    sigma_min: float = 0.02
    """Its smallest σ; likewise."""
    exploding: bool = False
    """Feed the network x_0 + σ ε, as NCSN does, instead of √ᾱ x_0 + √(1-ᾱ) ε: the same but for
    the scale."""
    target: Target = "epsilon"
    """What the network predicts."""
    variance: VarianceKind = "fixed_large"
    """Variance of p_θ(x_{t-1} | x_t): β_t, β̃_t, or learned by as many more output channels."""
    loss: Literal["simple", "hybrid", "bound"] = "simple"
    """L_simple; L_hybrid, for a learned variance; or the variational bound itself."""
    weighting: Literal["none", "snr", "snr_plus_one", "truncated_snr", "min_snr", "p2", "bound"] = (
        "none"
    )
    """Weight of L_simple over the steps; said of x_0, so it means the same for every target."""
    min_snr_gamma: float = 5.0
    """γ of the weighting min_snr, min(SNR, γ)."""
    p2_gamma: float = 1.0
    """γ of the weighting p2, SNR/(1 + SNR)^γ."""
    timesteps: Literal["uniform", "stratified", "importance"] = "uniform"
    """How training draws t: independently as in the paper, spread evenly over each batch, or where
    the loss has been large."""
    zero_terminal_snr: bool = False
    """Stretch the schedule until nothing of x_0 is left in x_T; needs the target v or x_0."""
    label_dropout: float = 0.1
    """Share of labels replaced by "none", and of vectors `cond` by zeros, while training."""
    clip: bool = True
    """Clip x̂_0 to [-1, 1] while sampling."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam as in the paper, and the moving average of the parameters."""

    learning_rate: float = 2e-4
    """Peak learning rate."""
    warmup_steps: int = 5000
    """Steps of linear warm-up from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: constant, or a cosine to 0 at the last step."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    spike_factor: float | None = None
    """Skip steps whose loss is over this times its running mean, and count them as bad steps."""
    ema_decay: float = 0.9999
    """Decay of the moving average that samples come from."""
    ema_warmup: bool = False
    """Let the decay grow as (1+step)/(10+step) at first, so that short runs forget the
    initialisation."""


@dataclass(frozen=True)
class DevicesConfig:
    """What to run on."""

    backend: Literal["auto", "jit", "pmap", "shard_map"] = "auto"
    """auto: jit on one device, shard_map on several."""
    count: int | None = None
    """Number of devices of each process; None for all. For None a CPU trains as one device, and
    samples as one a core, up to eight."""
    parameter_shards: int = 1
    """Split parameters, average and optimiser state over groups of so many devices (FSDP)."""
    microbatches: int = 1
    """Each device's images go through the network in so many parts: less memory, the same step."""
    remat: bool = False
    """Recompute each block's inside in the backward pass: less memory on accelerators, a third more
    arithmetic. On CPUs XLA saves nothing by it: take microbatches there."""
    steps_per_dispatch: int | None = None
    """Training steps in one compiled call; None for 1 on CPUs and 10 elsewhere."""
    resident_gib: float = 2.0
    """Data sets up to this size are kept in device memory; larger ones are streamed from the
    host."""
    watchdog_seconds: float = 1800.0
    """Without any progress for so long, training ends with exit code 75 and the stacks of all
    threads; compiling, sampling and measuring are not watched. 0 for never."""


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes, on one host or many; start the same command in each. docs/scaling.md."""

    auto: bool = False
    """Let JAX find the others: under SLURM, Open MPI, Kubernetes, and on TPU pods."""
    coordinator: str | None = None
    """Without auto: HOST:PORT of process 0, where the others find it."""
    num_processes: int | None = None
    """Without auto: how many processes there are."""
    process_id: int | None = None
    """Without auto: which of them this one is, from 0."""
    bind: str | None = None
    """HOST:PORT process 0 listens on; None for the coordinator's, with auto every interface."""
    heartbeat_seconds: int = 100
    """A process that is not heard of for so long is taken for dead, and all end."""
    start_seconds: int = 300
    """How long processes wait for each other at the start."""


@dataclass(frozen=True)
class ReportConfig:
    """What is written, and how often; 0 for never."""

    log_every: int = 50
    """Steps between lines of log.jsonl: the loss and gradient norm of that step."""
    heldout_every: int = 1000
    """Steps between measurements of the held-out loss."""
    heldout_draws: int = 2048
    """Pairs of image and step the held-out loss averages over; always the same ones."""
    sample_every: int = 1000
    """Steps between sheets of samples from the averaged parameters."""
    sample_count: int = 64
    """Images on a sheet."""
    sample_steps: int = 50
    """DDIM steps for the sheets made on the way."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    checkpoint_keep: int = 3
    """How many checkpoints are kept."""
    keep_every: int = 0
    """Also keep the checkpoints at multiples of this number of steps, for good; 0 for none."""
    final_count: int = 100
    """Images on the last sheet."""
    final_steps: int | None = None
    """Ancestral steps for the last sheet; None for all T."""
    final_sampler: Literal["ancestral", "annealed_langevin"] = "ancestral"
    """What draws the last sheet and the report: DDPM's way, or NCSN's."""
    langevin_steps: int = 100
    """Langevin steps a level."""
    langevin_rate: float = 0.2
    """Their size ε/σ², at every level."""
    spacing: Spacing = "fractional"
    """How fewer steps than T are spread."""
    guidance: float = 1.0
    """Classifier-free guidance of the pictures of a class-conditional network; 1 for none."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The same command resumes it."""

    run_dir: Path
    """Everything the run writes goes below this folder."""
    num_steps: int
    """Training steps in all."""
    batch_size: int = 128
    """Images a step, over all devices."""
    seed: int = 0
    """Of the initialisation, the order of the data, and all noise."""
    max_bad_steps: int = 20
    """This many steps in a row with a NaN or infinite loss or gradient, or a spike, end the run."""
    init_from: Path | None = None
    """Trained weights to start a new run from: a run directory, or a folder of diffusers."""
    init_weights: Literal["ema", "raw"] = "ema"
    """Which weights of that run: the moving average, or the parameters themselves."""
    resume_with_changes: bool = False
    """Resume although optimiser, dropout or length differ; config.json records the change."""
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


@dataclass(frozen=True)
class SamplerOptions:
    """Which sampler, and on which steps."""

    sampler: Literal[
        "ancestral",
        "ddim",
        "dpm_solver_pp",
        "dpm_solver_pp_sde",
        "dpm_solver_pp_3",
        "dpm_solver_pp_2s",
        "unipc",
        "deis",
        "heun",
        "predictor_corrector",
        "annealed_langevin",
    ] = "ancestral"
    """ancestral: the paper's Algorithm 2; ddim: Song, Meng, Ermon 2020; dpm_solver_pp: DPM-Solver++
    2M (Lu et al. 2022), its SDE form, its third order, and its singlestep form 2S; unipc: Zhao et
    al. 2023; deis: Zhang, Chen 2022, third order; heun: Karras et al. 2022, two evaluations a step;
    predictor_corrector: Song et al. 2021, ancestral with one Langevin step each;
    annealed_langevin: Song, Ermon 2019."""
    num_steps: int | None = None
    """Steps of the sampler; None for all T."""
    spacing: Literal["fractional", "uniform", "quadratic", "leading", "trailing", "karras"] = (
        "fractional"
    )
    """How fewer steps than T are spread over them."""
    eta: float = 0.0
    """DDIM's share of noise, 0 (none) to 1 (as much as ancestral)."""
    churn: float = 0.0
    """Heun's S_churn: how much noise is put back in before each step."""
    langevin_steps: int = 100
    """Steps a level of annealed Langevin dynamics."""
    langevin_rate: float = 0.2
    """Their size ε/σ², at every level."""
    variance: Literal["fixed_large", "fixed_small", "analytic"] | None = None
    """Variance of ancestral steps; None for the run's own. analytic: the best fixed one, measured
    on training data the first time it is asked for."""


def check_config(config: TrainConfig) -> None:
    """Raises ValueError for values no run could use, before anything is loaded.

    The functions that use the other values check them.
    """
    check_name(config.data.name)
    if config.num_steps < 1:
        raise ValueError(f"--num-steps must be at least 1, got {config.num_steps}.")
    if config.max_bad_steps < 1:
        raise ValueError(f"--max-bad-steps must be at least 1, got {config.max_bad_steps}.")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed must be in 0..2³²-1, got {config.seed}.")
    kept, saved = config.report.keep_every, config.report.checkpoint_every
    if kept < 0 or (kept and (not saved or kept % saved)):
        raise ValueError(
            f"--report.keep-every must be 0 or a multiple of --report.checkpoint-every {saved}, "
            f"got {kept}: only saved steps can be kept."
        )
    steps = config.devices.steps_per_dispatch
    if steps is not None and steps < 1:
        raise ValueError(f"--devices.steps-per-dispatch must be at least 1, got {steps}.")
    if not 0 <= config.devices.resident_gib < 2**20:
        raise ValueError(
            "--devices.resident-gib must be a number of GiB from 0, got "
            f"{config.devices.resident_gib}."
        )
    if not 0 <= config.devices.watchdog_seconds < 2**30:
        raise ValueError(
            "--devices.watchdog-seconds must be a number of seconds, 0 for no watchdog, got "
            f"{config.devices.watchdog_seconds}."
        )
    for name, value in vars(config.report).items():
        if isinstance(value, int) and value < 0:
            raise ValueError(
                f"--report.{name.replace('_', '-')} must not be negative, got {value}."
            )
    for name in ("sample_count", "sample_steps", "final_count", "heldout_draws", "checkpoint_keep"):
        if getattr(config.report, name) < 1:
            raise ValueError(f"--report.{name.replace('_', '-')} must be at least 1, got 0.")
