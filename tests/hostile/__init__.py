"""Every reader of files, given files that somebody made to do harm.

Each test states a property of whatever bytes it is given: they are read as what the format says, or
refused by one of the documented errors, with the file's name in its message. Never by MemoryError
or RecursionError, in a few seconds, and without taking memory that the file could not fill.

In the suite each property is tried on a few dozen files, the same ones each time. For a campaign of
random ones, 5,000 a property say:

    DDPM_JAX_FUZZ=5000 python -m pytest tests/hostile --hypothesis-show-statistics -x -q
"""
