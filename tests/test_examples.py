"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import inspect
import pkgutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import samplers, score

# Every public function and class of these must have an example.
COMPLETE = (
    "keys",
    "samplers",
    "score",
    "denoisers.guidance",
    "denoisers.sigma",
    "denoisers.scores",
    "denoisers.optimal_variance",
)
# What only modules of this package call, or what is documented by its attributes.
WITHOUT = {
    *("Sampler", "StepResult", "Trajectory", "Chains", "AdjustedChains", "SigmaDenoiser"),
    *("LogProbability", "LevelScore", "check_draw", "check_keys", "check_sigmas", "denoise_one"),
    *("check_scale", "checked_levels"),
    *("timesteps_at_sigma", "sigma_at_timesteps"),
}
NAMES = {
    "dj": ddpm_jax,
    "jax": jax,
    "jnp": jnp,
    "np": np,
    "samplers": samplers,
    "score": score,
}
PURE = ("types", "keys", "forward", "denoisers", "likelihood", "losses", "samplers", "score", "nn")


def pure_modules():
    for name in PURE:
        module = importlib.import_module(f"ddpm_jax.{name}")
        yield module
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
            yield importlib.import_module(found.name)


def public(module):
    """The functions and classes of this package in a module or room, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, types.FunctionType | type)
        and value.__module__.startswith("ddpm_jax.")
    }


def examples():
    finder = doctest.DocTestFinder(recurse=False)
    tests = {}
    for module in (ddpm_jax, *pure_modules()):
        for name, value in public(module).items():
            for test in finder.find(value, name, module=False, globs=dict(NAMES)):
                if test.examples:
                    tests[value.__module__ + "." + name] = test
    return tests


EXAMPLES = examples()


@pytest.mark.slow  # and whole in .ci/run
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name):
    """As a reader would run it, without the flags this suite turns on."""
    report = []
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
            EXAMPLES[name], out=report.append
        )
    assert not result.failed, "".join(report)


@pytest.mark.parametrize("room", COMPLETE)
def test_every_public_name_has_an_example(room):
    module = importlib.import_module(f"ddpm_jax.{room}")
    missing = {
        name
        for name, value in public(module).items()
        if ">>>" not in (inspect.getdoc(value) or "")
        and (hasattr(module, "__path__") or value.__module__ == module.__name__)
    }
    assert missing <= WITHOUT
