"""Pictures are read back from their files and compared, pixel by pixel, with what was meant."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.visualize import (
    as_images,
    files,
    image_grid,
    save_curves,
    save_gif,
    save_grid,
    save_loss_curve,
    save_rows,
)
from ddpm_jax.visualize.grids import GAP


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def placed_pixel_by_pixel(images, columns, padding, scale):
    """The sheet by its definition: every pixel asks which image it belongs to."""
    count, height, width, channels = images.shape
    step_y, step_x = height * scale + padding, width * scale + padding
    rows = -(-count // columns)
    sheet = np.empty((padding + rows * step_y, padding + columns * step_x, channels), np.uint8)
    for y in range(sheet.shape[0]):
        for x in range(sheet.shape[1]):
            row, inner_y = divmod(y - padding, step_y)
            column, inner_x = divmod(x - padding, step_x)
            index = row * columns + column
            inside = min(row, column) >= 0 and inner_y < height * scale and inner_x < width * scale
            if inside and index < count:
                sheet[y, x] = images[index, inner_y // scale, inner_x // scale]
            else:
                sheet[y, x] = GAP
    return sheet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns, padding, scale", [(3, 2, 1), (2, 0, 2), (7, 1, 3), (1, 3, 1)])
def test_grid_puts_every_pixel_in_its_place(channels, columns, padding, scale):
    images = random_images(5, 3, 4, channels)
    sheet = image_grid(images, columns=columns, padding=padding, scale=scale)
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet, placed_pixel_by_pixel(images, columns, padding, scale))


@pytest.mark.parametrize("shape", [(64, 8, 8, 1), (10, 8, 8, 3), (12, 4, 32, 1), (12, 32, 4, 1)])
def test_default_sheet_is_nearly_square(shape):
    """No other number of columns leaves its sides closer to each other."""

    def gap(columns):
        sheet = image_grid(np.zeros(shape, np.uint8), padding=0, scale=1, columns=columns)
        return abs(sheet.shape[0] - sheet.shape[1])

    assert gap(None) == min(gap(columns) for columns in range(1, shape[0] + 1))


@pytest.mark.parametrize("scale, gap", [(1, 2), (2, 2), (9, 9)])
def test_the_default_gap_is_a_pixel_of_the_images(scale, gap):
    """Strokes that are white up to the edge of their images stay apart."""
    sheet = image_grid(np.full((2, 8, 8, 1), 255, np.uint8), columns=2, scale=scale)
    np.testing.assert_array_equal(
        np.flatnonzero(sheet[gap, :, 0] == GAP),
        [
            *range(gap),
            *(gap + 8 * scale + np.arange(gap)),
            *(2 * gap + 16 * scale + np.arange(gap)),
        ],
    )


def test_of_two_sheets_as_square_the_wider_is_taken():
    assert image_grid(np.zeros((10, 8, 8, 1), np.uint8), padding=0, scale=1).shape == (24, 32, 1)


@pytest.mark.parametrize(
    "shape, factor",
    [((64, 8, 8, 1), 12), ((1, 8, 8, 1), 12), ((400, 8, 8, 1), 4), ((64, 32, 32, 3), 3)]
    + [((4, 256, 256, 3), 1), ((4, 1000, 1000, 1), 1)],
)
def test_default_magnification_is_the_largest_within_the_limits(shape, factor):
    count, height, _, _ = shape
    sheet = image_grid(np.zeros(shape, np.uint8), padding=0)
    side = int(np.ceil(np.sqrt(count)))
    assert sheet.shape[1] == side * height * factor
    fits = [n for n in range(1, 99) if n * height <= 96 and n * height * side <= 768]
    assert factor == max(fits, default=1)


DRAWS_IMAGES = {
    "image_grid": lambda images, path: image_grid(images),
    "save_grid": lambda images, path: save_grid(path / "a.png", images),
    "save_gif": lambda images, path: save_gif(path / "a.gif", images[None]),
    "save_rows": lambda images, path: save_rows(path / "a.png", images[None]),
}


@pytest.mark.parametrize("name", DRAWS_IMAGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.bool_])
def test_only_uint8_is_drawn(name, dtype, tmp_path):
    remedy = "astype" if dtype == np.int32 else "to_pixels"
    with pytest.raises(TypeError, match=rf"{name} .*{np.dtype(dtype)}.*\n?.*{remedy}"):
        DRAWS_IMAGES[name](np.zeros((4, 8, 8, 1), dtype), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", DRAWS_IMAGES)
@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 2), (4, 8, 8, 4), (0, 8, 8, 1)])
def test_other_shapes_are_refused(name, shape, tmp_path):
    with pytest.raises(ValueError, match=f"{name} needs images"):
        DRAWS_IMAGES[name](np.zeros(shape, np.uint8), tmp_path)


@pytest.mark.parametrize("name", DRAWS_IMAGES)
def test_jax_arrays_are_drawn(name, tmp_path):
    DRAWS_IMAGES[name](jnp.zeros((4, 8, 8, 1), jnp.uint8), tmp_path)


@pytest.mark.parametrize("sizes", [{"columns": 0}, {"padding": -1}, {"scale": 0}, {"columns": -2}])
def test_sizes_below_their_least_are_refused(sizes):
    with pytest.raises(ValueError, match="needs (columns|padding|scale), a whole number"):
        image_grid(np.zeros((4, 8, 8, 1), np.uint8), **sizes)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_png_holds_the_grid_exactly(channels, mode, tmp_path):
    images = random_images(7, 5, 6, channels)
    save_grid(tmp_path / "deep" / "er" / "grid.png", images, scale=2)
    with Image.open(tmp_path / "deep" / "er" / "grid.png") as picture:
        assert picture.mode == mode
        read = np.asarray(picture).reshape(*picture.size[::-1], channels)
    np.testing.assert_array_equal(read, image_grid(images, scale=2))


def test_an_interrupted_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    save_grid(path, random_images(4, 8, 8, 1))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_grid(path, random_images(4, 8, 8, 1, seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_usual_permissions(tmp_path):
    """Those of a plainly opened file, so that pictures in a shared folder can be seen."""
    (tmp_path / "plain").write_bytes(b"")
    save_grid(tmp_path / "grid.png", random_images(1, 8, 8, 1))
    assert (tmp_path / "grid.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "call",
    [
        lambda path: save_grid(path, np.zeros((1, 8, 8, 1), np.uint8)),
        lambda path: save_gif(path, np.zeros((1, 1, 8, 8, 1), np.uint8)),
        lambda path: save_rows(path, np.zeros((1, 1, 8, 8, 1), np.uint8)),
        lambda path: save_curves(path, {"a": ([1], [1])}, "x", "y"),
        lambda path: save_loss_curve(path, [1], [1]),
    ],
)
def test_an_ending_that_would_lie_is_refused(call, tmp_path):
    with pytest.raises(ValueError, match=r"writes \.(png|gif) files, got path .*a\.jpg"):
        call(tmp_path / "a.jpg")


def read_gif(path):
    """Returns frames [F, H, W, 3], delays in milliseconds [F], and the loop count."""
    with Image.open(path) as picture:
        frames, delays = [], []
        for i in range(picture.n_frames):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGB")))
            delays.append(picture.info["duration"])
        return np.stack(frames), np.array(delays), picture.info["loop"]


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_shows_every_frame_in_order(channels, tmp_path):
    """To within 2 levels for grey, and exactly for frames of 255 colours or fewer."""
    levels = random_images(6, 9, 4, 5, 1)
    film = levels if channels == 1 else np.concatenate([levels, 255 - levels, levels // 2], -1)
    save_gif(tmp_path / "a.gif", film, seconds=1.0, hold_last=0.5, scale=2, columns=4)
    frames, delays, loop = read_gif(tmp_path / "a.gif")
    drawn = [np.broadcast_to(image_grid(f, scale=2, columns=4), frames[0].shape) for f in film]
    error = np.abs(frames.astype(int) - np.stack(drawn))
    assert error.max() <= (2 if channels == 1 else 0)
    np.testing.assert_array_equal(delays[:-1].sum() + delays[-1], 1500)
    assert delays[-1] - 500 in (160, 170) and loop == 0


def test_gif_colours_are_near_where_they_are_many(tmp_path):
    """A gradient of 4096 colours survives the palette with a root mean square error below 6."""
    y, x = np.mgrid[0:64, 0:64] * 255 // 63
    film = np.stack([y, x, 255 - (x + y) // 2], -1).astype(np.uint8)[None, None]
    save_gif(tmp_path / "a.gif", film, scale=1, padding=0)
    frames, _, _ = read_gif(tmp_path / "a.gif")
    assert np.sqrt(np.square(frames[0].astype(float) - film[0, 0]).mean()) < 6


def test_gif_borders_stay_grey_whatever_the_colours(tmp_path):
    save_gif(tmp_path / "a.gif", random_images(3, 4, 16, 16, 3), padding=3, scale=1)
    frames, _, _ = read_gif(tmp_path / "a.gif")
    assert (frames[:, :3] == GAP).all() and (frames[:, :, -3:] == GAP).all()


def test_long_films_are_thinned_evenly_and_keep_both_ends(tmp_path):
    """Frame i has level i, so that levels tell frames."""
    film = np.broadcast_to(
        np.arange(253, dtype=np.uint8)[:, None, None, None, None], (253, 1, 4, 4, 1)
    )
    save_gif(tmp_path / "a.gif", film, seconds=4.0, hold_last=1.5, max_rate=10.0, padding=0)
    frames, delays, _ = read_gif(tmp_path / "a.gif")
    shown = frames[:, 0, 0, 0].astype(int)
    assert len(shown) == 40 and delays.sum() == 5500
    np.testing.assert_allclose(shown, np.linspace(0, 252, 40), atol=3)
    assert shown[0] == 0 and abs(shown[-1] - 252) <= 2


def test_the_shortest_film_still_shows_both_ends(tmp_path):
    film = np.repeat(np.array([0, 100, 255], np.uint8), 64).reshape(3, 1, 8, 8, 1)
    save_gif(tmp_path / "a.gif", film, seconds=0.1, max_rate=1.0, padding=0)
    frames, _, _ = read_gif(tmp_path / "a.gif")
    np.testing.assert_array_equal(frames[:, 0, 0, 0], [0, 255])


def test_delays_add_up_although_each_is_rounded(tmp_path):
    """Seven frames a second are 142.857 ms each, which a GIF cannot say."""
    save_gif(tmp_path / "a.gif", random_images(7, 1, 8, 8, 1), seconds=1.0, hold_last=0.0)
    _, delays, _ = read_gif(tmp_path / "a.gif")
    assert delays.sum() == 1000 and set(delays) <= {140, 150}


@pytest.mark.parametrize("times", [{"seconds": 0}, {"hold_last": -1}, {"max_rate": 90}])
def test_impossible_times_are_refused(times, tmp_path):
    with pytest.raises(ValueError, match=f"save_gif needs {next(iter(times))} in"):
        save_gif(tmp_path / "a.gif", random_images(2, 1, 8, 8, 1), **times)


def read_png(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [{}, {"row_labels": list("ab"), "column_labels": list("xyz")}])
def test_rows_are_drawn_without_resampling(channels, labels, tmp_path):
    images = random_images(2, 3, 5, 7, channels)
    save_rows(tmp_path / "a.png", images, scale=3, **labels)
    sheet = image_grid(images.reshape(6, 5, 7, channels), columns=3, scale=3)
    read = read_png(tmp_path / "a.png")
    bottom, right = read.shape[0] - 12, read.shape[1] - 12
    found = read[bottom - sheet.shape[0] : bottom, right - sheet.shape[1] : right]
    np.testing.assert_array_equal(found, np.broadcast_to(sheet, found.shape))
    if not labels:
        assert read.shape[:2] == (sheet.shape[0] + 24, sheet.shape[1] + 24)


@pytest.mark.parametrize("height, width", [(130, 82), (82, 130), (166, 387), (100, 100)])
def test_rows_keep_their_last_pixels_at_any_size(height, width, tmp_path):
    """With margins of 14, sizes such as 110 pixels, of which 110 / 150 · 150 falls short."""
    save_rows(tmp_path / "a.png", random_images(1, 1, height, width, 1), scale=1)
    assert read_png(tmp_path / "a.png").shape == (height + 28, width + 28, 3)


def test_labels_stand_beside_their_row_and_above_their_column(tmp_path):
    """White images show the labels' ink alone: one beside row 1 of 3, one above column 1 of 4."""
    images = np.full((3, 4, 8, 8, 1), 255, np.uint8)
    wide = "much wider than the image"
    save_rows(
        tmp_path / "a.png", images, row_labels=["", wide, ""], column_labels=["", wide, "", ""]
    )
    ink = read_png(tmp_path / "a.png").min(-1) < 128
    height, width = ink.shape
    side = (height - 12 - 12 - 28 - 2) / 3  # one image and the padding below it
    first_y, first_x = height - 12 - 3 * side, width - 12 - 4 * side
    above, beside = ink[: int(first_y)], ink[int(first_y) :]
    columns, rows = np.flatnonzero(above.any(axis=0)), np.flatnonzero(beside.any(axis=1))
    assert first_x + side <= columns.min() and columns.max() < first_x + 2 * side
    assert abs((rows.min() + rows.max()) / 2 - 1.5 * side) < 6
    left = np.flatnonzero(beside.any(axis=0))
    assert 10 <= left.min() and left.max() < first_x - 2


