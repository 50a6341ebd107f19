"""SIGKILL of runs in a bucket, each followed by the same command on another machine.

Another machine is a cache of its own. The bucket is that of an S3 server (moto's, through s3fs) if
these are installed, else a folder with the same operations (`tests.fake_bucket`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ddpm_jax.programs.bucket_files import Bucket
from ddpm_jax.programs.buckets import committed_steps
from tests import fake_bucket
from tests.faults.harness import SHORT_STEPS, Bench, Program, Report, compare, ends_with
from tests.s3_server import MISSING, s3_server

PROMISE = (
    "A run in a bucket whose process is killed at any instant goes on on another machine from the "
    "newest complete checkpoint of the bucket, and equals, bit for bit, the one that was never "
    "killed."
)
LEASE = 3.0
"""Seconds until the lock of a killed process is taken over; 60 by default."""
PAUSE = 0.03
"""Seconds that the folder takes for an operation, so that kills meet uploads."""
MOMENTS = ("inside an upload", "inside an upload", "while it was fetched", "any")


def campaign(bench: Bench) -> Report:
    """20 kills (short: 3) over runs of 40 steps (24)."""
    report = Report()
    wanted, num_steps = (3, SHORT_STEPS) if bench.short else (20, 40)
    reference = bench.reference(num_steps)
    for name in ("kills", "… inside an upload", "… while it was fetched", "restarts"):
        report.counts[name] = 0
    with _store(bench, report) as (scheme, env):
        number = 0
        while report.counts["kills"] < wanted:
            address = f"{scheme}://bucket/run-{number}"
            _one_run(bench, report, address, num_steps, wanted, env)
            folder = bench.work / f"final-{number}"
            bucket = Bucket(address)
            bucket.get({name: folder / name for name in bucket.files()})
            compare(report, folder, reference, f"run {number}")
            number += 1
    return report


@contextlib.contextmanager
def _store(bench: Bench, report: Report) -> Iterator[tuple[str, dict[str, str]]]:
    """The scheme of the bucket, and the environment with which programs find it."""
    with contextlib.ExitStack() as stack:
        if MISSING:
            store = bench.work / "store"
            (store / "bucket").mkdir(parents=True)
            fake_bucket.control(store, pause=PAUSE)
            scheme, env = "fake", {"FAKE_BUCKET": str(store)}
        else:
            scheme, env = "s3", stack.enter_context(s3_server())
        report.counts["bucket"] = "S3, moto's server" if scheme == "s3" else "a folder"
        os.environ |= env  # this process reads the bucket, too
        yield scheme, env


def _one_run(
    bench: Bench, report: Report, address: str, num_steps: int, wanted: int, env: dict[str, str]
) -> None:
    life, name = 0, address.rpartition("/")[2]
    while True:
        life += 1
        cache = bench.work / f"{name}-machine-{life}"
        started = bench.start(
            Path(address),
            num_steps,
            fault={"bucket": LEASE},
            env={**env, "DDPM_JAX_CACHE": str(cache)},
            output=bench.work / f"{name}.out",
        )
        kills, moment = report.counts["kills"], None
        with ends_with(started) as program:
            if kills < wanted:
                moment = _wait(bench, program, address, cache, MOMENTS[kills % len(MOMENTS)])
                if program.running():
                    program.kill()
            ended = program.end()
        report.add("restarts", life > 1)
        report.expect("damaged" not in ended.output, f"{name}: {ended.output[-500:]}")
        if ended.code == 0:
            return
        if not report.expect(ended.code == -9, f"exit code {ended.code}: {ended.output[-1000:]}"):
            raise RuntimeError("the program fails by itself; see above")
        report.add("kills")
        if moment != "any":
            report.add_part("kills", moment)
        _look(report, address)


def _wait(bench: Bench, program: Program, address: str, cache: Path, moment: str) -> str:
    """Until the moment, or another if that does not come; says which."""
    bucket = Bucket(address)
    if moment == "while it was fetched" and committed_steps(bucket.files()):
        pattern = "buckets/write/*/bucket/*/checkpoints/incoming-*/**/*"
        if program.until(lambda: any(cache.glob(pattern)), nap=0.002):
            time.sleep(bench.chance(0, 0.2))
            return moment if "compil" not in program.output() else "any"
    if moment == "any":
        end = time.monotonic() + bench.chance(0, 15)
        program.until(lambda: time.monotonic() > end)
        return moment
    before = set(_unfinished(bucket))
    if program.until(lambda: set(_unfinished(bucket)) - before, nap=0.01):
        return "inside an upload"
    return "any"


def _unfinished(bucket: Bucket) -> list[str]:
    """Steps of which the bucket has files and no manifest."""
    names = [name.split("/") for name in bucket.files()]
    steps = {parts[1] for parts in names if parts[0] == "checkpoints"}
    return sorted(steps - {parts[1] for parts in names if parts[2:] == ["manifest.json"]})


def _look(report: Report, address: str) -> None:
    """Expects every checkpoint that has a manifest to be whole."""
    bucket = Bucket(address)
    for step in committed_steps(bucket.files()):
        folder = f"checkpoints/{step}"
        listed = json.loads(bucket.read(f"{folder}/manifest.json"))["files"]
        whole = all(
            hashlib.sha256(bucket.read(f"{folder}/{name}")).hexdigest() == about["sha256"]
            for name, about in listed.items()
        )
        report.add("damaged checkpoints seen", not whole)
        report.expect(whole, f"{address}: step {step} has a manifest and is not whole")
