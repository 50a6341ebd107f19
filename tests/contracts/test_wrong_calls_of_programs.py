"""Wrong calls of the public functions that programs are built from: evaluation, training, data
and pictures.

`ROWS` has one right call per public function or class (see `wrong`). A new public name of these
packages needs a row here, or a reason in `ELSEWHERE`, or the first test fails.
"""

import pathlib
import shutil
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from ddpm_jax import data, evaluation, training, visualize
from ddpm_jax.devices.mesh import make_mesh
from ddpm_jax.training.spikes import is_spike, watch_loss
from tests.contracts.wrong import (
    NEGATIVE,
    NOT_A_NUMBER,
    NOT_CONVERTIBLE,
    OBJECT,
    SCHEDULE,
    STEP_VALUES,
    TRACED,
    WRONG,
    Net,
    call,
    row,
    same,
)

ROOMS = (evaluation, training, data, visualize)
FOLDER = tempfile.TemporaryDirectory()
PLACE = pathlib.Path(FOLDER.name)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 4, 5, 1)).astype(np.uint8)
LABELS = np.arange(24) % 2
FEATURES = RNG.normal(size=(12, 3))
LOGITS, SHARES = FEATURES, np.full((12, 2), 0.5)
MOMENTS = evaluation.moments(FEATURES)
STATISTICS_KEY = evaluation.StatisticsKey("data", "train", 12, "features", "pool")
NETWORK = {"params": {"kernel": np.ones((2, 3), np.float32)}}
PARAMS = {"kernel": jnp.ones((2, 3))}
DATASET = data.make_dataset(PIXELS, LABELS, 2, "wrong calls")
INDICES = data.ShuffledIndices(len(PIXELS), 4, 0)
STATE = training.init_state(PARAMS, optax.sgd(0.1), jax.random.key(0))

evaluation.save_statistics(PLACE / "saved.npz", MOMENTS, STATISTICS_KEY)
np.savez(PLACE / "images.npz", images=PIXELS)
(PLACE / "images").mkdir()
for number, image in enumerate(PIXELS[:4, ..., 0]):
    Image.fromarray(image).save(PLACE / "images" / f"{number}.png")


def cut(source, batch_size):
    """`batches_of`, which reads only when its batches are asked for."""
    return list(evaluation.batches_of(source, batch_size))


def extract(apply, *, variables, network, preprocess, batch_size, devices):
    """`FeatureExtractor` and a call of it."""
    options = {"network": network, "preprocess": preprocess, "batch_size": batch_size}
    return evaluation.FeatureExtractor(apply, variables, devices=devices, **options)(PIXELS)


def cache(folder, key, compute):
    """`cached_statistics` in a folder without an entry."""
    shutil.rmtree(PLACE / "statistics", ignore_errors=True)
    return evaluation.cached_statistics(folder, key, compute)


def preprocessed(pixels):
    """A call of a `Preprocessing`."""
    return evaluation.Preprocessing("small", evaluation.resize_tf1, 128.0, 128.0, 3)(pixels)


def mean_and_std(variables, x):
    return {"pool": jnp.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], axis=1)}


def open_checkpoints(folder, *, keep, keep_every, writable):
    with training.Checkpoints(folder, keep=keep, keep_every=keep_every, writable=writable) as found:
        return found.steps()


def prefetch(dataset, indices, *, start_step, chunk_length, share):
    """`PrefetchedBatches`, read to its end; what the reading thread raised is the cause."""
    options = {"start_step": start_step, "chunk_length": chunk_length}
    made = data.PrefetchedBatches(dataset, indices, share=share, **options)
    try:
        with made as chunks:
            return [chunk.images for chunk in chunks]
    except RuntimeError as error:
        raise error.__cause__ from None


def arrays_of(images, labels, *, cond, spatial_rank, holdout, name):
    """`from_arrays` and both splits."""
    load = data.from_arrays(
        images, labels, cond=cond, spatial_rank=spatial_rank, holdout=holdout, name=name
    )
    return load("train").images, load("heldout").images


def run_chunk(state, first, count):
    metrics = {"loss": jnp.ones(count), "grad_norm": jnp.ones(count), "finite": jnp.ones(count)}
    return state, metrics


def train(state, run_chunk, *, num_steps, max_chunk, hooks, on_metrics, should_stop, max_bad_steps):
    """`train_loop`, of which only the step is returned."""
    options = {"on_metrics": on_metrics, "should_stop": should_stop, "hooks": hooks}
    options |= {"max_chunk": max_chunk, "max_bad_steps": max_bad_steps, "num_steps": num_steps}
    return training.train_loop(state, run_chunk, **options).step


def draw(kind, **layer):
    """`save_panels` of one layer."""
    return visualize.save_panels(PLACE / "layer.png", [visualize.Panel("title", [kind(**layer)])])


def draw_line(x, y, *, band, width):
    return draw(visualize.Line, x=x, y=y, band=band, width=width)


def draw_points(points, *, size, alpha):
    return draw(visualize.Points, points=points, size=size, alpha=alpha)


def draw_arrows(points, vectors):
    return draw(visualize.Arrows, points=points, vectors=vectors)


def draw_heatmap(values, *, extent, limits):
    return draw(visualize.Heatmap, values=values, extent=extent, limits=limits)


