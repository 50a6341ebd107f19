"""The account of compiled programs: reading their text, the page, and the real compilers."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks import compiled
from benchmarks.compiled import case, hlo, page
from benchmarks.compiled.chips import CHIPS, missing
from benchmarks.compiled.programs import PROGRAMS
from benchmarks.sizes import plan_for

# A loop over steps as TPUs' compiler writes one: a data set laid out anew before it, and inside a
# look-up of 4 rows of 12 bytes, a sum over eight devices in flight, an inner loop of three trips,
# and one row of an array updated in place.
TEXT = (Path(__file__).parent / "compiled_program.txt").read_text()


def test_a_program_falls_into_its_step_and_what_a_dispatch_does_once():
    program = hlo.Program(TEXT)
    step, once = hlo.account(program.step), hlo.account(program.once)
    assert [k.instruction.name for k in program.once] == ["copy.1", "copy.2"]
    assert once["copies"] == {"count": 2, "bytes": 2 * 1200 + 2 * 4096, "cycles": 7000}
    # fusion.1, the sum, three trips of one operation, fusion.2.
    assert step["kernels"] == step["small"] == 1 + 1 + 3 + 1
    assert step["cycles"] == 70 + 900 + 3 * 5 + 20
    gathered, indices, update = 4 * 12, 4 * 4, 8 * 4
    assert step["read"] == gathered + indices + 4096 + 3 * 32 + update + 4
    assert step["written"] == 2 * 4 * 12 + 4096 + 3 * 32 + update
    assert step["copies"]["count"] == 0
    normalisation = step["parts"]["normalisation and SiLU"]
    assert normalisation == {"kernels": 1, "bytes": 3 * gathered + indices, "cycles": 70}
    assert sum(part["bytes"] for part in step["parts"].values()) == step["bytes"]


def test_a_sum_over_devices_sends_what_a_ring_needs():
    """All-reduce of n bytes over 8 devices: 2 n 7/8."""
    found = hlo.Program(TEXT).collectives()
    assert found == {"all-reduce": {"count": 1, "bytes": 2 * 4096 * 7 / 8}}


def test_a_collective_beside_several_operations_counts_once():
    chained = 'replica_groups=[1,8]<=[8], frontend_attributes={chain_id="3"}'
    text = TEXT.replace("replica_groups=[1,8]<=[8]", chained)
    row = next(row for row in text.splitlines() if "all-reduce-start(" in row)
    again = row.replace("all-reduce-start.1", "all-reduce-start.2")
    found = hlo.Program(text.replace(row, f"{row}\n{again}")).collectives()
    assert found == hlo.Program(TEXT).collectives()


def test_without_a_loop_over_steps_everything_is_one_step():
    text = TEXT.replace("body=%body", "body=%inner").replace("while.1", "while.9")
    program = hlo.Program(text)
    assert program.once == []
    assert [k.instruction.opcode for k in program.step] == ["copy", "negate", "copy"]


def test_a_slice_of_what_was_joined_counts_by_the_part_it_reads():
    """Ten of a thousand float32 numbers, and two times ten that are converted before."""
    program = hlo.Program("""
%cut (p: f32[1,1000]) -> (bf16[10], bf16[2,5]) {
  %p = f32[1,1000]{1,0} parameter(0)
  %b = f32[1000]{0} bitcast(%p)
  %c = bf16[1000]{0} convert(%b)
  %one = bf16[10]{0} slice(%c), slice={[0:10]}
  %other = bf16[10]{0} slice(%c), slice={[20:30]}
  ROOT %t = (bf16[10]{0}, bf16[10]{0}) tuple(%one, %other)
}

%whole (q: f32[1,1000]) -> f32[10] {
  %q = f32[1,1000]{1,0} parameter(0)
  %s = f32[1,10]{1,0} slice(%q), slice={[0:1], [0:10]}
  ROOT %n = f32[1,10]{1,0} negate(%s)
}

