"""Libraries that may be missing: one sentence, wherever they are asked for."""

import sys

import pytest

from lrqat import optional_libraries
from lrqat.errors import RuntimeUnavailableError
from lrqat.runtimes.genai import continue_tokens
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from lrqat.runtimes.openvino import OpenVino
from lrqat.runtimes.qnn import Qnn
from tests.support.paths import ROOT

RUNTIMES = {
    "onnxruntime": (lambda: OnnxRuntime.open("x"), "lrqat[onnx]"),
    "onnxruntime_genai": (lambda: continue_tokens("x", [1], 1), "lrqat[onnx]"),
    "onnxruntime_qnn": (lambda: Qnn.open("x", 8), "onnxruntime-qnn"),
    "openvino": (lambda: OpenVino.open("x"), "openvino"),
}


@pytest.mark.parametrize("module", RUNTIMES)
def test_a_runtime_that_is_missing_is_named_with_the_way_to_install_it(module, monkeypatch):
    opened, install = RUNTIMES[module]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeUnavailableError) as refused:
        opened()
    library = module.replace("_", "-")
    assert str(refused.value) == f"{library} is not installed: pip install '{install}'"


def test_a_library_that_does_not_load_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise ImportError('libx.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeUnavailableError) as refused:
        optional_libraries.load("broken_library", "lrqat[onnx]", otherwise="do without")
    assert str(refused.value) == (
        "broken-library is installed and does not load (libx.so: no such file); install it again: "
        "pip install --force-reinstall 'lrqat[onnx]', or do without"
    )


def test_what_needs_it_and_what_does_not_is_said():
    with pytest.raises(RuntimeUnavailableError) as refused:
        optional_libraries.load("not_there", "a>=2", needed_by="--x", otherwise="leave it out")
    assert str(refused.value) == (
        "--x needs not-there, which is not installed: pip install 'a>=2', or leave it out"
    )
    optional_libraries.refuse_missing("json", "json")
    with pytest.raises(RuntimeUnavailableError, match="not-there is not installed: pip install"):
        optional_libraries.refuse_missing("not_there", "a")


def test_nobody_else_writes_that_sentence():
    sources = [p for top in ("lrqat", "exporters") for p in (ROOT / top).rglob("*.py")]
    assert [p.name for p in sources if "not installed: pip" in p.read_text(encoding="utf-8")] == [
        "optional_libraries.py"
    ]
