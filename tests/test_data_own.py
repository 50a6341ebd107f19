"""Data of one's own: labels of folders, arrays, functions, and names that are refused."""

import hashlib
import json
import unicodedata
import warnings
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import from_arrays, load_arrays, load_folder, load_named, make_dataset
from ddpm_jax.data.images import decode_image, size_of
from ddpm_jax.data.labels import class_number, known_classes, read_labels
from ddpm_jax.data.registry import DataOptions, check_name, load_from


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


NAMES = ["b/1.png", "b/2.png", "a/3.png", "a/4.png", "a/5.png"]  # listed: a/3 a/4 a/5 b/1 b/2
BY_NAME = {"b/1.png": "10", "b/2.png": "9", "a/3.png": "10", "a/4.png": "9", "a/5.png": "9"}


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(NAMES):
        save(tmp_path / "photos" / name, noise(6, 6 + i, 3))
    return tmp_path / "photos"


def write_csv(photos, rows, header="file,label"):
    file = photos.parent / "labels.csv"
    file.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", "utf-8-sig")
    return file


def write_json(photos, rows):
    file = photos / "dataset.json"
    file.write_text(json.dumps({"labels": rows}))
    return file


def test_class_folders_are_classes_in_the_order_of_their_names(photos):
    data = load_folder(photos, 6, labels="auto")
    np.testing.assert_array_equal(data.labels, [0, 0, 0, 1, 1])
    assert (data.num_classes, data.class_names) == (2, ("a", "b"))
    # Numbers do not depend on the split, and labels not on the cache.
    for _ in range(2):
        part = load_folder(photos, 6, labels="auto", split="train", holdout=0.5)
        np.testing.assert_array_equal(part.labels, [0, 1])
        assert (part.num_classes, part.class_names) == (2, ("a", "b"))
    plain = load_folder(photos, 6)
    assert plain.num_classes is None and plain.class_names is None
    assert plain.fingerprint != data.fingerprint
    np.testing.assert_array_equal(plain.images, data.images)


@pytest.mark.parametrize("kind", ["csv", "csv of 9.0", "json", "json of integers", "given json"])
def test_a_file_of_labels_gives_them_by_name(photos, kind):
    """Integers keep their order: 9 comes before 10."""
    source, end = "auto", ".0" if kind == "csv of 9.0" else ""
    if kind.startswith("csv"):
        source = write_csv(photos, [(name, label + end) for name, label in BY_NAME.items()])
    elif kind == "json of integers":
        write_json(photos, [[name, int(label)] for name, label in BY_NAME.items()])
    else:
        source = write_json(photos, list(map(list, BY_NAME.items())))
        source = source if kind == "given json" else "auto"
    data = load_folder(photos, 6, labels=source)
    np.testing.assert_array_equal(data.labels, [1, 0, 0, 1, 0])
    assert data.class_names == ("9", "10")


@pytest.mark.parametrize(
    "header, separator", [("file;label", ";"), ("file\tlabel", "\t"), ("File, Label ", ",")]
)
def test_a_csv_may_be_a_spreadsheets(photos, header, separator):
    rows = [(separator.join(row),) for row in BY_NAME.items()]
    labels = read_labels(photos, NAMES, write_csv(photos, rows, header))
    np.testing.assert_array_equal(labels.numbers, [1, 0, 1, 0, 0])


@pytest.mark.parametrize(
    "folders, names",
    [(("train", "test"), "test, train"), (("Train", "VAL", "test"), "Train, VAL, test")],
)
def test_folders_of_splits_are_no_classes(tmp_path, folders, names):
    images = sorted(f"{folder}/cat/{i}.png" for folder in folders for i in range(2))
    with pytest.raises(ValueError, match=f"the folders {names} in .*/{folders[0]} ") as caught:
        read_labels(tmp_path, images)
    assert "--data.labels none" in str(caught.value)
    assert read_labels(tmp_path, images, "none") is None
    also_a_class = read_labels(tmp_path, [*images, "ship/0.png", "ship/1.png"])
    assert len(also_a_class.names) == len(folders) + 1


