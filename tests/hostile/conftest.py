"""One folder a module: its files are written over from example to example."""

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """No test here may find, or fill, the cache of this machine's owner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
        yield
