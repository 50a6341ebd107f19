"""Every public pure function gives the same compiled, on several devices, and with NumPy's arrays.

The calls are the right ones of `test_wrong_calls.ROWS`, so that a new public function is tested
here as well. What a program computes is passed to the compiled function; options, functions and
tables of the host stay fixed. Each function is traced once.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.test_wrong_calls import ROWS
from tests.contracts.wrong import call, computed

COMPILED = [name for name, row in ROWS.items() if computed(row)]


@pytest.fixture(autouse=True)
def keys_may_be_reused():
    """One right call is made several times, keys and all. Traces are counted for each test."""
    chex.clear_trace_counter()
    with jax.debug_key_reuse(False):
        yield


def split(name):
    """The arrays that a call returns as a function of those that it gets, and these."""
    row = ROWS[name]

    def function(given):
        # Not the functions of a sampler, nor texts.
        leaves = jax.tree.leaves(call(row, given))
        return [x for x in leaves if hasattr(x, "dtype") or isinstance(x, (int, float))]

    return function, computed(row)


@functools.cache
def plain(name):
    """What a call returns as it stands."""
    function, given = split(name)
    return function(given)


def check_same(got, wanted):
    # Compiled, a sum may be taken in another order.
    chex.assert_trees_all_equal_shapes_and_dtypes(*map(as_arrays, (got, wanted)))
    chex.assert_trees_all_close(as_arrays(got), as_arrays(wanted), rtol=2e-5, atol=1e-5)


def as_arrays(leaves):
    """The leaves as arrays, keys as their numbers."""
    made = map(jnp.asarray, leaves)
    typed = jax.dtypes.prng_key
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, typed) else x for x in made]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_it_is_the_same_and_traced_once(name):
    function, given = split(name)
    wanted = plain(name)
    compiled = jax.jit(chex.assert_max_traces(function, n=1))
    check_same(compiled(given), wanted)
    check_same(compiled(given), wanted)


@pytest.mark.parametrize("name", COMPILED)
def test_numpys_arrays_will_do(name):
    function, given = split(name)

    def on_host(x):
        is_key = not hasattr(x, "dtype") or jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if is_key else np.asarray(x)

    check_same(function(jax.tree.map(on_host, given)), plain(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_two_devices_do_the_same(name):
    function, given = split(name)
    wanted = plain(name)
    both = jax.pmap(function, devices=jax.devices()[:2])(
        jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), given)
    )
    for device in range(2):
        check_same(jax.tree.map(lambda x, d=device: x[d], both), wanted)