def without(kind: str, *names: str) -> dict[str, Any]:
    return {name: change for name, change in WRONG[kind].items() if name not in names}


IMAGES = NOT_CONVERTIBLE | {
    "ragged": lambda v: [[1], [1, 2]],
    "floats": lambda v: v / 255,
    "int32": lambda v: v.astype(np.int32),
    "complex": lambda v: v + 0j,
    "traced": TRACED,
    "one image": lambda v: v[0],
    "an axis more": lambda v: v[None],
    "none": lambda v: v[:0],
    "a number": lambda v: 3,
}
NUMBERS = NOT_CONVERTIBLE | {
    "ragged": lambda v: [[1.0], [1.0, 2.0]],
    "strings": lambda v: [["a", "b"]],
    "complex": lambda v: v + 0j,
    "bool": lambda v: v > 0,
    "traced": TRACED,
}
PATH = {
    "None": lambda v: None,
    "a number": lambda v: 3,
    "bytes": lambda v: b"file.npz",
    "a list": lambda v: [v],
    "an array": lambda v: PIXELS,
    "a schedule": lambda v: SCHEDULE,
}
FLAT = {"one row": lambda v: v[0], "none": lambda v: v[:0], "nan": lambda v: v * np.nan}
FEATURE_ROWS = NUMBERS | FLAT | {"a number": lambda v: 3.0, "an axis more": lambda v: v[None]}
WHOLE = without("whole", "0")
TEXTS = {
    "a number": lambda v: 3,
    "a string": lambda v: "ab",
    "another number of them": lambda v: [*v, v[0]],
    "numbers": lambda v: [3] * len(v),
}
CURVE = {
    "None": lambda v: None,
    "a string": lambda v: "0.5",
    "ragged": lambda v: [[1.0], [1.0, 2.0]],
    "strings": lambda v: ["a"] * len(v),
    "complex": lambda v: v + 0j,
    "a schedule": lambda v: SCHEDULE,
    "a number": lambda v: 0.5,
    "none": lambda v: v[:0],
    "two axes": lambda v: v[None],
    "traced": TRACED,
}
TREE = {
    "None": lambda v: None,
    "nothing": lambda v: {},
    "strings": lambda v: {"kernel": "a"},
    "a function": lambda v: np.ones,
}


def stream(read, shape):
    """`StreamedImages` and an access: what `read` returns is checked then."""
    return data.StreamedImages(read, shape)[:2]