def test_labels_of_wide_sheets_are_larger(tmp_path):
    def height(columns):
        images = np.full((1, columns, 64, 64, 1), 255, np.uint8)
        save_rows(tmp_path / "a.png", images, row_labels=["X"], scale=2)
        dark = read_png(tmp_path / "a.png").min(-1) < 128
        return np.ptp(np.flatnonzero(dark.any(axis=1)))

    assert height(16) == pytest.approx(2.05 * height(4), rel=0.15)  # 2048 pixels of a page's 1000


@pytest.mark.parametrize("labels", [{"row_labels": ["a"]}, {"column_labels": ["a"] * 4}])
def test_labels_that_do_not_match_are_refused(labels, tmp_path):
    with pytest.raises(ValueError, match="save_rows got 2 rows and 3 columns"):
        save_rows(tmp_path / "a.png", np.zeros((2, 3, 8, 8, 1), np.uint8), **labels)


@pytest.mark.parametrize("scale", [None, 6])
def test_captions_stand_below_their_image(scale, tmp_path):
    """Image (0, 1) of 2 × 3 and its caption are all the ink, one above the other."""
    images = np.full((2, 3, 8, 8, 1), 255, np.uint8)
    images[0, 1] = 0
    captions = [["", "273", ""], ["", "", ""]]
    save_rows(tmp_path / "a.png", images, captions=captions, scale=scale, padding=2)
    ink = read_png(tmp_path / "a.png").min(-1) < 128
    columns = np.flatnonzero(ink.any(axis=0))
    side = round((ink.shape[1] - 24 - 4 * 2) / 3)
    assert columns.min() >= 14 + side and columns.max() < 14 + 2 * side + 2 + 14
    rows = np.flatnonzero(ink.any(axis=1))
    image, caption = rows[rows < 14 + side], rows[rows >= 14 + side]
    assert image.tolist() == list(range(14, 14 + side))
    assert 14 + side + 4 < caption.min() and caption.max() < 14 + side + 28
    assert caption.max() < ink.shape[0] / 2


