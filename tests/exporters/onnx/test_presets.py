"""Presets and options of the ONNX exporter: what they choose, and what does not go together."""

import dataclasses
import itertools
import re

import pytest

from exporters import onnx as exporter
from exporters.onnx.options import Options
from exporters.onnx.presets import PRESETS
from lrqat.activations.table import ACTIVATION_GRIDS
from lrqat.cli import export
from lrqat.errors import ExportRefusedError
from tests.support.fake_quantized import make_rounded
from tests.support.paths import ROOT

SHOWN = ("opset", "float_type", "accuracy_level", "two_bit_type", "integer_type", "attention")
SHOWN += ("activation_form",)
FIELDS = (*SHOWN, "embedding_type", "head_type")
OFFERED = {
    name: sorted({value for row in PRESETS.values() for value in getattr(row, name)})
    for name in FIELDS
}
PAGE = ROOT / "docs" / "onnx-grids.md"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_what_was_left_open(name):
    for two_bits in (False, True):
        options = Options(preset=name).resolved()
        options = options.with_integers(two_bits and options.two_bit_type == "int2")
        assert None not in dataclasses.asdict(options).values()
        # What a file says of itself must be options again, whatever the presets become.
        assert Options(**options.to_json()).resolved() == options


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_other_value_is_taken_or_refused_with_both_flags_and_a_reason(name, field):
    for value in OFFERED[field]:
        if value in getattr(PRESETS[name], field):
            assert getattr(Options(preset=name, **{field: value}), field) == value
            continue
        flag = field.replace("_", "-")
        with pytest.raises(
            ExportRefusedError,
            match=rf"--{flag} {value} does not go with --preset {name}: \w.*; "
            rf"it takes --{flag} {getattr(PRESETS[name], field)[0]}",
        ):
            Options(preset=name, **{field: value})


def test_two_bits_need_an_operator_set_that_has_them():
    for opset, kind in itertools.product(OFFERED["opset"], OFFERED["two_bit_type"]):
        if kind == "int2" and opset < 25:
            with pytest.raises(ExportRefusedError, match=r"--two-bit-type int2 .* --opset"):
                Options(opset=opset, two_bit_type=kind)
        else:
            Options(opset=opset, two_bit_type=kind)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--preset gpuu", "did you mean gpu"),
        ("--preset openvino --two-bit-type int2", "has no INT2; it takes --two-bit-type int4"),
        ("--preset cpu --float-type float16", "--float-type float16 does not go with --preset cpu"),
        ("--kv-cache bytes", "--kv-cache bytes is not offered; choose float, integers"),
        (
            "--activation-form best",
            "--activation-form best is not offered; choose arithmetic, fast",
        ),
    ],
)
def test_the_tool_refuses_before_anything_is_read(arguments, match):
    with pytest.raises(ExportRefusedError, match=re.escape(match)):
        export.main(["/nowhere", "--format", "onnx", *arguments.split()])


def test_float16_is_refused_for_scales_that_it_does_not_hold(make_small):
    plan = exporter.plan(make_small("q3_k"), Options(preset="gpu"))
    assert "q3_k are not float16" in plan.refusals[0]
    plan = exporter.plan(make_small("q4_0"), Options(preset="gpu"))
    assert not plan.refusals
    assert {tensor.dtype.name for tensor in plan.tensors} == {"INT4", "FLOAT16"}
    assert any("float16: what is unquantized is rounded" in note for note in plan.notes)


@pytest.fixture(scope="module")
def rounded(tiny_model, tmp_path_factory):
    """Function of activation grids -> a fused checkpoint."""
    made = {}

    def make(*activations, grid="int4-g32"):
        if (activations, grid) not in made:
            folder = tmp_path_factory.mktemp("rounded")
            made[activations, grid] = make_rounded(
                tiny_model, folder, grid=grid, activations=activations
            )
        return made[activations, grid]

    return make


