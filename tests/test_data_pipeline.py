"""Batches on their way to the step: prepared on the device, or prefetched from the host."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import (
    PrefetchedBatches,
    ShuffledIndices,
    fits_on_device,
    make_dataset,
    prepare_images,
)


def toy_dataset(num=20, shape=(3, 4, 2)):
    rng = np.random.default_rng(0)
    return make_dataset(
        rng.integers(0, 256, (num, *shape), np.uint8), np.arange(num) % 10, 10, "toy/train"
    )


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetched-batches")]


def test_without_flip_pixels_are_only_mapped():
    images = np.arange(2 * 8 * 16, dtype=np.uint8).reshape(2, 8, 16, 1)
    x = prepare_images(jnp.asarray(images), None, flip=False)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, images.astype(np.float64) / 127.5 - 1, rtol=0, atol=2e-7)


def test_half_the_images_are_mirrored_left_to_right():
    """Each output is the image or its mirror; of 4,000 coins 2000 ± 5·√1000 fall so."""
    images = jnp.broadcast_to(jnp.arange(12, dtype=jnp.uint8).reshape(1, 3, 4, 1), (4000, 3, 4, 1))
    x = np.asarray(prepare_images(images, jax.random.split(jax.random.key(0), 4000), flip=True))
    plain = np.arange(12).reshape(3, 4, 1) / 127.5 - 1
    as_is = np.abs(x - plain).max((1, 2, 3)) < 1e-6
    mirrored = np.abs(x - plain[:, ::-1]).max((1, 2, 3)) < 1e-6
    assert np.all(as_is ^ mirrored)
    assert abs(mirrored.sum() - 2000) < 158


def test_an_image_is_flipped_by_its_own_key_alone():
    """Rows one by one, or in another order, come out the same, jitted or not."""
    images = jnp.asarray(toy_dataset().images)
    seeds = np.arange(20)
    keys = jax.vmap(jax.random.key)
    whole = prepare_images(images, keys(seeds), flip=True)
    jitted = jax.jit(lambda i, k: prepare_images(i, k, flip=True))(images, keys(seeds))
    np.testing.assert_allclose(whole, jitted, rtol=0, atol=2e-7)
    order = np.random.default_rng(1).permutation(20)
    shuffled = prepare_images(images[order], keys(seeds[order]), flip=True)
    np.testing.assert_array_equal(shuffled, whole[order])
    for row in (0, 7):
        alone = prepare_images(images[row : row + 1], keys(seeds[row : row + 1]), flip=True)
        np.testing.assert_array_equal(alone[0], whole[row])


def test_prepare_images_refuses_what_it_would_have_to_guess():
    images = jnp.zeros((2, 4, 4, 1), jnp.uint8)
    with pytest.raises(TypeError, match="uint8"):
        prepare_images(images.astype(jnp.float32), None, flip=False)
    with pytest.raises(TypeError, match="needs keys"):
        prepare_images(images, None, flip=True)
    with pytest.raises(TypeError, match="needs keys"):
        prepare_images(images, jnp.zeros((2, 2), jnp.uint32), flip=True)
    with pytest.raises(ValueError, match="one per example"):
        prepare_images(images, jax.random.key(0), flip=True)


def test_pad_crop_shifts_an_image_by_its_own_key_and_reflects():
    """Every output is a crop of the padded image; all 81 shifts occur, at their uniform rate."""
    images = np.random.default_rng(0).integers(0, 256, (1, 6, 7, 2), np.uint8)

    def drawn(order=slice(None), **how):
        keys = jax.random.split(jax.random.key(1), 8100)
        return np.asarray(prepare_images(many[order], keys[order], **how))

    many = jnp.repeat(jnp.asarray(images), 8100, 0)
    got = drawn(flip=False, pad_crop=True)
    padded = np.pad(images[0], ((4, 4), (4, 4), (0, 0)), mode="reflect") / 127.5 - 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 7), axis=(0, 1))
    crops = windows.transpose(0, 1, 3, 4, 2).reshape(81, -1)
    distance = np.abs(got.reshape(8100, 1, -1)[:, :, :20] - crops[None, :, :20]).max(-1)
    assert distance.min(1).max() < 1e-6
    counts = np.bincount(distance.argmin(1), minlength=81)
    assert ((counts - 100) ** 2 / 100).sum() < 80 + 5 * np.sqrt(160)  # χ² with 80 degrees
    order = np.random.default_rng(2).permutation(8100)[:50]
    np.testing.assert_array_equal(drawn(order, flip=False, pad_crop=True), got[order])
    # Flips stay what they are without: their coins are drawn from other bits of the key.
    plain, flipped = drawn(flip=False), drawn(flip=True)
    both = drawn(flip=True, pad_crop=True)
    mirrored = (flipped != plain).any((1, 2, 3))
    assert 0.45 < mirrored.mean() < 0.55
    np.testing.assert_array_equal(both[~mirrored], got[~mirrored])
    with pytest.raises(ValueError, match="more than 4 pixels"):
        prepare_images(
            jnp.zeros((1, 4, 8, 1), jnp.uint8),
            jax.random.split(jax.random.key(0), 1),
            flip=False,
            pad_crop=True,
        )


def test_fits_on_device_counts_images_and_labels():
    dataset = toy_dataset()
    size = 20 * 3 * 4 * 2 + 20 * 4
    assert fits_on_device(dataset, size)
    assert not fits_on_device(dataset, size - 1)


def test_prefetched_batches_are_the_indexed_images():
    """Chunks of uneven length from step 5 on equal the direct indexing of the same steps."""
    dataset = toy_dataset()
    indices = ShuffledIndices(20, 6, seed=2)
    lengths = {5: 1, 6: 4, 10: 2}
    with PrefetchedBatches(
        dataset, indices, start_step=5, chunk_length=lambda step: lengths.get(step, 0)
    ) as chunks:
        seen = list(chunks)
        assert next(chunks, "exhausted") == "exhausted"
    assert [(c.step, len(c.indices)) for c in seen] == list(lengths.items())
    for chunk in seen:
        for k, batch in enumerate(chunk.images):
            chosen = indices(chunk.step + k)
            np.testing.assert_array_equal(chunk.indices[k], chosen)
            np.testing.assert_array_equal(batch, dataset.images[chosen])
            np.testing.assert_array_equal(chunk.labels[k], dataset.labels[chosen])
    assert not prefetch_threads()


def test_the_shares_of_two_processes_make_the_global_batch():
    dataset, indices = toy_dataset(), ShuffledIndices(20, 6, seed=2)
    parts = []
    for share in (slice(0, 3), slice(3, 6)):
        with PrefetchedBatches(
            dataset, indices, start_step=0, chunk_length=lambda step: 4, share=share
        ) as chunks:
            parts.append(next(chunks).images)
    assert parts[0].shape == (4, 3, 3, 4, 2)
    np.testing.assert_array_equal(np.concatenate(parts, 1), dataset.images[indices.chunk(0, 4)])


def test_no_more_than_the_depth_is_read_ahead():
    """Reading is driven by the consumer: at most the queue of two and one chunk more."""
    asked = []

    def chunk_length(step):
        asked.append(step)
        return 1

    with PrefetchedBatches(
        toy_dataset(), ShuffledIndices(20, 4, 0), start_step=0, chunk_length=chunk_length
    ) as chunks:
        for _ in range(5):
            next(chunks)
        threading.Event().wait(0.3)  # long enough to run away, were there nothing to stop it
        assert len(asked) <= 5 + 2 + 1


def test_leaving_early_ends_the_thread():
    with pytest.raises(KeyboardInterrupt):
        with PrefetchedBatches(
            toy_dataset(), ShuffledIndices(20, 4, 0), start_step=0, chunk_length=lambda step: 1
        ) as chunks:
            next(chunks)
            assert prefetch_threads()
            raise KeyboardInterrupt
    assert not prefetch_threads()
    with pytest.raises(RuntimeError, match="`with` block"):
        next(chunks)


def test_a_failing_read_reaches_the_consumer_with_its_steps_and_file():
    class Failing:
        filename = "/data/broken.npy"

        def __len__(self):
            return 20

        def __getitem__(self, chosen):
            if calls.append(None) or len(calls) > 2:
                raise OSError("device gone")
            return np.zeros((*chosen.shape, 3, 4, 2), np.uint8)

    calls = []
    dataset = toy_dataset()._replace(images=Failing())
    with PrefetchedBatches(
        dataset, ShuffledIndices(20, 4, 0), start_step=100, chunk_length=lambda step: 10
    ) as chunks:
        assert [next(chunks).step, next(chunks).step] == [100, 110]
        for _ in range(2):  # and again, should the consumer ask again
            with pytest.raises(
                RuntimeError, match=r"steps 120\.\.129 of toy/train \(/data/broken.npy\).*device"
            ) as caught:
                next(chunks)
            assert isinstance(caught.value.__cause__, OSError)
    assert not prefetch_threads()


def test_a_failing_chunk_length_reaches_the_consumer():
    with PrefetchedBatches(
        toy_dataset(), ShuffledIndices(20, 4, 0), start_step=0, chunk_length=lambda step: 1 // 0
    ) as chunks:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            next(chunks)


def test_a_mismatch_is_refused_at_once():
    with pytest.raises(ValueError, match="indices over 21 examples for toy/train of 20"):
        PrefetchedBatches(
            toy_dataset(), ShuffledIndices(21, 4, 0), start_step=0, chunk_length=lambda step: 1
        )
    batches = PrefetchedBatches(
        toy_dataset(), ShuffledIndices(20, 4, 0), start_step=0, chunk_length=lambda step: 1
    )
    with pytest.raises(RuntimeError, match="`with` block"):
        next(batches)