ENTRY %main (a: f32[1,1000]) -> f32[1,10] {
  %a = f32[1,1000]{1,0} parameter(0)
  %first = (bf16[10]{0}, bf16[10]{0}) fusion(%a), kind=kLoop, calls=%cut
  ROOT %second = f32[1,10]{1,0} fusion(%a), kind=kLoop, calls=%whole
}
""")
    assert [(k.read, k.written) for k in program.step] == [(2 * 10 * 4, 2 * 10 * 2), (40, 40)]


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing\n")


@pytest.mark.parametrize(
    "type_,size",
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("bf16[]", 2),
        ("pred[7]{0}", 7),
        ("s4[10]{0:E(4)}", 5),
        ("(f32[2]{0}, /*index=1*/u8[3]{0:T(128)(4,1)})", 11),
        ("f8e4m3fn[5]", 5),
        ("token[]", 0),
    ],
)
def test_bytes_of_types(type_, size):
    assert hlo.bytes_of(type_) == size


def test_what_a_tpu_keeps_in_its_own_memory_is_not_moved():
    type_ = "(f32[2]{0:T(128)S(1)}, f32[3]{0:T(128)})"
    assert (hlo.bytes_of(type_), hlo.bytes_of(type_, on_chip=False)) == (20, 12)


def test_cases_are_those_that_exist():
    everything = compiled.cases(compiled.Choice())
    assert len(everything) == len(set(everything))
    assert ("H200", "training, pmap", "bfloat16") not in everything
    assert ("v5e", "Inception features", "bfloat16") not in everything
    one = compiled.Choice(chips=("v5e",), programs=("training, 1",), dtypes=("float32",))
    assert compiled.cases(one) == [("v5e", "training, 1 device", "float32")]
    with pytest.raises(ValueError, match="no 'v9'; choose among H200, "):
        compiled.cases(compiled.Choice(chips=("v9",)))
    with pytest.raises(ValueError, match="no program is called"):
        compiled.cases(compiled.Choice(programs=("dreaming",)))


@pytest.mark.parametrize("program", ["ancestral sampling", "DDIM sampling", "held-out loss"])
def test_programs_of_sampling_are_those_of_the_package(program):
    """They lower: what they give the package's functions is what these take."""
    plan = plan_for("cpu", quick=True, sample_batch=2)
    lowered = PROGRAMS[program](plan, jax.devices())
    assert lowered.flops["conv3x3"] > 0
    assert "stablehlo.convolution" in lowered.stage.as_text()


def example_account():
    step = hlo.account(hlo.Program(TEXT).step)
    roofline = case.roofline("v5e", "bfloat16", {"conv3x3": 197e9, "dense": 197e9}, step)
    memory = {"arguments": 1, "outputs": 1, "aliased": 0, "temporary": 2**30, "code": 0}
    return {
        "date": "2026-01-01 00:00 UTC",
        "commit": "abc",
        "memory": memory | {"peak": 17e9, "fits": False},
        "donated": {"expected": 1, "aliased": 0},
        "step": step,
        "once": hlo.account(hlo.Program(TEXT).once),
        "collectives": {"expected": {"all_reduce": 7e6}, "found": hlo.Program(TEXT).collectives()},
        "roofline": roofline,
    }


def test_the_floor_is_arithmetic_and_memory_by_the_data_sheet():
    line = example_account()["roofline"]
    assert line["arithmetic_s"] == pytest.approx(2e-3)
    moved = example_account()["step"]["bytes"]
    assert line["memory_s"] == pytest.approx(moved / CHIPS["v5e"].bandwidth)
    assert line["convolutions_s"] == pytest.approx(1e-3)
    assert line["estimated_s"] == pytest.approx(1005 / 1.5e9)


def test_the_page_says_that_nothing_was_measured(tmp_path):
    cases = {"training, 1 device | v5e | bfloat16": example_account()}
    left_out = {"training, 1 device | v4 | float32": "no such | chip"}
    page.write_page({"schema": 1, "cases": cases, "left_out": left_out}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "The compiler's account, not a measurement" in text
    assert "no: 16 GB" in text and "7,000 cycles" in text
    assert "- **training, 1 device**, no such | chip: v4 float32" in text
    assert json.loads((tmp_path / "results.json").read_text())["cases"] == cases


def test_a_chip_whose_compiler_is_missing_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "missing", lambda chip: "its compiler is not installed")
    choice = compiled.Choice(chips=("v5e",), programs=("held-out",), out=tmp_path)
    assert compiled.run(choice) == 0
    text = (tmp_path / "README.md").read_text()
    assert "- **held-out loss**, its compiler is not installed: v5e bfloat16, float32" in text


# Of the small network's step with jaxlib 0.10.2 and libtpu 0.0.42.1.
RECORDED = {
    "v5e": {"kernels": 2378, "bytes": 22_630_627, "cycles": 3_574_132},
    "H200": {"kernels": 415, "bytes": 513_086_066},
}


@pytest.mark.parametrize(
    "chip,program", [("H200", "training, 1 device"), ("v5e", "training, shard_map")]
)
def test_the_training_step_compiles_as_it_should(chip, program):
    """A small network: the state is donated, a dispatch copies no data set, what devices send is
    one sum of the gradients (and of the loss), and a step costs at most 5 % more than it did."""
    if reason := missing(chip):
        pytest.skip(reason)
    plan = compiled.SMALL
    found = compiled._compile(chip, program, "bfloat16", plan, 1200.0)
    assert "error" not in found, found
    assert found["donated"]["aliased"] >= found["donated"]["expected"] > 0
    assert found["once"]["copies"]["cycles"] <= 100_000
    # Parameters are packed before the first step and unpacked after the last one.
    assert found["once"]["copies"]["bytes"] <= 2 * found["donated"]["expected"]
    sent, expected = found["collectives"]["found"], found["collectives"]["expected"]
    if not expected:
        assert sent == {}
    else:
        assert set(sent) == {"all-reduce"}
        assert sent["all-reduce"]["bytes"] == pytest.approx(expected["all_reduce"], rel=0.01)
    for name, recorded in RECORDED.get(chip, {}).items():
        assert found["step"][name] <= 1.05 * recorded, name
