"""Sampling against diffusers' pipelines, ancestral and DDIM: whole calls, images on the host.

Two networks: the wide one, whose arithmetic dominates, and that of the digits, whose steps are so
cheap that what surrounds them shows. Steps of one sampler all cost the same, so a short run tells a
long one's time; the page says how many were run.
"""

# Both libraries export these names lazily, which pyright does not follow.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import alternate, compare, say, stopwatch
from benchmarks.interleave import corner
from benchmarks.plots import save_bars
from benchmarks.provenance import missing_torch
from benchmarks.render import Benchmark, contest, contestant_name, left_out, rate, verdict
from benchmarks.sizes import Plan, from_json, to_json

OURS = "ddpm_jax"
NETWORKS = ("wide", "small")
SAMPLERS = ("ancestral", "ddim")
SMALL_BATCH = 64


def cases(plan: Plan) -> dict[str, dict[str, Any]]:
    """What is run: {case: {network, sampler, steps, images, size}}."""
    small_ddim = min(50, plan.small_steps)
    steps = {
        ("wide", "ancestral"): plan.sample_steps,
        ("wide", "ddim"): plan.ddim_steps,
        ("small", "ancestral"): plan.small_steps,
        ("small", "ddim"): small_ddim,
    }
    return {
        f"{network} {sampler}": {
            "network": network,
            "sampler": sampler,
            "steps": steps[network, sampler],
            "images": plan.sample_batch if network == "wide" else SMALL_BATCH,
            "size": plan.image_size if network == "wide" else 8,
        }
        for network in NETWORKS
        for sampler in SAMPLERS
    }


def small_plan(plan: Plan) -> Plan:
    """The plan with the network of `experiments/train_digits.py`, on three channels."""
    return dataclasses.replace(
        plan,
        channels=16 if plan.quick else 32,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention=(4,),
        num_groups=8,
        image_size=8,
    )


