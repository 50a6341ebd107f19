"""Numbers against intervals: which ends belong to them, and what the error says."""

import math

import numpy as np
import pytest

from ddpm_jax.forward.checks import check_number, check_whole

NUMBERS = (-math.inf, -1.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan)


@pytest.mark.parametrize(
    "within,inside",
    [
        ("", NUMBERS),
        ("(0, inf)", (0.5, 1.0, 2.0)),
        ("[0, inf)", (0.0, 0.5, 1.0, 2.0)),
        ("(0, inf]", (0.5, 1.0, 2.0, math.inf)),
        ("(0, 1]", (0.5, 1.0)),
        ("[0, 1)", (0.0, 0.5)),
        ("[low=0.5, 2)", (0.5, 1.0)),
        ("(-inf, inf)", (-1.0, 0.0, 0.5, 1.0, 2.0)),
    ],
)
def test_which_numbers_an_interval_has(within, inside):
    for number in NUMBERS:
        if any(number is one for one in inside):
            assert check_number("f", "x", number, within=within) is number
            continue
        with pytest.raises(ValueError) as told:
            check_number("f", "x", number, "Try 1.", within=within)
        assert str(told.value) == f"f needs x in {within}, got {number}. Try 1."


@pytest.mark.parametrize("value", [True, None, "0.5", np.ones(1)])
def test_other_values_are_no_numbers(value):
    with pytest.raises(TypeError, match="^f needs x, a number known before tracing, got "):
        check_number("f", "x", value, within="(0, 1)")


def test_whole_numbers_between_bounds():
    assert [check_whole("f", "n", n, most=3) for n in (1, 2.0, np.int64(3))] == [1, 2, 3]
    for n in (0, 4, 1.5, math.nan):
        with pytest.raises(ValueError, match=rf"f needs n, a whole number in 1\.\.3, got {n}"):
            check_whole("f", "n", n, most=3)
