"""What the studies' pictures plot, and that their titles say what the numbers say."""

import numpy as np
import pytest
from PIL import Image

import guidance
import inpaint
import interpolate
import likelihood
import neighbours
import solvers
import steps_vs_quality
from ddpm_jax import evaluation, visualize
from ddpm_jax.likelihood.coding import RateDistortion
from ddpm_jax.programs.intervals import frechet_interval, interval_band


@pytest.fixture
def sheets(monkeypatch):
    """Collects what `save_rows` is given."""
    collected = []
    monkeypatch.setattr(visualize, "save_rows", lambda *args, **kw: collected.append((*args, kw)))
    return collected


def title(axes):
    return axes.get_title(loc="left")


def curve(axes, label):
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return line


def measured(evaluations, distance, interval=None):
    bounds = {} if interval is None else {"f_interval_95": interval}
    return {"evaluations": evaluations, "f": distance, **bounds}


@pytest.mark.parametrize(
    "cells, expected",
    [
        # The best is B's 1.8 ± 0.2; A is that good with 19 evaluations, B only with 50.
        (
            {
                "A": [measured(9, 3.5, [3, 4]), measured(19, 1.9, [1.7, 2.1])],
                "B": [measured(20, 2.1, [1.9, 2.3]), measured(50, 1.8, [1.6, 2.0])],
            },
            "A needs the fewest evaluations, 19, to be within the error of the best distance, 1.80",
        ),
        (
            {"A": [measured(5, 1.05)], "B": [measured(5, 1.0)], "C": [measured(4, 1.06)]},
            "A and B need the fewest evaluations, 5, to be within 5% of the best distance, 1.00",
        ),
    ],
)
def test_quality_names_the_sampler_that_is_first_as_good_as_the_best(cells, expected):
    assert steps_vs_quality._finding("f", cells) == expected


@pytest.mark.parametrize(
    "name, variance, label",
    [
        ("ancestral, the run's σ", "learned_range", "ancestral, learned variance"),
        ("ancestral, the run's σ", "fixed_large", "ancestral, fixed large"),
        ("ancestral, analytic σ", "fixed_large", "ancestral, analytic variance"),
        ("DDIM η=0", "fixed_large", "DDIM η=0"),
    ],
)
def test_quality_names_the_variances_as_the_tables_do(name, variance, label):
    assert name in steps_vs_quality.SAMPLERS and steps_vs_quality._label(name, variance) == label


@pytest.mark.parametrize("bands", [True, False])
def test_quality_plots_every_cell_its_interval_and_the_references(drawn, bands):
    def cell(evaluations, distance):
        field = "frechet_pixels"
        interval = {f"{field}_interval_95": [0.9 * distance, 1.2 * distance]} if bands else {}
        return {"evaluations": evaluations, field: distance, **interval}

    rows = {"A": {"10": cell(19, 2.0), "5": cell(9, 4.0)}, "B": {}, "C": {"5": cell(5, 3.0)}}
    references = {"held-out images": cell(0, 1.0), "Gaussian": cell(0, 6.0)}
    steps_vs_quality._plot("a.png", "frechet_pixels", rows, references)
    (axes,) = drawn
    np.testing.assert_array_equal(curve(axes, "A").get_xydata(), [[9, 4], [19, 2]])
    np.testing.assert_array_equal(curve(axes, "C").get_xydata(), [[5, 3]])
    np.testing.assert_array_equal(curve(axes, "Gaussian").get_xydata(), [[5, 6], [19, 6]])
    assert all(curve(axes, name).get_marker() == "o" for name in "AC")
    assert len(axes.get_lines()) == 4 and len(axes.collections) == (4 if bands else 0)
    assert ("95% intervals" in axes.get_xlabel()) == bands
    # The legend covers nothing.
    right = axes.get_window_extent().x1
    assert axes.get_legend().get_window_extent().x0 >= right


def accuracies(*shares, count=100):
    return [
        {"accuracy": share, "accuracy_interval_95": guidance._wilson(share, count)}
        for share in shares
    ]


@pytest.mark.parametrize(
    "shares, expected",
    [
        ([0.1, 0.36, 0.83], "Accuracy rises from 0.10 at guidance 0 to 0.83 at 4"),
        ([0.9, 0.7, 0.5], "Accuracy falls from 0.90 at guidance 0 to 0.50 at 4"),
        ([0.5, 0.9, 0.6], "Accuracy is highest, 0.90, at guidance 1"),
        ([0.9, 0.4, 0.85], "Accuracy is lowest, 0.40, at guidance 1"),
        ([0.5, 0.55, 0.6], "Accuracy is the same at every scale, within its error"),
        ([0.5], "Accuracy is 0.50 at guidance 0"),
    ],
)
def test_guidance_says_how_accuracy_changes(shares, expected):
    scales = [0.0, 1.0, 4.0][: len(shares)]
    assert guidance._accuracy_finding(scales, accuracies(*shares)) == expected


