"""Programs write below the run's folder, the cache that was named, and the system's for temporary
files; a foreign run's configuration changes nothing of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_nothing_is_written_elsewhere(tmp_path):
    run, home, evil, temporary = (tmp_path / n for n in ("runs", "home", "evil", "temporary"))
    for folder in (run, home, temporary):
        folder.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "DDPM_JAX_CACHE": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        # Compiling is nearly all that takes time here.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
    }
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-m", "tests.hostile.recorded", str(run), str(evil)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    written = [Path(path) for path in json.loads((run / "written.json").read_text())]
    allowed = (run, tmp_path / "cache", temporary, Path("/dev/null"))
    outside = [p for p in written if not any(a in (p, *p.parents) for a in allowed)]
    assert not outside
    # What the hook must have seen, lest it saw nothing.
    names = {path.name for path in written if run in path.parents}
    # Drafts are called .NAME.DIGITS.tmp.
    names |= {name[1:].rsplit(".", 2)[0] for name in names if name.endswith(".tmp")}
    assert {"samples.npz", "000000.png", "plan.json", "grid.png", "config.json"} <= names
    assert any(name.endswith((".stablehlo", ".safetensors")) for name in names)
    # And what it cannot see, as a library in C++ wrote it.
    assert not list(home.iterdir()) and not evil.exists()


def test_the_hook_sees_every_way_to_write(tmp_path):
    code = (
        "import json, sys; sys.path.insert(0, %r)\n"
        "from tests.hostile.recorded import note, written\n"
        "import os, pathlib, shutil, tempfile, numpy as np\n"
        "sys.addaudithook(note)\n"
        "os.chdir(%r)\n"
        "open('1', 'w').close(); pathlib.Path('2').write_text(''); os.mkdir('3')\n"
        "os.rename('1', '4'); np.savez('5.npz', a=1); os.symlink('4', '6'); os.remove('4')\n"
        "os.close(os.open('7', os.O_RDWR | os.O_CREAT)); shutil.copyfile('7', '8')\n"
        "tempfile.NamedTemporaryFile(dir='.', prefix='9'); open('2').close()\n"
        "os.mkdir('10'); pathlib.Path('10/11').touch(); os.chdir('10'); shutil.rmtree('../10')\n"
        "print(json.dumps(sorted(written)))\n"
    )
    here = tmp_path / "here"
    here.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code % (str(ROOT), str(here))],
        capture_output=True,
        text=True,
        check=True,
    )
    written = {Path(path) for path in json.loads(result.stdout)}
    assert set("123456789") <= {path.name[0] for path in written if path.parent == here}
    assert here / "10/11" in written and here / "10/10/11" not in written
