"""Panels are read back from their files: colours where they were put, and errors for what cannot
be drawn."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ddpm_jax.visualize import Arrows, Heatmap, Line, Panel, Points, fields, save_panels

BOX = {"xlim": (0.0, 1.0), "ylim": (0.0, 1.0), "equal": True}
BLACK = "#000000"


def drawn(tmp_path, *panels, **options):
    """The picture as RGB, with a sheet of its dark pixels."""
    save_panels(tmp_path / "p.png", panels, **options)
    rgb = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    return rgb, rgb.max(axis=2) < 30


def place(tmp_path, x, y):
    """Where a mark at (x, y) of a map of the unit square lies: (row, column) of its centre."""
    _, dark = drawn(tmp_path, Panel("", [Points([[x, y]], BLACK, 200.0, alpha=1.0)], **BOX))
    return np.array([i.mean() for i in np.nonzero(dark)])


def test_points_lie_where_they_should_x_to_the_right_and_y_up(tmp_path):
    low, right, up = (place(tmp_path, *p) for p in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75)))
    assert right[1] - low[1] == pytest.approx(low[0] - up[0], abs=2.0)
    assert right[1] - low[1] > 100
    assert abs(right[0] - low[0]) < 1 and abs(up[1] - low[1]) < 1


def test_row_0_of_a_heat_map_is_at_the_bottom(tmp_path):
    values = np.array([[0.0, 1.0], [0.0, 0.0]])
    heat = Heatmap(values, (0.0, 1.0, 0.0, 1.0), limits=(0.0, 1.0), colours="Greys")
    _, dark = drawn(tmp_path, Panel("", [heat], **BOX))
    rows, columns = np.nonzero(dark)
    centre = place(tmp_path, 0.75, 0.25)
    np.testing.assert_allclose([rows.mean(), columns.mean()], centre, atol=3.0)


def test_an_arrow_is_as_long_as_its_vector_in_the_units_of_the_axes(tmp_path):
    start, end = place(tmp_path, 0.2, 0.3), place(tmp_path, 0.8, 0.3)
    arrow = Arrows([[0.2, 0.3]], [[0.6, 0.0]], BLACK)
    _, dark = drawn(tmp_path, Panel("", [arrow], **BOX))
    rows, columns = np.nonzero(dark)
    assert columns.min() == pytest.approx(start[1], abs=3)
    assert columns.max() == pytest.approx(end[1], abs=3)
    assert rows.mean() == pytest.approx(start[0], abs=2)


def test_panels_fill_rows_and_the_title_adds_a_line(tmp_path):
    panels = [Panel(str(i), [Line([0, 1], [0, 1])]) for i in range(3)]
    one_row, _ = drawn(tmp_path, *panels, size=(2.0, 1.5))
    two_rows, _ = drawn(tmp_path, *panels, size=(2.0, 1.5), columns=2)
    titled, _ = drawn(tmp_path, *panels, size=(2.0, 1.5), title="All")
    assert one_row.shape[:2] == (225, 900)
    assert two_rows.shape[:2] == (450, 600)
    assert titled.shape[:2] == (285, 900)
    assert (two_rows[300:, 330:] == 255).all(), "the last place stays empty"


def test_a_symmetric_logarithm_spaces_powers_of_ten_alike_on_both_sides(tmp_path):
    def row_of(y):
        panel = Panel("", [Line([0, 1], [y, y], None, BLACK)], **BOX | {"ylim": (-200, 200)})
        _, dark = drawn(tmp_path, dataclasses.replace(panel, equal=False, linear_within=1.0))
        return np.nonzero(dark.sum(axis=1) > 100)[0].mean()

    rows = np.diff([row_of(y) for y in (100, 10, 1, -1, -10, -100)])
    assert rows[0] > 30
    np.testing.assert_allclose(rows[[1, 3, 4]], rows[0], atol=2.0)


@pytest.mark.parametrize(
    "x, xticks, labels",
    [
        ([10, 40, 160], [10, 40, 160], ["10", "40", "160"]),
        ([10, 40, 160], None, ["10", "20", "50", "100"]),
        ([1, 1000], None, ["1", "10", "100", "1000"]),
        ([1, 10_000], None, ["1", "10", "100", "1000", "10000"]),
    ],
)
def test_logarithmic_axes_have_ticks_to_read_values_from(x, xticks, labels):
    figure = Figure()
    axes = figure.add_subplot()
    fields._draw(axes, Panel("", [Line(x, np.ones(len(x)))], logx=True, xticks=xticks))
    figure.canvas.draw()
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    found = [text.get_text() for place, text in ticks if low <= place <= high and text.get_text()]
    assert set(labels) <= set(found) and all(float(text) for text in found)


def test_a_band_is_shaded_around_its_line_and_a_label_makes_a_legend(tmp_path):
    line = Line([0, 1], [0.5, 0.5], None, BLACK)
    band = line._replace(band=([0.25, 0.25], [0.75, 0.75]))
    labelled = line._replace(label="a label")
    sheets = [drawn(tmp_path, Panel("", [each], **BOX))[0] for each in (line, band, labelled)]
    top, bottom = place(tmp_path, 0.5, 0.75)[0], place(tmp_path, 0.5, 0.25)[0]
    changed = np.nonzero((sheets[0] != sheets[1]).any(axis=(1, 2)))[0]
    np.testing.assert_allclose([changed.min(), changed.max()], [top, bottom], atol=2.0)
    assert (sheets[0] != sheets[2]).any()


@pytest.mark.parametrize(
    "layer, message",
    [
        (Points(np.zeros((4, 3))), r"\[N, 2\], got shape \(4, 3\) in 'Roll'.*Project"),
        (Arrows(np.zeros((4, 2)), np.zeros((3, 2))), "one arrow per point"),
        (Heatmap(np.zeros(4), (0, 1, 0, 1)), r"heat map \[H, W\]"),
        (Line([1, 2], [1, 2, 3]), r"x \[N\] and y \[N\]"),
        (Line([1, 2], [1.0, 0.0]), "y values down to 0.0 for a logarithmic axis"),
        (Points([[1, 1], [1, -2]]), "y values down to -2.0 for a logarithmic axis"),
        (Arrows([[1, 0]], [[1, 1]]), "y values down to 0.0 for a logarithmic axis"),
        (Heatmap(np.eye(2), (1, 2, 0, 1)), "y values down to 0 for a logarithmic axis"),
    ],
)
def test_what_cannot_be_drawn_says_why(tmp_path, layer, message):
    with pytest.raises(ValueError, match=f"save_panels.*{message}"):
        save_panels(tmp_path / "p.png", [Panel("Roll", [layer], logy=True)])
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"xlim": (0, 4), "logx": True}, "x values down to 0 for a logarithmic axis in 'Roll'"),
        ({"ylim": (-1, 4), "logy": True}, "y values down to -1 for a logarithmic axis in 'Roll'"),
        ({"xlim": (1,)}, "xlim, 2 finite numbers"),
        ({"ylim": (0, np.inf)}, "ylim, 2 finite numbers"),
        ({"xticks": [1, np.nan]}, "xticks, a list of finite numbers"),
    ],
)
def test_limits_that_an_axis_cannot_have_say_why(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"save_panels.*{message}"):
        save_panels(tmp_path / "p.png", [Panel("Roll", [Line([1, 2], [1, 2])], **options)])
    assert not (tmp_path / "p.png").exists()


def test_no_panels_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one panel"):
        save_panels(tmp_path / "p.png", [])
    with pytest.raises(ValueError, match="writes .png"):
        save_panels(tmp_path / "p.pdf", [Panel("", [Line([0], [0])])])
