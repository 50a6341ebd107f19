"""Buckets through s3fs and gcsfs over HTTP, against moto's server and one of this suite."""

import os
import time

import fsspec
import pytest

from ddpm_jax.programs import bucket_lock, buckets, mirror
from ddpm_jax.programs.bucket_files import Bucket, BucketError
from ddpm_jax.programs.bucket_lock import Lock
from ddpm_jax.programs.buckets import UnsentError, committed_steps, fetch, push_outputs
from ddpm_jax.programs.paths import local_path
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.training.manifest import verify_manifest
from tests.gcs_server import MISSING as gcs_server_needs
from tests.gcs_server import gcs_server
from tests.s3_server import MISSING as s3_server_needs
from tests.s3_server import s3_server
from tests.test_programs_mirror import Training, fresh_machine, save, wait_for

FAULTS: list[tuple[str, str, int, str]] = []


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(request):
    """The scheme, and where its server is."""
    missing = {"s3": s3_server_needs, "gs": gcs_server_needs}[request.param]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    with {"s3": s3_server, "gs": gcs_server}[request.param](FAULTS) as where:
        yield request.param, where


@pytest.fixture
def address(server, monkeypatch, tmp_path):
    """An address of its own for each test."""
    scheme, where = server
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    if scheme == "s3":
        for name, value in where.items():
            monkeypatch.setenv(name, value)
    else:
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon", "endpoint_url": where})
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "written", {})
    monkeypatch.setattr(bucket_lock, "LEASE", 1.0)
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.05)
    FAULTS.clear()
    yield f"{scheme}://bucket/{tmp_path.name}/run"
    FAULTS.clear()


def test_files_large_and_small_go_and_come_back(address, tmp_path):
    content = {
        "a/large": os.urandom(101 << 20),
        "a/small": b"1",
        "empty": b"",
    }  # > 2 × 50 MB: parts
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    bucket = Bucket(address)
    bucket.put({name: tmp_path / name for name in content})
    Bucket(f"{address}2").write("other", b"2")
    assert sorted(bucket.files()) == sorted(content) and list(bucket.files("a")) == [
        "a/large",
        "a/small",
    ]
    path = fetch(address)
    assert all((path / name).read_bytes() == data for name, data in content.items())
    assert fetch(f"{address}/a/small").read_bytes() == b"1"
    bucket.remove(["a/large", "never"])
    assert sorted(bucket.files()) == ["a/small", "empty"]
    with pytest.raises(FileNotFoundError):
        bucket.read("never")


def test_conditional_put_and_take_over(address):
    bucket = Bucket(address)
    first, second = Lock(bucket, "a"), Lock(bucket, "b")
    first.acquire()
    with pytest.raises(FileExistsError):
        bucket.create(".lock/00000001.json", b"{}")
    began = time.monotonic()
    second.acquire()
    assert time.monotonic() - began >= bucket_lock.LEASE and second.run == first.run
    with pytest.raises(RunDirectoryError, match="taken it over"):
        first.renew()
    second.release()
    first.acquire()


def test_a_run_goes_on_on_another_machine(address, monkeypatch, tmp_path):
    with Training(address=address) as run:
        for step in (4, 8, 12):
            save(run.root, step)
            wait_for(lambda step=step: step in committed_steps(Bucket(address).files()))
    fresh_machine(monkeypatch, tmp_path)
    with Training(address=address) as run:
        assert [p.name for p in (run.root / "checkpoints").iterdir()] == ["12"]
        verify_manifest(run.root / "checkpoints" / "12")
        assert len((run.root / "log.jsonl").read_text().splitlines()) == 3
        save(run.root, 16)
    assert committed_steps(files := Bucket(address).files()) == [12, 16]
    assert not [name for name in files if name.startswith("checkpoints/4/")]


@pytest.mark.parametrize(
    "method,status,code",
    [
        ("PUT", 403, "AccessDenied"),
        ("GET", 403, "AccessDenied"),
        ("PUT", 403, "QuotaExceeded"),
        ("PUT", 507, "InsufficientStorage"),
        ("PUT", 400, "EntityTooLarge"),
        ("PUT", 403, "InvalidAccessKeyId"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_error_at_the_start(address, method, status, code):
    FAULTS.append((method, "/bucket", status, code))
    with pytest.raises(BucketError, match="could not be") as refused, Training(address=address):
        raise AssertionError
    assert address in str(refused.value) and "credentials" in str(refused.value)
    FAULTS.clear()
    assert Bucket(address).files() == {}


def test_a_quota_that_is_reached_later_keeps_everything_here(address):
    with pytest.raises(UnsentError, match="everything up to step 4; the remaining files are kept"):
        with Training(address=address) as run:
            save(run.root, 4)
            wait_for(lambda: committed_steps(Bucket(address).files()) == [4])
            FAULTS.append(("PUT", "checkpoints/8", 403, "QuotaExceeded"))
            save(run.root, 8)
    FAULTS.clear()
    assert committed_steps(Bucket(address).files()) == [4]
    with Training(address=address):
        pass
    assert committed_steps(Bucket(address).files()) == [4, 8]


def test_outputs_are_pushed(address):
    out = local_path(f"{address}/out", "out")
    out.mkdir(parents=True)
    (out / "grid.png").write_bytes(b"png")
    push_outputs()
    assert Bucket(address).read("out/grid.png") == b"png"


def test_a_missing_bucket_is_named(address):
    elsewhere = address.replace("//bucket/", "//elsewhere/")
    with pytest.raises(BucketError, match="no such bucket"):
        Lock(Bucket(elsewhere), "a").acquire()
    with pytest.raises(BucketError, match="no files, or does not exist"):
        fetch(elsewhere)


def test_a_server_that_does_not_answer_is_one_error(address, monkeypatch):
    if address.startswith("gs"):
        pytest.skip("gcsfs tries again for minutes")
    nobody = {"endpoint_url": "http://127.0.0.1:9"}
    monkeypatch.setitem(fsspec.config.conf, "s3", nobody)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(BucketError, match="the network"):
        fetch(address)
