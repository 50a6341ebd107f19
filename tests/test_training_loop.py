import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import Hook, NonFiniteError, StopRequest, TrainState, train_loop
from ddpm_jax.training.logs import RunLog, read_jsonl
from ddpm_jax.training.loop import next_boundary


def start(step=0):
    zero = jnp.float32(0)
    return TrainState(jnp.int32(step), zero, zero, (), jax.random.key(0))


def counting_chunk(calls, bad=()):
    """A chunk that only counts; steps in `bad` have a NaN loss."""

    def run(state, first, count):
        calls.append((first, count))
        loss = np.array([np.nan if first + i in bad else 1.0 for i in range(count)])
        metrics = {"loss": loss, "grad_norm": np.ones(count), "finite": np.isfinite(loss) * 1.0}
        return state.replace(step=state.step + count), metrics

    return run


def test_chunks_end_at_hooks_and_at_the_last_step():
    calls, seen = [], []
    state = train_loop(
        start(3),
        counting_chunk(calls),
        num_steps=25,
        max_chunk=8,
        hooks=[
            Hook(10, lambda s, step: seen.append((step, int(s.step)))),
            Hook(0, lambda *_: 1 / 0),
        ],
    )
    assert int(state.step) == 25
    assert calls == [(3, 7), (10, 8), (18, 2), (20, 5)]
    assert seen == [(10, 10), (20, 20)]


def test_boundaries():
    assert next_boundary(0, 100, 10, []) == 10
    assert next_boundary(7, 100, 10, [4]) == 8
    assert next_boundary(8, 100, 10, [4, 0]) == 12
    assert next_boundary(96, 100, 10, [50]) == 100


def test_every_step_is_reported_once_in_order_and_before_its_hooks():
    reported = []

    def hook(state, step):
        assert reported[-1] == step - 1

    train_loop(
        start(),
        counting_chunk([]),
        num_steps=23,
        max_chunk=5,
        hooks=[Hook(10, hook)],
        on_metrics=lambda first, m: reported.extend(range(first, first + len(m["loss"]))),
    )
    assert reported == list(range(23))


def test_a_stop_is_honoured_after_the_chunk():
    calls = []
    state = train_loop(
        start(),
        counting_chunk(calls),
        num_steps=100,
        max_chunk=10,
        should_stop=lambda: len(calls) == 3,
    )
    assert int(state.step) == 30


@pytest.mark.parametrize(
    "limit,bad,last", [(1, {4}, 5), (2, {0, 4, 5}, 6), (3, {1, 2, 5, 6, 7}, 8)]
)
def test_k_bad_steps_in_a_row_end_the_run(limit, bad, last):
    message = rf"loss was not finite at step {last} \(bad steps in a row: {limit}\)\. None of them"
    with pytest.raises(NonFiniteError, match=message) as caught:
        train_loop(
            start(),
            counting_chunk([], bad=bad),
            num_steps=20,
            max_chunk=4,
            max_bad_steps=limit,
        )
    assert caught.value.step == last and caught.value.metric == "loss"
    assert caught.value.recent[-1]["step"] == last


def test_single_bad_steps_do_not():
    state = train_loop(
        start(), counting_chunk([], bad={1, 3, 5}), num_steps=9, max_chunk=4, max_bad_steps=2
    )
    assert int(state.step) == 9


def test_first_signal_asks_second_interrupts_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() and stop.signal is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_log_of_a_resumed_run_has_no_steps_twice(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.write("train", step, loss=float(step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    with RunLog(tmp_path, resume_step=20) as log:
        log.write("train", 30, loss=-30.0)
    assert [(r["step"], r["loss"]) for r in read_jsonl(tmp_path / "log.jsonl")] == [
        (10, 10.0),
        (20, 20.0),
        (30, -30.0),
    ]
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\nnonsense\n" + json.dumps({"step": 2}) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(path)


WARNINGS = [signal.SIGHUP, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def heard():
    """Signals as a terminal has them: under `nohup` the tests would start with SIGHUP ignored."""
    old = {number: signal.signal(number, signal.SIG_DFL) for number in WARNINGS}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, *WARNINGS])
def test_every_signal_that_ends_a_program_asks_it_to_save(first):
    before = signal.getsignal(first)
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), first)
        assert stop() and stop.signal is first
    assert signal.getsignal(first) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_request_interrupts(first, second):
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)


@pytest.mark.parametrize("first", WARNINGS)
@pytest.mark.parametrize("second", [signal.SIGTERM, *WARNINGS])
def test_what_follows_a_warning_does_not_cut_saving_short(first, second):
    """SLURM sends SIGUSR1, then SIGTERM; a terminal that closes sends SIGHUP twice."""
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        assert stop.signal is first


@pytest.mark.parametrize("number", WARNINGS)
def test_what_is_ignored_stays_ignored(number):
    """As `nohup` does with SIGHUP."""
    old = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert not stop()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, old)
