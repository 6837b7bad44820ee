"""What can be imported, by what its configuration says; a layout is one file and one row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrqat.checkpoint import manifest
from lrqat.errors import ModelError
from lrqat.foreign_files import read_json
from lrqat.importing.sources.compressed_tensors import CompressedTensors
from lrqat.importing.sources.folder import FolderSource, Layout
from lrqat.importing.sources.fp4 import ModelOpt
from lrqat.importing.sources.gptq import Awq, Gptq, auto_round
from lrqat.importing.sources.source import Source
from lrqat.models import hub
from lrqat.models.from_gguf.folder import is_gguf

# By `quant_method` of config.json's quantization_config.
LAYOUTS: dict[str, Callable[[dict[str, Any]], Layout]] = {
    "compressed-tensors": CompressedTensors,
    "gptq": Gptq,
    "awq": Awq,
    "auto-round": auto_round,
    "modelopt": ModelOpt,
}
_ORIGINAL = "start from its floating-point original (`lrqat train --model`)"
REFUSED = {
    "bitsandbytes": "the levels of NF4 and FP4 with their nested scales are in no type of "
    f"llama.cpp or ONNX, and LLM.int8() multiplies with outliers in another type; {_ORIGINAL}",
    "fp8": f"8-bit floats are in no type of llama.cpp or ONNX that we write; {_ORIGINAL}",
    "fbgemm_fp8": f"8-bit floats are in no type of llama.cpp or ONNX that we write; {_ORIGINAL}",
    "mxfp4": "no runtime here computes gpt-oss as it was trained: llama.cpp rounds the ends of its "
    "YaRN ramp (truncate: false), and ONNX has no stacks of experts. llama.cpp's own converter "
    "keeps the MXFP4 experts as they are",
    "torchao": "its tensors are stored as Python objects; save it dequantised (bfloat16), and "
    "import that",
}
# Files that older versions of the libraries wrote in the place of a quantization_config.
_BESIDE = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


def open_source(name: str) -> Source:
    """A model that lies on a grid.

    Args:
        name: a GGUF file, a Hugging Face folder, or an id on the hub.

    Raises:
        ModelError: there is none, it is damaged, or of a kind that has no grid, with the reason.
    """
    if is_gguf(name):
        # gguf is installed by an extra.
        from lrqat.importing.sources.gguf import GgufSource

        return GgufSource(name)
    if (Path(name) / manifest.FILE_NAME).is_file():
        raise ModelError(f"{name} is a fused checkpoint already: export it")
    settings = _quantization(name)
    if settings is None:
        return FolderSource(name, None)
    method = str(settings.get("quant_method"))
    if method not in LAYOUTS:
        known = f"known are {', '.join(LAYOUTS)}; {_ORIGINAL}"
        raise ModelError(
            f"{name} is quantized by {method!r:.40}, which is not imported: "
            f"{REFUSED.get(method, known)}"
        )
    return FolderSource(name, LAYOUTS[method](settings))


def _quantization(name: str) -> dict[str, Any] | None:
    """The `quantization_config` of a model, or what stands in its place; None: there is none."""
    config = hub.read_config(name)
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found and not isinstance(found, dict):
            raise ModelError(f"quantization_config of {name} is no JSON object; use an intact copy")
        if found:
            return dict(found)
    for file, method in _BESIDE.items():
        if (Path(name) / file).is_file():
            return {"quant_method": method} | read_json(Path(name) / file)
    return None
