"""The program that trains a classifier, and the folder that it writes.

config.json            the configuration, the data with their fingerprint, the held-out accuracy
weights.safetensors    the parameters, float32
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.data import ImageDataset, ShuffledIndices, prepare_images
from ddpm_jax.devices import processes
from ddpm_jax.devices.batched import batches
from ddpm_jax.devices.cpu import keep_freed_memory
from ddpm_jax.evaluation import FeatureExtractor, ImageClassifier, classifier_extractor
from ddpm_jax.files import read_json_object, user_path
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.nn import count_parameters
from ddpm_jax.programs.buckets import about_in, shown
from ddpm_jax.programs.build import check_splits, load_data
from ddpm_jax.programs.compilation import keep_compiled_programs
from ddpm_jax.programs.config import DataConfig, check_seed
from ddpm_jax.programs.config_values import check_least, from_json, to_json, with_types
from ddpm_jax.programs.console import bar, quantity, say
from ddpm_jax.programs.pictures import are_pictures
from ddpm_jax.programs.run_directory import RunDirectoryError, make_writable
from ddpm_jax.programs.weights import check_weights_folder, read_weights, save_weights
from ddpm_jax.training import NonFiniteError, learning_rate_schedule, make_optimizer
from ddpm_jax.types import Array, PyTree


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier of images, for measuring samples. An interrupted training starts anew."""

    out: Path = Path("runs/classifier")
    """Folder of the trained classifier."""
    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step."""
    seed: int = 0
    """Seed of the initialisation, the order of the data, and the augmentation."""
    channels: int = 48
    """Channels at the highest resolution, a multiple of 8."""
    patch_size: int = 2
    """Side, in pixels, of the square patches that the network treats as single positions; 1 for
    none, larger for large images."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a cosine to 0."""
    weight_decay: float = 0.05
    """Decoupled weight decay, times the learning rate."""
    label_smoothing: float = 0.1
    """Probability that the target gives to all classes evenly."""
    data: DataConfig = field(default_factory=DataConfig)