@pytest.mark.parametrize("captions", [[["a"] * 3], [["a"] * 3, ["a"] * 2]])
def test_captions_that_do_not_match_are_refused(captions, tmp_path):
    with pytest.raises(ValueError, match="save_rows got 2 rows and 3 columns"):
        save_rows(tmp_path / "a.png", np.zeros((2, 3, 8, 8, 1), np.uint8), captions=captions)


def test_curves_hold_the_data_they_were_given(drawn):
    x = np.array([1, 10, 100, 1000])
    curves = {"first": (x, [3.0, 2.0, np.nan, 1.0]), "second": (x[:2], jnp.asarray([0.5, 0.25]))}
    save_curves("a.png", curves, "steps", "distance", logx=True, title="Title")
    (axes,) = drawn
    for line, (name, (x, y)) in zip(axes.get_lines(), curves.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), np.asarray(y, np.float64))
    assert len({line.get_color() for line in axes.get_lines()}) == 2
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "distance")
    assert axes.get_title(loc="left") == "Title"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first", "second"]


def test_short_logarithmic_axes_have_readable_ticks(drawn):
    """From 0.03 to 0.2 there is one power of ten, and more labels than that stand on the axis."""
    save_curves("a.png", {"a": ([1, 2, 3], [0.2, 0.1, 0.03])}, "x", "y", logy=True)
    low, high = drawn[0].get_ylim()
    ticks = zip(drawn[0].get_yticks(), drawn[0].get_yticklabels(), strict=True)
    labels = [label.get_text() for place, label in ticks if low <= place <= high]
    assert {"0.05", "0.1", "0.2"} <= set(labels) and all(float(label) for label in labels)