@pytest.mark.parametrize(
    "folders, inner",
    [
        (("pets/cat", "pets/dog"), "pets"),
        (("zip/pets/cat", "zip/pets/cats"), "zip/pets"),  # the names begin alike
        (("pets", "pets/cat", "pets/dog"), "pets"),
        (("pets/cat",), None),
        (("pets", "pets/cat"), None),
        (("", "pets/cat", "pets/dog"), None),  # some pictures are beside the folder
        (("",), None),
    ],
)
def test_classes_within_one_folder_are_warned_of(tmp_path, folders, inner):
    images = sorted(str(PurePosixPath(folder, f"{i}.png")) for folder in folders for i in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_labels(tmp_path, images) is None
        assert read_labels(tmp_path, images, "none") is None
    remedies = [f"pass {tmp_path / inner} (--data.path)"] if inner else []
    assert len(caught) == len(remedies)
    for warning, remedy in zip(caught, remedies, strict=True):
        assert remedy in str(warning.message) and "--data.labels none" in str(warning.message)
    if inner:
        within = [name.removeprefix(f"{inner}/") for name in images]
        nested = [name for name in within if "/" in name]
        assert len(read_labels(tmp_path / inner, nested).names) == 2


@pytest.mark.parametrize(
    "one, other",
    [("Cat", "cat"), ("a  b", "a b"), ("e\u0301", "\u00e9"), ("cat", "dog"), ("1", "01")],
)
def test_classes_that_look_alike_are_warned_of(tmp_path, one, other):
    images = [f"{name}/{i}.png" for name in (one, other) for i in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels = read_labels(tmp_path, images)
    assert len(labels.names) == 2
    alike = (one, other) not in {("cat", "dog"), ("1", "01")}
    assert [f"{one!r} and {other!r}" in str(w.message) for w in caught] == [True] * alike


@pytest.mark.parametrize(
    "label, names, number",
    [
        ("03", ["01", "02", "03", "x"], 2),  # not the number 3
        (3, ["01", "02", "03", "x"], 3),
        ("3", ["01", "02", "03", "x"], 3),
        ("04", ["01", "02", "03", "x"], None),
        ("e\u0301", ["\u00e9", "e"], 0),
        ("\u00e9", ["e\u0301", "\u00e9"], 1),  # its own spelling first
        ("\udcc3\udca9", ["e", "\u00e9"], 1),  # as Python reads it where the locale is ASCII
        ("2", ["1", "2", "3"], 1),
        (0, ["1", "2", "3"], None),
        ("2", [], 2),
        ("4", [], None),
        ("-1", [], None),
        ("", ["a", "b"], None),
    ],
)
def test_a_class_is_found_by_its_name_or_its_number(label, names, number):
    assert class_number(label, len(names) or 4, names) == number


@pytest.mark.parametrize(
    "names, known",
    [
        ([], "0..3"),
        (["cat", "dog"], "0..3, cat, dog"),
        (["1", "2"], "1, 2"),
        (["n"] * 21, "0..3" + ", n" * 20 + ", …"),
    ],
)
def test_the_classes_that_may_be_named_are_listed(names, known):
    assert known_classes(4, names) == known


def test_a_missing_file_of_labels_is_looked_for_in_the_folder(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos / "mine.csv").write_text("file,label")
    for name, meant in (("mine.csv", r"Did you mean .*photos/mine\.csv\?"), ("no.csv", r"\.$")):
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist .*{meant}"):
            read_labels(photos, NAMES, name)


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_however_their_accents_are_written(tmp_path, form, other):
    """macOS archives hold e and an accent, where a spreadsheet holds é."""
    names = [f"é{i}.png" for i in range(4)]
    images = [unicodedata.normalize(form, name) for name in names]
    file = tmp_path / "labels.csv"
    rows = [f"{unicodedata.normalize(other, name)},{i % 2}" for i, name in enumerate(names)]
    file.write_text("\n".join(["file,label", *rows]), "utf-8")
    np.testing.assert_array_equal(read_labels(tmp_path, images, file).numbers, [0, 1, 0, 1])


def test_changed_labels_are_other_data(photos):
    file = write_csv(photos, BY_NAME.items())
    first = load_folder(photos, 6, labels=file)
    write_csv(photos, [(name, "x" if label == "9" else "a") for name, label in BY_NAME.items()])
    second = load_folder(photos, 6, labels=file)
    assert second.class_names == ("a", "x")
    np.testing.assert_array_equal(second.labels, 1 - first.labels)
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("rows", [None, []])
def test_without_labels_there_are_none(photos, rows, tmp_path):
    if rows is None:
        write_json(photos, None)
        assert load_folder(photos, 6, labels="auto").num_classes is None
    save(tmp_path / "flat" / "1.png", noise(6, 6, 3))
    save(tmp_path / "flat" / "one" / "2.png", noise(6, 6, 3))
    assert load_folder(tmp_path / "flat", 6, labels="auto").num_classes is None


WRONG = {
    "missing": ([*BY_NAME.items()][1:], r"1 images have no label: b/1.png"),
    "empty": ([("b/1.png", " "), *[*BY_NAME.items()][1:]], "1 images have no label: b/1.png"),
    "surplus": ([*BY_NAME.items(), ("c/6.png", "9")], "1 labels are of no image: c/6.png"),
    "single": ({**BY_NAME, "a/3.png": "8"}.items(), "2 classes have a single image: 10, 8"),
    "spelt": ({**BY_NAME, "a/4.png": "9.0"}.items(), "2 labels are a number in two spellings: 9"),
    "twice": ([*BY_NAME.items(), ("b/1.png", "9")], "'10' and '9'"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_labels_that_do_not_fit_are_named(photos, case, kind):
    rows, match = WRONG[case]
    rows = [(name, label.strip() if kind == "json" else label) for name, label in rows]
    source = write_csv(photos, rows) if kind == "csv" else write_json(photos, list(map(list, rows)))
    with pytest.raises(ValueError, match=match) as caught:
        load_folder(photos, 6, labels=source)
    assert source.name in str(caught.value)


def test_at_most_twenty_names_are_listed(photos):
    rows = [*BY_NAME.items(), *((f"x/{i:03}.png", "9") for i in range(50))]
    with pytest.raises(ValueError, match=r"50 labels are of no image: .*x/019.png, …") as caught:
        load_folder(photos, 6, labels=write_csv(photos, rows))
    assert "x/020.png" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "path,class\nb/1.png,9\n"),
        ("a.csv", ""),
        ("a.csv", 'file,label\n"b/1.png'),
        ("a.csv", "file,label,label\nb/1.png,9,10\n"),
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", "{}"),
        ("a.json", '{"labels": {"b/1.png": 9}}'),
        ("a.json", '{"labels": [["b/1.png", [0.5, 1]]]}'),
        ("a.json", '{"labels": [["b/1.png", true]]}'),
        ("a.txt", "b/1.png 9"),
    ],
)
def test_a_file_that_is_none_of_labels_is_refused(photos, name, content):
    file = photos.parent / name
    file.write_text(content)
    with pytest.raises(ValueError, match="labels") as caught:
        read_labels(photos, NAMES, file)
    assert name in str(caught.value)


def test_grey_stays_grey_if_all_images_are(tmp_path):
    root = tmp_path / "grey"
    for i in range(3):
        save(root / f"{i}.png", noise(6, 6 + i))
    assert load_folder(root, 6, channels="auto").images.shape == (3, 6, 6, 1)
    assert load_folder(root, 6, channels=3).images.shape == (3, 6, 6, 3)
    nothing = load_folder(root, 6, channels="auto", split="heldout", holdout=0)
    assert nothing.images.shape == (0, 6, 6, 1)
    save(root / "9.png", noise(6, 6, 3))
    assert load_folder(root, 6, channels="auto").images.shape == (4, 6, 6, 3)
    # Both splits have the channels of the whole: the only image in colour is in one of them.
    for split in ("train", "heldout"):
        assert load_folder(root, 6, channels="auto", split=split).images.shape[-1] == 3


@pytest.mark.parametrize(("height", "width"), [(4, 6), (12, 6), (4, 13), (40, 90), (200, 60)])
def test_rectangles_are_the_largest_central_ones(tmp_path, height, width):
    """A pixel of a linear ramp becomes the ramp at its centre, wherever the filter is symmetric."""
    rows, columns = 4, 6
    scale = min(height / rows, width / columns)
    top, left = (height - rows * scale) // 2, (width - columns * scale) // 2
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(height)[:, None], np.arange(width)
    save(tmp_path / "a.png", ramp)
    got = decode_image(tmp_path / "a.png", (rows, columns))[0].astype(float)
    assert got.shape == (rows, columns, 3)
    for axis, (start, count, size) in enumerate(((top, rows, height), (left, columns, width))):
        wanted = start + (np.arange(count) + 0.5) * scale - 0.5
        inside = (
            (wanted > 3 * scale) & (wanted < size - 1 - 3 * scale) if scale > 1 else slice(None)
        )
        seen = got[:, 0, 0] if axis == 0 else got[0, :, 1]
        np.testing.assert_allclose(seen[inside], wanted[inside], rtol=0, atol=1)


def test_a_resolution_is_a_side_or_height_x_width():
    assert size_of(64) == size_of("64") == (64, 64)
    assert size_of("48x64") == size_of((48, 64)) == (48, 64)
    for wrong in (0, -1, "", "x", "48x", "48x64x3", "4.5", "١", (1, 2, 3), 1 << 16):
        with pytest.raises(ValueError, match="such as 64, or HEIGHTxWIDTH"):
            size_of(wrong)


def test_arrays_are_split_with_all_that_belongs_to_an_image(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = noise(20, 6, 5), np.arange(20) % 4
    conditions = {
        "cond": rng.normal(size=(20, 2)),
        "context": rng.normal(size=(20, 3, 4)),
        "context_mask": rng.integers(0, 2, (20, 3)),
    }
    load = from_arrays(images, labels, **conditions, holdout=0.25)
    np.savez(tmp_path / "own.npz", images=images, labels=labels, **conditions)
    for split, rows in (("heldout", slice(0, None, 4)), ("train", np.arange(20) % 4 != 0)):
        data = load(split)
        np.testing.assert_array_equal(data.images[..., 0], images[rows])
        np.testing.assert_array_equal(data.labels, labels[rows])
        assert data.conditions.keys() == conditions.keys()
        for name, found in data.conditions.items():
            assert found.dtype == (bool if name == "context_mask" else np.float32)
            np.testing.assert_array_equal(found, conditions[name][rows].astype(found.dtype))
        assert data.num_classes == 4
        stored = load_arrays(split, path=tmp_path / "own.npz", holdout=0.25)
        assert stored.fingerprint == data.fingerprint
    np.save(tmp_path / "own.npy", images[..., None])
    whole = load_arrays("train", path=tmp_path / "own.npy", holdout=0)
    assert len(whole.images) == 20 and not whole.conditions and whole.num_classes is None
    assert len(load_arrays("heldout", path=tmp_path / "own.npy", holdout=0).images) == 0


def test_the_fingerprint_knows_the_conditions():
    images, cond, context = noise(4, 3, 3, 1), np.ones((4, 2)), np.ones((4, 2, 3))
    given: list = [
        {},
        {"cond": cond},
        {"cond": -cond},
        {"context": context},
        {"context": -context},
        {"context": context, "context_mask": np.eye(4, 2, dtype=bool)},
        {"context": context, "cond": cond},
    ]
    prints = [make_dataset(images, None, None, "x", **some).fingerprint for some in given]
    assert len(set(prints)) == len(given)
    # Of runs trained before there was a context; and no mask is a mask of all tokens.
    text = b"images uint8 [4, 3, 3, 1]\n" + images.tobytes()
    text += b"labels int32 [4]\n" + bytes(16) + b"cond float32 [4, 2]\n"
    text += cond.astype("<f4").tobytes()
    assert prints[1] == hashlib.sha256(text).hexdigest()
    whole = make_dataset(images, None, None, "x", context=context, context_mask=np.ones((4, 2)) > 0)
    assert whole.fingerprint == prints[3]


@pytest.mark.parametrize(
    ("conditions", "match"),
    [
        ({"cond": np.ones(4)}, r"cond \[N, D\] of numbers for 4 images, got float64 \(4,\)"),
        ({"cond": np.ones((3, 2))}, "for 4 images"),
        ({"cond": np.ones((4, 0))}, "got float64"),
        ({"cond": np.full((4, 1), np.nan)}, "finite cond .* image 0"),
        ({"cond": np.full((4, 1), "a")}, "of .*numbers"),
        ({"context": np.ones((4, 2))}, r"context \[N, L, D\] of numbers for 4 images"),
        ({"context": np.ones((5, 2, 3))}, "for 4 images"),
        ({"context": np.ones((4, 0, 3))}, "got float64"),
        ({"context": np.full((4, 2, 3), np.inf)}, "finite context .* image 0"),
        ({"context_mask": np.ones((4, 2), bool)}, "without a context"),
        ({"context": np.ones((4, 2, 3)), "context_mask": np.ones((4, 3), bool)}, r"\[4, 2\] of b"),
        ({"context": np.ones((4, 2, 3)), "context_mask": np.ones((4, 2))}, "got float64"),
        ({"context": np.ones((4, 2, 3)), "context_mask": np.full((4, 2), 2)}, "got int64"),
    ],
)
def test_wrong_conditions_are_refused(conditions, match):
    with pytest.raises((ValueError, TypeError), match=rf"make_dataset\('x'\).*{match}"):
        make_dataset(noise(4, 3, 3, 1), None, None, "x", **conditions)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"pictures": noise(4, 3, 3, 1)}, "no array `images`"),
        ({"images": np.zeros((4, 3, 3, 1))}, "uint8"),
        ({"images": noise(6, 3, 8, 8)}, r"channels last.*\(6, 3, 8, 8\).*np.moveaxis"),
        ({"images": noise(8, 8, 3)}, r"images\[None\].*images\[..., None\]"),
        ({"images": noise(4, 3, 3, 1), "labels": np.arange(3)}, "integer labels"),
        ({"images": noise(4, 3, 3, 1), "labels": np.arange(4) - 1}, "0 ≤ label"),
        ({"images": noise(4, 3, 3, 1), "labels": np.full(4, np.nan)}, "integer labels"),
        ({"images": noise(4, 3, 3, 1), "labels": np.zeros(0, int)}, "integer labels"),
        # Identifiers, which would wrap around as int32.
        ({"images": noise(4, 3, 3, 1), "labels": np.full(4, 2**40)}, r"np\.unique"),
        ({"images": noise(4, 3, 3, 1), "labels": np.full(4, 2**64 - 1, np.uint64)}, r"np\.unique"),
        ({"images": noise(4, 3, 3, 1), "cond": np.ones((4, 0))}, "cond|damaged|empty"),
    ],
)
def test_wrong_arrays_are_refused_by_the_files_name(tmp_path, arrays, match):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=match) as caught:
        load_arrays("train", path=tmp_path / "own.npz")
    assert "own.npz" in str(caught.value)


