"""How embeddings and heads lie in an ONNX file: types, bytes, packing, what is refused."""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import onnx as exporter
from exporters.onnx.folder.model_file import OnnxFileError
from exporters.onnx.folder.readme import rounded_tables
from exporters.onnx.options import OPTIONS_KEY, Options
from exporters.onnx.weights.integers import ROUNDED, round_rows
from exporters.onnx.weights.storage import code_bits, code_shape, code_type, pack_rows
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import export
from lrqat.errors import CheckpointError, ExportRefusedError
from lrqat.grids.grid import GRIDS
from tests.support.checkpoints import fused

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory):
    """As most models are published: everything in bfloat16."""
    return fused("llama, llama3 rope", tmp_path_factory.mktemp("bf16") / "f", grid_for={},
                 dtype="bfloat16")  # fmt: skip


def types_of(plan):
    names = {f"{EMBEDDING}.weight": EMBEDDING, f"{HEAD}.weight": HEAD}
    return {names[t.name]: t.dtype.name for t in plan.tensors if t.name in names}


def test_by_default_tables_are_stored_as_in_the_checkpoint(bfloat16, make_small):
    plan = exporter.plan(bfloat16)
    assert types_of(plan) == {EMBEDDING: "BFLOAT16", HEAD: "BFLOAT16"}
    assert {t.dtype.name for t in plan.tensors} == {"INT4", "FLOAT", "BFLOAT16"}
    assert [choice.changed for choice in plan.choices] == [0, 0]
    assert f"{HEAD} is bfloat16, 36,864 bytes, exact; --head-type may be float32 73,728 bytes" in (
        "\n".join(plan.summary())
    )
    assert types_of(exporter.plan(make_small("q4_0"))) == {EMBEDDING: "FLOAT", HEAD: "FLOAT"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"preset": "qnn"}, "FLOAT16"),
        ({"preset": "gpu"}, "FLOAT16"),
        ({"preset": "gpu", "float_type": "float32"}, "FLOAT"),
        ({"embedding_type": "float32"}, "FLOAT"),
        ({"embedding_type": "float16"}, "FLOAT16"),
        ({"embedding_type": "int8"}, "INT8"),
    ],
)
def test_what_else_an_embedding_may_be(options, expected, bfloat16):
    assert types_of(exporter.plan(bfloat16, Options(**options)))[EMBEDDING] == expected


def test_rounding_is_asked_for_and_says_what_it_costs(bfloat16):
    plan = exporter.plan(bfloat16, Options(embedding_type="int8", head_type="int8"))
    values = bfloat16.floating(f"{EMBEDDING}.weight").astype(np.float32)
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    error = np.rint(values / scale) * scale - values
    choice = next(c for c in plan.choices if c.module == EMBEDDING)
    assert choice.changed == np.count_nonzero(error)
    assert choice.error == pytest.approx(np.sqrt((error**2).sum() / (values**2).sum()), rel=1e-4)
    assert any(
        re.search(rf"^{EMBEDDING} is int8.*rounded, which was not trained: [\d,]+ val", line)
        for line in plan.summary()
    )
    listed = json.loads(json.dumps(plan.to_json()))
    sizes = {t["module"]: t["bytes"]["int8"] for t in listed["choices"]}
    entries = [t for t in listed["tensors"] if t["name"].startswith((EMBEDDING, HEAD))]
    assert sum(t["bytes"] for t in entries) == sum(sizes.values()) == 2 * 288 * (64 + 4)
    assert not any(t["quantized"] for t in entries)
    assert any(f"{HEAD} is stored in 8 bits and is float32 once" in n for n in plan.notes)
    assert f"{choice.changed:,} of its values changed" in rounded_tables(plan)
    assert rounded_tables(exporter.plan(bfloat16)) == ""


