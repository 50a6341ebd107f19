"""A disk without room."""

import contextlib
import resource


@contextlib.contextmanager
def no_file_beyond(size):
    """A disk with room for so many bytes a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
