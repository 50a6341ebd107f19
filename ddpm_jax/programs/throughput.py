"""The speed of a run: on the progress bar, and reported once as soon as it is known."""

from __future__ import annotations

import time
from typing import Any

from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import duration, quantity, say


class Throughput:
    """Measures training steps per second, without what happens between them."""

    def __init__(self, config: TrainConfig, progress: Any, flops_per_step: float | None):
        self.config, self.progress, self.flops_per_step = config, progress, flops_per_step
        self.began = self.updated = time.perf_counter()
        self.steps, self.reported = 0, False

    def restart(self) -> None:
        """Restarts the clock, after something other than training."""
        now = time.perf_counter()
        # Not tqdm's unpause(), which excludes all time since the bar was last drawn.
        self.progress.exclude(now - self.updated)
        self.began, self.updated, self.steps = now, now, 0

    def update(self, count: int, loss: float) -> None:
        """Counts completed steps and shows the loss of the last one."""
        self.progress.update(count)
        self.steps += count
        self.updated = time.perf_counter()
        seconds = self.updated - self.began
        if seconds <= 0:
            return
        config = self.config
        rate = self.steps / seconds
        self.progress.set_postfix_str(
            f"loss {loss:.4f}, {rate * config.batch_size:,.0f} img/s", refresh=False
        )
        if not self.reported and (seconds > 2.0 and self.steps >= 3):
            self.reported = True
            left = (config.num_steps - self.progress.n) / rate
            flops = self.flops_per_step
            speed = f", {quantity(rate * flops, 'FLOP/s')}" if flops else ""
            say(
                f"{duration(1 / rate)} per step, {rate * config.batch_size:,.0f} images/s{speed}; "
                f"about {duration(left)} to go"
            )
            self.restart()