@pytest.mark.parametrize(
    "beyond, scales",
    [
        ([[0.9, 2.1], None, [0.2, 0.8]], "2"),
        ([[0.9, 2.1], None, [-0.1, 1.1]], "2 and 4"),
        ([[-0.5, 3.5], None, [-0.1, 1.1]], "0, 2 and 4"),
        ([None, None, None], "2"),
    ],
)
def test_guidance_calls_what_may_not_differ_equal(beyond, scales):
    rows = [{"frechet_classifier": value} for value in (3.4, 1.9, 2.4)]
    for row, interval in zip(rows, beyond, strict=True):
        if interval is not None:
            row["frechet_beyond_best_interval_95"] = interval
    found = guidance._distance_finding([0.0, 2.0, 4.0], rows)
    assert found == f"Samples are closest to the data at guidance {scales}"


@pytest.mark.parametrize("share, count", [(0.1, 100), (0.83, 100), (0.5, 10), (0.0, 20)])
def test_wilsons_interval_solves_its_equation(share, count):
    """Its ends p satisfy (share - p)² = z² p (1 - p) / count."""
    for p in guidance._wilson(share, count):
        assert (share - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / count, abs=1e-6)


def test_no_class_stands_over_images_that_ignore_it(monkeypatch):
    figures = []
    monkeypatch.setattr(guidance, "write_figure", lambda path, figure: figures.append(figure))
    images = np.zeros((1, 2, 8, 8, 3), np.uint8)
    guidance._save_panels("a.png", {0.0: images, 2.0: images}, ["cat", "dog"])
    texts = [text.get_text() for text in figures[0].texts]
    assert texts == ["guidance 0: the class is ignored", "guidance 2", "cat", "dog"]


def test_intervals_are_the_bootstraps_and_only_of_few_features():
    random = np.random.default_rng(0)
    for dim, repeats, has in ((2, 50, True), (2, 1, False), (257, 50, False)):
        truth = evaluation.moments(random.standard_normal((400, dim)))
        x = random.standard_normal((40, dim)) + 1.0
        found = frechet_interval(truth, x, seed=0, repeats=repeats)
        assert (found is not None) == has
        if found is not None:
            distance = evaluation.frechet_distance(truth, evaluation.moments(x))
            assert found[0] < distance < found[1] < 2 * distance


def test_differences_of_paired_sets_scatter_less_than_each_set():
    random = np.random.default_rng(0)
    truth = evaluation.moments(random.standard_normal((400, 2)))
    a = random.standard_normal((60, 2)) + 1.0
    b = a + 0.1

    def of(x, **options):
        return frechet_interval(truth, x, seed=0, repeats=50, **options)

    found, alone = of(b, beyond=a), of(b)
    assert found is not None and alone is not None
    distances = [evaluation.frechet_distance(truth, evaluation.moments(x)) for x in (b, a)]
    assert 0 < found[0] < distances[0] - distances[1] < found[1]
    assert np.ptp(found) < 0.3 * np.ptp(alone)
    assert of(a, beyond=a) == [0.0, 0.0]


def test_a_band_needs_all_intervals_and_stays_above_zero():
    rows = [{"f": 2.0, "f_interval_95": [-1.0, 3.0]}, {"f": 1.0, "f_interval_95": [0.5, 2.0]}]
    assert interval_band("f", rows) == ([0.02, 0.5], [3.0, 2.0])
    assert interval_band("f", [*rows, {"f": 1.0}]) is None


@pytest.mark.parametrize(
    "beyond, expected",
    [
        ({"b_b": (0.09, 0.01), "c": (0.3, 0.01)}, "A a saves 0.09 bits/dim over b b"),
        ({"b_b": (0.09, 0.01), "c": (-0.112, 0.01)}, "C saves 0.11 bits/dim over a a"),
        ({"b_b": (0.09, 0.05), "c": (0.3, 0.01)}, "A a equals b b within the error"),
    ],
)
def test_terms_name_the_variance_that_needs_the_fewest_bits(beyond, expected):
    assert likelihood._cheapest(beyond, "a_a") == expected


