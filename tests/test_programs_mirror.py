"""A run directory in a bucket: order of uploads, locks, take-over, faults, against a fake store."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time

import pytest

from ddpm_jax.programs import bucket_lock, mirror
from ddpm_jax.programs.bucket_files import Bucket, BucketError
from ddpm_jax.programs.bucket_lock import Lock
from ddpm_jax.programs.buckets import UnsentError
from ddpm_jax.programs.config import ReportConfig
from ddpm_jax.programs.mirror import mirrored
from ddpm_jax.programs.paths import local_path
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.training import StopRequest
from ddpm_jax.training.checkpoints import superseded
from ddpm_jax.training.manifest import verify_manifest
from tests.fake_bucket import FakeBucket, control
from tests.fake_bucket import store as store
from tests.test_programs_buckets import RUN, fill, make_checkpoint


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(bucket_lock, "LEASE", 0.6)
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(mirror, "FLUSH_SECONDS", 0.5)


class Training:
    """A training run without training: a mirrored folder in which checkpoints are made by hand."""

    def __init__(self, keep=2, keep_every=0, stop=None, address=RUN):
        self.directory = RunDirectory(address)
        self.root = self.directory.root
        report = ReportConfig(checkpoint_keep=keep, keep_every=keep_every)
        self.stop = stop or StopRequest()
        self._context = mirrored(self.directory, report, self.stop)

    def __enter__(self):
        self.directory.acquire()
        try:
            self._context.__enter__()
        except BaseException:
            self.directory.release()
            raise
        return self

    def __exit__(self, *error):
        try:
            return self._context.__exit__(*error)
        finally:
            self.directory.release()


def make_in_place(root, step):
    """As `Checkpoints` does it: under another name first."""
    draft = make_checkpoint(root / "draft", step)
    (root / "checkpoints").mkdir(exist_ok=True)
    draft.rename(root / "checkpoints" / str(step))


def save(root, *steps):
    for step in steps:
        with (root / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step}) + "\n")
        make_in_place(root, step)
    fill(root, config_json="{}")


def wait_for(happened, seconds=20):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def stored(store, pattern="checkpoints/*/manifest.json"):
    return sorted(int(path.parent.name) for path in (store / "bucket" / "run").glob(pattern))


def fresh_machine(monkeypatch, tmp_path):
    """From here on another machine: nothing of the earlier one's cache is seen."""
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))


def test_a_local_run_is_not_mirrored(tmp_path):
    with mirrored(RunDirectory(tmp_path), ReportConfig(), StopRequest()):
        assert list(tmp_path.iterdir()) == []


def test_the_manifest_comes_last_and_the_log_before_it(store):
    with Training() as run:
        save(run.root, 4)
        wait_for(lambda: stored(store) == [4])
    puts = [key for kind, key in FakeBucket.operations if kind == "put" and "/.lock/" not in key]
    manifest = puts.index("bucket/run/checkpoints/4/manifest.json")
    below = [i for i, key in enumerate(puts) if key.startswith("bucket/run/checkpoints/4/")]
    assert manifest == max(below) and len(below) == 2
    assert puts.index("bucket/run/log.jsonl") < manifest
    assert puts.index("bucket/run/config.json") < manifest


@pytest.mark.parametrize("name", ["0009", "9"])
def test_a_folder_without_a_manifest_keeps_no_checkpoint_from_the_bucket(store, name):
    with Training() as run:
        (run.root / "checkpoints" / name).mkdir(parents=True)
        save(run.root, 4)
        wait_for(lambda: stored(store) == [4])


def test_superseded_checkpoints_go_manifest_first(store):
    with Training(keep=2, keep_every=8) as run:
        for step in (4, 8, 12, 16, 20):
            save(run.root, step)
            wait_for(lambda step=step: step in stored(store))
    assert stored(store) == [8, 16, 20]
    assert not list((store / "bucket" / "run" / "checkpoints").glob("4/d/*"))
    deleted = [key for kind, key in FakeBucket.operations if kind == "delete"]
    gone = [key for key in deleted if "checkpoints/12/" in key]
    assert gone[0].endswith("manifest.json") and len(gone) == 2


def test_which_checkpoints_are_superseded():
    assert superseded([], 3, 0) == []
    assert superseded([1, 2, 3, 4], 3, 0) == [1]
    assert superseded([10, 15, 20, 25], 1, 10) == [15]


