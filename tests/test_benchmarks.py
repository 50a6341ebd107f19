"""The benchmarks' own arithmetic, two of them at tiny sizes, and the page made from JSON."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import (
    common,
    efficiency,
    plots,
    provenance,
    registry,
    report,
    run,
    sizes,
    trace,
)
from benchmarks.flops import unet_flops
from benchmarks.interleave import CornerError, corner
from ddpm_jax.nn import UNet


def test_contestants_take_turns_there_and_back():
    calls = []

    def contestant(name, seconds):
        return lambda: calls.append(name) or seconds

    times = common.alternate({"a": contestant("a", 1.0), "b": contestant("b", 2.0)}, 2, warmup=1)
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_a_lead_is_run_and_not_counted():
    seconds = iter([9.0, 1.0, 8.0, 2.0])
    assert common.alternate({"a": lambda: next(seconds)}, 2, warmup=0, lead=1) == {"a": [1.0, 2.0]}


def test_ratio_keeps_rounds_together():
    """A slow minute that hits both rivals leaves the ratio, and its interval, exactly alone."""
    ours = [1.0, 1.1, 5.0, 1.2, 0.9, 4.0, 1.0]
    result = common.ratio([3 * s for s in ours], ours)
    assert result == pytest.approx({"ratio": 3.0, "low": 3.0, "high": 3.0})
    loose = common.ratio([3.0, 3.0, 6.0, 3.0, 3.0], [1.0, 2.0, 1.0, 1.0, 1.0])
    assert loose["ratio"] == 3.0 and loose["low"] < 3.0 < loose["high"]


def test_the_fastest_rival_is_the_one_compared_with():
    seconds = {"ours": [2.0, 2.0], "slow": [9.0, 9.0], "fast": [4.0, 4.0]}
    result = common.compare(seconds, "ours", ["slow", "fast"], work=8)
    assert result["best_rival"] == "fast"
    assert result["ours_over_best_rival"]["ratio"] == 2.0
    assert result["contestants"]["ours"]["rate"] == 4.0
    assert "best_rival" not in common.compare({"ours": [1.0]}, "ours", [], work=1)


def test_operations_of_the_papers_network():
    """12.44 GFLOP an image, and exactly what a network of one block comes to by hand."""
    assert sum(unet_flops(UNet(), 32).values()) == pytest.approx(12.44e9, rel=1e-3)
    tiny = UNet(
        channels=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_groups=4,
    )
    inputs = [3, *[8, 8] * 3, *[16, 8] * 2]  # conv_in, three blocks of 8, two that join a skip
    convolutions = 2 * 9 * 16 * (sum(inputs) * 8 + 8 * 3)
    # Two shortcuts, and the four projections of the middle's attention.
    assert unet_flops(tiny, 4) == {
        "conv3x3": convolutions,
        "conv1x1": 2 * 16 * (2 * 16 * 8 + 4 * 8 * 8),
        "attention": 4 * 16 * 16 * 8,
        "dense": 2 * (8 * 32 + 32 * 32) + 5 * 2 * 32 * 8,
    }


def test_time_is_the_innermost_operations_and_shared_between_threads():
    outer = trace.innermost([(0.0, 10.0, "loop"), (2.0, 5.0, "conv"), (5.0, 6.0, "add")])
    assert outer == [(0, 2, "loop"), (2, 5, "conv"), (5, 6, "add"), (6, 10, "loop")]
    shares = trace.share([outer, [(4.0, 12.0, "other")]])
    assert shares == {"loop": 4.0, "conv": 2.5, "add": 0.5, "other": 5.0}
    assert sum(shares.values()) == 12.0


PRODUCTS = """
ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %dot.1 = f32[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %bitcast.1 = f32[4,4]{1,0} bitcast(%dot.1)
  %add.1 = f32[4,4]{1,0} add(%a, %a)
  ROOT %multiply.1 = f32[4,4]{1,0} multiply(%bitcast.1, %add.1)
}
"""


def test_a_product_that_goes_on_unseen_gets_the_gap_before_its_result_is_used():
    """Begun at 0 and used at 9, while another operation runs from 2 to 4; at 10 it is done with."""
    ran = {"dot.1", "add.1", "multiply.1"}
    awaited = trace.awaited_products(PRODUCTS, ran)
    assert awaited == {"dot.1": frozenset({"multiply.1"})}
    thread = [(0.0, 1.0, "dot.1"), (2.0, 4.0, "add.1"), (9.0, 10.0, "multiply.1")]
    later = [(12.0, 13.0, "add.1")]
    shares = trace.share([thread, later], awaited)
    assert shares == {"dot.1": 7.0, "add.1": 3.0, "multiply.1": 1.0}


@pytest.mark.parametrize(
    "scope,files,part",
    [
        ("jit(f)/jvp(UNet)/a/conv1/conv_general_dilated", "", "convolution, forward"),
        ("jit(f)/transpose(jvp(UNet))/a/conv_general_dilated", "", "convolution, gradients"),
        ("jit(f)/transpose(jvp(UNet))/up_0_block_0/norm1/mul", "", "normalisation and SiLU"),
        ("jit(f)/jvp(UNet)/down_1_attention_0/query/dot_general", "", "attention"),
        ("jit(f)/jvp(UNet)/x/threefry2x32", "", "random numbers"),
        ("jit(f)/mul", "/site-packages/optax/_src/base.py", "optimiser and EMA"),
        ("jit(f)/gather", "/ddpm_jax/programs/build.py /ddpm_jax/training/step.py", "input"),
        ("jit(f)/mul", "", "other named"),
        ("", "", "unnamed"),
    ],
)
def test_parts_of_a_step(scope, files, part):
    assert trace.classify(trace.Operation("fusion", scope, files)) == part


def test_plans_travel_as_json():
    for platform in ("cpu", "gpu"):
        for quick in (True, False):
            made = sizes.plan_for(platform, quick=quick, batch_size=12)
            assert sizes.from_json(json.loads(json.dumps(sizes.to_json(made)))) == made
            assert made.batch_size == 12 and made.platform == platform


def test_the_options_name_every_question():
    assert run.Name.__args__ == registry.NAMES
    for name in registry.NAMES:
        assert registry.benchmark(name).title
    with pytest.raises(ValueError, match="no benchmark 'speed'; choose among training, "):
        registry.benchmark("speed")


def failing_corner():
    raise RuntimeError("out of luck")


def test_a_failing_rival_says_why():
    with pytest.raises(CornerError, match="out of luck"), corner(f"{__name__}:failing_corner"):
        pass


@pytest.fixture(scope="module")
def quick_page(tmp_path_factory):
    """`python -m benchmarks` for two benchmarks; the plan makes one of them fail."""
    out = tmp_path_factory.mktemp("page")
    words = ["--quick", "--only", "input", "precision", "--out", str(out)]
    words += ["--set", "multipliers", "[1]", "attention", "[]", "precision_seeds", "0"]
    # Compiling is most of the time, and nothing here depends on its quality.
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=provenance.ROOT,
        env=environment,
    )
    return out, done


@pytest.mark.slow
def test_one_failure_is_recorded_and_the_rest_runs(quick_page):
    out, done = quick_page
    assert done.returncode == 1, done.stderr
    page = json.loads((out / "results.json").read_text())
    assert page["schema"] == run.SCHEMA
    assert {"platform", "device", "processor", "cores", "versions"} <= page["machine"].keys()
    assert page["benchmarks"].keys() == {"input", "precision"}
    for entry in page["benchmarks"].values():
        assert {"status", "date", "commit", "plan", "seconds", "cpu"} <= entry.keys()
    failed, good = page["benchmarks"]["precision"], page["benchmarks"]["input"]
    assert failed["status"] == "failed"
    assert failed["reason"] == "ValueError: precision needs precision_seeds >= 1, got 0."
    assert good["status"] == "ok"
    for name in ("resident", "streamed"):
        one = good["result"]["contestants"][name]
        assert len(one["seconds"]) == 2 and one["rate"] > 0
        assert one["median_s"] == pytest.approx(np.median(one["seconds"]))
    assert "failed: precision" in done.stdout and "input: resident" in done.stdout


@pytest.mark.slow
def test_the_page_is_made_from_the_json_alone(quick_page):
    out, _ = quick_page
    text = (out / "README.md").read_text()
    assert "## input" in text and "**failed**" in text and "![input](input.png)" in text
    (out / "README.md").unlink()
    (out / "input.png").unlink()
    page = json.loads((out / "results.json").read_text())
    assert report.draw_page(page, out) is None
    assert (out / "README.md").read_text() == text
    assert (out / "input.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_need_something_to_show(tmp_path):
    with pytest.raises(ValueError, match="save_bars got no bars"):
        plots.save_bars(tmp_path / "x.png", {"a": {}}, "y", title="t")
    with pytest.raises(ValueError, match="save_stack got no parts"):
        plots.save_stack(tmp_path / "x.png", {"a": []}, "x", title="t")


def test_torch_rivals_compute_the_same(monkeypatch):
    """The rival's network is ours, in every variant, and its step runs with a finite loss."""
    pytest.importorskip("torch", reason="needs the extra [interop]")
    pytest.importorskip("diffusers", reason="needs the extra [interop]")
    from benchmarks import training

    # Threads that wait for each other would be most of the time on a busy machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny_sizes = {"rounds": 1, "multipliers": (1,), "attention": ()}
    tiny = dataclasses.replace(sizes.plan_for("cpu", quick=True), **tiny_sizes)
    result = training.measure(tiny)
    assert result["parity"].keys() == {"eager", "channels_last"}
    assert max(result["parity"].values()) < 1e-4
    assert result["train"]["contestants"].keys() == {"ddpm_jax", "eager", "channels_last"}
    assert training.page(result).count("ddpm_jax") == 2


def test_two_processes_wait_once_a_message():
    """1 s of arithmetic, 4 arrays of 1 MB in all over 10 MB/s, 0.1 s a message."""
    measured = {
        "step_s": {"1": 1.0},
        "gradient_bytes": 1_000_000,
        "gradient_arrays": 4,
        "all_reduce": {"speed": 1e7, "latency_s": 0.1},
    }
    found = efficiency.predict_measured(measured)
    assert found == pytest.approx({"arrays": 1 / 1.5, "one_message": 1 / 1.2})
