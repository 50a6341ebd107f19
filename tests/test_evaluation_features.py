"""Features over devices and in streams: the same numbers however the images are cut."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluation import (
    PYTORCH,
    FeatureExtractor,
    Moments,
    Preprocessing,
    batches_of,
    frechet_distance,
    inception_extractor,
    moments_of,
    pixel_features,
    resize_tf1,
    summarize_features,
    variables_fingerprint,
)
from ddpm_jax.evaluation import summary as summary_module

SMALL = Preprocessing("small", resize_tf1, 128.0, 128.0, size=4)


def toy(variables, x):
    """A network of two outputs whose features tell images, and their places, apart."""
    flat = x.reshape(x.shape[0], -1)
    return {"pool": flat @ variables["w"], "mean": flat.mean(axis=1, keepdims=True)}


def toy_extractor(**options):
    w = np.random.default_rng(0).standard_normal((48, 5)).astype(np.float32)
    return FeatureExtractor(toy, {"w": jnp.asarray(w)}, network="toy", preprocess=SMALL, **options)


def some_images(count, channels=3, size=4):
    shape = (count, size, size, channels)
    return np.random.default_rng(count).integers(0, 256, shape, np.uint8)


def test_features_equal_numpy_on_any_number_of_devices():
    """21 images in steps of 8: the last holds 5, filled up over all devices and cut again."""
    images = some_images(21)
    flat = (images.astype(np.float64).reshape(21, -1) - 128) / 128
    w = np.random.default_rng(0).standard_normal((48, 5)).astype(np.float32)
    for count in (1, 8):
        extractor = toy_extractor(batch_size=8, devices=jax.devices()[:count])
        found = extractor(images)
        assert set(found) == {"pool", "mean"}
        np.testing.assert_allclose(found["pool"], flat @ w, atol=2e-5)
        np.testing.assert_allclose(found["mean"][:, 0], flat.mean(axis=1), atol=1e-6)


def test_one_program_for_all_batches_and_its_size_fits_the_devices():
    traces = []

    def counted(variables, x):
        traces.append(x.shape)
        return toy(variables, x)

    variables = {"w": jnp.ones((48, 5))}
    extractor = FeatureExtractor(
        counted, variables, network="toy", preprocess=SMALL, batch_size=3, devices=jax.devices()
    )
    assert extractor.batch_size == 8
    sizes = [len(piece["pool"]) for piece in extractor.stream(some_images(19))]
    assert sizes == [8, 8, 3]
    assert traces == [(1, 4, 4, 3)], "each of eight devices sees one image, traced once"


def test_grey_is_three_equal_channels():
    extractor = toy_extractor(batch_size=8, devices=jax.devices()[:1])
    grey = some_images(5, channels=1)
    colour = extractor(np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(extractor(grey)["pool"], colour["pool"], atol=1e-5)
    with pytest.raises(ValueError, match="1 or 3 channels.*alpha"):
        extractor(some_images(5, channels=4))
    with pytest.raises(TypeError, match="uint8"):
        extractor(grey / 255)


def test_fingerprint_tells_what_a_feature_depends_on():
    variables = {"w": jnp.ones((48, 5))}
    options = {"network": "toy", "preprocess": SMALL, "devices": jax.devices()[:1]}
    base = FeatureExtractor(toy, variables, **options).fingerprint
    assert base == FeatureExtractor(toy, variables, **(options | {"batch_size": 7})).fingerprint
    nudged = {"w": variables["w"].at[3, 2].add(1e-6)}
    others = [
        FeatureExtractor(toy, nudged, **options),
        FeatureExtractor(toy, variables, **(options | {"network": "other"})),
        FeatureExtractor(toy, variables, **(options | {"preprocess": PYTORCH})),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 4
    renamed = {"v": variables["w"]}
    assert variables_fingerprint(variables) != variables_fingerprint(renamed)


def test_inception_knows_its_outputs():
    with pytest.raises(ValueError, match="needs outputs, some of"):
        inception_extractor({}, outputs=("pool3",))


@pytest.mark.parametrize("sizes", [[10], [3, 4, 3], [1] * 10, [7, 3], [4, 4, 2]])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_batches_are_recut_in_order(sizes, batch_size):
    images = some_images(10)
    pieces = np.split(images, np.cumsum(sizes)[:-1])
    found = list(batches_of(iter(pieces), batch_size))
    assert [len(b) for b in found] == [
        len(images[i : i + batch_size]) for i in range(0, 10, batch_size)
    ]
    np.testing.assert_array_equal(np.concatenate(found), images)


def test_batches_refuse_mixed_sizes_and_nothing():
    with pytest.raises(ValueError, match="one size"):
        list(batches_of([some_images(4), some_images(4, size=5)], 4))
    with pytest.raises(ValueError, match="no image"):
        list(batches_of(iter([]), 4))


def test_streamed_moments_equal_those_of_all_features(monkeypatch):
    """Also merged at other places than the batches end, by a plain function or an extractor."""
    monkeypatch.setattr(summary_module, "_AT_ONCE", 13)
    images = some_images(50)
    done = []
    found = moments_of(images, pixel_features, batch_size=8, on_progress=done.append)["features"]
    features = pixel_features(images)
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), atol=1e-14)
    assert found.count == 50 and done == [8, 16, 24, 32, 40, 48, 50]

    extractor = toy_extractor(batch_size=8, devices=jax.devices()[:1])
    kept = summarize_features(
        iter([images[:9], images[9:]]), extractor, moments=["mean"], keep=["pool"]
    )
    assert set(kept.moments) == {"mean"} and set(kept.features) == {"pool"} and kept.count == 50
    np.testing.assert_allclose(kept.features["pool"], extractor(images)["pool"], atol=1e-5)


def test_moments_never_hold_the_features_of_all_images():
    """20,480 images of 256 features are 21 MB in float32 and 42 MB in float64."""

    def features(images):
        made = np.zeros((len(images), 256), np.float32)
        made[:, 0] = images[:, 0, 0, 0]
        return made

    stream = (np.full((256, 1, 1, 1), i, np.uint8) for i in range(80))
    tracemalloc.start()
    found = moments_of(stream, features, batch_size=256)["features"]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.count == 80 * 256
    np.testing.assert_allclose(found.mean[0], 39.5)
    assert most < 20e6, f"{most / 1e6:.0f} MB at once"


def test_distance_of_two_gaussians_through_the_stream():
    """Features of N(0, diag) and N(m, diag'): ‖m‖² + Σ (σ - σ')², within their sampling error."""
    rng = np.random.default_rng(0)
    spread_a, spread_b, shift = np.array([1.0, 2.0, 0.5]), np.array([1.5, 1.0, 0.5]), 2.0
    marks = np.zeros((60_000, 1, 1, 1), np.uint8)

    def of(mean, spread):
        def features(images):
            return mean + spread * rng.standard_normal((len(images), 3))

        return moments_of(marks, features, batch_size=1000)["features"]

    expected = 3 * shift**2 + np.square(spread_a - spread_b).sum()
    found = frechet_distance(of(0.0, spread_a), of(shift, spread_b))
    # Its standard error is about 2‖m‖ √(Σσ²/N): 0.07.
    np.testing.assert_allclose(found, expected, atol=0.25)


def test_distance_is_stable_for_few_examples():
    """Ten examples of 512 features: Σ is singular, and the exact value is known.

    The same ten, moved by m and scaled by c about their mean: ‖m‖² + (1 - c)² tr Σ.
    """
    x = np.random.default_rng(0).standard_normal((10, 512))
    mean, c = x.mean(axis=0), 1.5
    moved = (x - mean) * c + mean + 0.01
    a = moments_of(np.zeros((10, 1, 1, 1), np.uint8), lambda _: x)["features"]
    b = Moments(moved.mean(axis=0), np.cov(moved.T), 10)
    expected = 512 * 0.01**2 + (1 - c) ** 2 * np.trace(np.cov(x.T))
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-6)


def test_features_of_the_wrong_shape_or_name_are_refused():
    with pytest.raises(ValueError, match=r"Features are \[n, D\]"):
        moments_of(some_images(4), lambda images: images)
    with pytest.raises(ValueError, match="got the names \\['pool'\\]"):
        summarize_features(some_images(4), pixel_features, keep=["pool"])
    with pytest.raises(ValueError, match="finite"):
        moments_of(some_images(4), lambda images: np.full((len(images), 2), np.nan))
