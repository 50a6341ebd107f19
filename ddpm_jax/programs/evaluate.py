"""The evaluation program: samples a trained run and measures what came out, in one go.

    samples   shards of images, written as they come: a killed evaluation goes on after its last
    features  of Inception-v3 (then the Fréchet distance is the FID), or the pixels themselves
    figures   Fréchet distance, KID, precision and recall, density and coverage; with Inception also
              the Inception Score and sFID; bits/dim of held-out images beside them

Every figure is written with what it depends on: checkpoint, sampler, seed, count, data, features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddpm_jax.data.cache import cache_root
from ddpm_jax.devices import processes
from ddpm_jax.files import write_json
from ddpm_jax.programs.bound import bound_row, measure_bound
from ddpm_jax.programs.config import DistributedConfig, SamplerOptions
from ddpm_jax.programs.console import say
from ddpm_jax.programs.evaluation_table import PUBLISHED_COUNT, markdown_row, tell
from ddpm_jax.programs.metrics import (
    Features,
    inception_features,
    look,
    look_at_reference,
    measure,
    pixel_features,
)
from ddpm_jax.programs.shards import CHANGING, read_shards, remember_plan, sample_shards
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun


@dataclass(frozen=True)
class EvaluateConfig(SamplerOptions, RunOptions):
    """Samples a trained run and measures it."""

    count: int | None = None
    """Images to sample; None for 50,000, or for small data as many as were held out."""
    batch_size: int = 100
    """Images at a time; changes speed and memory, not the images."""
    guidance: float = 1.0
    """Classifier-free guidance of a class-conditional run."""
    features: Literal["auto", "inception", "pixels"] = "auto"
    """What is compared; auto: Inception-v3 from 32×32 pixels on, the pixels themselves below."""
    inception: Path | None = None
    """The published Inception weights (.pth or .safetensors); None for the copy in the cache."""
    download: bool = False
    """Whether the Inception weights may be fetched, 96 MB, their hash verified."""
    preprocess: Literal["tf1", "pytorch"] = "tf1"
    """How images reach 299×299: as in the FID's own TensorFlow graph, or as in its PyTorch port."""
    bootstrap: int = 100
    """Resamplings for the interval of the Fréchet distance, where features are few; 0 for none."""
    bits_count: int = 100
    """Held-out images for the bound in bits/dim; 0 to leave it out."""
    cache_dir: Path | None = None
    """Where weights and the training set's statistics are kept; None for the user's cache."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def evaluate(config: EvaluateConfig) -> None:
    """Samples and measures, and writes FEATURES.json and FEATURES.md, a table of one row.

    Raises ValueError for flags nothing could be measured by, ConnectionError or FileNotFoundError
    where Inception's weights are not to be had, and others as `TrainedRun`.
    """
    if config.batch_size < 1 or (config.count is not None and config.count < 10):
        raise ValueError(
            f"--batch-size must be at least 1 and --count at least 10, got {config.batch_size} and "
            f"{config.count}."
        )
    if config.bits_count == 1 or config.bits_count < 0 or config.bootstrap < 0:
        raise ValueError(
            "--bits-count must be 0 or at least 2, and --bootstrap at least 0, got "
            f"{config.bits_count} and {config.bootstrap}."
        )
    processes.connect(**dataclasses.asdict(config.distributed))
    run = processes.everywhere(lambda: TrainedRun(config))
    features = processes.everywhere(lambda: _features(run, config))
    count = _count(run, config)
    plan = _plan(run, config, count)
    out = run.folder(f"evaluation/{_name(config, plan)}")
    processes.on_leader(lambda: remember_plan(out, plan))
    generator = run.generator(run.sampler(config), guidance=config.guidance)
    sample_shards(run, generator, out, count=count, batch_size=config.batch_size)
    sampled = look(features, lambda: read_shards(out, count), count, "features of the samples")
    truth = look_at_reference(run.train_data, features, config.cache_dir)
    options = {"bootstrap": config.bootstrap, "seed": config.seed}
    heldout = run.heldout_data.images[:count]
    real = look(features, lambda: iter([heldout]), len(heldout), "features of held-out images")
    bits = _bits(run, config)
    if not processes.is_leader():
        return
    results = {
        **plan,
        "features": features.name,
        "features_fingerprint": features.fingerprint,
        "reference": {
            "data": run.train_data.name,
            "fingerprint": run.train_data.fingerprint,
            "images": len(run.train_data.images),
        },
        "samples": measure(sampled, truth, **options),
        "held_out": {"images": len(heldout), **measure(real, truth, **options)},
        "bits_per_dim": bits,
        "fewer_than_published": count < PUBLISHED_COUNT,
    }
    # The folder is the samples'; what they are measured by is in the files' names.
    kind = features.name if features.name == "pixels" else f"{features.name}-{config.preprocess}"
    write_json(out / f"{kind}.json", results)
    (out / f"{kind}.md").write_text(markdown_row(results, run.model.schedule.num_timesteps))
    tell(results)
    say(f"  {out / kind}.json")
    say(f"  {out / kind}.md")


def _features(run: TrainedRun, config: EvaluateConfig) -> Features:
    name = config.features
    if name == "auto":
        name = "inception" if min(run.model.image_shape[:2]) >= 32 else "pixels"
    if name == "pixels":
        return pixel_features(run.model.image_shape)
    cached = cache_root(config.cache_dir) / "inception"
    if config.inception is None and not config.download and not any(cached.glob("*.pth")):
        raise ValueError(
            f"the weights of Inception-v3 are not in {cached}. Fetch them with --download (96 MB), "
            "name a copy with --inception FILE, or compare pixels: --features pixels."
        )
    return inception_features(
        config.inception,
        cache_dir=config.cache_dir,
        preprocess=config.preprocess,
        devices=run.devices,
    )


def _count(run: TrainedRun, config: EvaluateConfig) -> int:
    if config.count is not None:
        return config.count
    small = len(run.train_data.images) < 10_000
    return len(run.heldout_data.images) if small else PUBLISHED_COUNT


def _plan(run: TrainedRun, config: EvaluateConfig, count: int) -> dict[str, Any]:
    """All that the sampled images depend on."""
    options = dataclasses.asdict(
        SamplerOptions(
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(SamplerOptions)}
        )
    )
    return {
        **run.provenance(),
        "sampler": options,
        "guidance": config.guidance,
        "precision": run.config.network.dtype,
        "count": count,
    }


def _name(config: EvaluateConfig, plan: dict[str, Any]) -> str:
    # Device and version change rounding only; a folder is shared by what changes the images.
    kept = {k: v for k, v in plan.items() if k not in CHANGING}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
    steps = config.num_steps or "all"
    return f"{config.sampler}-{steps}-steps-{plan['count']}-images-{digest}"


def _bits(run: TrainedRun, config: EvaluateConfig) -> dict[str, Any] | None:
    """The bound of held-out images, by the run's own variance."""
    if not config.bits_count:
        return None
    own = run.config.diffusion.variance
    measured = measure_bound(
        run,
        {own: own},
        run.heldout_data,
        count=config.bits_count,
        batch_size=min(config.bits_count, 100),
        name="bits/dim",
    )
    return {"images": measured.prior.size, "variance": own, **bound_row(measured, own)}
