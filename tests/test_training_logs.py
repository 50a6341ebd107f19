import json
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from ddpm_jax.training.logs import Appender, RunLog, read_jsonl
from tests.disk import no_file_beyond


def events(folder):
    """Every scalar of the event files as (tag, step, value)."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            content = content[16 + length :]
    return found


def test_a_record_is_one_line_and_one_scalar_a_value(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("train", 3, loss=0.5, grad_norm=2.0)
    (record,) = read_jsonl(tmp_path / "log.jsonl")
    assert record == {"kind": "train", "step": 3, "loss": 0.5, "grad_norm": 2.0}
    assert events(tmp_path) == [("train/loss", 3, 0.5), ("train/grad_norm", 3, 2.0)]


def test_every_event_has_the_check_sums_of_its_format(tmp_path):
    """Of its length and of its bytes: CRC-32C by the polynomial, masked."""
    with RunLog(tmp_path) as log:
        log.write("train", 1, loss=0.25)
    (path,) = (tmp_path / "tensorboard").iterdir()

    def crc32c(data):
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        crc ^= 0xFFFFFFFF
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    content = path.read_bytes()
    assert b"brain.Event:2" in content[:64]
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert struct.unpack("<I", content[8:12])[0] == crc32c(content[:8])
        body, content = content[12 : 12 + length], content[12 + length :]
        assert struct.unpack("<I", content[:4])[0] == crc32c(body)
        content = content[4:]


def test_a_full_disk_costs_no_record(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("train", 1, loss=1.0)
        size = (tmp_path / "log.jsonl").stat().st_size
        # Half of the next record has room, and must not stay.
        with no_file_beyond(size + 20), pytest.warns(UserWarning) as warned:
            for step in (2, 3, 4):
                log.write("train", step, loss=float(step))
        # Once for each of the two files, and not for every record.
        assert len(warned) == 2 and "step 2 could not be written" in str(warned[0].message)
        assert (tmp_path / "log.jsonl").stat().st_size == size
        with pytest.warns(UserWarning, match="written again, up to the record of step 5"):
            log.write("train", 5, loss=5.0)
    assert [r["step"] for r in read_jsonl(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]
    assert [step for _, step, _ in events(tmp_path)] == [1, 2, 3, 4, 5]


def test_what_is_lost_in_the_end_is_said(tmp_path):
    file = Appender(tmp_path / "x")
    with no_file_beyond(3), pytest.warns(UserWarning) as warned:
        file.append(b"one.")
        file.append(b"two.")
        file.close()
    assert "last 2 records are missing" in str(warned[-1].message)
    assert (tmp_path / "x").read_bytes() == b""


def test_a_log_that_cannot_be_rewritten_stays_as_it_is(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write("train", step, loss=1.0)
    before = (tmp_path / "log.jsonl").read_text()
    with no_file_beyond(10), pytest.raises(OSError):
        RunLog(tmp_path, resume_step=2)
    assert (tmp_path / "log.jsonl").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "tensorboard"]
    assert json.loads(before.splitlines()[-1])["step"] == 3


def test_after_the_clock_was_set_back_the_events_still_follow_those_before(tmp_path, monkeypatch):
    """TensorBoard reads the files in the order of their names."""
    for step, now in ((1, 2e9), (2, 1.9e9), (3, 1.9e9), (4, 2e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with RunLog(tmp_path, resume_step=step - 1) as log:
            log.write("train", step, loss=1.0)
    assert [step for _, step, _ in events(tmp_path)] == [1, 2, 3, 4]


def test_lines_without_kind_or_step_are_kept_and_are_no_records(tmp_path):
    """`read_jsonl` allows them, as notes of the user's."""
    (tmp_path / "log.jsonl").write_text('{"note": "warmer room"}\n')
    with RunLog(tmp_path) as log:
        log.write("train", 1, loss=1.0)
    assert read_jsonl(tmp_path / "log.jsonl")[0] == {"note": "warmer room"}
