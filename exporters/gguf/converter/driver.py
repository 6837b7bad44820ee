"""Runs in a process of its own: a model class of llama.cpp's converter, with our packing.

    python -m exporters.gguf.converter.driver CHECKPOINT OUTPUT OPTIONS

PYTHONPATH puts the tree, and its gguf-py before the installed gguf, so that only one of the two is
in the process. The class itself is not changed; a subclass overrides its hooks:

    index_tensors        tensors are read from the fused checkpoint, exact in float32
    modify_tensors       what the class makes of them is looked up among trained rows, and packed
    tensor_force_quant   a packed tensor keeps the type it was packed in

Source: conversion/base.py `ModelBase.prepare_tensors`, convert_hf_to_gguf.py `main`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from exporters.gguf.blocks import Block
from exporters.gguf.converter.trained_rows import TrainedRows
from exporters.gguf.file import key_values as kv
from exporters.gguf.options import Options
from exporters.gguf.provenance import CONVERTER, provenance
from exporters.gguf.tensors.packing import pack_quantized
from exporters.gguf.tensors.selection import choose_for_grid
from exporters.gguf.tensors.sources import Source
from exporters.gguf.tensors.stored import Stored, stored_tensors
from exporters.planning import activation_grid
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ExportRefusedError


class Packer:
    """What is packed of the tensor that the converter is at.

    Args:
        checkpoint: the opened checkpoint.
        options: the user's choices.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint, self.options = checkpoint, options
        self.trained = TrainedRows(checkpoint)
        self.file_types: list[int] = []
        self._packed: dict[str, tuple[Block, NDArray[np.uint8]]] = {}
        self._current: NDArray[np.uint8] | None = None

    def pack(self, name: str, values: NDArray[np.float32]) -> None:
        """Pack the tensor `name`, if its rows are trained ones."""
        if values.ndim < 2 or self.options.type == "f32":
            return
        found = self.trained.find(name, values)
        if found is None:
            return
        tensor, modules = found
        rows = values.reshape(tensor.q.shape)
        if not np.array_equal(tensor.dequantize(), rows):
            raise ExportRefusedError(f"{name} was not found again exactly; please report it")
        source = Source(name, name, True, values.shape)
        roundings = {activation_grid(self.checkpoint, module) for module in modules}
        if len(roundings) > 1:
            raise ExportRefusedError(f"{name} is made of weights with other activations: {modules}")
        block, _ = choose_for_grid(
            tensor.grid, source, self.options, lambda: [tensor.scales], roundings.pop()
        )
        data = pack_quantized(tensor, block.NAME)
        self._packed[name] = block, data.reshape(*values.shape[:-1], -1)
        self.file_types.append(int(block.FILE_TYPE))

    def begin(self, name: str) -> gguf.GGMLQuantizationType | None:
        """The type of `name` if it was packed; what `quantize` is called for next."""
        block, self._current = self._packed.pop(name, (None, None))
        return gguf.GGMLQuantizationType(block.TYPE.number) if block else None

    def quantize(self, data: Any, qtype: gguf.GGMLQuantizationType) -> Any:
        """In the place of gguf.quants.quantize."""
        packed, self._current = self._current, None
        if packed is None:
            return _QUANTIZE(data, qtype)
        if qtype in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            raise ExportRefusedError(f"the converter wants a trained tensor as {qtype.name}")
        return packed


_QUANTIZE = gguf.quants.quantize


def exact_class(base: Any, packer: Packer) -> Any:
    """A subclass of the converter's class `base` that packs what was trained."""
    checkpoint = packer.checkpoint

    class Exact(base):
        model_arch = base.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Any]:
            items = [(_name(s), _reader(checkpoint, s)) for s in stored_tensors(checkpoint)]
            return dict(kept for item in items if (kept := self.filter_tensors(item)))

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterator[Any]:
            for new_name, tensor in super().modify_tensors(data_torch, name, bid):
                packer.pack(new_name, tensor.float().numpy())
                yield new_name, tensor

        def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
            packed = packer.begin(new_name)
            return (
                super().tensor_force_quant(name, new_name, bid, n_dims)
                if packed is None
                else packed
            )

        def prepare_metadata(self, vocab_only: bool) -> None:
            if packer.file_types:
                most = max(set(packer.file_types), key=packer.file_types.count)
                self.ftype = gguf.LlamaFileType(most)
            super().prepare_metadata(vocab_only)
            said = kv.text(CONVERTER, "convert_hf_to_gguf.py")
            for entry in [*provenance(checkpoint), said]:
                self.gguf_writer.add_key_value(entry.key, entry.value, entry.type)

        def get_vocab_base_pre(self, tokenizer: Any) -> Any:
            return packer.options.pre or super().get_vocab_base_pre(tokenizer)

    return Exact


def _name(stored: Stored) -> str:
    """As transformers calls it; stacks of experts have no suffix."""
    return stored.name if len(stored.shape) < 3 else stored.name.removesuffix(".weight")


def _reader(checkpoint: Checkpoint, stored: Stored) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        if not stored.quantized:
            return torch.from_numpy(checkpoint.floating(stored.origin).astype(np.float32))
        modules = stored.stack or (stored.origin,)
        values = [checkpoint.quantized(module).dequantize() for module in modules]
        whole = np.stack(values) if stored.stack else values[0]
        turned = whole.T if checkpoint.kind(modules[0]) == WeightKind.CONV1D else whole
        return torch.from_numpy(np.ascontiguousarray(turned))

    return read


def run(folder: str, output: str, options: Options) -> None:
    """Convert the checkpoint in `folder` to the file `output`."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    checkpoint = Checkpoint.open(folder, verify=False)  # the parent has
    packer = Packer(checkpoint, options)
    setattr(gguf.quants, "quantize", packer.quantize)  # noqa: B010
    hparams = ModelBase.load_hparams(Path(folder), False)
    hparams.pop("quantization_config", None)  # weights come as floats
    model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    with torch.inference_mode():
        model = exact_class(model_class, packer)(
            Path(folder),
            gguf.LlamaFileType.ALL_F32,
            Path(output),
            eager=True,
            use_temp_file=True,
            hparams=hparams,
            model_name=checkpoint.manifest["base_model"].get("name"),
        )
        model.write()


def main() -> int:
    """Exit status 3 and one JSON line for what the parent reports as a refusal."""
    folder, output, options = sys.argv[1:]
    try:
        run(folder, output, Options(**json.loads(options)))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