def test_arrays_are_known_by_an_ending_in_any_case_and_a_missing_file_by_its_option(tmp_path):
    images = noise(4, 3, 3, 1)
    with (tmp_path / "OWN.NPZ").open("wb") as file:
        np.savez(file, images=images)
    found = load_arrays("train", path=tmp_path / "OWN.NPZ", holdout=0).images
    np.testing.assert_array_equal(found, images)
    with pytest.raises(FileNotFoundError, match=r"none\.npz, which does not exist.*--data\.path"):
        load_arrays("train", path=tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"which is a folder.*--data\.name folder"):
        load_arrays("train", path=tmp_path)


MODULE = """
import numpy as np
from ddpm_jax.data import from_arrays, make_dataset
images = np.arange(20 * 16, dtype=np.uint32).astype(np.uint8).reshape(20, 4, 4, 1)
dots = from_arrays(images, holdout=0.1)
def whole(split):
    return make_dataset(images, None, None, "whole/train") if split == "train" else None
def wrong(split):
    return images
number = 5
"""


def test_a_function_of_ones_own_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_data_for_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    assert len(load_named("my_data_for_a_test:dots", "train").images) == 18
    assert len(load_named("my_data_for_a_test:whole", "train").images) == 20
    assert load_named("my_data_for_a_test:whole", "heldout").images.shape == (0, 4, 4, 1)
    with pytest.raises(TypeError, match="needs to return an ImageDataset .* got ndarray"):
        load_named("my_data_for_a_test:wrong", "train")
    for name in ("absent", "number"):
        with pytest.raises(ValueError, match=f"no function {name}"):
            load_named(f"my_data_for_a_test:{name}", "train")
    with pytest.raises(ValueError, match="no module my_other_data"):
        load_named("my_other_data:dots", "train")
    with pytest.raises(ValueError, match="passed from Python"):
        load_named("python:data", "train")


