"""How much of its time a run loses to failures, and how long a save pauses training."""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from pathlib import Path

from tests.faults.harness import Bench, Program, Report, ends_with, steps

PROMISE = (
    "With a SIGKILL every 10 checkpoint intervals of 30 s or more, at least 90 % of the time goes "
    "into steps that are kept. A save stops training for less than 5 % of half a minute with the "
    "paper's network."
)
STEP_SECONDS = 0.05
INTERVAL_STEPS = 600
HALF_A_MINUTE = 30.0
PHASES = (0.25, 0.75)
"""Where in an interval the failures come: spread evenly, so that they lose half an interval each on
average, as random ones do."""
PAPER = {
    "batch_size": 2,
    "network__channels": 128,
    "network__channel_multipliers": (1, 2, 2, 2),
    "network__num_res_blocks": 2,
    "network__attention_resolutions": 4,
    "network__num_groups": 32,
    "report__heldout_every": 0,
    "report__sample_every": 0,
    "report__final_count": 1,
    "report__final_steps": 1,
}
"""The network of the paper's CIFAR-10 model, on small images: a save does not depend on those."""


def campaign(bench: Bench) -> Report:
    """Two runs of 22 intervals side by side, one of them killed twice; then saves of 36 M."""
    report = Report()
    if not bench.short:
        _failures(bench, report)
    _stall(bench, report)
    return report


def _stall(bench: Bench, report: Report) -> None:
    """Seconds for which a save of the paper's network pauses training."""
    times = bench.work / "times"
    num_steps, every = (4, 2) if bench.short else (60, 10)
    folder = bench.work / "paper"
    fault = {"time_saves": str(times), "slow": 1.0}
    with ends_with(
        bench.start(folder, num_steps, fault, report__checkpoint_every=every, **PAPER)
    ) as program:
        ended = program.end(3000)
    report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-1000:]}")
    # The last is of the step that is saved already.
    seconds = [float(line) for line in times.read_text().split()][:-1]
    newest = folder / "checkpoints" / str(num_steps)
    report.counts |= {
        "saves": len(seconds),
        "MB per checkpoint": round(sum(p.stat().st_size for p in newest.rglob("*")) / 1e6),
        "pause of training per save, s (median)": round(statistics.median(seconds), 3),
        "pause of training per save, s (longest)": round(max(seconds), 3),
        "median pause as a share of half a minute": round(
            statistics.median(seconds) / HALF_A_MINUTE, 4
        ),
    }
    report.expect(statistics.median(seconds) <= 0.05 * HALF_A_MINUTE, f"saves take {seconds} s")


def _failures(bench: Bench, report: Report) -> None:
    num_steps = (10 * len(PHASES) + 2) * INTERVAL_STEPS
    options = {
        # A device whose steps take their time whatever else this machine does.
        "fault": {"slow": STEP_SECONDS},
        "report__checkpoint_every": INTERVAL_STEPS,
        "report__heldout_every": 0,
        "report__sample_every": 0,
        "report__log_every": 10,
    }
    restarts, lost = [], []
    with contextlib.ExitStack() as stack:
        calm_folder, folder = bench.work / "calm", bench.work / "struck"
        program = stack.enter_context(ends_with(bench.start(calm_folder, num_steps, **options)))
        calm = _Timed(program, calm_folder, num_steps)
        began = time.monotonic()
        for phase in (*PHASES, None):
            after = max(steps(folder), default=0)
            killed, before = time.monotonic(), _last(folder)
            with ends_with(bench.start(folder, num_steps, **options)) as program:
                program.until(lambda c=program: "compiled in" in c.output(), nap=0.1)
                program.until(lambda a=after: _last(folder) > a, nap=0.1)
                if killed > began + 1:
                    restarts.append(time.monotonic() - killed)
                    lost.append(before - after)
                if phase is not None:
                    end = after + round((10 + phase) * INTERVAL_STEPS)
                    program.until(lambda e=end: _last(folder) >= e, 3600, nap=0.1)
                    continue
                program.until(lambda: num_steps in steps(folder), 3600, nap=0.1)
                struck = time.monotonic() - began
        calm.watcher.join()
    interval = calm.seconds * INTERVAL_STEPS / num_steps
    lost_seconds = statistics.mean(lost) / INTERVAL_STEPS * interval
    restart = statistics.mean(restarts)
    report.counts |= {
        "failures": len(PHASES),
        "seconds between checkpoints": round(interval, 1),
        "seconds without failures": round(calm.seconds, 1),
        "seconds with failures": round(struck, 1),
        "goodput": round(calm.seconds / struck, 4),
        "steps done again (mean)": round(statistics.mean(lost), 1),
        "seconds from a kill to the next new step (mean)": round(restart, 1),
        "goodput computed as 10 I / (10 I + lost + restart)": round(
            10 * interval / (10 * interval + lost_seconds + restart), 4
        ),
    }
    report.expect(calm.seconds / struck >= 0.9, f"goodput {calm.seconds / struck:.3f}")


class _Timed:
    """Notes when a run has its last checkpoint."""

    def __init__(self, program: Program, folder: Path, num_steps: int):
        self.seconds = 0.0

        def watch() -> None:
            program.until(lambda: num_steps in steps(folder), 3600, nap=0.1)
            self.seconds = time.monotonic() - program.began

        self.watcher = threading.Thread(target=watch, daemon=True)
        self.watcher.start()


def _last(folder: Path) -> int:
    """The last step in a run's log."""
    try:
        with (folder / "log.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 400))
            return json.loads(file.read().decode().rsplit("\n", 2)[-2])["step"]
    except (FileNotFoundError, IndexError):
        return 0
