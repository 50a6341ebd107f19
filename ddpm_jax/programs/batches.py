"""What each step is fed: indices into a data set on the device, or images streamed to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_jax.data import PrefetchedBatches
from ddpm_jax.programs.training_run import Run
from ddpm_jax.training.loop import next_boundary


class Feed:
    """Batches for the compiled step: indices into a data set on the device, or images streamed to
    it.

    Of several processes each feeds its own rows of every batch.
    """

    def __init__(self, run: Run, start: int, periods: list[int]):
        self.run, self.indices = run, run.indices()
        config = run.config
        self.length = run.max_chunk
        self.own = run.parallel.own_rows(config.batch_size)
        place = np.arange(config.batch_size, dtype=np.int32)[self.own]
        self.place = np.tile(place, (self.length, 1))
        self.dataset: Any = {}
        self.stream: PrefetchedBatches | None = None
        if run.resident:
            self.dataset = run.parallel.replicate(
                self._with_labels(run.train_data.images, run.train_data.labels)
            )
        else:
            self.stream = PrefetchedBatches(
                run.train_data,
                self.indices,
                start_step=start,
                share=self.own,
                chunk_length=lambda step: (
                    next_boundary(step, config.num_steps, run.max_chunk, periods) - step
                ),
            )

    def __enter__(self) -> Feed:
        if self.stream is not None:
            self.stream.__enter__()
        return self

    def __exit__(self, *exc_info) -> None:
        if self.stream is not None:
            self.stream.__exit__(*exc_info)

    def next(self, step: int, count: int, *, peek: bool = False) -> dict[str, Any]:
        """The batches of `count` steps from `step` on, filled up to the chunk's length and on the
        devices."""
        if self.stream is None:
            batch = {"example": self._filled(self.indices.chunk(step, count)[:, self.own])}
        elif peek:
            shape = (*self.place.shape, *self.run.model.image_shape)
            batch = self._with_labels(np.zeros(shape, np.uint8), np.zeros(shape[:2], np.int32))
        else:
            chunk = next(self.stream)
            if (chunk.step, len(chunk.images)) != (step, count):
                raise RuntimeError(
                    f"the data stream is at step {chunk.step} (+{len(chunk.images)}) where "
                    f"training is at {step} (+{count})."
                )
            batch = self._with_labels(self._filled(chunk.images), self._filled(chunk.labels))
        return self.run.parallel.place_batches({**batch, "index": self.place})

    def _with_labels(self, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """The labels only where the network wants them."""
        if self.run.model.num_classes is None:
            return {"image": images}
        return {"image": images, "label": labels}

    def _filled(self, array: np.ndarray) -> np.ndarray:
        missing = self.length - len(array)
        return array if not missing else np.concatenate([array, np.repeat(array[-1:], missing, 0)])