@pytest.mark.parametrize(
    ("tied", "grid_for", "options", "reason"),
    [
        (True, None, {"head_type": "int8"}, "ask for --embedding-type int8"),
        (False, {"lm_head": "q4_0"}, {"head_type": "int8"}, "trained on the grid q4_0 and is"),
        (False, {"embed_tokens": "q4_0"}, {"embedding_type": "float16"}, "leave --embedding-type"),
        (False, None, {"preset": "gpu", "head_type": "float32"}, "would be rounded to it"),
        (True, {"embed_tokens": "q4_k"}, {}, "train on int4-asym-g32, which has one"),
    ],
)
def test_what_cannot_be_had_is_refused(tied, grid_for, options, reason, make_small):
    plan = exporter.plan(make_small("q4_0", grid_for, tied=tied), Options(**options))
    assert len(plan.refusals) == 1
    assert reason in plan.refusals[0]
    with pytest.raises(ExportRefusedError, match=re.escape(reason)):
        exporter.write(plan, plan.checkpoint.path / "never")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--embedding-type int4", "--embedding-type int4 is not offered; choose auto, bfloat16"),
        ("--preset qnn --head-type bfloat16", "not tried there; it takes --head-type auto or fl"),
    ],
)
def test_the_tool_refuses_before_anything_is_read(arguments, match):
    with pytest.raises(ExportRefusedError, match=re.escape(match)):
        export.main(["/nowhere", "--format", "onnx", *arguments.split()])


