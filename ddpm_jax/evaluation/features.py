"""Images in, features out: a network run over all devices, batch after batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.devices import processes
from ddpm_jax.evaluation.checks import checked_images
from ddpm_jax.evaluation.inception_v3 import InceptionV3
from ddpm_jax.evaluation.preprocessing import TF1, Preprocessing
from ddpm_jax.types import Array, Device, PyTree

Pixels = npt.NDArray[np.uint8]
Features = dict[str, npt.NDArray[np.float32]]
"""Named features of one batch, each [n, D]."""

ImageSource = npt.NDArray[np.uint8] | Iterable[Pixels]
"""uint8 images [N, H, W, C], or an iterable of such batches of any sizes."""


def variables_fingerprint(variables: PyTree) -> str:
    """Returns the sha256 (hex) of the names, shapes, types and numbers of a network's variables."""
    digest = hashlib.sha256()
    flat = traverse_util.flatten_dict(variables, sep="/")
    for name in sorted(flat):
        leaf = np.asarray(flat[name])
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


class FeatureExtractor:
    """A network over all devices: `extractor(images)` is the features of a few images, by name, and
    `extractor.stream(source)` yields those of many, batch after batch.

        apply          apply(variables, x) -> mapping of names to [B, D]; x as `preprocess` makes it
        variables      the network's, copied to every device
        preprocess     pixels to x (`preprocessing.TF1` or PYTORCH); its name is in the fingerprint
        network        what the network is called in the fingerprint
        batch_size     images a step, in all; rounded up to a multiple of the devices
        devices        where it runs; by default every local device. Of devices of several
                       processes all must call, with the same images, and all get all features

    The same program runs at every step: a batch with fewer images is filled up with zeros, whose
    features are dropped. Images of another size or number of channels compile it once more.
    """

    def __init__(
        self,
        apply: Callable[[PyTree, Array], Mapping[str, Array]],
        variables: PyTree,
        *,
        network: str,
        preprocess: Preprocessing = TF1,
        batch_size: int = 64,
        devices: Sequence[Device] | None = None,
    ) -> None:
        devices = jax.local_devices() if devices is None else list(devices)
        if batch_size < 1 or not devices:
            raise ValueError(
                "FeatureExtractor needs batch_size ≥ 1 and a device or more, got "
                f"{batch_size=} and {len(devices)} devices."
            )
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        mesh = processes.make_mesh(devices)
        self._split = NamedSharding(mesh, PartitionSpec(processes.AXES))
        self._variables = processes.put(variables, NamedSharding(mesh, PartitionSpec()))
        self.about = {
            "network": network,
            "variables": variables_fingerprint(variables),
            "preprocessing": preprocess.name,
            "size": preprocess.size,
            "precision": "float32 highest",
        }

        def step(variables: PyTree, pixels: Array) -> dict[str, Array]:
            with jax.default_matmul_precision("highest"):
                return dict(apply(variables, preprocess(pixels)))

        # shard_map and not jit alone: no image's features need another's, and this way no compiler
        # can decide to gather them.
        self._step = jax.jit(
            jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(PartitionSpec(), self._split.spec),
                out_specs=self._split.spec,
            )
        )

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of `about`: network, its numbers, preprocessing and precision."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    def __call__(self, images: npt.ArrayLike) -> Features:
        """Computes the features of uint8 images [N, H, W, C], all of them in memory: [N, D] each.

        Raises TypeError for anything but uint8, ValueError for other shapes or channels.
        """
        pieces = list(self.stream(np.asarray(images)))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def stream(self, source: ImageSource) -> Iterator[Features]:
        """Yields features in the images' order, for at most `batch_size` of them at a time.

        A step is sent off before the one ahead of it is waited for, so devices need not wait for
        images to be read. Raises as `__call__` does.
        """
        waiting: tuple[dict[str, Array], int] | None = None
        for batch in batches_of(source, self.batch_size):
            sent = self._send(batch)
            if waiting is not None:
                yield _fetch(*waiting)
            waiting = sent
        if waiting is not None:
            yield _fetch(*waiting)

    def _send(self, batch: Pixels) -> tuple[dict[str, Array], int]:
        if batch.shape[-1] not in (1, 3):
            raise ValueError(
                f"FeatureExtractor needs images of 1 or 3 channels, got shape {batch.shape}. "
                "Drop an alpha channel: images[..., :3]."
            )
        count = len(batch)
        if count < self.batch_size:
            empty = np.zeros((self.batch_size - count, *batch.shape[1:]), np.uint8)
            batch = np.concatenate([batch, empty])
        return self._step(self._variables, processes.put(batch, self._split)), count


def _fetch(features: dict[str, Array], count: int) -> Features:
    return {name: np.asarray(values)[:count] for name, values in processes.fetch(features).items()}


def inception_extractor(
    variables: PyTree,
    *,
    outputs: Sequence[str] = ("pool",),
    preprocess: Preprocessing = TF1,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
) -> FeatureExtractor:
    """Makes the extractor of the FID literature from `load_inception_weights()`.

    outputs  which of "pool", "spatial", "logits_unbiased", "logits" (`InceptionOutput`)

    The fingerprint does not depend on `outputs`: a feature is the same, whatever else is computed.
    Raises ValueError for other outputs, or none.
    """
    known = ("pool", "spatial", "logits_unbiased", "logits")
    if not outputs or not set(outputs) <= set(known):
        raise ValueError(f"inception_extractor knows the outputs {known}, got {tuple(outputs)}.")

    def apply(variables: PyTree, x: Array) -> dict[str, Array]:
        found: Any = InceptionV3().apply(variables, x)
        return {name: getattr(found, name) for name in outputs}

    return FeatureExtractor(
        apply,
        variables,
        network="inception-2015-12-05",
        preprocess=preprocess,
        batch_size=batch_size,
        devices=devices,
    )


def batches_of(source: ImageSource, batch_size: int) -> Iterator[Pixels]:
    """Cuts images [N, H, W, C], or re-cuts batches of them, to `batch_size` and a shorter last.

    Raises TypeError for anything but uint8; ValueError for other shapes, for images of several
    sizes, and for none at all.
    """
    held: list[Pixels] = []
    size, shape = 0, None
    for piece in [source] if hasattr(source, "dtype") else source:
        piece = checked_images("batches_of", piece)  # type: ignore[arg-type]
        shape = shape or piece.shape[1:]
        if piece.shape[1:] != shape:
            raise ValueError(
                f"batches_of got images {shape} and then {piece.shape[1:]}. Bring all to one size "
                "first, and record how."
            )
        while size + len(piece) >= batch_size:
            cut = batch_size - size
            yield _joined([*held, piece[:cut]])
            held, size, piece = [], 0, piece[cut:]
        if len(piece):
            held.append(piece)
            size += len(piece)
    if shape is None:
        raise ValueError("batches_of got no image at all.")
    if held:
        yield _joined(held)


def _joined(pieces: list[Pixels]) -> Pixels:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
