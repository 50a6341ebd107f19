"""The configuration of a run as frozen dataclasses.

Every field is a command-line option and an entry of config.json. Its docstring is the `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ddpm_jax.data.registry import check_name
from ddpm_jax.data.streamed import Stream
from ddpm_jax.forward import Spacing
from ddpm_jax.programs.config_values import check_least
from ddpm_jax.programs.diffusion import DiffusionConfig as DiffusionConfig
from ddpm_jax.programs.named import SamplerName
from ddpm_jax.programs.step_profiler import parse_profile_steps
from ddpm_jax.programs.trackers import check_tracker


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    name: str = "digits"
    """digits (scikit-learn's 1,797 8×8 images), cifar10, cifar100, mnist, fashion_mnist, svhn;
    folder or arrays for your own images at `path`; tfds:NAME; hf:NAME_OR_FOLDER; or
    package.module:function, a function of your own that takes the split."""
    path: Path | None = None
    """File or folder, local or in a bucket (gs://…, s3://…; fetched once). None: look in the cache,
    then for a prepared TFDS data set."""
    cache_dir: Path | None = None
    """Where to keep decoded images; None for the user's cache folder."""
    download: bool = False
    """Download missing data from its official address and verify the checksum."""
    resolution: int | str | None = None
    """Resize and centre-crop images to this size: 64, or HEIGHTxWIDTH such as 48x64."""
    channels: Literal["auto", 1, 3] = "auto"
    """1 for grey, 3 for RGB; auto: grey if all images are stored in grey."""
    spatial_rank: Literal[1, 2, 3] = 2
    """Kind of the arrays: 1 for signals [N, L, C], 2 for images [N, H, W, C], 3 for volumes
    [N, D, H, W, C]."""
    labels: str = "auto"
    """Source of the labels of your own images: a .csv or .json file, or none. auto: class folders
    or dataset.json, if the network is class-conditional."""
    holdout: float = 0.1
    """Share of the images to hold out from training if the data have no held-out split; 0 for
    none."""
    stream: Stream = "auto"
    """When to decode images of folders, tfds: and hf:. always: when a step needs them; never: all
    once, before training; auto: all once if the disk of the cache has room for them."""
    augment: Literal["none", "flip", "pad_crop", "flip_pad_crop", "edm"] = "none"
    """flip: mirror each training image left to right (a signal end to end) with probability ½;
    pad_crop: shift it by up to 4 pixels, padded by reflection; edm: mirror, scale, rotate, stretch
    and shift it, and tell the network how, so that samples are not augmented. An array
    concatenated to an image is moved with it."""


@dataclass(frozen=True)
class NetworkConfig:
    """The U-Net of Ho et al. 2020, App. B; the defaults are its CIFAR-10 size."""

    channels: int = 128
    """Channels at the highest resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels at each resolution, as multiples of `channels`; one entry per resolution."""
    num_res_blocks: int = 2
    """Residual blocks per resolution in the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights at which self-attention follows each residual block, counted in patches if patch_size
    > 1."""
    dropout: float = 0.1
    """Dropout rate in each residual block during training."""
    num_groups: int = 32
    """Groups of every GroupNorm; must divide every channel count and be smaller than it."""
    downsample_padding: Literal["same", "symmetric"] = "same"
    """Padding of stride-2 convolutions: same pads bottom and right, as DDPM does; symmetric pads
    all sides."""
    num_heads: int = 1
    """Attention heads at every resolution."""
    head_channels: int | None = None
    """Channels per attention head; replaces num_heads."""
    middle_attention: Literal["normalised", "plain", "none"] = "normalised"
    """Attention between encoder and decoder; plain is without GroupNorm."""
    scale_shift: bool = False
    """The embedding scales and shifts each block's second normalisation instead of being added to
    its input."""
    embedding_order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    """Order of the halves of the time embedding; guided-diffusion and diffusers use cos_sin."""
    embedding_shift: int = 1
    """The embedding's frequencies are max_period^(-i / (half - shift)); guided-diffusion and
    diffusers use 0."""
    norm_epsilon: float = 1e-6
    """ε of every GroupNorm; PyTorch's default is 1e-5."""
    patch_size: int = 1
    """Side, in pixels, of the square patches that the network treats as single positions; 1 for
    none."""
    class_conditional: bool = False
    """Condition the network on labels, some of which are dropped in training (for guidance). If the
    data have vectors `cond`, tokens `context` or arrays `concat`, they condition the network in any
    case."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's arithmetic; parameters, statistics, softmax and loss stay
    float32."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam as in the paper, or AdamW, and moving averages (EMA) of the parameters."""

    learning_rate: float = 2e-4
    """Peak learning rate."""
    warmup_steps: int = 5000
    """Steps of linear warm-up from 0."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls to 0 at the last step; constant for never."""
    decay_steps: int | None = None
    """Length of that decay, the rate being constant before; None for all steps after the
    warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW), times the learning rate, of kernels and embedding tables;
    biases and scales do not decay."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; larger ones are scaled down to it."""
    spike_factor: float | None = None
    """Skip steps whose loss exceeds this multiple of its running mean, and count them as bad
    steps."""
    ema_decay: float = 0.9999
    """Decay of the moving average, whose parameters are used for sampling."""
    ema_warmup: bool = False
    """Let the decay grow as (1+step)/(10+step) at first, so that short runs forget the
    initialisation."""
    extra_ema_decays: tuple[float, ...] = ()
    """Decays of further averages, for sampling with --ema-decay."""
    ema_sigma_rel: tuple[float, ...] = ()
    """Relative widths of further averages with power-function profiles (EDM2), such as 0.05 0.1;
    sampling with --ema-sigma-rel makes any other width from the kept checkpoints."""


@dataclass(frozen=True)
class DevicesConfig:
    """Which devices to use, and how."""

    backend: Literal["auto", "jit", "pmap", "shard_map"] = "auto"
    """auto: jit on one device, shard_map on several."""
    count: int | None = None
    """Devices per process; None for all. With None, a CPU trains as one device and samples with one
    device per core, up to eight."""
    parameter_shards: int = 1
    """Split parameters, average and optimiser state over groups of this many devices (FSDP)."""
    microbatches: int = 1
    """Process each device's images in this many parts: less memory, the same step."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory on accelerators, a third
    more arithmetic. It saves no memory on CPUs; use microbatches there."""
    profile_steps: str | None = None
    """FIRST:LAST, such as 100:110: write a trace of these training steps (jax.profiler) into the
    run directory."""
    steps_per_dispatch: int | None = None
    """Training steps per compiled call; None for 1 on CPUs and 10 elsewhere."""
    resident_gib: float = 2.0
    """Keep data sets up to this size in device memory; larger ones are streamed from the host."""
    watchdog_seconds: float = 1800.0
    """End training with exit code 75 and the stacks of all threads after this long without
    progress. Compiling, sampling and measuring are not watched. 0 for never."""


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes, on one host or many: start the same command in each (docs/scaling.md)."""

    auto: bool = False
    """Let JAX find the other processes: under SLURM, Open MPI, Kubernetes, and on TPU pods."""
    coordinator: str | None = None
    """Without auto: HOST:PORT at which the others reach process 0."""
    num_processes: int | None = None
    """Without auto: the number of processes."""
    process_id: int | None = None
    """Without auto: the number of this process, from 0."""
    bind: str | None = None
    """HOST:PORT on which process 0 listens; None for the coordinator's, or with auto every
    interface."""
    heartbeat_seconds: int = 100
    """A process silent for this long is considered dead, and the whole job stops."""
    start_seconds: int = 300
    """How long the processes wait for each other at the start."""


@dataclass(frozen=True)
class ReportConfig:
    """What a run writes, and how often; 0 for never."""

    log_every: int = 50
    """Steps between lines of log.jsonl: the loss and gradient norm of that step."""
    heldout_every: int = 1000
    """Steps between measurements of the held-out loss."""
    heldout_draws: int = 2048
    """Number of (image, step) pairs that the held-out loss averages over; always the same ones."""
    sample_every: int = 1000
    """Steps between sheets of samples from the averaged parameters."""
    sample_count: int = 64
    """Images per sheet."""
    sample_steps: int = 50
    """DDIM steps for the sheets made during training."""
    tracker: Literal["none", "wandb", "mlflow", "trackio"] = "none"
    """Also send the records of log.jsonl to this experiment tracker, an extra of the package."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    checkpoint_keep: int = 3
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep the checkpoints at multiples of this number of steps permanently; 0 for none."""
    final_count: int = 100
    """Images on the last sheet."""
    final_steps: int | None = None
    """Steps of the sampler of the last sheet; None for all T."""
    final_sampler: SamplerName = "ancestral"
    """Sampler of the last sheet and the report: DDPM's ancestral, NCSN's annealed_langevin, …"""
    langevin_steps: int = 100
    """Langevin steps per noise level."""
    langevin_rate: float = 0.2
    """Step size ε/σ² of the Langevin steps, at every noise level."""
    spacing: Spacing = "fractional"
    """How steps are chosen from T when sampling with fewer."""
    guidance: float = 1.0
    """Scale of classifier-free guidance for the sheets of a class-conditional network; 1 for
    none."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The same command resumes it."""

    run_dir: Path
    """Folder of the run's results, local or in a bucket (gs://…, s3://…)."""
    num_steps: int
    """Total number of training steps."""
    batch_size: int = 128
    """Images per step, over all devices."""
    seed: int = 0
    """Seed of the initialisation, the order of the data, and all noise."""
    max_bad_steps: int = 20
    """End the run after this many consecutive steps with a NaN or infinite loss or gradient, or a
    spike."""
    init_from: Path | None = None
    """Trained weights to start a new run from: a run directory, a folder of weights, a diffusers
    folder, a pretrained model's name, or hub:OWNER/NAME@REVISION."""
    init_weights: Literal["ema", "raw"] = "ema"
    """Which weights to take from init_from: the moving average (ema) or the parameters themselves
    (raw)."""
    resume_with_changes: bool = False
    """Resume even if optimiser, dropout or length differ; config.json records the change."""
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


@dataclass(frozen=True)
class SamplerOptions:
    """The sampler and its steps."""

    sampler: SamplerName = "ancestral"
    """ancestral: the paper's Algorithm 2; ddim: Song, Meng, Ermon 2020; dpm_solver_pp: DPM-Solver++
    2M (Lu et al. 2022), with _sde its SDE form, _3 its third order and _2s its singlestep form 2S;
    unipc: Zhao et al. 2023, deis: Zhang, Chen 2022, both of third order; heun: Karras et al. 2022,
    two evaluations per step; predictor_corrector: Song et al. 2021, ancestral plus one Langevin
    step per step; annealed_langevin: Song, Ermon 2019. In the time of a continuous process:
    probability_flow_euler and _heun, and euler_maruyama for its reverse SDE."""
    num_steps: int | None = None
    """Steps of the sampler; None for all T."""
    spacing: Literal[
        "fractional", "uniform", "quadratic", "leading", "trailing", "karras", "log_snr"
    ] = "fractional"
    """How steps are chosen from T when sampling with fewer. karras: EDM's σ; log_snr: even in the
    log SNR. Both start at σ = 80 at most."""
    eta: float = 0.0
    """DDIM's η: noise per step from 0 (none) to 1 (as much as ancestral)."""
    churn: float = 0.0
    """Heun's S_churn: the amount of noise added before each step."""
    langevin_steps: int = 100
    """Steps per noise level of annealed Langevin dynamics."""
    langevin_rate: float = 0.2
    """Step size ε/σ² of the Langevin steps, at every noise level."""
    variance: Literal["fixed_large", "fixed_small", "analytic"] | None = None
    """Variance of ancestral steps; None for the run's own. analytic: the optimal fixed variance,
    measured on training data at first use."""


def sampler_options(options: SamplerOptions) -> dict[str, Any]:
    """The fields of `SamplerOptions`, of options that may have more."""
    return {f.name: getattr(options, f.name) for f in fields(SamplerOptions)}


def check_config(config: TrainConfig) -> None:
    """Raises ValueError for values that no run could use, before anything is loaded.

    Other values are checked by the functions that use them.
    """
    check_name(config.data.name)
    check_tracker(config.report.tracker)
    report, devices = config.report, config.devices
    check_least(config, 1, "num_steps", "max_bad_steps")
    check_least(devices, 1, "steps_per_dispatch", group="devices")
    counts = ("sample_count", "sample_steps", "final_count", "heldout_draws", "checkpoint_keep")
    check_least(report, 1, *counts, group="report")
    whole = (name for name, value in vars(report).items() if isinstance(value, int))
    check_least(report, 0, *whole, group="report")
    check_seed(config.seed)
    kept, saved = report.keep_every, report.checkpoint_every
    if kept and (not saved or kept % saved):
        raise ValueError(
            f"--report.keep-every must be 0 or a multiple of --report.checkpoint-every {saved}, "
            f"got {kept}: only saved steps can be kept."
        )
    parse_profile_steps(devices.profile_steps, config.num_steps)
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


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed of more than 32 bits."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be in 0..2³²-1, got {seed}.")