def test_terms_show_what_the_other_variances_add(drawn):
    own = np.linspace(1.0, 0.1, 20)[:, None] * [0.9, 1.0, 1.1]
    more = own + np.array([0.02, 0.03, 0.04])
    likelihood._plot_terms("a.png", {"learned_range": own, "fixed_small": more}, "learned_range")
    terms, beyond = drawn
    np.testing.assert_allclose(terms.get_lines()[0].get_ydata(), own.mean(axis=1))
    share = own[:2].sum() / own.sum()
    assert title(terms) == f"The last 2 of 20 steps hold {share:.0%} of the bits"
    np.testing.assert_array_equal(curve(beyond, "learned range").get_ydata(), 0.0)
    total = (more - own).sum(axis=0)
    end = curve(beyond, "fixed small").get_ydata()[-1]
    np.testing.assert_allclose(end, total.mean())
    (band,) = beyond.collections
    edges = band.get_paths()[0].vertices
    half = 1.96 * total.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(np.ptp(edges[edges[:, 0] == 20][:, 1]), 2 * half, rtol=1e-6)
    assert title(beyond) == "Learned range saves 0.6 bits/dim over fixed small"


@pytest.mark.parametrize("shared", [None, 50])
def test_rate_and_distortion_are_fitted_where_steps_have_different_images(drawn, shared):
    rate = np.array([1e-9, 0.002, 0.5, 0.9, 1.0, 2.0])
    distortion = np.array([58.0, 62.0, 10.0, 3.0, 5.0, 1.0])
    likelihood._plot_rate_distortion(
        "a.png", RateDistortion(rate, distortion, 2.0, 1.0), "fixed_large", shared
    )
    (axes,) = drawn
    line = curve(axes, "fixed large" if shared is None else "fixed large, monotone fit")
    np.testing.assert_array_equal(line.get_xdata(), rate[1:])
    # The nearest values that never rise are means over the stretches that rise.
    fitted = distortion[1:] if shared is None else [60.0, 10.0, 4.0, 4.0, 1.0]
    np.testing.assert_allclose(line.get_ydata(), fitted)
    start, half = (58, 5.0) if shared is None else (60, 4.0)
    assert title(axes) == (
        f"Half of the 2.00 bits/dim lower the error from {start} to {half:.1f} grey levels, the "
        "rest to 1.0"
    )
    if shared is not None:
        (points,) = axes.collections
        np.testing.assert_allclose(points.get_offsets()[:, 1], distortion[1:])
        assert points.get_label() == "each step, 50 images"


def test_only_what_is_not_known_is_hatched(sheets):
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    completed, known = np.ones((2, 3, 4, 4, 3), np.uint8), np.zeros((4, 4), bool)
    known[:2] = True
    numbers = {"rms_to_truth": 58.6, "rms_between_completions": 62.6}
    inpaint._save_rows("a.png", truth, completed, known, [7, 9], numbers)
    ((_, tiles, options),) = sheets
    np.testing.assert_array_equal(tiles[:, :2], 0)
    np.testing.assert_array_equal(tiles[:, 2:], completed)
    hidden = options["hidden"]
    assert not hidden[:, [0, 2, 3, 4]].any() and (hidden[:, 1] == ~known).all()
    assert options["column_labels"][:3] == ["image", "known", "completion 1"]
    assert options["title"].startswith("Completions are 59 grey levels from the truth and 63 from")


@pytest.mark.parametrize("points, middle", [(9, 0.5), (4, 0.5)])
def test_interpolation_names_both_images_and_every_share(sheets, drawn, tmp_path, points, middle):
    names = ["cross-fade", "DDPM, t = 4", "DDPM, t = 9", "DDIM, t = 8"]
    rows = {name: np.full((1, points, 2, 2, 3), i, np.uint8) for i, name in enumerate(names)}
    shares = np.linspace(0, 1, points)
    numbers = {
        name: {
            "rms_to_source_at_0": 3.0 * i,
            "rms_to_source_at_1": 4.0 * i,
            "rms_to_cross_fade": (100 * i * shares).tolist(),
            "distance_to_nearest_training_image": (2000 * i + 100 * shares).tolist(),
        }
        for i, name in enumerate(names)
    }
    ends = np.stack([np.full((1, 2, 2, 3), value, np.uint8) for value in (10, 20)])
    found = interpolate._save_pictures(tmp_path, rows, ends, numbers)
    assert [file.name for file in found] == [
        "pair-0.png",
        "distance_to_nearest_training_image.png",
    ]
    ((_, tiles, options),) = sheets
    assert (tiles[:, 0] == 10).all() and (tiles[:, -1] == 20).all()
    for i in range(4):
        assert (tiles[i, 1:-1] == i).all()
    labels = options["column_labels"]
    assert (labels[0], labels[-1], len(labels)) == ("image 1", "image 2", points + 2)
    # Labels are the shares, to a thousandth.
    np.testing.assert_allclose([float(x.split("=")[1]) for x in labels[1:-1]], shares, atol=6e-4)
    # √((9² + 12²) / 2) and √((6² + 8²) / 2)
    assert options["title"].startswith(
        "DDIM misses the two images by 10.6 grey levels, DDPM from t = 9 by 7"
    )
    assert interpolate._halfway(numbers["DDPM, t = 4"]["rms_to_cross_fade"]) == 100 * middle


