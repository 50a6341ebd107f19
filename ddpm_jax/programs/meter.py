"""How fast a run is: on the progress bar, and said once in words when it is known."""

from __future__ import annotations

import time
from typing import Any

from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import duration, quantity, say


class Meter:
    """Measures steps a second, leaving out what is not training."""

    def __init__(self, config: TrainConfig, progress: Any, flops: float | None):
        self.config, self.progress, self.flops = config, progress, flops
        self.began = time.perf_counter()
        self.steps, self.said = 0, False

    def pause(self) -> None:
        """Starts the clock anew after something that was not training."""
        self.began, self.steps = time.perf_counter(), 0

    def update(self, count: int, loss: float) -> None:
        """Counts steps that are done."""
        self.progress.update(count)
        self.steps += count
        seconds = time.perf_counter() - self.began
        if seconds <= 0:
            return
        config = self.config
        rate = self.steps / seconds
        self.progress.set_postfix_str(
            f"loss {loss:.4f}, {rate * config.batch_size:,.0f} img/s", refresh=False
        )
        if not self.said and (seconds > 2.0 and self.steps >= 3):
            self.said = True
            left = (config.num_steps - self.progress.n) / rate
            speed = f", {quantity(rate * self.flops, 'FLOP/s')}" if self.flops else ""
            say(
                f"{duration(1 / rate)} a step, {rate * config.batch_size:,.0f} images/s{speed}; "
                f"about {duration(left)} to go"
            )
            self.pause()
