"""Programs run under an audit hook that notes every path they would write to.

Run by `test_writes.py` in a process of its own, as a hook cannot be taken off again:

    python -m tests.hostile.recorded RUN_DIR EVIL_DIR   prints the paths as JSON
"""

import json
import os
import sys
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    **dict.fromkeys(
        ["os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"], 1
    ),
    **dict.fromkeys(["os.mkfifo", "os.mknod", "os.setxattr", "os.removexattr"], 1),
    **{"shutil.move": 2, "shutil.rmtree": 1, "shutil.copyfile": 2, "shutil.copytree": 2},
}
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn")
# How ctypes.util.find_library looks for a library, as CUDA's Python packages do: it only reads.
READING = "/sbin/ldconfig"
written = set()


def note(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = flags & WRITING if isinstance(flags, int) else set(mode or "r") & set("wax+")
        paths = [path] if writes else []
    elif event in CHANGING:
        paths = arguments[: CHANGING[event]]
        # `shutil.rmtree` names files within a folder it has open.
        if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
            paths = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), paths[0])]
    elif event in STARTING or event == "socket.connect":
        if arguments[:2] == (READING, [READING, "-p"]):
            return
        written.add(f"{event} {arguments[:2]}")
        paths = []
    else:
        return
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            written.add(os.path.abspath(os.fsdecode(path)))


def programs(run_dir, evil):
    """A run made of a pipeline by a stranger, sampled, evaluated, exported and converted."""
    import numpy as np

    from ddpm_jax.forward import linear_schedule
    from ddpm_jax.interop import save_diffusers
    from tests.hostile.test_interop import PROCESS, SHAPE, TINY
    from tests.reference_unet import random_params
    from tests.small_run import program

    params = random_params(TINY, np.zeros((1, *SHAPE), np.float32), 0)
    pipeline, folder = run_dir / "pipeline", run_dir / "run"
    save_diffusers(pipeline, TINY, params, SHAPE, PROCESS, linear_schedule(20, 1e-3, 0.2))
    into = [f"--folder={pipeline}", f"--run-dir={folder}", "--data-name=digits"]
    program("convert.py", "from-diffusers", *into)
    # Whoever makes a run's folder writes what he likes into its configuration.
    values = json.loads((folder / "config.json").read_text())
    values["config"]["run_dir"] = str(evil / "run")
    places = {"cache_dir": str(evil / "cache"), "path": str(evil / "data"), "download": True}
    values["config"]["data"] |= places
    values["data"]["name"] = "../../../evil/\u2028"
    (folder / "config.json").write_text(json.dumps(values))
    steps = ["--sampler=ddim", "--num-steps=2", f"--run-dir={folder}"]
    program("sample.py", *steps, "--count=2", "--format=both")
    program(
        "evaluate.py", *steps, "--count=10", "--features=pixels", "--bits-count=0", "--bootstrap=0"
    )
    program("export.py", *steps, "--platforms", "cpu")
    program("convert.py", "to-diffusers", f"--run-dir={folder}")


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.addaudithook(note)
    programs(Path(sys.argv[1]), Path(sys.argv[2]))
    Path(sys.argv[1], "written.json").write_text(json.dumps(sorted(written)))