KINDS = WRONG | {
    "images": IMAGES,
    "colour or grey": IMAGES | {"two channels": lambda v: np.repeat(v, 2, axis=-1)},
    "other images": IMAGES | {"another size": lambda v: v[:, :2]},
    "images or batches": IMAGES
    | {
        "batches of floats": lambda v: [v / 255],
        "two sizes": lambda v: [v, v[:, :2]],
        "no batches": lambda v: [],
    },
    "images or a path": {
        k: lambda v, change=change: change(PIXELS)
        for k, change in IMAGES.items()
        if k not in ("a string", "traced")
    }
    | {"another file": lambda v: PLACE / "saved.json"},
    "resizable": NOT_CONVERTIBLE
    | {
        "complex": lambda v: v + 0j,
        "one image": lambda v: v[0],
        "none": lambda v: v[:0],
        "a number": lambda v: 3,
    },
    "features": FEATURE_ROWS,
    "other features": FEATURE_ROWS | {"another width": lambda v: v[:, :2]},
    "shares": FEATURE_ROWS
    | {"sums of two": lambda v: 2 * v, "negative": lambda v: v * np.array([[-1, 3]])},
    "labels": {
        "None": lambda v: None,
        "a string": lambda v: "01",
        "floats": lambda v: v + 0.5,
        "bools": lambda v: v > 0,
        "fewer": lambda v: v[:-1],
        "a column": lambda v: v[:, None],
        "negative": lambda v: v - 1,
        "ragged": lambda v: [[1], [1, 2]],
        "a schedule": lambda v: SCHEDULE,
        "traced": TRACED,
    },
    "arrays": {
        "None": lambda v: None,
        "nothing": lambda v: [],
        "a number": lambda v: 3,
        "empty arrays": lambda v: [np.ones((0, 3))],
        "numbers": lambda v: [1.0, 2.0],
        "a schedule": lambda v: SCHEDULE,
        "traced": TRACED,
    },
    "same shape": NUMBERS,
    "mask or None": {
        "numbers": lambda v: np.ones(3),
        "a string": lambda v: "where",
        "all False": lambda v: np.zeros_like(v),
        "another shape": lambda v: v[..., :-1],
        "a schedule": lambda v: SCHEDULE,
        "traced": TRACED,
    },
    "groups": NUMBERS
    | {"one image": lambda v: v[0], "groups of one": lambda v: v[:1], "a number": lambda v: 3.0},
    "moments": OBJECT
    | {
        "a schedule": lambda v: SCHEDULE,
        "another width": lambda v: evaluation.moments(FEATURES[:, :2]),
        "no covariance": lambda v: v._replace(covariance=v.covariance[0]),
        "nan": lambda v: v._replace(mean=v.mean * np.nan),
    },
    "stored moments": OBJECT
    | {
        "another count": lambda v: v._replace(count=v.count + 1),
        "nan": lambda v: v._replace(mean=v.mean * np.nan),
    },
    "several moments": OBJECT
    | {"one example": lambda v: evaluation.moments(FEATURES[:1]), "a schedule": lambda v: SCHEDULE},
    "some moments": {k: v for k, v in OBJECT.items() if k != "None"}
    | {"another width": lambda v: evaluation.moments(FEATURES[:, :2])},
    "statistics key": OBJECT | {"a dict": lambda v: {"data": "x"}},
    "some statistics key": {k: v for k, v in OBJECT.items() if k != "None"},
    "path": PATH,
    "path with an ending": PATH | {"another ending": lambda v: f"{v}.txt"},
    "path or None": {k: v for k, v in PATH.items() if k != "None"},
    "split": WRONG["target"],
    "whole": WRONG["whole"],
    "from 0": WHOLE,
    "whole or None": without("whole", "None"),
    "from 0 or None": {k: v for k, v in WHOLE.items() if k != "None"},
    "small whole": WRONG["whole"] | {"too many": lambda v: 1000},
    "positive or None": without("positive", "None") | {"0": lambda v: 0.0},
    "above 0": WRONG["positive"] | {"0": lambda v: 0.0},
    "level": NOT_A_NUMBER | NEGATIVE | {"0": lambda v: 0.0, "1": lambda v: 1.0},
    "averages": {
        "None": lambda v: None,
        "nothing": lambda v: [],
        "a number": lambda v: 3,
        "a string": lambda v: "ab",
        "triples": lambda v: [(*pair, 1) for pair in v],
        "numbers": lambda v: [10, 20],
        "exchanged": lambda v: [pair[::-1] for pair in v],
    },
    "below 1": NOT_A_NUMBER | NEGATIVE | {"1": lambda v: 1.0, "2": lambda v: 2.0},
    "above 1 or None": without("positive", "None") | {"1": lambda v: 1.0},
    "flag or None": without("flag", "None"),
    "text": {"None": lambda v: None, "a number": lambda v: 3, "an array": lambda v: PIXELS},
    "text or None": {"a number": lambda v: 3, "an array": lambda v: PIXELS},
    "names": {
        "None": lambda v: None,
        "nothing": lambda v: (),
        "a number": lambda v: 3,
        "others": lambda v: ("logit",),
        "a string": lambda v: "pool",
    },
    "some names": {"a number": lambda v: 3, "others": lambda v: ("x",), "a string": lambda v: "x"},
    "groups of 8": WRONG["whole"] | {"12": lambda v: 12},
    "classifier": OBJECT | {"a class": lambda v: evaluation.ImageClassifier},
    "preprocessing": OBJECT | {"a name": lambda v: "tf1"},
    "devices": {
        "nothing": lambda v: [],
        "a number": lambda v: 2,
        "a string": lambda v: "cpu",
        "numbers": lambda v: [0, 1],
    },
    "function of features": without("callable")
    | {
        "a function to None": lambda v: lambda *_: None,
        "a function to one number": lambda v: lambda *_: 0.5,
        "a function to another number of rows": lambda v: lambda *_: np.ones((2, 3)),
        "a function to strings": lambda v: lambda images: [["a"]] * len(images),
    },
    "function of moments": without("callable")
    | {"a function to None": lambda v: lambda: None, "to an array": lambda v: lambda: FEATURES},
    "statistic": without("callable")
    | {
        "a function to None": lambda v: lambda *_: None,
        "a function to an array": lambda v: lambda *_: np.ones(3),
        "a function to text": lambda v: lambda *_: "0.5",
    },
    "some callable": without("callable", "None"),
    "tree": TREE | {"a number": lambda v: 3},
    "state": OBJECT | {"a tree": lambda v: PARAMS},
    "other tree": TREE
    | {
        "another shape": lambda v: {"kernel": jnp.ones((2, 1))},
        "other names": lambda v: {"bias": jnp.ones((2, 3))},
        "a schedule": lambda v: SCHEDULE,
    },
    "decay": without("per row", "a value per row", "one value [1]", "a key")
    | {"1.5": lambda v: 1.5, "-1": lambda v: -1.0, "an array": lambda v: jnp.ones(3)},
    "optimizer": OBJECT,
    "step": STEP_VALUES | NEGATIVE,
    "learning rate": NOT_A_NUMBER
    | {"-1": lambda v: -1.0, "0": lambda v: 0.0, "an array": lambda v: jnp.ones(3)},
    "hooks": {
        "None": lambda v: None,
        "a number": lambda v: 3,
        "functions": lambda v: [print],
        "one hook": lambda v: v[0],
        "never called": lambda v: [training.Hook(-1, print)],
        "no function": lambda v: [training.Hook(1, None)],
    },
    "shape of an array": {
        "None": lambda v: None,
        "a number": lambda v: 3,
        "strings": lambda v: ("3", "4"),
        "negative": lambda v: (-3, 4),
        "floats": lambda v: (3.5, 4),
        "an array": lambda v: FEATURES,
    },
    "mesh": OBJECT | {"devices": lambda v: jax.devices()},
    "backend": WRONG["target"] | {"jit of several": lambda v: "jit"},
    "cond": {
        "a string": lambda v: "cond",
        "one axis": lambda v: v[:, 0],
        "fewer": lambda v: v[:-1],
        "strings": lambda v: [["a"]] * len(v),
        "complex": lambda v: v + 0j,
        "nan": lambda v: v * np.nan,
        "a schedule": lambda v: SCHEDULE,
        "traced": TRACED,
    },
    "dataset": OBJECT | {"images": lambda v: PIXELS},
    "indices over data": OBJECT | {"other data": lambda v: data.ShuffledIndices(3, 2, 0)},
    "chunk length": without("callable")
    | {
        "a function to None": lambda v: lambda step: None,
        "a function to floats": lambda v: lambda step: 0.5,
    },
    "slice": {"None": lambda v: None, "a number": lambda v: 3, "a string": lambda v: "0:3"},
    "resolution": {
        "None": lambda v: None,
        "0": lambda v: 0,
        "-1": lambda v: -1,
        "1.5": lambda v: 1.5,
        "a bool": lambda v: True,
        "text": lambda v: "big",
        "three": lambda v: (4, 4, 4),
        "an array": lambda v: FEATURES,
    },
    "some resolution": {"0": lambda v: 0, "-1": lambda v: -1, "1.5": lambda v: 1.5},
    "channels": OBJECT | {"2": lambda v: 2, "4": lambda v: 4},
    "labels of a folder": {
        "None": lambda v: None,
        "a number": lambda v: 3,
        "a misspelling": lambda v: "non",
    },
    "options": {k: v for k, v in OBJECT.items() if k != "None"} | {"a dict": lambda v: {}},
    "class names": {
        "a number": lambda v: 3,
        "a string": lambda v: "ab",
        "fewer": lambda v: ("a",),
        "numbers": lambda v: (1, 2),
    },
    "rank": NOT_A_NUMBER | {"0": lambda v: 0, "4": lambda v: 4, "signals": lambda v: 1},
    "digest": {"a number": lambda v: 3, "bytes": lambda v: b"0"},
    "pixels of keys": WRONG["keys"],
    "panels": {
        "None": lambda v: None,
        "nothing": lambda v: [],
        "one panel": lambda v: v[0],
        "layers": lambda v: v[0].layers,
        "no layers": lambda v: [visualize.Panel("title", 3)],
        "arrays as layers": lambda v: [visualize.Panel("title", [FEATURES])],
        "a number": lambda v: 3,
    },
    "inches": {
        "None": lambda v: None,
        "a number": lambda v: 3.1,
        "three": lambda v: (1, 2, 3),
        "0": lambda v: (0, 3),
        "nan": lambda v: (float("nan"), 3),
        "inf": lambda v: (float("inf"), 3),
        "strings": lambda v: ("3", "3"),
    },
    "curves": {
        "None": lambda v: None,
        "nothing": lambda v: {},
        "a list": lambda v: list(v.values()),
        "one array": lambda v: {"a": np.ones(3)},
        "a number": lambda v: 3,
        "numbers": lambda v: {"a": (1.0, 2.0)},
        "other lengths": lambda v: {"a": (np.ones(3), np.ones(2))},
        "strings": lambda v: {"a": (["1", "x"], [1, 2])},
        "complex": lambda v: {"a": (np.ones(2), np.ones(2) + 0j)},
    },
    "curve": CURVE,
    "other curve": CURVE | {"another length": lambda v: v[:-1]},
    "some curve": {
        "an array": lambda v: np.ones(3),
        "a number": lambda v: 3,
        "three": lambda v: (*v, v[0]),
        "other lengths": lambda v: (np.ones(3), np.ones(2)),
        "strings": lambda v: (["a"], ["b"]),
    },
    "ticks": {
        "a number": lambda v: 3,
        "a string": lambda v: "12",
        "strings": lambda v: ["1", "2"],
        "nan": lambda v: [float("nan")],
    },
    "heights": {
        "a list": lambda v: [1.0],
        "strings": lambda v: {"a": "x"},
        "a number": lambda v: 3,
        "None inside": lambda v: {"a": None},
    },
    "row texts": TEXTS,
    "hidden": {
        "a number": lambda v: 3,
        "integers": lambda v: v.astype(int),
        "an axis more": lambda v: v[None],
        "fewer": lambda v: v[:1],
        "ragged": lambda v: [[True], [True, False]],
    },
    "captions": {
        "a number": lambda v: 3,
        "one row": lambda v: v[0],
        "fewer": lambda v: v[:1],
        "numbers": lambda v: [[1, 2], [3, 4]],
    },
    "image rows": {k: v for k, v in IMAGES.items() if k != "an axis more"}
    | {"two channels": lambda v: np.repeat(v, 2, axis=-1), "an axis more": lambda v: v[None]},
    "pairs": FEATURE_ROWS | {"three of them": lambda v: np.ones((3, 3)), "a number": lambda v: 3.0},
    "map": {k: v for k, v in FEATURE_ROWS.items() if k not in ("nan", "bool")},
    "extent": {
        "None": lambda v: None,
        "a number": lambda v: 3,
        "three": lambda v: v[:3],
        "strings": lambda v: ("0", "1", "0", "1"),
        "nan": lambda v: (float("nan"), 1, 0, 1),
    },
    "limits": {
        "a number": lambda v: 3,
        "three": lambda v: (0, 1, 2),
        "strings": lambda v: ("0", "1"),
        "nan": lambda v: (float("nan"), 1),
    },
    "band": {
        "one array": lambda v: v[0],
        "another length": lambda v: (np.ones(2), np.ones(2)),
        "a number": lambda v: 3,
        "strings": lambda v: ("a", "b"),
    },
    "opacity": NOT_A_NUMBER | NEGATIVE | {"2": lambda v: 2.0},
}