class TrainedClassifier(NamedTuple):
    """A trained classifier: its network and parameters, and `about`, which its folder records."""

    network: ImageClassifier
    params: PyTree
    about: dict[str, Any]

    def extractor(self, devices: Any = None) -> FeatureExtractor:
        """The extractor of its "features" and "logits"."""
        return classifier_extractor(self.network, {"params": self.params}, devices=devices)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest logit [N, K] is that of their label [N]."""
    return float((np.argmax(logits, axis=1) == labels).mean())


def train_classifier(config: ClassifierConfig) -> TrainedClassifier:
    """Trains, measures the accuracy on the held-out images, and writes the folder.

    Raises ValueError for options or data that cannot be used, RunDirectoryError for a folder that
    holds something else, and NonFiniteError if the training diverges.
    """
    config = with_types("train_classifier", config, ClassifierConfig)
    _check(config)
    _check_out(config.out)
    make_writable(config.out)
    processes.pin_random_numbers()
    keep_compiled_programs()
    train, heldout = (load_data(config.data, split) for split in ("train", "heldout"))
    _check_data(config, train, heldout)
    shape, num_classes = train.images.shape[1:], train.num_classes or 0
    keep_freed_memory(config.batch_size, shape, config.channels)
    network = ImageClassifier(num_classes, config.channels, config.patch_size)
    params = _fit(config, network, train)
    about = {
        "classifier": to_json(config),
        "data": {
            "name": train.name,
            "fingerprint": train.fingerprint,
            "image_shape": list(shape),
            "num_classes": num_classes,
            "class_names": train.class_names and list(train.class_names),
        },
    }
    trained = TrainedClassifier(network, params, about)
    with bar(len(heldout.images), "held-out images", unit="img") as progress:
        logits = []
        pieces = (heldout.images[rows] for rows in batches(len(heldout.images), 1000))
        for found in trained.extractor().stream(pieces):
            logits.append(found["logits"])
            progress.update(len(logits[-1]))
    share = accuracy(np.concatenate(logits), heldout.labels)
    about["held_out"] = {
        "name": heldout.name,
        "fingerprint": heldout.fingerprint,
        "images": len(heldout.images),
        "accuracy": share,
    }
    steps = _num_steps(config, len(train.images))
    files = save_weights(config.out, params, {**about, "weights": {"step": steps}})
    say(f"accuracy {share:.4f} on {len(heldout.images):,} held-out images of {heldout.name}")
    for path in files:
        say(f"  {path}")
    return trained


def load_classifier(folder: Path) -> TrainedClassifier:
    """Opens the folder of a trained classifier.

    Raises ValueError for a folder of something else, or with damaged files.
    """
    folder = user_path(folder, "load_classifier")
    try:
        about = read_json_object(folder / "config.json")
        config = from_json(ClassifierConfig, about["classifier"])
        shape = tuple(int(n) for n in about["data"]["image_shape"])
        network = ImageClassifier(
            int(about["data"]["num_classes"]), config.channels, config.patch_size
        )
        shapes = jax.eval_shape(lambda: _init(network, shape))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no classifier ({error!r}). Train one: ddpm-jax train classifier."
        ) from error
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    params, _, _ = read_weights(folder, about.get("weights", {}), like)
    return TrainedClassifier(network, params, about)


def _init(network: ImageClassifier, shape: tuple[int, ...], seed: int = 0) -> PyTree:
    return network.init(make_key(seed), jnp.zeros((1, *shape[:2], 3)))["params"]


def _num_steps(config: ClassifierConfig, num_images: int) -> int:
    return math.ceil(config.epochs * num_images / config.batch_size)


def _fit(config: ClassifierConfig, network: ImageClassifier, data: ImageDataset) -> PyTree:
    num_steps = _num_steps(config, len(data.images))
    schedule = learning_rate_schedule(
        config.learning_rate, warmup_steps=num_steps // 8, num_steps=num_steps, decay="cosine"
    )
    optimizer = make_optimizer(schedule, weight_decay=config.weight_decay)
    params = _init(network, data.images.shape[1:], config.seed)
    key = jax.random.fold_in(make_key(config.seed), 1)
    flip, pad_crop = (part in config.data.augment for part in ("flip", "pad_crop"))

    @jax.jit
    def step(params: PyTree, state: PyTree, index: Array, images: Array, labels: Array):
        x = prepare_images(images, example_keys(key, index), flip=flip, pad_crop=pad_crop)
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
        hits = jax.nn.one_hot(labels, network.num_classes)
        targets = optax.smooth_labels(hits, config.label_smoothing)

        def loss_of(params: PyTree) -> Array:
            logits = network.apply({"params": params}, x).logits  # type: ignore[union-attr]
            return optax.softmax_cross_entropy(logits, targets).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    shuffled = ShuffledIndices(len(data.images), config.batch_size, config.seed)
    say(
        f"{data.name}: {len(data.images):,} images, {network.num_classes} classes; "
        f"{quantity(count_parameters(params))} parameters, {num_steps:,} steps"
    )
    with bar(num_steps, "training") as progress:
        for i in range(num_steps):
            chosen = shuffled(i)
            # Which of all examples seen, so that an image is augmented anew in each epoch.
            index = np.arange(len(chosen), dtype=np.uint32) + np.uint32(i * len(chosen))
            images, labels = np.asarray(data.images[chosen]), data.labels[chosen]
            params, state, loss = step(params, state, index, images, labels)
            loss = float(loss)
            if not math.isfinite(loss):
                remedy = "Nothing was written. Lower --learning-rate, or look at the data."
                raise NonFiniteError(i + 1, "loss", 1, [{"loss": loss}], remedy)
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress.update(1)
    return params


def _check(config: ClassifierConfig) -> None:
    check_least(config, 1, "epochs", "batch_size", "patch_size")
    if config.channels < 8 or config.channels % 8:
        raise ValueError(f"--channels must be a multiple of 8, got {config.channels}.")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"--label-smoothing must be in [0, 1), got {config.label_smoothing}.")
    check_seed(config.seed)
    if config.data.augment == "edm":
        raise ValueError("--data.augment edm is not for classifiers. Use flip_pad_crop.")


def _check_out(out: Path) -> None:
    about = about_in(out)
    if "weights" in about and "classifier" not in about:
        raise RunDirectoryError(f"{shown(out)} holds another model. Choose another --out.")
    check_weights_folder(out)


def _check_data(config: ClassifierConfig, train: ImageDataset, heldout: ImageDataset) -> None:
    shape = train.images.shape[1:]
    if train.num_classes is None:
        raise ValueError(
            f"a classifier needs labels, and {train.name} has none. Put the images of each class "
            "into a folder of its own, or pass --data.labels FILE.csv."
        )
    classes = np.unique(train.labels)
    if len(classes) < 2:
        raise ValueError(
            f"a classifier needs at least two classes, and all images of {train.name} have the "
            f"label {classes[0]}."
        )
    if not are_pictures(shape) or any(size % config.patch_size for size in shape[:2]):
        raise ValueError(
            f"a classifier needs images with 1 or 3 channels, and a --patch-size that divides "
            f"height and width; got {list(shape)} and {config.patch_size}."
        )
    if not len(heldout.images):
        raise ValueError(
            f"{train.name} holds no images out, on which the accuracy would be measured. Choose "
            "--data.holdout 0.1."
        )
    check_splits(train, heldout, labelled=True)