def test_neighbours_compare_the_nearest_sample_with_the_nearest_held_out_image():
    found = {
        "samples": (np.zeros((3, 2)), np.array([[1500.0, 1600], [1073, 1100], [2000, 2001]])),
        "held-out images": (np.zeros((2, 2)), np.array([[1018.4, 1100], [3000, 3100]])),
    }
    assert neighbours._closest(found, 2.0) == (
        "The nearest of 3 samples (guidance 2) is 1,073 grey levels from its nearest training "
        "image, the nearest of 2 held-out images 1,018"
    )
    assert "guidance" not in neighbours._closest(found, 1.0)


@pytest.mark.parametrize(
    "numbers, outside, expected",
    [
        ({"evaluations": 10, "rms": 0.098}, 0, "10 evaluations\nerror 0.098"),
        ({"evaluations": 9, "rms": 1.0}, 6, "9 evaluations\nerror 1.0, 60% outside"),
        ({"evaluations": 5}, 1, "5 evaluations\ndraws noise"),
    ],
)
def test_solvers_say_evaluations_error_and_what_is_out_of_sight(numbers, outside, expected):
    samples = np.zeros((10, 2))
    samples[:outside, 1] = -2.0
    assert solvers._caption(numbers, samples) == expected


def test_solvers_show_the_truth_beside_every_row(tmp_path, monkeypatch):
    saved = {}
    monkeypatch.setattr(solvers, "save_panels", lambda path, panels, **kw: saved.update(all=panels))
    config = solvers.SolversConfig(out=tmp_path, evaluations=(5, 10, 20))
    samples = np.concatenate([solvers.MEANS, solvers.MEANS])
    cells = {
        name: dict.fromkeys(config.evaluations, solvers.Cell(samples, 5, False))
        for name in solvers.SHOWN
    }
    numbers = {"evaluations": 5, "rms": 0.5}
    results = {name: dict.fromkeys(("5", "10", "20"), numbers) for name in solvers.SHOWN}
    solvers._picture(config, cells, results, samples, 3 * samples)
    titles = [panel.title for panel in saved["all"]]
    assert titles[:: 1 + len(solvers.SHOWN)] == ["exact ODE", "x_T, the noise", "exact ODE"]
    assert titles[1 : 1 + len(solvers.SHOWN)] == list(solvers.SHOWN)
    for panel in saved["all"]:
        points = np.concatenate([layer.points for layer in panel.layers])
        assert len(points) == 10 and np.abs(points).max() < panel.xlim[1]


@pytest.mark.parametrize("scale", [1, 4])
def test_hidden_pixels_are_hatched_and_no_others(scale, tmp_path):
    images = np.full((1, 2, 16, 16, 3), 250, np.uint8)
    hidden = np.zeros((1, 2, 16, 16), bool)
    hidden[0, 1, 8:] = True
    visualize.save_rows(tmp_path / "a.png", images, hidden=hidden, scale=scale, padding=2)
    sheet = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[12:-12, 12:-12]
    side = 16 * scale
    tile = sheet[2 : 2 + side, 4 + side : 4 + 2 * side]
    assert (sheet[2 : 2 + side, 2 : 2 + side] == 250).all() and (tile[: side // 2] == 250).all()
    hatched = tile[side // 2 :]
    assert (hatched < 250).all() and len(np.unique(hatched)) == 2
    assert (np.ptp(hatched, axis=-1) == 0).all()


@pytest.mark.parametrize(
    "hidden, error",
    [
        (np.zeros((1, 2, 8), bool), ValueError),
        (np.zeros((1, 2, 8, 8)), TypeError),
        ([[True], [True, False]], TypeError),
    ],
)
def test_other_masks_are_refused(hidden, error, tmp_path):
    with pytest.raises(error, match=r"save_rows needs hidden, bool \[1, 2, 8, 8\]"):
        visualize.save_rows(tmp_path / "a.png", np.zeros((1, 2, 8, 8, 1), np.uint8), hidden=hidden)


def test_titles_of_sheets_take_the_lines_they_need(tmp_path):
    """Their ink is left of the right edge, and nothing else moves but down."""
    images = np.full((1, 4, 64, 64, 1), 255, np.uint8)
    heights = []
    for words in (0, 3, 30):
        title = " ".join(["words"] * words) or None
        visualize.save_rows(tmp_path / "a.png", images, title=title, scale=1)
        ink = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
        heights.append(len(ink))
        assert (ink[:, -10:] == 255).all()
    lines = np.diff(heights) / 28
    assert lines[0] == 1 and lines[1] > 1 and lines[1] == round(lines[1])
