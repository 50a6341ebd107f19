"""Flags that make sloppy code fail: eight devices, no implicit rank promotion, no key used
twice. And the order of the files: what takes longest starts first."""

import gc
import os
import re
import shutil
import tempfile
import zlib

# The same small programs are compiled in many files, workers and subprocesses: one cache for all of
# them, which lives as long as this run. Set before JAX is imported; workers inherit it.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ddpm_jax-tests-")
    # Reading a small program takes a sixth of the time of compiling it.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402
import jaxlib.version  # noqa: E402
import pytest  # noqa: E402

from ddpm_jax.devices.cpu import may_have_accelerators  # noqa: E402

# Most of a test's time is compilation. LLVM's optimisations and the fusion emitters only change how
# fast the programs run, and these are small. XLA's own passes decide what is computed; they stay.
# Read when JAX is first used, here and in the programs that tests start.
if not may_have_accelerators():
    quick = ["--xla_backend_optimization_level=0"]
    if jaxlib.version.__version_info__[:2] <= (0, 10):  # later ones end at a flag they do not know
        # One LLVM module per program: 32 of them take up to a fifth longer.
        quick += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    # What was set by hand comes last and wins.
    os.environ["XLA_FLAGS"] = " ".join([*quick, os.environ.get("XLA_FLAGS", "")])

# Tracing makes many objects that live on. Searching them for garbage as often as Python does by
# default takes 4 % of the time.
gc.set_threshold(200_000, 20, 100)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

LONGEST = (
    *("test_programs_end_to_end.py", "test_programs_own_data.py", "test_programs_evaluate.py"),
    *("test_devices_processes.py", "test_programs_initial_weights.py", "test_nn_unet.py"),
    *("test_training_step.py", "test_docs.py", "test_examples.py", "test_rivals.py"),
    *("test_sampler_contract.py", "test_wrong_calls.py", "test_studies.py", "test_benchmarks.py"),
    *("test_variants.py", "test_continuous.py", "test_training_checkpoints.py"),
)


# A compiled program stays in memory, 1.4 MB of it, as long as its function. With thousands of them,
# compiling another one takes almost twice as long.
MAX_COMPILED = 150
compiled = 0


def count_compiled(event, seconds, **_):
    global compiled
    compiled += event.endswith("/backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(count_compiled)


def pytest_addoption(parser):
    """`--part 2/10`: the second of ten parts, which together are all tests."""
    parser.addoption("--part", metavar="K/N", help="only this part of the tests, by their names")


def pytest_configure(config):
    """Lets files keep their order where several workers share them.

    pytest-xdist would begin with the files of most tests, which are not those that take longest,
    and one worker would wait for the other's last file.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_unconfigure(config):
    """Removes the compilation cache, in the process that made it."""
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Forgets the compiled programs between files, if there are many. The cache still has them."""
    global compiled
    if compiled > MAX_COMPILED and (nextitem is None or nextitem.path != item.path):
        jax.clear_caches()
        compiled = 0


def pytest_collection_modifyitems(config, items):
    """The longest files first, the others as they were; with --part only that part of each."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    if part := config.getoption("part"):
        if not (found := re.fullmatch(r"(\d+)/(\d+)", part)):
            raise pytest.UsageError(f"--part needs K/N, such as 2/10, got {part!r}.")
        number, count = map(int, found.groups())
        if not 1 <= number <= count:
            raise pytest.UsageError(f"--part needs K in 1..N, got {part!r}.")
        # Variants of a test stay together: they share fixtures and compiled programs.
        chosen = [zlib.crc32(x.nodeid.split("[")[0].encode()) % count == number - 1 for x in items]
        config.hook.pytest_deselected(
            items=[x for x, c in zip(items, chosen, strict=True) if not c]
        )
        items[:] = [x for x, c in zip(items, chosen, strict=True) if c]


@pytest.fixture(scope="module")
def traced_for_gpus():
    """As where CUDA's plugin is installed; what was traced before and within is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm_jax.nn.kernels.may_run", lambda: True)
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def libraries():
    """(torch, diffusers); the test is skipped without them."""
    reason = "needs the extra [interop] to compare with diffusers"
    torch = pytest.importorskip("torch", reason=reason)
    diffusers = pytest.importorskip("diffusers", reason=reason)
    return torch, diffusers


@pytest.fixture
def drawn(monkeypatch):
    """Collects the axes of every plot instead of writing it."""
    collected = []

    def collect(target, figure):
        figure.canvas.draw()
        collected.extend(figure.axes)

    for module in ("files", "plots"):
        monkeypatch.setattr(f"ddpm_jax.visualize.{module}.write_figure", collect)
    return collected
