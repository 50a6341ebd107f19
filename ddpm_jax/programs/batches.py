"""The batches of a training run: indices into a data set on the device, or images from the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_jax.data import PrefetchedBatches
from ddpm_jax.devices.mesh import own_rows
from ddpm_jax.programs.build import as_rows
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training.loop import next_boundary


class TrainingBatches:
    """Makes the batches of the compiled step, on its devices; a context manager.

    Where the data set fits on the devices it is copied there, and batches are indices into it;
    otherwise a thread reads the images ahead. Each of several processes provides its own rows.

    Args:
        run: the training run.
        start: the first step.
        periods: those of the hooks, at whose steps chunks end.
    """

    def __init__(self, run: TrainingRun, start: int, periods: list[int]):
        config = run.config
        self._run, self._indices = run, run.indices()
        self._length = run.max_chunk
        self._own_rows = own_rows(config.batch_size)
        positions = np.arange(config.batch_size, dtype=np.int32)[self._own_rows]
        self._positions = np.tile(positions, (self._length, 1))
        self.dataset: Any = {}
        self._stream: PrefetchedBatches | None = None
        if run.resident:
            data = run.train_data
            arrays = {"image": data.images, **run.model.conditions(data)}
            rows = {name: as_rows(arrays[name]) for name in arrays.keys() & {"image", "concat"}}
            self.dataset = run.parallel.replicate({**arrays, **rows})
        else:
            self._stream = PrefetchedBatches(
                run.train_data,
                self._indices,
                start_step=start,
                share=self._own_rows,
                chunk_length=lambda step: (
                    next_boundary(step, config.num_steps, run.max_chunk, periods) - step
                ),
            )

    def __enter__(self) -> TrainingBatches:
        if self._stream is not None:
            self._stream.__enter__()
        return self

    def __exit__(self, *exc_info) -> None:
        if self._stream is not None:
            self._stream.__exit__(*exc_info)

    def example(self) -> dict[str, Any]:
        """Batches of the right shapes to compile the step for; reads no images."""
        shape = self._positions.shape
        if self._stream is None:
            return self._placed({"example": np.zeros(shape, np.int32)})
        images = np.zeros((*shape, *self._run.model.image_shape), np.uint8)
        rows = np.zeros(shape, np.int32)
        conditions = self._run.model.conditions(self._run.train_data, rows)
        return self._placed({"image": images, **conditions})

    def next(self, step: int, count: int) -> dict[str, Any]:
        """The batches of `count` steps from `step` on, padded to the chunk's length."""
        if self._stream is None:
            examples = self._indices.chunk(step, count)[:, self._own_rows]
            return self._placed({"example": self._padded(examples)})
        chunk = next(self._stream)
        if (chunk.step, len(chunk.images)) != (step, count):
            raise RuntimeError(
                f"the data stream is at step {chunk.step} (+{len(chunk.images)}) where "
                f"training is at {step} (+{count})."
            )
        batches = {"image": chunk.images, **self._run.model.conditions(chunk)}
        return self._placed({name: self._padded(x) for name, x in batches.items()})

    def _placed(self, batches: dict[str, Any]) -> dict[str, Any]:
        return self._run.parallel.place_batches({**batches, "index": self._positions})

    def _padded(self, array: np.ndarray) -> np.ndarray:
        missing = self._length - len(array)
        return array if not missing else np.concatenate([array, np.repeat(array[-1:], missing, 0)])
