"""The public face: the papers' names in their order, and the rooms that hold the rest."""

import subprocess
import sys

import pytest

import ddpm_jax as dj

ROOMS = ["forward", "nn", "denoisers", "losses", "likelihood", "samplers", "score", "keys", "types"]


def test_names_follow_the_papers():
    order = ["NoiseSchedule", "q_sample", "UNet", "make_denoiser", "simple_loss", "sample"]
    assert sorted(order, key=dj.__all__.index) == order
    assert 50 <= len(dj.__all__) <= 72
    assert not set(ROOMS) & set(dj.__all__)
    assert all(callable(getattr(dj, name)) for name in dj.__all__)
    places = [dj.__doc__.index(f"\n    {name} ") for name in dj.__all__]
    assert places == sorted(places)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_attributes(room):
    assert getattr(dj, room).__name__ == f"ddpm_jax.{room}"


@pytest.mark.parametrize(
    "name,place",
    [
        ("p2_weighting", "ddpm_jax.losses.p2_weighting"),
        ("advance", "ddpm_jax.samplers.advance"),
        ("bcast_right", "ddpm_jax.types.bcast_right"),
        ("prior_term", "ddpm_jax.likelihood.prior_term"),
    ],
)
def test_a_name_of_a_room_is_found_by_its_error(name, place):
    with pytest.raises(AttributeError, match=f"Use {place}"):
        getattr(dj, name)
    assert not hasattr(dj, name)


def test_unknown_names_are_unknown():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'$"):
        dj.no_such_name  # noqa: B018
    with pytest.raises(ImportError):
        from ddpm_jax import no_such_name  # noqa: F401


def test_it_imports_without_docstrings():
    """`python -OO` strips the module's, which the table of names is added to."""
    code = "import ddpm_jax as dj; print('q_sample' in dj.__doc__)"
    run = [sys.executable, "-OO", "-c", code]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"