def test_another_machine_gets_the_newest_checkpoint_and_the_logs(store, monkeypatch, tmp_path):
    with Training() as run:
        save(run.root, 4, 8)
        fill(run.root, tensorboard__events="e", samples__step_1="s", generated__large="g")
    fresh_machine(monkeypatch, tmp_path)
    with Training() as run:
        assert [p.name for p in (run.root / "checkpoints").iterdir()] == ["8"]
        verify_manifest(run.root / "checkpoints" / "8")
        assert len((run.root / "log.jsonl").read_text().splitlines()) == 2
        assert (run.root / "tensorboard/events").exists() and (run.root / "samples/step_1").exists()
        assert not (run.root / "generated").exists()
        save(run.root, 12)
    assert stored(store) == [8, 12]  # 4 is superseded, though this machine never had it
    assert (store / "bucket/run/generated/large").read_text() == "g"


def test_the_same_machine_fetches_nothing(store):
    with Training() as run:
        save(run.root, 4)
    FakeBucket.operations.clear()
    with Training():
        assert not [key for kind, key in FakeBucket.operations if kind == "get"]


def test_a_kill_while_the_run_is_fetched_loses_no_log(store, monkeypatch, tmp_path):
    with Training() as run:
        save(run.root, 4, 8)
    fresh_machine(monkeypatch, tmp_path)
    original, killed = FakeBucket.get_file, SystemExit  # passes through, as a kill does
    for count in range(6):
        left = [count]

        def get_file(self, *arguments, left=left, **options):
            left[0] -= 1
            if left[0] < 0:
                raise killed
            return original(self, *arguments, **options)

        monkeypatch.setattr(FakeBucket, "get_file", get_file)
        with contextlib.suppress(SystemExit), Training() as run:
            steps = [p.name for p in (run.root / "checkpoints").iterdir()]
            assert steps == ["8"] and len((run.root / "log.jsonl").read_text().splitlines()) == 2
    assert left[0] >= 0
    assert len((store / "bucket/run/log.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_what_could_not_be_uploaded_is_uploaded_by_the_next_start(store):
    with pytest.raises(UnsentError, match="QuotaExceeded.*has no checkpoint.*are kept in") as told:
        with Training() as run:
            control(store, quota=0)
            save(run.root, 4)
    assert "The same command on this machine uploads it" in str(told.value)
    assert stored(store) == []
    control(store)
    with Training():
        pass
    assert stored(store) == [4]


def test_a_fault_that_passes_loses_nothing_and_is_reported_once(store, capsys):
    with Training() as run:
        control(store, deny=["write"])
        save(run.root, 4)
        wait_for(lambda: "Training goes on" in capsys.readouterr().out)
        save(run.root, 8)
        time.sleep(0.3)
        control(store)
        wait_for(lambda: 8 in stored(store))
    assert "Training goes on" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "faults,words", [({"deny": ["write"]}, "Access Denied"), ({"quota": 0}, "QuotaExceeded")]
)
def test_a_bucket_that_cannot_be_written_is_one_error_at_the_start(store, faults, words):
    (store / "bucket" / "something").write_text("full")
    control(store, **faults)
    with pytest.raises(BucketError, match=words), Training():
        raise AssertionError
    assert not list((store / "bucket").glob("run/**/*.json"))
    assert [p.name for p in local_path(RUN, "run_dir").iterdir()] == [".lock"]


def test_a_full_disk_at_the_start_is_said_as_it_is(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(mirror, "write_json", full)
        with Training():
            raise AssertionError
    lock("another machine").acquire()  # the lock was given up


def test_a_checkpoint_without_its_manifest_is_no_checkpoint(store, monkeypatch, tmp_path):
    with Training() as run:
        save(run.root, 4, 8)
    (store / "bucket/run/checkpoints/8/manifest.json").unlink()  # cut short by a kill
    fresh_machine(monkeypatch, tmp_path)
    with Training() as run:
        assert [p.name for p in (run.root / "checkpoints").iterdir()] == ["4"]
        assert not list((store / "bucket/run/checkpoints").glob("8/d/*"))


def test_a_damaged_checkpoint_is_passed_over_and_replaced(store, monkeypatch, tmp_path):
    with Training() as run:
        save(run.root, 4, 8)
    (store / "bucket/run/checkpoints/8/d/array-8").write_text("y")
    fresh_machine(monkeypatch, tmp_path)
    with (
        pytest.warns(UserWarning, match="damaged checkpoint in fake://bucket/run"),
        Training() as run,
    ):
        assert [p.name for p in (run.root / "checkpoints").iterdir()] == ["4"]
        save(run.root, 8)
    verify_manifest(store / "bucket/run/checkpoints/8")
    keys = [(kind, key[len("bucket/run/checkpoints/8/") :]) for kind, key in FakeBucket.operations]
    assert keys.index(("delete", "manifest.json")) < len(keys) - keys[::-1].index(
        ("put", "d/array-8")
    )


def test_a_damaged_checkpoint_supersedes_no_other(store, monkeypatch, tmp_path):
    with Training() as run:
        save(run.root, 4, 8)
        wait_for(lambda: stored(store) == [4, 8])
    for path in (store / "bucket/run/checkpoints/8").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.write_bytes(b"")
    fresh_machine(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match="damaged checkpoint"), Training(keep=1) as run:
        save(run.root)
        time.sleep(0.2)
        assert 4 in stored(store)
        save(run.root, 6)
        wait_for(lambda: 6 in stored(store))


def test_a_damaged_checkpoint_here_costs_the_bucket_no_intact_one(store):
    """Not when it is uploaded, and not when the bucket has the very step."""
    with Training(keep=1) as run:
        save(run.root, 4)
    for step in (4, 8):
        if step == 8:
            make_in_place(run.root, step)
        next((run.root / f"checkpoints/{step}/d").iterdir()).write_text("flipped")
    shutil.rmtree(run.root / "checkpoints" / "4")
    with pytest.warns(UserWarning, match="not uploaded"), Training(keep=1) as run:
        verify_manifest(run.root / "checkpoints" / "4", 4)  # fetched, although 8 is newer
        time.sleep(0.2)
    assert stored(store) == [4]


def test_a_damaged_checkpoint_here_is_fetched_again(store):
    with Training(keep=1) as run:
        save(run.root, 4)
    (run.root / "checkpoints/4/d/array-4").write_text("flipped")
    with pytest.warns(UserWarning, match="not uploaded"), Training(keep=1) as run:
        verify_manifest(run.root / "checkpoints" / "4", 4)
    assert (run.root / "checkpoints" / "4.damaged").is_dir()
    verify_manifest(store / "bucket/run/checkpoints/4", 4)


def test_a_checkpoint_under_another_name_hides_none_in_the_bucket(store, monkeypatch, tmp_path):
    """A step of another number, a number written otherwise, and folders that are no steps."""
    with Training() as run:
        save(run.root, 4)
    bucket = store / "bucket/run/checkpoints"
    for name in ("12", "0009", "9.damaged", "notes"):
        shutil.copytree(bucket / "4", bucket / name)
    fresh_machine(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match="step 4 under another name"), Training(keep=1) as run:
        assert [p.name for p in (run.root / "checkpoints").iterdir()] == ["4"]
        time.sleep(0.1)
        verify_manifest(bucket / "4", 4)
        save(run.root, 8)
        wait_for(lambda: (bucket / "8/manifest.json").exists())
    for name in ("0009", "9.damaged", "notes"):
        assert (bucket / name / "manifest.json").exists()


def test_a_file_that_goes_away_does_not_end_the_last_upload(store, monkeypatch):
    """An editor's temporary file, say, between its listing and its upload."""
    small, gone = mirror.Mirror._small, []

    def with_one_that_goes(self):
        found = small(self)
        if self._ending.is_set() and not gone:
            gone.append(self.root / "note~")
            found["note~"] = self.root / "log.jsonl"
            monkeypatch.setattr(mirror, "_state", once(mirror._state))
        return found

    def once(state):
        def failing(path):
            monkeypatch.setattr(mirror, "_state", state)
            raise FileNotFoundError(path)

        return failing

    monkeypatch.setattr(mirror.Mirror, "_small", with_one_that_goes)
    monkeypatch.setattr(mirror, "POLL_SECONDS", 60.0)
    with Training() as run:
        save(run.root, 4)
    assert gone and stored(store) == [4]


def test_a_run_that_was_taken_over_uploads_nothing_more(store, monkeypatch):
    """A suspended process wakes up: its next renewal is due, and so is a checkpoint."""
    monkeypatch.setattr(bucket_lock, "LEASE", 600.0)
    with pytest.raises(RunDirectoryError, match="another process has taken it over"):
        with Training() as run:
            (store / "bucket/run/.lock/00000002.json").write_text("{}")
            save(run.root, 4)
            wait_for(lambda: run.stop.signal)
    assert stored(store) == []


def test_a_run_removed_from_the_bucket_does_not_come_back(store):
    with Training() as run:
        save(run.root, 4)
    shutil.rmtree(store / "bucket" / "run")
    with pytest.warns(UserWarning, match="held another run"), Training() as run:
        assert not (run.root / "checkpoints").exists()
        save(run.root, 2)
    assert stored(store) == [2]
    (aside,) = run.root.glob(".earlier-*")
    assert (aside / "checkpoints" / "4" / "manifest.json").exists()


def test_a_newer_run_of_another_machine_replaces_an_older_copy(store, monkeypatch, tmp_path):
    here = os.environ["DDPM_JAX_CACHE"]
    with Training() as run:
        save(run.root, 4)
    fresh_machine(monkeypatch, tmp_path)
    with Training() as run:
        save(run.root, 8)
    monkeypatch.setenv("DDPM_JAX_CACHE", here)
    with Training() as run:
        assert (run.root / "checkpoints" / "8" / "manifest.json").exists()
        assert len((run.root / "log.jsonl").read_text().splitlines()) == 2


def test_sigterm_waits_for_the_last_upload_within_a_limit(store, capsys):
    stop = StopRequest()
    with Training(stop=stop) as run:
        save(run.root, 4)
        wait_for(lambda: stored(store) == [4])
        stop.signal = signal.SIGTERM
        save(run.root, 8)
    assert stored(store) == [4, 8]
    assert "fake://bucket/run has everything up to step 8" in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_does_not_wait_for_ever(store, capsys):
    stop = StopRequest()
    with Training(stop=stop) as run:
        save(run.root, 4)
        wait_for(lambda: stored(store) == [4])
        stop.signal = signal.SIGTERM
        control(store, pause=30)
        save(run.root, 8)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    said = capsys.readouterr().out
    assert "not complete" in said and "everything up to step 4" in said and str(run.root) in said
    control(store)


# The lock.


def lock(owner):
    return Lock(Bucket(RUN), owner)


def test_a_lock_in_use_is_refused_and_a_released_one_is_not(store, monkeypatch):
    first = lock("a")
    first.acquire()
    ended = threading.Event()

    def renew():
        while not ended.wait(0.1):
            first.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} on"):
        lock("b").acquire()
    ended.set()
    thread.join()
    first.release()
    monkeypatch.setattr(bucket_lock, "LEASE", 1000)
    second = lock("b")
    second.acquire()
    assert second.run == first.run


def test_a_lock_that_was_left_is_taken_over_and_its_holder_finds_out(store):
    first, second = lock("a"), lock("b")
    first.acquire()
    began = time.monotonic()
    second.acquire()
    assert bucket_lock.LEASE <= time.monotonic() - began < 10 * bucket_lock.LEASE
    second.renew()
    with pytest.raises(RunDirectoryError, match="taken it over"):
        first.renew()
    second.release()
    with pytest.raises(RunDirectoryError, match="taken it over"):
        first.renew()


def test_the_same_folder_takes_its_own_lock_at_once(store, monkeypatch):
    """Its own lock of files shows that the earlier process has ended."""
    monkeypatch.setattr(bucket_lock, "LEASE", 1000)
    lock("a").acquire()
    lock("a").acquire()


def test_of_many_processes_one_gets_a_lock_that_was_left(store):
    lock("dead").acquire()
    got, refused = [], []

    def attempt(name):
        mine = lock(name)
        try:
            mine.acquire()
            got.append(name)
            for _ in range(20):  # a sign of life for those that watch
                time.sleep(0.05)
                mine.renew()
        except RunDirectoryError:
            refused.append(name)

    threads = [threading.Thread(target=attempt, args=(f"p{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 5


def test_a_store_without_conditional_puts_is_refused(store, monkeypatch):
    original = FakeBucket.pipe_file
    monkeypatch.setattr(
        FakeBucket, "pipe_file", lambda self, path, value, mode=None: original(self, path, value)
    )
    with pytest.raises(BucketError, match="no conditional put"):
        lock("a").acquire()


def test_training_stops_when_its_lock_is_lost(store):
    stop = StopRequest()
    with pytest.raises(RunDirectoryError, match="taken it over"):
        with Training(stop=stop) as run:
            about = json.loads((run.root / ".bucket.json").read_text())
            content = json.dumps({"run": about["run"], "owner": "another"}).encode()
            Bucket(RUN).create(".lock/00000002.json", content)
            wait_for(lambda: stop.signal == signal.SIGTERM)
            save(run.root, 4)
            time.sleep(0.1)
    assert stored(store) == []


def test_a_process_that_does_not_share_the_folder_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="DDPM_JAX_CACHE"):
        mirror._check_shared(tmp_path, "owner")
    (tmp_path / ".bucket.json").write_text('{"owner": "owner"}')
    mirror._check_shared(tmp_path, "owner")
    with pytest.raises(RunDirectoryError):
        mirror._check_shared(tmp_path, "another")