def jax_corner(
    *, plan: dict[str, Any], folder: str
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """A call of `Generator` for each case, and the parameters as files for the rivals."""
    import jax

    from benchmarks.workload import moved_params, train_config
    from ddpm_jax.devices.cpu import keep_freed_memory, one_device_per_core
    from ddpm_jax.interop import unet_params_to_diffusers, unet_to_diffusers_config
    from ddpm_jax.programs.build import build_model, build_sampler
    from ddpm_jax.programs.config import SamplerOptions
    from ddpm_jax.programs.generator import Generator

    whole = from_json(plan)
    # As every program that samples does.
    keep_freed_memory(whole.sample_batch, (whole.image_size, whole.image_size), whole.channels)
    devices = jax.local_devices() if one_device_per_core() else None
    contestants: dict[str, Callable[[], float]] = {}
    models, configs = {}, {}
    for network, sizes in (("wide", whole), ("small", small_plan(whole))):
        shape = (sizes.image_size, sizes.image_size, 3)
        model = build_model(train_config(sizes), shape, None)
        params = moved_params(model.network, shape)
        models[network] = (model, params)
        configs[network] = unet_to_diffusers_config(model.network, shape)
        tensors = unet_params_to_diffusers(params, model.network)
        np.savez(Path(folder) / f"{network}.npz", **tensors)  # type: ignore[arg-type]
    for name, case in cases(whole).items():
        model, params = models[case["network"]]
        options = SamplerOptions(case["sampler"], num_steps=case["steps"])
        sampler = build_sampler(model.schedule, options)
        # One chunk: nobody watches here, as nobody does in the rival with its bar off.
        generate = Generator(
            sampler, model.guided(1.0), model.image_shape, devices=devices, target_chunks=1
        )

        def call(generate: Any = generate, params: Any = params, case: Any = case) -> None:
            made = generate(params, seed=0, count=case["images"], batch_size=case["images"])
            if made.images.shape[0] != case["images"]:
                raise ValueError(f"{made.images.shape} images were made of {case['images']}")

        contestants[name] = stopwatch(call)
    return contestants, {"configs": configs}


def torch_corner(
    *, plan: dict[str, Any], folder: str, configs: dict[str, Any], variants: list[str]
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """ "CASE VARIANT" by DDPMPipeline and DDIMPipeline; images as NumPy arrays."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

    from benchmarks.pytorch import autocast, build_unet

    whole = from_json(plan)
    contestants: dict[str, Callable[[], float]] = {}
    skipped: dict[str, str] = {}
    networks: dict[tuple[str, str], Any] = {}
    common = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    for variant in variants:
        for name, case in cases(whole).items():
            tensors = Path(folder) / f"{case['network']}.npz"
            try:
                which = (variant, case["network"])
                if which not in networks:  # compiled once for both samplers
                    config = configs[case["network"]]
                    networks[which] = build_unet(config, tensors, variant, train=False)
                unet = networks[which]
                if case["sampler"] == "ancestral":
                    scheduler = DDPMScheduler(**common, variance_type="fixed_large")
                    pipeline: Any = DDPMPipeline(unet, scheduler)
                else:
                    pipeline = DDIMPipeline(unet, DDIMScheduler(**common))
                pipeline.set_progress_bar_config(disable=True)

                def call(pipeline: Any = pipeline, case: Any = case) -> None:
                    with autocast(whole.dtype):
                        images = pipeline(
                            batch_size=case["images"],
                            num_inference_steps=case["steps"],
                            generator=torch.Generator().manual_seed(0),
                            output_type="np",
                        ).images
                    if images.shape[0] != case["images"]:
                        raise ValueError(f"{images.shape} images were made of {case['images']}")

                with autocast(whole.dtype):
                    pipeline(batch_size=case["images"], num_inference_steps=2, output_type="np")
            except Exception as error:
                skipped[f"{variant}, {name}"] = f"{type(error).__name__}: {str(error)[:300]}"
                continue
            contestants[f"{name} {variant}"] = stopwatch(call)
    return contestants, {"skipped": skipped}


def measure(plan: Plan) -> dict[str, Any]:
    """Times of whole calls of all contestants, by case."""
    result: dict[str, Any] = {"cases": cases(plan), "skipped": {}, "times": {}}
    # Whole runs of 1000 steps on accelerators, few of them; parts of runs on a CPU.
    rounds = plan.rounds if plan.platform == "cpu" else max(2, plan.rounds // 3)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ours = stack.enter_context(
            corner("benchmarks.sampling:jax_corner", plan=to_json(plan), folder=folder)
        )
        contestants = {f"{name} {OURS}": run for name, run in ours.contestants.items()}
        reason = missing_torch()
        if reason is None:
            say("  building diffusers' pipelines")
            theirs = stack.enter_context(
                corner(
                    "benchmarks.sampling:torch_corner",
                    plan=to_json(plan),
                    folder=folder,
                    configs=ours.facts["configs"],
                    variants=["eager", "channels_last"] + ["compile"] * plan.torch_compile,
                )
            )
            contestants |= theirs.contestants
            result["skipped"] |= theirs.facts["skipped"]
        else:
            result["skipped"]["PyTorch"] = reason
        for case, about in result["cases"].items():
            chosen = {
                name.removeprefix(f"{case} "): run
                for name, run in contestants.items()
                if name.startswith(f"{case} ")
            }
            times = alternate(chosen, rounds, what=case)
            work = about["images"] * about["steps"]
            result["times"][case] = compare(times, OURS, [n for n in chosen if n != OURS], work)
    return result


def line(result: dict[str, Any]) -> str:
    """Image steps per second of each case, against the best pipeline."""
    return "; ".join(
        f"{case} {verdict(one, OURS, 'image steps/s')}" for case, one in result["times"].items()
    )


def page(result: dict[str, Any]) -> str:
    """A table per case, with the speed that follows for 1000 and 50 steps."""
    text = ""
    for case, one in result["times"].items():
        about = result["cases"][case]
        full = 1000 if about["sampler"] == "ancestral" else 50
        per_step = one["contestants"][OURS]["rate"]
        text += (
            f"\n**{case}**: {about['images']} images of {about['size']}×{about['size']}, "
            f"{about['steps']} steps.\n\n{contest(one, 'image steps/s')}\n"
            f"At this rate, {full} steps: {rate(per_step / full)} images/s.\n"
        )
    return text + left_out(result["skipped"])


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Speed of all contestants by case, over the best pipeline's (or ours alone)."""
    groups: dict[str, dict[str, Any]] = {}
    for case, one in result["times"].items():
        base = one["contestants"][one.get("best_rival", OURS)]["rate"]
        groups[case] = {}
        for name, times in one["contestants"].items():
            scale = times["rate"] * times["median_s"] / base
            height = times["rate"] / base
            low, high = scale / times["max_s"], scale / times["min_s"]
            groups[case][contestant_name(name)] = (height, low, high, f"{height:.2f}")
    save_bars(
        folder / "sampling.png",
        groups,
        "speed relative to the best PyTorch pipeline",
        title=_finding(result["times"]),
    )
    return ["sampling.png"]


def _finding(times: dict[str, Any]) -> str:
    """Our speed relative to the best pipeline, over all cases."""
    ratios = [one["ours_over_best_rival"]["ratio"] for one in times.values() if "best_rival" in one]
    if not ratios:
        return "Sampling speed"
    return (
        f"We sample at {min(ratios):.2f} to {max(ratios):.2f} times the speed of the best PyTorch "
        "pipeline"
    )


BENCHMARK = Benchmark("Sampling against diffusers' pipelines", measure, line, page, draw)
