"""The folder as its users find it: the README's programs, files of weights, names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer

from exporters import onnx as exporter
from exporters.onnx.folder import companions as folder
from exporters.onnx.folder import external_data
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime

PROMPT = "Once upon a time"
TOKENS = np.arange(3, 60)


def programs(path):
    """The README's programs in Python, by the library that they show."""
    found = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    names = ("onnxruntime_genai", "openvino", "onnxruntime")
    return {next(name for name in names if f"import {name}\n" in code): code for code in found}


def greedy(checkpoint, count):
    """The prompt and its continuation by PyTorch, as text."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokens = tokenizer.encode(PROMPT).ids
    start = len(tokens)
    logits = torch_logits(load_reference(Checkpoint.open(checkpoint)))
    for _ in range(count):
        tokens.append(int(logits(np.array(tokens))[-1].argmax()))
    return tokenizer.decode(tokens), tokenizer.decode(tokens[start:])


@pytest.mark.parametrize("library", ["onnxruntime", "onnxruntime_genai", "openvino"])
def test_the_programs_of_the_readme_run_as_they_stand(library, onnx_folder, fused_checkpoint):
    pytest.importorskip(library)
    ran = subprocess.run(
        [sys.executable, "-c", programs(onnx_folder("q4_0"))[library]],
        cwd=onnx_folder("q4_0"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = greedy(fused_checkpoint, 1)[1] if library == "openvino" else None
    expected = expected or greedy(fused_checkpoint, 32)[0]
    if library == "onnxruntime_genai":  # it ends at the end token, maybe within a character
        said = ran.stdout[:-1].rstrip("\ufffd")
        assert expected.startswith(said)
        assert len(said) > len(PROMPT) + 10
    else:
        assert ran.stdout == expected + "\n"


def test_the_readme_says_what_was_exported(onnx_folder):
    text = (onnx_folder("q4_0") / "README.md").read_text()
    assert text.startswith("# tiny-llama, weights on q4_0, for ONNX Runtime\n")
    assert "$" not in text
    assert 'options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")' in text


def test_weights_past_the_limit_go_to_further_files(onnx_folder, fused_checkpoint, tmp_path):
    whole = onnx_folder("q4_0")
    external_data.save(ir.load(whole / "model.onnx"), tmp_path, 200_000)
    # transformers.js: src/utils/model-loader.js, getExternalDataChunkNames.
    names = ["model.onnx_data", *(f"model.onnx_data_{i}" for i in (1, 2, 3))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", *names]
    sizes = [path.stat().st_size for path in external_data.data_paths(tmp_path)]
    assert sum(size > 200_000 for size in sizes) == 2, "embedding and head alone are larger"
    assert folder.js_config(tmp_path)["use_external_data_format"] == {"model.onnx": 4}
    assert folder.js_config(whole)["use_external_data_format"] == {"model.onnx": 1}
    assert not any(exporter.verify(tmp_path, Checkpoint.open(fused_checkpoint)).values())
    with OnnxRuntime.open(tmp_path) as many, OnnxRuntime.open(whole) as one:
        assert np.array_equal(many.logits(TOKENS), one.logits(TOKENS))


def test_a_file_of_two_gigabytes_is_the_largest():
    """Written nowhere: tensors that are never read."""
    value = ir.Value(name="x")
    value.const_value = ir.LazyTensor(
        lambda: pytest.fail("read"), dtype=ir.DataType.FLOAT, shape=ir.Shape((1 << 28,)), name="x"
    )
    files = external_data._files([value] * 5, external_data.MOST_BYTES)
    assert [len(file) for file in files] == [1, 1, 1, 1, 1]
    assert external_data.MOST_BYTES < 2**31


def test_optimum_and_transformers_js_find_what_they_look_for(onnx_folder):
    """Optimum: optimum/onnxruntime/modeling_decoder.py; transformers.js: get_model_files.js."""
    path = onnx_folder("q4_0")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.onnx_data"):
        assert (path / name).is_file()
    config = json.loads((path / "config.json").read_text())
    assert "quantization_config" not in config, "transformers would try to unpack weights"
    assert config["transformers.js_config"] == folder.js_config(path)
    assert config["architectures"] == ["LlamaForCausalLM"]
    graph = ir.load(path / "model.onnx").graph
    inputs, outputs = ([value.name for value in values] for values in (graph.inputs, graph.outputs))
    assert {"input_ids", "attention_mask", "position_ids"} < set(inputs)
    past = [name for name in inputs if ".key" in name or ".value" in name]
    present = [name for name in outputs if ".key" in name or ".value" in name]
    # Both replace one prefix by the other, or go by the order.
    assert [name.replace("present", "past_key_values") for name in present] == past
    assert len(past) == 2 * config["num_hidden_layers"]


def test_nothing_in_the_folder_names_this_machine(onnx_folder, fused_checkpoint):
    for path in Path(onnx_folder("q4_0")).iterdir():
        content = path.read_bytes()
        for private in (Path.cwd(), sys.prefix, fused_checkpoint, Path.home()):
            assert str(private).encode() not in content, path.name