def test_what_a_function_returns_is_checked():
    good = from_arrays(noise(10, 4, 4))("train")
    bad = good._replace(images=good.images.astype(np.float32))
    with pytest.raises(TypeError, match="uint8"):
        load_from(lambda split: bad, "train", "mine")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("cifar", "Did you mean cifar10"),
        ("fashion-mnist", "Did you mean fashion_mnist"),
        ("tdfs:mnist", None),
        ("tfds", "Did you mean tfds:NAME"),
        ("tfds:", "Did you mean tfds:NAME"),
        ("", "Known: digits"),
        ("my module:data", "package.module:function"),
        ("module:", "not a data set"),
        ("../x:y", "not a data set"),
    ],
)
def test_unknown_names_get_the_known_ones_and_the_nearest(name, match):
    if match is None:
        check_name(name)  # the function `mnist` of a module `tdfs`, for all that is known yet
        return
    with pytest.raises(ValueError, match=match):
        check_name(name)


@pytest.mark.parametrize("name", ["folder", "arrays"])
def test_what_a_data_set_needs_is_named(name):
    with pytest.raises(ValueError, match="needs --data.path"):
        load_named(name, "train", DataOptions())


@pytest.mark.parametrize("labels", ["coarse_label", "labels.csv"])
def test_labels_that_tfds_would_not_read_are_refused(labels, tmp_path):
    options = DataOptions(path=tmp_path, labels=labels)
    with pytest.raises(ValueError, match=f'"auto" or "none", got .*{labels}'):
        load_named("tfds:toy", "train", options)