def test_only_the_given_places_are_written_on_x(drawn):
    # So long an axis that matplotlib would mark the places between powers of ten.
    places = [16, 512, 32768]
    save_curves("a.png", {"a": (places, [1, 2, 3])}, "x", "y", logx=True, xticks=places)
    (axes,) = drawn
    assert list(axes.get_xticks()) == places
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "512", "32768"]
    assert len(axes.get_xticks(minor=True)) == 0


def test_a_level_spans_all_curves_at_its_value(drawn):
    curves = {"a": ([5, 50], [2.0, 1.0]), "b": ([9, 99], [3.0, 1.0])}
    save_curves("a.png", curves, "x", "y", logx=True, levels={"real": 0.6})
    *_, level = drawn[0].get_lines()
    assert (level.get_label(), level.get_linestyle()) == ("real", "--")
    assert level.get_xdata().tolist() == [5, 99] and level.get_ydata().tolist() == [0.6, 0.6]


@pytest.mark.parametrize("axis, curve", [("x", ([0, 1], [1, 2])), ("y", ([1, 2], [-1, 1]))])
def test_values_a_logarithm_would_drop_are_refused(axis, curve):
    with pytest.raises(ValueError, match=rf"{axis} values down to .* log{axis}=False"):
        save_curves("a.png", {"a": curve}, "x", "y", **{f"log{axis}": True})