rank = ("rank", 2)
images, seed, npz = ("images", PIXELS), ("from 0", 0), ("path with an ending", PLACE / "new.npz")
features, others = ("features", FEATURES), ("other features", FEATURES + 1.0)
shares, progress = ("shares", SHARES), ("some callable", None)
batch_size, statistic_key = ("whole", 8), ("statistics key", STATISTICS_KEY)
preprocess, devices = ("preprocessing", evaluation.TF1), ("devices", None)
extractor = dict(preprocess=preprocess, batch_size=batch_size, devices=devices)
source = ("images or batches", PIXELS)
describe_features = ("function of features", evaluation.pixel_features)
size = ("whole", 3)
flag, whole, some_text = ("flag", False), ("whole", 4), ("text or None", "title")
sheet = dict(
    columns=("whole or None", 2), padding=("from 0 or None", 1), scale=("whole or None", 1)
)
png, curve_x = ("path with an ending", PLACE / "new.png"), np.arange(1.0, 6.0)
curve = (curve_x, curve_x**2)
params, optimizer = ("tree", PARAMS), ("optimizer", optax.sgd(0.1))
split, name, cond = ("split", "train"), ("text", "name"), ("cond", np.ones((24, 2)))
holdout = ("below 1", 0.1)
TILES = PIXELS.reshape(2, 2, 6, 4, 5, 1)[:, :, 0]


