"""The convenience that measures an ONNX folder without torch."""

import subprocess
import sys

import pytest

import lrqat
from lrqat.errors import UserError

CONTEXT, LIMIT = 64, 3


def test_it_measures_what_the_tools_measure(onnx_folder, text):
    from lrqat.runtimes.targets import evaluate

    folder, sample = onnx_folder("q4_0"), text[:4000]
    found = lrqat.onnx_perplexity(folder, sample, context=CONTEXT, limit=LIMIT)
    _, expected = evaluate(str(folder), sample, context=CONTEXT, limit=LIMIT)
    assert found.tokens == expected.tokens
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-6)


def test_it_needs_no_torch(onnx_folder, text_file):
    code = (
        "import sys, lrqat; from pathlib import Path\n"
        "text = Path(sys.argv[2]).read_text()[:4000]\n"
        "print(lrqat.onnx_perplexity(sys.argv[1], text, context=64, limit=1).tokens)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    arguments = [sys.executable, "-c", code, str(onnx_folder("q4_0")), str(text_file)]
    assert subprocess.run(arguments, check=True, capture_output=True).stdout == b"31\n"


def test_what_is_no_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"genai_config\.json cannot be read"):
        lrqat.onnx_perplexity(tmp_path, "text")