@pytest.mark.parametrize("curves", [{}, {"a": ([1, 2], [1])}, {"a": ([], [])}, {"a": (1.0, 1.0)}])
def test_curves_without_points_or_partners_are_refused(curves):
    with pytest.raises(ValueError, match="save_curves (got no curves|needs x)"):
        save_curves("a.png", curves, "x", "y")


@pytest.mark.parametrize("window", [1, 2, 5, 51, 500])
def test_loss_curve_shows_losses_their_running_mean_and_the_held_out(drawn, window):
    """The mean against one written out, with a gap where the loss was NaN."""
    steps, losses = np.arange(0, 2000, 10), np.random.default_rng(0).exponential(size=200)
    losses[17] = np.nan
    save_loss_curve("a.png", steps, losses, heldout=([0, 1000], [0.9, 0.8]), window=window)
    raw, mean, heldout = drawn[0].get_lines()
    half = window // 2
    expected = [np.nanmean(losses[max(i - half, 0) : i + half + 1]) for i in range(200) if i != 17]
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    np.testing.assert_allclose(np.delete(mean.get_ydata(), 17), expected, rtol=1e-12)
    np.testing.assert_array_equal(mean.get_xdata(), steps)
    np.testing.assert_array_equal(heldout.get_xydata(), [[0, 0.9], [1000, 0.8]])
    names = [text.get_text() for text in drawn[0].get_legend().get_texts()]
    assert names == ["training", f"training, mean of {2 * half + 1} values", "held-out"]
    assert raw.get_alpha() < 0.5 and raw.get_linewidth() < mean.get_linewidth()