def fingerprint(images, labels, cond):
    """`fingerprint_of` with one condition."""
    return data.fingerprint_of(images, labels, cond=cond)


ROWS = {
    "fit_classifier": row(
        evaluation.fit_classifier,
        images=("images", PIXELS[:, :2, :3]),
        labels=("labels", LABELS),
        seed=seed,
    ),
    "label_entropy": row(evaluation.label_entropy, probabilities=shares),
    "label_histogram": row(evaluation.label_histogram, probabilities=shares),
    "share_confident": row(
        evaluation.share_confident, probabilities=shares, threshold=("share", 0.9)
    ),
    "FeatureExtractor": row(
        extract,
        apply=("callable", mean_and_std),
        variables=("tree", NETWORK),
        network=name,
        **extractor
        | {
            "preprocess": (
                "preprocessing",
                evaluation.Preprocessing("small", evaluation.resize_tf1, 128.0, 128.0, 3),
            )
        },
    ),
    "FeatureExtractor()": row(
        evaluation.FeatureExtractor(
            mean_and_std,
            NETWORK,
            network="small",
            preprocess=evaluation.Preprocessing("small", evaluation.resize_tf1, 128.0, 128.0, 3),
        ),
        images=("colour or grey", PIXELS),
    ),
    "ImageClassifier": row(
        evaluation.ImageClassifier,
        num_classes=("whole", 2),
        channels=("groups of 8", 8),
        patch_size=("whole", 1),
    ),
    "classifier_extractor": row(
        evaluation.classifier_extractor,
        network=("classifier", evaluation.ImageClassifier(2, 8)),
        variables=("tree", NETWORK),
        batch_size=batch_size,
        devices=devices,
    ),
    "Preprocessing": row(preprocessed, pixels=("resizable", PIXELS)),
    "batches_of": row(cut, source=source, batch_size=batch_size),
    "inception_extractor": row(
        evaluation.inception_extractor,
        variables=("tree", NETWORK),
        outputs=("names", ("pool",)),
        **extractor,
    ),
    "variables_fingerprint": row(evaluation.variables_fingerprint, variables=("tree", NETWORK)),
    "ImageSet": row(evaluation.open_images(PIXELS).batches, batch_size=batch_size),
    "open_images": row(
        evaluation.open_images,
        source=("images or a path", PLACE / "images"),
        resolution=("whole or None", 4),
        name=("text or None", None),
    ),
    "inception_score": row(
        evaluation.inception_score, logits=("features", LOGITS), splits=("small whole", 2)
    ),
    "inception_score()": row(
        evaluation.inception_score, probabilities=shares, splits=("small whole", 2)
    ),
    "kernel_distance": row(
        evaluation.kernel_distance,
        real=features,
        generated=others,
        num_subsets=("whole", 2),
        subset_size=("small whole", 3),
        seed=seed,
    ),
    "polynomial_mmd": row(evaluation.polynomial_mmd, real=features, generated=others),
    "bootstrap_interval": row(
        evaluation.bootstrap_interval,
        statistic=("statistic", np.mean),
        arrays=("arrays", [FEATURES]),
        seed=seed,
        repeats=("whole", 3),
        level=("level", 0.9),
    ),
    "fitted_gaussian_images": row(
        evaluation.fitted_gaussian_images, images=images, count=whole, seed=seed
    ),
    "frechet_distance": row(
        evaluation.frechet_distance, a=("moments", MOMENTS), b=("several moments", MOMENTS)
    ),
    "moments": row(evaluation.moments, features=features),
    "update_moments": row(
        evaluation.update_moments, running=("some moments", MOMENTS), features=features
    ),
    "pixel_features": row(evaluation.pixel_features, images=images),
    "rms_difference": row(
        evaluation.rms_difference,
        a=("same shape", FEATURES),
        b=("same shape", FEATURES + 1.0),
        where=("mask or None", FEATURES > 0),
    ),
    "rms_pairwise": row(
        evaluation.rms_pairwise,
        images=("groups", PIXELS),
        where=("mask or None", PIXELS[0] > 9),
    ),
    "nearest_neighbours": row(
        evaluation.nearest_neighbours,
        samples=images,
        train=("other images", PIXELS),
        k=("small whole", 2),
    ),
    "precision_recall": row(
        evaluation.precision_recall, real=features, generated=others, k=("small whole", 2)
    ),
    "density_coverage": row(
        evaluation.density_coverage, real=features, generated=others, k=("small whole", 2)
    ),
    "resize_pytorch": row(
        evaluation.resize_pytorch, images=("resizable", PIXELS), height=size, width=size
    ),
    "resize_tf1": row(evaluation.resize_tf1, images=("resizable", PIXELS), height=size, width=size),
    "StatisticsKey": row(
        evaluation.StatisticsKey,
        data=name,
        split=name,
        count=whole,
        features=name,
        output=name,
        version=whole,
    ),
    "cached_statistics": row(
        cache,
        folder=("path", PLACE / "statistics"),
        key=statistic_key,
        compute=("function of moments", lambda: MOMENTS),
    ),
    "load_statistics": row(
        evaluation.load_statistics,
        path=("path with an ending", PLACE / "saved.npz"),
        key=("some statistics key", STATISTICS_KEY),
    ),
    "read_reference_statistics": row(
        evaluation.read_reference_statistics,
        path=("path with an ending", PLACE / "saved.npz"),
        count=("whole or None", 12),
        spatial=flag,
    ),
    "save_statistics": row(
        evaluation.save_statistics,
        path=npz,
        moments=("stored moments", MOMENTS),
        key=statistic_key,
    ),
    "moments_of": row(
        evaluation.moments_of,
        source=source,
        feature_fn=describe_features,
        batch_size=batch_size,
        on_progress=progress,
    ),
    "summarize_features": row(
        evaluation.summarize_features,
        source=source,
        feature_fn=describe_features,
        moments=("some names", None),
        keep=("some names", ("features",)),
        batch_size=batch_size,
        on_progress=progress,
    ),
    "Checkpoints": row(
        open_checkpoints,
        folder=("path", PLACE / "checkpoints"),
        keep=whole,
        keep_every=("from 0", 0),
        writable=flag,
    ),
    "DataParallel": row(
        training.DataParallel,
        backend=("backend", "shard_map"),
        devices=("devices", tuple(jax.devices()[:4])),
        parameter_shards=("whole", 2),
    ),
    "FullySharded": row(training.FullySharded, mesh=("mesh", make_mesh(jax.devices()[:4], 2))),
    "bytes_per_step": row(
        training.bytes_per_step,
        params=params,
        data=whole,
        shards=("whole", 2),
        microbatches=("whole", 2),
    ),
    "parameter_spec": row(
        training.parameter_spec, shape=("shape of an array", (256, 128)), shards=("whole", 2)
    ),
    "train_loop": row(
        train,
        state=("state", STATE),
        run_chunk=("callable", run_chunk),
        num_steps=("from 0", 2),
        max_chunk=("whole", 2),
        hooks=("hooks", [training.Hook(1, lambda state, step: None)]),
        on_metrics=("callable", lambda first, metrics: None),
        should_stop=("callable", lambda: False),
        max_bad_steps=("whole", 2),
    ),
    "learning_rate_schedule": row(
        training.learning_rate_schedule,
        peak=("above 0", 1e-3),
        warmup_steps=("from 0", 2),
        num_steps=("whole", 8),
        decay=("split", "cosine"),
        decay_steps=("whole or None", 3),
    ),
    "make_optimizer": row(
        training.make_optimizer,
        learning_rate=("learning rate", 1e-3),
        clip_norm=("positive or None", 1.0),
        b1=("below 1", 0.9),
        b2=("below 1", 0.999),
        eps=("above 0", 1e-8),
    ),
    "choose_devices": row(
        training.choose_devices,
        backend=("split", "auto"),
        count=("whole or None", 4),
        parameter_shards=("whole", 2),
    ),
    "make_chunk": row(
        training.make_chunk, train_step=("callable", run_chunk), fetch=("callable", run_chunk)
    ),
    "power_ema_decay_at": row(
        training.power_ema_decay_at, step=("step", 3), sigma_rel=("below 1", 0.1)
    ),
    "post_hoc_weights": row(
        training.post_hoc_weights,
        stored=("averages", [(10, 0.05), (20, 0.1)]),
        step=whole,
        sigma_rel=("below 1", 0.1),
    ),
    "ema_decay_at": row(
        training.ema_decay_at, step=("step", 3), decay=("below 1", 0.99), warmup=flag
    ),
    "init_state": row(
        training.init_state,
        params=params,
        optimizer=optimizer,
        key=("key", jax.random.key(0)),
    ),
    "update_ema": row(
        training.update_ema,
        ema_params=("other tree", PARAMS),
        params=("other tree", {"kernel": jnp.zeros((2, 3))}),
        decay=("decay", 0.9),
    ),
    "make_train_step": row(
        training.make_train_step,
        loss_fn=("callable", run_chunk),
        optimizer=optimizer,
        ema_decay=("below 1", 0.99),
        ema_warmup=flag,
        update_loss_state=("some callable", None),
        num_microbatches=whole,
        spike_factor=("above 1 or None", 3.0),
    ),
    "from_arrays": row(
        arrays_of,
        images=("images", PIXELS),
        labels=("labels", LABELS),
        cond=cond,
        spatial_rank=rank,
        holdout=holdout,
        name=name,
    ),
    "load_arrays": row(
        data.load_arrays,
        split=split,
        path=("path", PLACE / "images.npz"),
        holdout=holdout,
        spatial_rank=rank,
    ),
    "cache_root": row(data.cache_root, cache_dir=("path or None", PLACE / "cache")),
    "fingerprint_of": row(fingerprint, images=images, labels=("labels", LABELS), cond=cond),
    "make_dataset": row(
        data.make_dataset,
        images=images,
        labels=("labels", LABELS),
        num_classes=("whole", 2),
        name=name,
        fingerprint=("digest", None),
        cond=cond,
        class_names=("class names", ("a", "b")),
        spatial_rank=rank,
    ),
    "load_digits": row(data.load_digits, split=split),
    "load_folder": row(
        data.load_folder,
        path=("path", PLACE / "images"),
        resolution=("resolution", 4),
        split=split,
        holdout=holdout,
        channels=("channels", 1),
        labels=("labels of a folder", "none"),
        cache_dir=("path or None", PLACE / "cache"),
        num_workers=("whole or None", 1),
        max_pixels=("whole", 100),
        progress=("some callable", lambda done, of: None),
    ),
    "load_named": row(
        data.load_named,
        name=("split", "digits"),
        split=split,
        options=("options", data.DataOptions()),
    ),
    "fits_on_device": row(
        data.fits_on_device, dataset=("dataset", DATASET), limit_bytes=("from 0", 1000)
    ),
    "ShuffledIndices": row(data.ShuffledIndices, num_examples=whole, batch_size=whole, seed=seed),
    "ShuffledIndices()": row(INDICES.chunk, step=("from 0", 3), length=("whole", 2)),
    "StreamedImages": row(
        stream,
        read=("function", lambda indices: PIXELS[indices]),
        shape=("event shape", PIXELS.shape),
    ),
    "PrefetchedBatches": row(
        prefetch,
        dataset=("dataset", DATASET),
        indices=("indices over data", INDICES),
        start_step=("from 0", 3),
        chunk_length=("chunk length", lambda step: 1 if step < 5 else 0),
        share=("slice", slice(0, 2)),
    ),
    "as_images": row(visualize.as_images, events=("images", PIXELS), spatial_rank=rank),
    "image_grid": row(visualize.image_grid, images=("colour or grey", PIXELS), **sheet),
    "save_grid": row(visualize.save_grid, path=png, images=("colour or grey", PIXELS), **sheet),
    "save_gif": row(
        visualize.save_gif,
        path=("path with an ending", PLACE / "new.gif"),
        frames=("image rows", PIXELS.reshape(4, 6, 4, 5, 1)),
        seconds=("above 0", 1.0),
        hold_last=("positive", 0.5),
        max_rate=("above 0", 4.0),
        **sheet,
    ),
    "save_rows": row(
        visualize.save_rows,
        path=png,
        images=("image rows", TILES),
        row_labels=("row texts", ["a", "b"]),
        column_labels=("row texts", ["c", "d"]),
        captions=("captions", [["e", "f"], ["g", "h"]]),
        title=some_text,
        hidden=("hidden", np.zeros(TILES.shape[:-1], bool)),
        padding=sheet["padding"],
        scale=sheet["scale"],
    ),
    "save_curves": row(
        visualize.save_curves,
        path=png,
        curves=("curves", {"a": curve}),
        xlabel=("text", "x"),
        ylabel=("text", "y"),
        logx=flag,
        logy=flag,
        title=some_text,
        xticks=("ticks", [1.0, 2.0]),
        levels=("heights", {"level": 2.0}),
    ),
    "save_loss_curve": row(
        visualize.save_loss_curve,
        path=png,
        steps=("curve", curve[0]),
        losses=("other curve", curve[1]),
        heldout=("some curve", curve),
        title=some_text,
        window=("whole or None", 3),
        logy=("flag or None", False),
    ),
    "save_panels": row(
        visualize.save_panels,
        path=png,
        panels=("panels", [visualize.Panel("title", [visualize.Line(*curve)])]),
        title=some_text,
        columns=("whole or None", 1),
        size=("inches", (2.0, 2.0)),
    ),
    "save_panels(Line)": row(
        draw_line,
        x=("curve", curve[0]),
        y=("other curve", curve[1]),
        band=("band", (curve[1] - 1, curve[1] + 1)),
        width=("positive", 1.5),
    ),
    "save_panels(Points)": row(
        draw_points,
        points=("pairs", FEATURES[:, :2]),
        size=("positive", 3.0),
        alpha=("opacity", 0.5),
    ),
    "save_panels(Arrows)": row(
        draw_arrows, points=("pairs", FEATURES[:, :2]), vectors=("pairs", FEATURES[:, 1:])
    ),
    "save_panels(Heatmap)": row(
        draw_heatmap,
        values=("map", FEATURES),
        extent=("extent", (0.0, 1.0, 0.0, 1.0)),
        limits=("limits", (-1.0, 1.0)),
    ),
}
OFFICIAL = "reads official files: their own tests, tests/hostile and test_data_contract"
ELSEWHERE = {
    **{
        name: OFFICIAL
        for name in ("load_cifar10", "load_cifar100", "load_mnist", "load_fashion_mnist")
    },
    **{name: OFFICIAL for name in ("load_svhn", "prepare_cifar10_tfds")},
    "load_tfds": "reads prepared folders: test_data_tfds, tests/hostile/test_tfds",
    "load_hugging_face": "reads folders of its library: tests/hostile/test_hub",
    "load_inception_weights": "reads one official file: test_evaluation_inception",
    "inception_variables_from_torch": "takes one network's tensors: test_evaluation_inception",
    "inception_variables_to_torch": "takes one network's variables: test_evaluation_inception",
    "prepare_images": "draws with its keys in every call, which JAX's check of reuse refuses: "
    "test_data_pipeline",
    "InceptionV3": "a network without options",
    "Panel": "a record, checked by save_panels",
    "TrainState": "a record, made by init_state",
    "SpikeGuard": "a record, made by init_spike_guard",
    "init_spike_guard": "has no arguments",
    "StopRequest": "has no arguments",
}
BOTH = "two sets of one width: another call that is right"
WATCHED = training.init_spike_guard()
for _ in range(1000):
    WATCHED = watch_loss(WATCHED, 1.0)


