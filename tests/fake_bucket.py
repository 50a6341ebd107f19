"""An object store in a folder, as a file system of fsspec: fake://BUCKET/KEY.

Like S3 it has whole objects, conditional puts and listings, and neither rename nor append. The
folder is in FAKE_BUCKET; its file `.control` (JSON) builds faults in, in running processes too:

    {"deny": ["write", "read"]}   these are forbidden
    {"quota": 1000}               no room for more bytes than these
    {"pause": 0.05}               seconds before every operation
"""

import json
import os
import shutil
import time
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from ddpm_jax.programs import buckets


class FakeBucket(AbstractFileSystem):
    """See above; `operations` lists what this process did."""

    protocol = "fake"
    cachable = False
    operations: list[tuple[str, str]] = []

    def _file(self, kind, path):
        root = Path(os.environ["FAKE_BUCKET"])
        control = (
            json.loads((root / ".control").read_text()) if (root / ".control").exists() else {}
        )
        time.sleep(control.get("pause", 0))
        if kind in control.get("deny", ()):
            raise PermissionError("Access Denied")
        if kind == "write" and "quota" in control:
            used = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
            if used > control["quota"]:
                raise OSError("QuotaExceeded: the bucket is full")
        path = self._strip_protocol(path)
        if not (root / path.split("/")[0]).is_dir():
            raise FileNotFoundError("The specified bucket does not exist")
        return root / path

    def _store(self, path, fill, exclusive=False):
        file = self._file("write", path)
        self.operations.append(("put", str(path)))
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(os.environ["FAKE_BUCKET"]) / f".{uuid.uuid4().hex}"
        try:
            fill(draft)
            (os.link if exclusive else os.replace)(draft, file)
        finally:
            draft.unlink(missing_ok=True)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._store(path, lambda draft: draft.write_bytes(value), mode == "create")

    def put_file(self, lpath, rpath, callback=None, mode="overwrite", **kwargs):
        self._store(rpath, lambda draft: shutil.copyfile(lpath, draft), mode == "create")

    def cat_file(self, path, start=None, end=None, **kwargs):
        return self._file("read", path).read_bytes()[start:end]

    def get_file(self, rpath, lpath, callback=None, outfile=None, **kwargs):
        shutil.copyfile(self._file("read", rpath), lpath)
        self.operations.append(("get", str(rpath)))

    def rm_file(self, path):
        self.operations.append(("delete", str(path)))
        self._file("write", path).unlink()

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **kwargs):
        root, top = Path(os.environ["FAKE_BUCKET"]), self._file("read", path)
        files = [top] if top.is_file() else (p for p in top.rglob("*") if p.is_file())
        found = {}
        for file in files:
            name, status = file.relative_to(root).as_posix(), file.stat()
            found[name] = {"name": name, "size": status.st_size, "type": "file"}
            found[name]["ETag"] = f"{status.st_mtime_ns}-{status.st_ino}"
        return found if detail else sorted(found)


fsspec.register_implementation("fake", FakeBucket, clobber=True)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of an object store with one bucket, and a cache of its own."""
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    monkeypatch.setenv("FAKE_BUCKET", str(tmp_path / "store"))
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "written", {})
    FakeBucket.operations.clear()
    return tmp_path / "store"


def control(store, **faults):
    """Builds faults into the store; none for a sound one."""
    (store / ".control").write_text(json.dumps(faults))