def test_one_huge_loss_does_not_spoil_the_mean_after_it(drawn):
    losses = np.ones(100)
    losses[20] = 1e30
    save_loss_curve("a.png", np.arange(100), losses, window=5)
    np.testing.assert_array_equal(drawn[0].get_lines()[1].get_ydata()[30:], 1.0)


@pytest.mark.parametrize(
    "losses, heldout, scale",
    [
        (np.geomspace(1, 0.1, 500), None, "log"),
        (np.geomspace(1, 0.5, 500), None, "linear"),
        (np.linspace(1, -1, 500), None, "linear"),
        (np.geomspace(1, 0.1, 500), ([0, 10], [1.0, 0.0]), "linear"),
        (np.full(500, np.nan), None, "linear"),
    ],
)
def test_losses_are_logarithmic_where_that_helps(drawn, losses, heldout, scale):
    save_loss_curve("a.png", np.arange(500), losses, heldout=heldout)
    assert drawn[0].get_yscale() == scale


def test_loss_curve_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="window, a whole number"):
        save_loss_curve("a.png", [1, 2], [1, 2], window=0)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\) for 'training'"):
        save_loss_curve("a.png", [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="'held-out'"):
        save_loss_curve("a.png", [1, 2], [1, 2], heldout=([1], [1, 2]))


def test_plots_are_150_dots_an_inch_and_not_empty(tmp_path):
    save_loss_curve(tmp_path / "a.png", np.arange(100), np.geomspace(1, 0.01, 100))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (960, 600)
        np.testing.assert_allclose(picture.info["dpi"], 150, atol=0.1)
    read = read_png(tmp_path / "a.png")
    assert (np.abs(read - (0x00, 0x72, 0xB2)).max(-1) < 8).sum() > 500
    assert (read[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


def test_threads_draw_what_one_thread_draws(tmp_path):
    def draw(i):
        path = tmp_path / f"{i}.png"
        save_curves(path, {f"curve {i % 4}": ([1, 2, 3], [1, i % 4, 2])}, "x", "y")
        return path.read_bytes()

    alone = [draw(i) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, range(8)))
    assert together == alone * 2


def test_nothing_heavy_is_imported_until_it_draws_and_pyplot_never(tmp_path):
    """Without a display, and with a backend asked for that would need one."""
    script = """
import sys, numpy as np, ddpm_jax.visualize as v, ddpm_jax.evaluation
heavy = {"matplotlib", "PIL", "sklearn"} & set(sys.modules)
assert not heavy, heavy
v.save_curves("a.png", {"a": ([1, 2], [1, 2])}, "x", "y")
v.save_rows("b.png", np.zeros((1, 1, 8, 8, 1), np.uint8), row_labels=["a"])
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"MPLBACKEND": "tkagg"}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("channels, shown", [(1, [0]), (2, [0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_images_and_volumes_are_shown_by_what_a_sheet_can_show(channels, shown):
    volumes = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3, channels), np.uint8)
    images = volumes[:, 2]
    np.testing.assert_array_equal(as_images(images, 2), images[..., shown])
    np.testing.assert_array_equal(as_images(volumes, 3), images[..., shown])


def test_signals_are_lines_with_255_at_the_top():
    levels = np.array([0, 128, 255], np.uint8)
    flat = np.repeat(levels[:, None, None], 10, axis=1)
    drawn = as_images(flat, 1) != 255
    for picture, row in zip(drawn.any(-1), (63, 31, 0), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(picture.any(1)), [row])
        assert picture[row].all()
    rising = as_images(np.arange(0, 256, 17).astype(np.uint8)[None, :, None], 1)[0]
    rows, columns = np.nonzero((rising != 255).any(-1))
    assert np.corrcoef(rows, columns)[0, 1] < -0.99
    # Each channel has a colour of its own; long signals are not wider than a tile.
    both = np.broadcast_to(np.array([20, 200], np.uint8), (1, 1000, 2))
    picture = as_images(both, 1)[0]
    assert picture.shape == (64, 256, 3)
    assert len({tuple(pixel) for pixel in picture[:, 0]}) == 3
