"""Reading files that anybody may have made: whatever is in them, they are read or refused.

What is refused is a ValueError, a file that cannot be read an OSError. No more memory is taken than
the file could fill, nothing in it is run, and nothing is waited for.
"""

from ddpm_jax.files.json_files import parse_json_object, read_json_object
from ddpm_jax.files.numpy_files import (
    MOST_SWELLING,
    array_names,
    map_npy,
    open_archive,
    open_array,
    read_arrays,
)
from ddpm_jax.files.regular import check_regular, read_regular
from ddpm_jax.files.writing import user_path, write_json

__all__ = [
    "MOST_SWELLING",
    "array_names",
    "check_regular",
    "map_npy",
    "open_archive",
    "open_array",
    "parse_json_object",
    "read_arrays",
    "read_json_object",
    "read_regular",
    "user_path",
    "write_json",
]
