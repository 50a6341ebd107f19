"""Features of images: evaluates a network batch by batch on all devices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax import traverse_util

from ddpm_jax.devices.batched import RowSplit
from ddpm_jax.devices.mesh import ROWS, WHOLE, check_devices, fetch
from ddpm_jax.evaluation.inception_v3 import InceptionV3
from ddpm_jax.evaluation.preprocessing import TF1, Preprocessing
from ddpm_jax.forward.checks import (
    check_function,
    check_kind,
    check_text,
    check_whole,
    host_numbers,
    host_pixels,
)
from ddpm_jax.types import Array, Device, PyTree, describe

Pixels = npt.NDArray[np.uint8]
Features = dict[str, npt.NDArray[np.float32]]
"""Named features of one batch, each [n, D]."""

ImageSource = npt.NDArray[np.uint8] | Iterable[Pixels]
"""uint8 images [N, H, W, C], or an iterable of such batches of any sizes."""


def variables_fingerprint(variables: PyTree) -> str:
    """Returns the sha256 (hex) of the names, shapes, types and numbers of a network's variables."""
    return _fingerprint("variables_fingerprint", variables)


def _fingerprint(call: str, variables: PyTree) -> str:
    if not isinstance(variables, Mapping) or not variables:
        raise TypeError(f"{call} needs variables, a dict of arrays, got {describe(variables)}.")
    digest = hashlib.sha256()
    flat = traverse_util.flatten_dict(variables, sep="/")
    for name in sorted(flat):
        leaf = host_numbers(call, f"variables[{name!r}]", flat[name])
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


class FeatureExtractor:
    """Computes features of images with a network, on all devices.

    `extractor(images)` returns the features of images in memory, by name;
    `extractor.stream(source)` yields the features of many images, batch by batch.

        apply          apply(variables, x) -> mapping of names to [B, D]; x as `preprocess` returns
        variables      the network's variables; copied to every device
        preprocess     pixels to x (`preprocessing.TF1` or PYTORCH); its name is in the fingerprint
        network        the name of the network in the fingerprint
        batch_size     images per step over all devices; rounded up to a multiple of the devices
        devices        the devices to use; None for every local device. If they belong to several
                       processes, all must call with the same images, and each gets all features

    Every batch is padded to the same size, so that one compiled program serves all. Images of
    another size or number of channels are compiled separately.
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
        call = "FeatureExtractor"
        check_function(call, "apply", apply, "(variables, x) -> features by name")
        check_text(call, "network", network)
        check_kind(call, "preprocess", preprocess, Preprocessing, "preprocessing.TF1 or PYTORCH")
        batch_size = check_whole(call, "batch_size", batch_size)
        fingerprint = _fingerprint(call, variables)
        devices = jax.local_devices() if devices is None else check_devices(call, devices)
        self._split = RowSplit(devices)
        self.batch_size = self._split.round_up(batch_size)
        self._variables = self._split.replicate(variables)
        self.about = {
            "network": network,
            "variables": fingerprint,
            "preprocessing": preprocess.name,
            "size": preprocess.size,
            "precision": "float32 highest",
        }

        def step(variables: PyTree, pixels: Array) -> dict[str, Array]:
            with jax.default_matmul_precision("highest"):
                return dict(apply(variables, preprocess(pixels)))

        self._step = self._split.map(step, (WHOLE, ROWS))

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of `about`: network, variables, preprocessing and precision."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    def __call__(self, images: npt.ArrayLike) -> Features:
        """Computes the features of uint8 images [N, H, W, C]: [N, D] each.

        Raises TypeError for other dtypes, ValueError for other shapes or numbers of channels.
        """
        pieces = list(self.stream(host_pixels("FeatureExtractor", images)))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def stream(self, source: ImageSource) -> Iterator[Features]:
        """Yields the features in the order of the images, at most `batch_size` at a time.

        Each step is dispatched before the result of the previous one is awaited, so devices do not
        wait for images to be read. Raises what `__call__` raises.
        """
        waiting: tuple[dict[str, Array], int] | None = None
        for batch in cut_batches("FeatureExtractor.stream", source, self.batch_size):
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
        return self._step(self._variables, self._split.put(batch, self.batch_size)), len(batch)


def _fetch(features: dict[str, Array], count: int) -> Features:
    return {name: np.asarray(values)[:count] for name, values in fetch(features).items()}


def inception_extractor(
    variables: PyTree,
    *,
    outputs: Sequence[str] = ("pool",),
    preprocess: Preprocessing = TF1,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
) -> FeatureExtractor:
    """The extractor of the FID literature; variables from `load_inception_weights()`.

    outputs  some of "pool", "spatial", "logits_unbiased", "logits" (`InceptionOutput`)

    The fingerprint does not depend on `outputs`, since the outputs do not affect each other. Raises
    ValueError for other outputs, or none.
    """
    known = ("pool", "spatial", "logits_unbiased", "logits")
    if not isinstance(outputs, Sequence) or not outputs or not set(outputs) <= set(known):
        raise ValueError(f"inception_extractor needs outputs, some of {known}, got {outputs!r}.")

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
    """Cuts images [N, H, W, C], or batches of them, into batches of `batch_size` and a remainder.

    Raises TypeError for other dtypes than uint8; ValueError for other shapes, for images of
    different sizes, and for no images.
    """
    return cut_batches("batches_of", source, batch_size)


def cut_batches(call: str, source: ImageSource, batch_size: int) -> Iterator[Pixels]:
    """`batches_of`, in the name of the call."""
    batch_size = check_whole(call, "batch_size", batch_size)
    if not hasattr(source, "dtype") and not isinstance(source, Iterable):
        raise TypeError(f"{call} needs images or batches of them, got {describe(source)}.")
    held: list[Pixels] = []
    size, shape = 0, None
    for piece in [source] if hasattr(source, "dtype") else source:
        piece = host_pixels(call, piece)
        shape = shape or piece.shape[1:]
        if piece.shape[1:] != shape:
            raise ValueError(
                f"{call} got images {shape} and then {piece.shape[1:]}. Resize all to one size "
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
        raise ValueError(f"{call} got no images.")
    if held:
        yield _joined(held)


def _joined(pieces: list[Pixels]) -> Pixels:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
