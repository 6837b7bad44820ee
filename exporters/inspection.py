"""What a model file is, whatever its format: `inspect`, and `mismatches` with its checkpoint.

print(inspect("model.gguf").bits_per_weight)
assert not mismatches("model.gguf", Checkpoint.open("fused"))
"""

import math
from collections.abc import Callable
from pathlib import Path

from exporters import load_format
from exporters.description import Description, plain_items, totals
from exporters.provenance import provenance
from lrqat.checkpoint.manifest import FILE_NAME
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError

_CONFIGURATION = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
    "tie_word_embeddings",
)  # fmt: skip
_TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def inspect(path: str | Path) -> Description:
    """Describe a GGUF file, an ONNX folder or a fused checkpoint.

    Raises:
        UserError: none of these, or one that is damaged.
    """
    path = Path(path)
    for recognises, describe in _KINDS:
        if recognises(path):
            return describe(path)
    raise UserError(f"{path} is no .gguf file, ONNX folder or fused checkpoint; check the path")


def mismatches(path: str | Path, checkpoint: Checkpoint) -> dict[str, int]:
    """Elements of an exported file that are not the checkpoint's, by name; empty if it is exact.

    Raises:
        UserError: not a GGUF file or an ONNX folder, or one that cannot be compared.
    """
    path = Path(path)
    name = "onnx" if _is_onnx(path) else "gguf"
    if name == "gguf" and not _is_gguf(path):
        raise UserError(f"{path} is no exported file; --checkpoint compares one with its origin")
    found = load_format(name).verify(path, checkpoint)
    return {key: count for key, count in found.items() if count}


def _is_gguf(path: Path) -> bool:
    return path.is_file()


def _is_onnx(path: Path) -> bool:
    return (path / "model.onnx").is_file()


def _inspect_gguf(path: Path) -> Description:
    load_format("gguf")
    from exporters.gguf.inspection import inspect as describe

    return describe(path)


def _inspect_onnx(path: Path) -> Description:
    load_format("onnx")
    from exporters.onnx.inspection import inspect as describe

    return describe(path)


def _inspect_checkpoint(path: Path) -> Description:
    checkpoint = Checkpoint.open(path)
    quantized, floating = checkpoint.quantized_names, checkpoint.floating_names
    grids = {name: checkpoint.grid(name).name for name in quantized}
    types = grids | {name: checkpoint.floating_dtype(name) for name in floating}
    files = [path / name for name in checkpoint.manifest["files"]]
    config = checkpoint.config
    return Description(
        kind="fused checkpoint",
        files=[file.name for file in files],
        bytes=sum(file.stat().st_size for file in files),
        types=totals(
            (kind, math.prod(checkpoint.shape(name)), checkpoint.stored_bytes(name))
            for name, kind in types.items()
        ),
        hyperparameters=plain_items({key: config.get(key) for key in _CONFIGURATION}),
        vocabulary=plain_items({key: config.get(key) for key in _TOKENS}),
        provenance=plain_items(provenance(checkpoint)),
    )


_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Description]], ...] = (
    (_is_gguf, _inspect_gguf),
    (_is_onnx, _inspect_onnx),
    (lambda path: (path / FILE_NAME).is_file(), _inspect_checkpoint),
)