@pytest.mark.parametrize(
    ("activations", "grid", "options", "form"),
    [
        ("int8-token", "int4-g32", {}, "arithmetic"),
        ("q8_0", "int4-g32", {}, "arithmetic"),
        ("int8-tensor", "int4-g32", {}, "arithmetic"),  # a QuantizeLinear would stop the fusion
        ("int8-tensor", "int8-channel", {}, "qdq"),  # integers are multiplied
        ("int16-tensor", "int8-channel", {}, "arithmetic"),
        ("int8-tensor", "int4-g32", {"preset": "qnn"}, "qdq"),
        ("int8-token", "int4-g32", {"preset": "webgpu"}, "arithmetic"),
        ("ort-level4-g32", "int4-g32", {}, "kernel"),
        ("ort-level4-g32", "int4-channel", {}, "kernel"),
        ("ort-level4-g32", "int2-g32", {}, "arithmetic"),
        ("ort-level4-g64", "int4-g32", {}, "arithmetic"),  # the kernel would round by 32
        ("ort-level4-g32", "int4-g32", {"accuracy_level": 1}, "arithmetic"),
        ("ort-level4-g32", "int4-g32", {"preset": "openvino"}, "arithmetic"),
    ],
)
def test_how_inputs_are_rounded(activations, grid, options, form, rounded):
    plan = exporter.plan(rounded(activations, grid=grid), Options(**options))
    assert not plan.refusals
    assert {rounding.form for rounding in plan.roundings.values()} == {form}
    assert plan.options.accuracy_level == (4 if form == "kernel" else 1)
    count = sum(t.form == "input_scale" for t in plan.tensors)
    assert count == (7 if ACTIVATION_GRIDS[activations].static else 0)


def test_rounding_twice_is_refused(rounded):
    plan = exporter.plan(rounded("int8-token"), Options(accuracy_level=4))
    assert "int8-token, and --accuracy-level 4 would round them once more" in plan.refusals[0]


def test_a_head_that_was_not_trained_for_the_kernels_rounding_is_not_rounded_by_it(rounded):
    """The accuracy level is one for all products of integers."""
    plan = exporter.plan(rounded("ort-level4-g32"), Options(head_type="int8"))
    assert not plan.refusals
    assert plan.options.accuracy_level == 1
    assert {rounding.form for rounding in plan.roundings.values()} == {"arithmetic"}


def test_steps_in_half_precision_are_refused_for_openvino(rounded):
    """runtime_tests/test_onnx_presets.py shows why."""
    plan = exporter.plan(rounded("q8_0"), Options(preset="openvino"))
    assert "--preset openvino's runtime leaves their rounding out" in plan.refusals[0]
    assert not exporter.plan(rounded("int8-token"), Options(preset="openvino")).refusals


@pytest.mark.parametrize(
    ("activations", "kv_bits", "named"),
    [("int8-token", None, "int8-token"), ("q8_0", None, "q8_0"), ("int8-tensor", 8, "cache")],
)
def test_ranges_that_are_computed_are_refused_for_qnn(
    activations, kv_bits, named, tiny_model, tmp_path
):
    """runtime_tests/test_onnx_presets.py shows why."""
    made = make_rounded(tiny_model, tmp_path, activations=[activations], kv_bits=kv_bits)
    refusals = exporter.plan(made, Options(preset="qnn")).refusals
    assert len(refusals) == 1
    assert f"{named} are computed for every token, which --preset qnn" in refusals[0]
    assert not exporter.plan(made, Options(preset="webgpu")).refusals


@pytest.mark.parametrize(("grid", "count"), [("int4-g32", 0), ("int4-channel", 0), ("q8_0", 7)])
@pytest.mark.parametrize("preset", ["qnn", "webgpu"])
def test_the_plan_says_which_weights_are_dequantised_at_every_step(preset, grid, count, make_small):
    for integers, expected in (("unsigned", count), ("signed", 0)):
        plan = exporter.plan(make_small(grid), Options(preset=preset, integer_type=integers))
        said = [note for note in plan.notes if "dequantised at every step" in note]
        assert [note.split()[0] for note in said] == [str(expected)] * bool(expected)


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_has_the_row_of_a_preset(name):
    row = PRESETS[name]
    cells = [f"`{name}`", *(f"`{getattr(row, field)[0]}`" for field in SHOWN), row.runtime]
    assert f"| {' | '.join(cells)} |" in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_says_of_every_preset_where_it_was_run():
    lines = PAGE.read_text(encoding="utf-8").split("## Presets and runtimes")[1].splitlines()
    rows = [line.split("|")[1].strip(" `") for line in lines if line.startswith("| `")]
    assert sorted(set(rows) & set(PRESETS)) == sorted(PRESETS)
