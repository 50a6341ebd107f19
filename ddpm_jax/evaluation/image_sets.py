"""Sets of images to be measured: an array, a folder of image files, or an `.npz` of samples.

All three become batches of uint8 [n, H, W, C], read when needed and with unchanged pixels, so that
the measure is of what was stored. (Transparent image files are composed over white, and grey ones
become RGB.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ddpm_jax.data.dataset import Fingerprint
from ddpm_jax.data.image_files import list_images
from ddpm_jax.data.images import decode_image, list_errors, open_image, shown
from ddpm_jax.files import array_names, open_array, open_npz, read_exactly, user_path
from ddpm_jax.forward.checks import check_text, check_whole, host_pixels

Pixels = npt.NDArray[np.uint8]
NPZ_NAMES = ("images", "samples", "arr_0")
"""Where an `.npz` may keep its images: the first of these that it has."""
MAX_IMAGE_BYTES = 1 << 27
"""Of one image of an `.npz`, where it may be deflated to a thousandth."""


@dataclass(frozen=True)
class ImageSet:
    """Images to be read in batches, any number of times; iterating yields batches of 256.

    Attributes:
        name: their source, for reports.
        shape: (N, H, W, C), known before any image is read.
        read: read(n) yields them in batches of n, uint8, in order; the last may be shorter.
    """

    name: str
    shape: tuple[int, int, int, int]
    read: Callable[[int], Iterator[Pixels]]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Pixels]:
        return self.batches()

    def batches(self, batch_size: int = 256) -> Iterator[Pixels]:
        """Yields uint8 images [batch_size, H, W, C] in order; the last batch may be smaller.

        Raises ValueError, naming up to 20 files, if some are damaged.
        """
        return self.read(check_whole("ImageSet.batches", "batch_size", batch_size))

    def fingerprint(self) -> str:
        """sha256 (hex) of shape and pixels, equal to that of an `ImageDataset` without labels."""
        found = Fingerprint(self.shape)
        for batch in self.batches():
            found.update(batch)
        return found.hexdigest(np.zeros(len(self), np.int32))


def open_images(
    source: npt.NDArray[np.uint8] | str | os.PathLike[str],
    *,
    resolution: int | None = None,
    name: str | None = None,
) -> ImageSet:
    """Opens uint8 images: an array [N, H, W, C], a folder, or an `.npz`.

    resolution  of a folder: crops and resizes every image to it, as `data.images.decode_image`
                does. By default nothing is resized, and all must be squares of one size
    name        of an `.npz`: the array; by default "images", "samples" or "arr_0"

    Folders are listed by the rules of `data.load_folder`: subfolders included, sorted by path, with
    a warning of files that are left out. Files are never unpickled.

    Raises FileNotFoundError for a missing path; TypeError or ValueError, naming the file and the
    remedy, for anything but such images.
    """
    if resolution is not None:
        resolution = check_whole("open_images", "resolution", resolution)
    if name is not None:
        check_text("open_images", "name", name)
    if not isinstance(source, str | os.PathLike):
        pixels = host_pixels("open_images", source)
        return ImageSet("array", _four(pixels.shape), lambda n: _slices(pixels, n))
    path = user_path(source)
    if path.is_dir():
        return _open_folder(path, resolution)
    if not path.exists():
        raise FileNotFoundError(f"open_images got {path}, which does not exist.")
    if path.suffix.lower() != ".npz":
        raise ValueError(
            f"open_images got {path}, which is neither a folder of images nor an .npz. "
            "Save samples with np.savez(path, images=pixels), uint8 [N, H, W, C]."
        )
    return _open_npz(path, name)


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    count, height, width, channels = shape
    return count, height, width, channels


def _slices(pixels: Pixels, size: int) -> Iterator[Pixels]:
    return (pixels[i : i + size] for i in range(0, len(pixels), size))


def _open_folder(folder: Path, resolution: int | None) -> ImageSet:
    files = [folder / file.name for file in list_images(folder)]
    side = resolution if resolution is not None else _square(files[0], None)

    def decode(file: Path) -> Pixels | str:
        try:
            if resolution is None:
                _square(file, side)
            return decode_image(file, side)[0]
        except ValueError as error:
            return str(error)

    def read(size: int) -> Iterator[Pixels]:
        errors: list[str] = []
        with ThreadPoolExecutor(thread_name_prefix="decode-images") as pool:
            for i in range(0, len(files), size):
                batch = list(pool.map(decode, files[i : i + size]))
                errors += [found for found in batch if isinstance(found, str)]
                if not errors:  # otherwise only the other errors are of interest
                    yield np.stack(batch)
        if errors:
            raise ValueError(list_errors(errors, len(files), folder))

    return ImageSet(str(folder), (len(files), side, side, 3), read)


def _square(file: Path, side: int | None) -> int:
    """Returns the side of a square image; ValueError for another shape, or a side but this."""
    with open_image(file) as opened:
        width, height = opened.size
    if width != height or (side is not None and width != side):
        raise ValueError(
            f"{shown(file)} is {width}×{height}, and open_images needs squares of one size"
            f"{'' if side is None else f', {side}×{side} here'}. "
            "Pass resolution= to crop and resize all of them, and say so beside the numbers."
        )
    return width


def _open_npz(path: Path, name: str | None) -> ImageSet:
    with _array_in(path, name) as (_, shape):
        pass

    def read(size: int) -> Iterator[Pixels]:
        with _array_in(path, name) as (stream, _):
            left, one = shape[0], int(np.prod(shape[1:]))
            while left:
                count = min(size, left)
                content = read_exactly(stream, count * one)
                yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
                left -= count

    return ImageSet(str(path), shape, read)


@contextmanager
def _array_in(
    path: Path, name: str | None
) -> Iterator[tuple[IO[bytes], tuple[int, int, int, int]]]:
    """Opens the images of an `.npz`: a stream at the first byte, and their shape."""
    try:
        with open_npz(path) as archive:
            names = array_names(archive)
            wanted = [n for n in ((name,) if name is not None else NPZ_NAMES) if n in names]
            if not wanted:
                raise _Unfit(
                    f"{path} has the arrays {names}, and none called "
                    f"{name or ', '.join(NPZ_NAMES)}. Pass name=."
                )
            with open_array(archive, wanted[0]) as (stream, (shape, fortran, dtype, _)):
                if dtype != np.uint8 or fortran or len(shape) != 4 or 0 in shape:
                    raise _Unfit(
                        f"{path} has {wanted[0]} {dtype} {shape}{' in Fortran order' * fortran}, "
                        "and open_images needs uint8 [N, H, W, C]. Map model values in [-1, 1] to "
                        "pixels with ddpm_jax.forward.pixels.to_pixels before saving."
                    )
                if shape[1] * shape[2] * shape[3] > MAX_IMAGE_BYTES:
                    raise _Unfit(f"{path} has images {shape[1:]}, over {MAX_IMAGE_BYTES:,} bytes.")
                yield stream, _four(shape)
    except _Unfit:
        raise
    except ValueError as error:
        raise ValueError(
            f"{path} could not be read as an .npz: {error}. Save samples with "
            "np.savez(path, images=pixels), uint8 [N, H, W, C]."
        ) from error


class _Unfit(ValueError):
    """An intact archive of something other than images."""
