"""The rival: diffusers' UNet2DModel with our parameters, and the same complete step in PyTorch.

Written the way PyTorch is fast: fused Adam, multi-tensor clipping and average, gradients set to
None, data on the device. Variants: eager (NCHW), channels_last, and torch.compile (channels_last).
The reduced precision is autocast's, as usual with float32 parameters.
"""

# Both libraries export these names lazily, which pyright does not follow.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import stopwatch
from benchmarks.provenance import PeakMemory

VARIANTS = ("eager", "channels_last", "compile")


def device_name() -> str:
    """ "cuda" where PyTorch sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Waits for the GPU; nothing on a CPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def build_unet(
    config: dict[str, Any], tensors: str | Path | None, variant: str, *, train: bool
) -> Any:
    """UNet2DModel of this config.json with the tensors of this .npz file, on the device."""
    import torch
    from diffusers import UNet2DModel

    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model: Any = UNet2DModel.from_config(config)
    if tensors is not None:
        with np.load(tensors) as stored:
            model.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored})
    model = model.to(device_name()).train(train)
    if variant != "eager":
        model = model.to(memory_format=torch.channels_last)
    if variant == "compile":
        model = torch.compile(model)
    return model


def autocast(dtype: str) -> Any:
    """The context in which the network computes in `dtype`."""
    import torch

    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device_name(), dtype=getattr(torch, dtype))


class Trainer:
    """The training step: flip → x_t → network → loss → gradients → clip → Adam → average."""

    def __init__(
        self,
        config: dict[str, Any],
        tensors: str | Path | None,
        variant: str,
        *,
        batch_size: int,
        dtype: str,
        images: int = 512,
        ema_decay: float = 0.9999,
    ):
        import torch

        self.dtype, self.decay, self.batch_size = dtype, ema_decay, batch_size
        self.device, self.last = device_name(), variant != "eager"
        self.model = build_unet(config, tensors, variant, train=True)
        self.params = [p for p in self.model.parameters()]
        self.average = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.Adam(self.params, lr=2e-4, fused=True)
        size = config["sample_size"]
        rng = np.random.default_rng(0)
        shape = (max(images, batch_size), config["in_channels"], size, size)
        pixels = rng.integers(0, 256, shape, np.uint8)
        self.dataset = torch.from_numpy(pixels).to(self.device)
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta, 0)
        self.signal = alpha_bar.sqrt().float().to(self.device)
        self.noise = (1 - alpha_bar).sqrt().float().to(self.device)
        self.order = torch.from_numpy(rng.integers(0, shape[0], batch_size)).to(self.device)

    def step(self) -> Any:
        """Takes one step; returns its loss, on the device."""
        import torch

        size, device = self.batch_size, self.device
        x_0 = self.dataset[self.order].float() / 127.5 - 1
        mirrored = torch.rand(size, 1, 1, 1, device=device) < 0.5
        x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        t = torch.randint(0, 1000, (size,), device=device)
        noise = torch.randn_like(x_0)
        signal, sigma = self.signal[t][:, None, None, None], self.noise[t][:, None, None, None]
        x_t = signal * x_0 + sigma * noise
        if self.last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with autocast(self.dtype):
            output = self.model(x_t, t, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.params, 1 - self.decay)
        return loss.detach()


def training_corner(
    *,
    config: dict[str, Any],
    tensors: str,
    variants: list[str],
    batch_size: int,
    dtype: str,
    steps: int,
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """ "train VARIANT" and "forward VARIANT" of each variant that works, and why others do not."""
    import torch

    contestants: dict[str, Callable[[], float]] = {}
    facts: dict[str, Any] = {"skipped": {}, "parity": {}}
    with np.load(Path(tensors).with_name("probe.npz")) as probe:
        x, t, expected = probe["x"], probe["t"], probe["output"]
    # As many rows as are timed: a compiled network would be compiled anew for others.
    rows = np.arange(batch_size) % len(x)
    x_torch = torch.from_numpy(x[rows].transpose(0, 3, 1, 2).copy()).to(device_name())
    t_torch = torch.from_numpy(t[rows].astype(np.int64)).to(device_name())

    def add(variant: str) -> None:
        network = build_unet(config, tensors, variant, train=False)
        images = x_torch
        if variant != "eager":
            images = images.contiguous(memory_format=torch.channels_last)

        def forward() -> None:
            with torch.inference_mode(), autocast(dtype):
                for _ in range(steps):
                    network(images, t_torch, return_dict=False)
            synchronize()

        with torch.inference_mode(), autocast(dtype):
            got = network(images, t_torch, return_dict=False)[0].float().cpu().numpy()
        difference = np.abs(got.transpose(0, 2, 3, 1)[: len(x)] - expected[:batch_size]).max()
        facts["parity"][variant] = float(difference / np.std(expected))
        trainer = Trainer(config, tensors, variant, batch_size=batch_size, dtype=dtype)

        def train() -> None:
            for _ in range(steps):
                trainer.step()
            synchronize()

        loss = float(trainer.step())
        if not np.isfinite(loss):
            raise ValueError(f"the loss of the step was {loss}")
        contestants[f"forward {variant}"] = stopwatch(forward)
        contestants[f"train {variant}"] = stopwatch(train)

    for variant in variants:
        try:
            add(variant)
        except Exception as error:
            # torch.compile needs a C++ compiler and may not know the Python version.
            facts["skipped"][variant] = f"{type(error).__name__}: {str(error)[:300]}"
    return contestants, facts


def step_corner(
    *, configs: dict[str, dict[str, Any]], batch_sizes: dict[str, int], dtype: str, steps: int
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """Training steps, channels_last, of several networks or batches, by name."""

    def contestant(trainer: Trainer) -> Callable[[], float]:
        def train() -> None:
            for _ in range(steps):
                trainer.step()
            synchronize()

        return stopwatch(train)

    return {
        name: contestant(
            Trainer(config, None, "channels_last", batch_size=batch_sizes[name], dtype=dtype)
        )
        for name, config in configs.items()
    }, {}


def memory_corner(
    *, config: dict[str, Any], batch_size: int, dtype: str
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """The most memory of two training steps: of the GPU's allocator, or of the process's RAM."""
    import torch
    from diffusers import UNet2DModel  # noqa: F401 - what importing takes is not the step's

    peak = PeakMemory()
    trainer = Trainer(config, None, "channels_last", batch_size=batch_size, dtype=dtype)
    for _ in range(2):
        trainer.step()
    synchronize()
    if device_name() == "cuda":
        return {}, {"bytes": torch.cuda.max_memory_allocated(), "what": "max_memory_allocated"}
    return {}, {"bytes": peak.growth(), "what": "growth of the peak RSS"}