def mean_of(optimizer):
    """Adam's mean of the gradients, 0.1 of the clipped one, after one of norm 100."""
    gradient = jnp.array([100.0])
    return optimizer.update(gradient, optimizer.init(gradient))[1][1][0].mu[0]


DOCUMENTED: dict[tuple[str, str, str], tuple[str, Any]] = {
    ("kernel_distance", "real, generated", "exchanged"): (
        BOTH,
        lambda result, right: result.num_subsets == right.num_subsets,
    ),
    ("from_arrays", "labels", "None"): ("images without labels", same),
    ("make_optimizer", "clip_norm", "inf"): (
        "no limit",
        lambda result, right: np.allclose([mean_of(result), mean_of(right)], [10.0, 0.1]),
    ),
    ("make_train_step", "spike_factor", "inf"): (
        "no loss is a spike",
        lambda result, right: [bool(is_spike(WATCHED, 1e30, f)) for f in (np.inf, 3.0)] == [0, 1],
    ),
    ("fingerprint_of", "labels", "negative"): (
        "any integers, with another fingerprint",
        lambda result, right: result != right,
    ),
    ("ShuffledIndices()", "step, length", "exchanged"): (
        "two numbers of one range: another call that is right",
        lambda result, right: result.shape == (3, 4),
    ),
    **{
        (f"save_panels({layer})", argument, "nan"): ("they are left out", same)
        for layer, argument in (("Points", "points"), ("Arrows", "points"), ("Arrows", "vectors"))
    },
    ("save_panels(Points)", "points", "none"): ("a panel without points", same),
    ("save_loss_curve", "steps, losses", "exchanged"): ("another curve", same),
    ("save_panels(Line)", "x, y", "exchanged"): ("another line", same),
    ("polynomial_mmd", "real, generated", "exchanged"): (BOTH, np.isclose),
    ("frechet_distance", "a, b", "exchanged"): (BOTH, np.isclose),
    ("nearest_neighbours", "samples, train", "exchanged"): (BOTH, same),
    ("precision_recall", "real, generated", "exchanged"): (
        BOTH,
        lambda result, right: result[:2] == (right.recall, right.precision),
    ),
    ("density_coverage", "real, generated", "exchanged"): (
        BOTH,
        lambda result, right: 0 <= result.coverage <= 1,
    ),
}
NET = Net(
    ROOMS,
    ROWS,
    DOCUMENTED,
    ELSEWHERE,
    KINDS,
    classes=True,
    passed_on={
        "inception_extractor": "FeatureExtractor",
        "classifier_extractor": "FeatureExtractor",
        "load_folder": "cache_root",
        "load_named": "load_digits",
    },
)


def test_every_public_name_has_a_row():
    assert not NET.missing()


@pytest.mark.parametrize("name", ROWS)
def test_the_right_call_is_right(name):
    call(ROWS[name], {})


@pytest.mark.parametrize("name", ROWS)
def test_wrong_calls_raise_an_error_of_ours(name):
    faults = NET.faults(name)
    assert not faults, "\n".join([name, *faults])


@pytest.mark.parametrize(
    "name",
    NET.with_whole_numbers(),
)
def test_whole_numbers_may_be_floats(name):
    assert not NET.refused_floats(name)


def test_documented_meanings_are_reached():
    assert not NET.unreached()
