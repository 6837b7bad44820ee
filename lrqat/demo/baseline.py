"""The file that llama.cpp's own quantizer makes: our file, with its matrices rounded by llama.cpp.

Both files have the same types, metadata and size, so they differ in nothing but how the weights
were found.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from exporters.gguf.file.header import TensorInfo, read_header
from lrqat.atomic_files import replaced_file
from lrqat.checkpoint.reader import Checkpoint
from lrqat.init import importance
from lrqat.init.imatrix_file import llama_cpp_names
from lrqat.models import hub
from lrqat.models.fuse import fuse
from lrqat.models.surgery import SurgeryPlan, plan_surgery
from lrqat.progress import tqdm
from lrqat.runtimes.llama_cpp.quantize_rows import quantize_rows

_TOKENS = 8192  # of the text that importance is measured on
_LENGTH = 512
_FLOATING = ("F32", "F16", "BF16")


def write_baseline(ours: Path, base: Path, text: Path, target: Path) -> None:
    """Write what llama-quantize would, with the importance of the inputs on `text`.

    Args:
        ours: a GGUF file of ours.
        base: the model in Hugging Face's form that it was made from.
        text: what it was trained on.
        target: the file to write.
    """
    model, tokenizer = hub.load_model(str(base), dtype=torch.float32), hub.load_tokenizer(str(base))
    squares = input_squares(model, tokenizer, text)
    inputs = {f"{llama_cpp_names(name)[0]}.weight": mean for name, mean in squares.items()}
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
        replaced_file(target, overwrite=True) as staging,
    ):
        source = Path(scratch, "base.gguf")
        write_unquantized(model, tokenizer, source)
        originals = read_header(source).tensors
        shutil.copyfile(ours, staging)
        tensors = read_header(ours).tensors.values()
        with staging.open("r+b") as stream:
            for tensor in tqdm(tensors, desc="llama.cpp rounds", unit="tensor"):
                if tensor.type_name not in _FLOATING:
                    weight = _values(originals[tensor.name])
                    channels = inputs.get(tensor.name)
                    stream.seek(tensor.start)
                    stream.write(quantize_rows(tensor.type_name, weight, channels).tobytes())


def write_unquantized(model: Any, tokenizer: Any, target: Path) -> None:
    """Write a model as it is, on no grid, as GGUF: what llama-quantize starts from.

    A matrix is in F16 or BF16 where that loses nothing.
    """
    from exporters.gguf import plan, write

    planned = plan_surgery(model, "q8_0")
    kept = planned.kept | dict.fromkeys(planned.quantized, "the baseline's source is as it is")
    surgery = SurgeryPlan(planned.grid, {}, kept)
    dtype = str(model.dtype).removeprefix("torch.")
    base = {"name": "baseline", "revision": None, "dtype": dtype}
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fused = Path(scratch) / "fused"
        fuse(model, tokenizer, fused, plan=surgery, base_model=base)
        write(plan(Checkpoint.open(fused)), target)


def input_squares(model: Any, tokenizer: Any, text: Path) -> dict[str, NDArray[np.float32]]:
    """Mean squares of what enters every projection (in,), by module, as llama-imatrix has them."""
    layers = [n for n, target in plan_surgery(model, "q8_0").quantized.items() if target.is_layer]
    ids = tokenizer(text.read_text(encoding="utf-8"))["input_ids"][:_TOKENS]
    batches = torch.tensor(ids)[: len(ids) // _LENGTH * _LENGTH].view(-1, 1, _LENGTH)
    squares = importance.collect(
        model, layers, list(batches), lambda items: tqdm(items, desc="importance", unit="batch")
    )
    return {name: mean.float().numpy() for name, mean in squares.items()}


def _values(tensor: TensorInfo) -> NDArray[np.float32]:
    """(rows, columns) of a matrix that is not quantized."""
    kind = gguf.GGMLQuantizationType(int(tensor.type))
    return np.asarray(gguf.quants.dequantize(tensor.read(), kind), np.float32)