def test_values_that_a_type_does_not_reach_are_refused(bfloat16, monkeypatch):
    large = np.full((288, 64), 1e5, ml_dtypes.bfloat16)
    checkpoint = Checkpoint.open(bfloat16.path)
    monkeypatch.setattr(checkpoint, "floating", lambda name: large)
    plan = exporter.plan(checkpoint, Options(embedding_type="float16"))
    assert plan.refusals == [
        f"--embedding-type float16: {EMBEDDING} has values beyond its largest; choose another"
    ]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["int2-g16", "int3-asym-channel", "q4_0", "tq2_0", "q6_k", "iq4_nl"]),
    rows=st.integers(1, 5),
    eighths=st.integers(1, 9),
)
def test_codes_are_what_their_page_says(name, rows, eighths):
    grid, columns = GRIDS[name], 8 * eighths
    q = np.random.default_rng(rows).integers(grid.q_min, grid.q_max + 1, (rows, columns))
    codes = pack_rows(q.astype(np.int8), grid)
    bits = code_bits(grid, columns)
    assert bits == (2 if grid.bits == 2 else 4 if grid.bits < 5 and grid.q_min >= -8 else 8)
    assert codes.shape == code_shape((rows, columns), grid)
    assert codes.dtype == code_type(grid, columns).numpy()
    share = columns * bits // 8
    for column in range(columns):
        byte = codes[:, column % share].astype(int)
        found = (byte >> bits * (column // share)) % (1 << bits) - (1 << bits - 1)
        assert np.array_equal(byte if bits == 8 else found, q[:, column])


def test_odd_rows_are_bytes():
    assert code_bits(GRIDS["int4-channel"], 33) == 8
    assert code_bits(GRIDS["int2-channel"], 34) == 4


def test_rows_of_zeros_of_tiny_and_of_huge_numbers_arerounded_tables():
    values = np.zeros((4, 8), np.float32)
    values[1], values[2, 3], values[3] = 1e-44, 3e38, np.linspace(-1, 1, 8)
    rounded = round_rows("x", values)
    assert np.isfinite(rounded.scale).all()
    assert (rounded.scale > 0).all()
    found = rounded.dequantize()
    assert not found[:2].any()
    np.testing.assert_allclose(found[2:], values[2:], atol=3e38 / 254)
    assert np.abs(found[3] - values[3]).max() <= 1.001 / 254
    assert rounded.q.min() >= ROUNDED.q_min
    values[0, 0] = np.nan
    with pytest.raises(CheckpointError, match=r"x\.weight holds NaN or infinity"):
        round_rows("x", values)


@pytest.fixture(scope="module")
def tied(make_small, tmp_path_factory):
    """A tied table on Q4_0 and its folder."""
    checkpoint = make_small("q4_0", {"embed_tokens": "q4_0"}, tied=True)
    folder = tmp_path_factory.mktemp("tied") / "onnx"
    report = exporter.write(exporter.plan(checkpoint), folder)
    assert (report.quantized, report.rounded) == (8, 0)
    return checkpoint, folder


def test_a_tied_table_is_stored_once_in_its_own_bits(tied):
    checkpoint, folder = tied
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    stored = ir.load(folder / "model.onnx").graph.initializers
    codes = stored[f"{EMBEDDING}.weight"].const_value
    rows, columns = checkpoint.shape(EMBEDDING)
    assert (codes.dtype, codes.nbytes) == (ir.DataType.UINT8, rows * columns // 2)
    assert HEAD not in "".join(stored)
    low, high = codes.numpy() % 16, codes.numpy() // 16
    q = checkpoint.quantized(EMBEDDING).q
    assert np.array_equal(np.hstack([low, high]).astype(np.int8) - 8, q)


def test_damage_to_a_tied_table_is_found(tied, tmp_path):
    checkpoint, folder = tied
    model = onnx.load(folder / "model.onnx")
    name = f"{EMBEDDING}.weight"
    lookup = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[0] == name)
    product = [n for n in model.graph.node if n.op_type == "DequantizeLinear"][-1]
    table = next(t for t in model.graph.initializer if t.name == name)
    content = bytearray(table.raw_data)
    content[5] ^= 1

    def check(expected):
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        counts = exporter.verify(tmp_path, checkpoint)
        assert {k: n for k, n in counts.items() if n} == expected

    check({})
    sizes = {f"{name}{s}": int(np.prod(t.shape)) for s in ("", "_scale")
             for t in exporter.plan(checkpoint).tensors if t.name == f"{name}{s}"}  # fmt: skip
    block = next(a for a in product.attribute if a.name == "block_size")
    block.i = 64
    check(sizes)
    block.i = 32
    axis = next((a for a in lookup.attribute if a.name == "axis"), None)
    if axis is None:
        lookup.attribute.append(onnx.helper.make_attribute("axis", 1))
    else:
        axis.i = 1
    check({name: sizes[name]})
    del lookup.attribute[:]
    table.raw_data = bytes(content)
    check({name: 1})


def test_a_graph_that_runs_in_circles_does_not_verify(tied, tmp_path):
    checkpoint, folder = tied
    model = onnx.load(folder / "model.onnx")
    mask = next(n for n in model.graph.node if n.op_type == "BitwiseAnd")
    mask.input[1] = mask.output[0]
    last = [n for n in model.graph.node if n.op_type == "DequantizeLinear"][-1]
    last.op_type = "Identity"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    counts = exporter.verify(tmp_path, checkpoint)
    assert counts[f"{EMBEDDING}.weight"] > 0


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
def test_random_damage_to_a_tied_table_is_an_error_or_a_mismatch_never_a_crash(tied, tmp_path):
    checkpoint, folder = tied
    good, generator = (folder / "model.onnx").read_bytes(), np.random.default_rng(0)
    shutil.copyfile(folder / "model.onnx_data", tmp_path / "model.onnx_data")
    for _ in range(20):
        bad = bytearray(good)
        for place in generator.integers(0, len(bad), 3):
            bad[place] = generator.integers(0, 256)
        (tmp_path / "model.onnx").write_bytes(bad)
        try:
            counts = exporter.verify(tmp_path, checkpoint)
        except OnnxFileError:
            continue
        assert counts.keys() >= {t.name for t in exporter.plan(checkpoint).tensors}


def test_a_file_from_before_there_was_a_choice_is_still_exact(bfloat16, tmp_path):
    options = Options(embedding_type="float32", head_type="float32")
    exporter.write(exporter.plan(bfloat16, options), tmp_path / "onnx")
    path = tmp_path / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    said = next(p for p in model.metadata_props if p.key == OPTIONS_KEY)
    before = {k: v for k, v in json.loads(said.value).items() if "_type" not in k or "two" in k}
    said.value = json.dumps(before | {"float_type": "float32"})
    path.write_bytes(model.SerializeToString())
    assert not any(exporter.verify(tmp_path / "onnx", Checkpoint.open(bfloat16.path)).values())
