"""The registry of formats: who recognises what, and what works without whose dependencies."""

import subprocess
import sys

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporters.description import differing, worst
from exporters.format import CHECKPOINT, FORMATS, format_of, load_format, recognise
from exporters.inspection import mismatches
from exporters.recognition import is_compact
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError, UserError


def onnx_model(operator):
    """A model.onnx of one node."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32]) for name in "ab"]
    node = helper.make_node(operator, ["a", "w", "s"], ["b"], name="MatMulNBits")
    return helper.make_model(helper.make_graph([node], "MatMulNBits", values[:1], values[1:]))


@pytest.fixture(scope="module")
def paths(fused_checkpoint, tmp_path_factory):
    """Something of every format, and of none, by what it is."""
    folder = tmp_path_factory.mktemp("paths")
    for name, operator in (("onnx", "MatMul"), ("onnx-genai", "MatMulNBits")):
        (folder / name).mkdir()
        onnx.save(onnx_model(operator), folder / name / "model.onnx")
    (folder / "nameless").write_bytes(b"GGUF\3\0\0\0")
    (folder / "x.txt").write_bytes(b"text")
    return {
        "gguf": [folder / "not-there.gguf", folder / "nameless"],
        "onnx": [folder / "onnx"],
        "onnx-genai": [folder / "onnx-genai"],
        CHECKPOINT: [fused_checkpoint],
        None: [folder, folder / "x.txt", folder / "not-there", folder / "onnx" / "model.onnx"],
    }


def test_every_path_is_recognised_by_one_row_at_most(paths):
    assert FORMATS.keys() < paths.keys()
    for name, given_paths in paths.items():
        for path in given_paths:
            assert recognise(path) == name
            found = [each for each, row in FORMATS.items() if row.recognises(path)]
            assert found == ([name] if name in FORMATS else [])
            if name in FORMATS:
                assert format_of(path) == name
            else:
                with pytest.raises(UserError, match="is no exported file"):
                    format_of(path)


def test_every_format_can_be_opened_and_proved():
    from lrqat.runtimes.provers import PROVERS
    from lrqat.runtimes.targets import OPENERS

    assert PROVERS.keys() == FORMATS.keys()
    assert OPENERS.keys() == {*FORMATS, CHECKPOINT}


BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
from exporters.format import load_format, recognise
from lrqat.errors import RuntimeUnavailableError
works, fails, *paths = sys.argv[2:]
assert [recognise(path) for path in paths] == ["gguf", "onnx", "onnx-genai"]
load_format(works).Options()
try:
    load_format(fails)
except RuntimeUnavailableError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("blocked", "works", "fails", "message"),
    [
        ("gguf", "onnx", "gguf", "the gguf exporter needs gguf, which is not installed"),
        ("onnx,onnx_ir,torch", "gguf", "onnx", "the onnx exporter needs onnx-ir"),
        ("onnx,onnx_ir,torch", "gguf", "onnx-genai", "the onnx-genai exporter needs onnx-ir"),
    ],
)
def test_a_format_works_without_the_dependencies_of_another(blocked, works, fails, message, paths):
    given_paths = [paths[name][0] for name in FORMATS]
    arguments = [sys.executable, "-c", BLOCKED, blocked, works, fails, *map(str, given_paths)]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert said.startswith(message)
    # The compact form has no dependencies of its own, and lrqat no extra of its name.
    assert said.endswith(f"pip install 'lrqat[{fails.removesuffix('-genai')}]'\n")


def test_the_help_of_export_needs_no_format_installed():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'onnx_ir']))\n"
        "from lrqat.cli import export; export.main(['--help'])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--split-max-size" in said.stdout
    assert "options of onnx: the onnx exporter needs onnx-ir, which is not installed" in said.stdout


def test_an_unknown_format_is_named():
    with pytest.raises(UserError, match=r"unknown format 'gguff': did you mean gguf\?"):
        load_format("gguff")


@given(data=st.data())
def test_no_bytes_stop_the_recognition(data, tmp_path_factory):
    """Any bytes, and a model with some of them changed: an answer, and soon."""
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    content = bytearray(onnx_model("MatMulNBits").SerializeToString())
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=12))
    whole = data.draw(st.sampled_from([bytes(content), bytes(content[:at])]) | st.binary())
    (folder / "model.onnx").write_bytes(whole)
    assert is_compact(folder) in (True, False)


def test_a_graph_without_end_is_left_soon(tmp_path):
    """Ten million empty nodes, and a product behind them."""
    node = onnx_model("MatMulNBits").graph.node[0].SerializeToString()
    nodes = b"\x0a\x00" * 10**7 + b"\x0a" + bytes([len(node)]) + node
    size, count = len(nodes), bytearray()
    while size:
        count.append(size & 0x7F | (0x80 if size > 0x7F else 0))
        size >>= 7
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + count + nodes)
    assert not is_compact(tmp_path)


def test_a_checkpoint_without_a_form_in_the_format_is_no_origin(onnx_folder, make_fused):
    """Of its weights none would be compared, which is not the same as none that differs."""
    with pytest.raises(ExportRefusedError, match=r"cannot be an exact export of (?s:.*) minimum"):
        mismatches(onnx_folder("q4_0"), Checkpoint.open(make_fused("q4_1")))


def test_mismatches_are_weights_in_tensors():
    compared = {f"t{i}": i for i in range(12)} | {"bad\x1b": 7_000}
    assert differing(compared) == "7,066 weights in 12 of 13 tensors"
    assert differing({"a": 1, "b": 0}) == "1 weight in 1 of 2 tensors"
    assert differing({"a": 0}) == "0 of 1 tensors"
    lines = worst(compared)
    assert lines[:2] == ["bad\ufffd: 7,000 weights", "t11: 11 weights"]
    assert lines[10:] == ["and 2 more tensors; --json names all"]
    assert worst({"a": 0}) == []
