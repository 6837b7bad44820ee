"""What a model file is, whatever its format: `inspect`; and what is not its checkpoint's.

print(inspect("model.gguf").bits_per_weight)
assert not mismatches("model.gguf", Checkpoint.open("fused"))
"""

import math
from pathlib import Path

from exporters.description import Description, plain_items, totals
from exporters.format import CHECKPOINT, format_of, load_format, recognise
from exporters.provenance import provenance
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError

_CONFIGURATION = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
    "tie_word_embeddings",
)  # fmt: skip
_TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def inspect(path: str | Path) -> Description:
    """Describe an exported file or folder, or a fused checkpoint.

    Raises:
        UserError: neither, or one that is damaged.
    """
    name = recognise(path)
    if name is None:
        raise UserError(f"{path} is no .gguf file, ONNX folder or fused checkpoint; check the path")
    if name == CHECKPOINT:
        return _inspect_checkpoint(Path(path))
    return load_format(name).inspect(Path(path))


def verify(path: str | Path, checkpoint: Checkpoint) -> dict[str, int]:
    """Compare an exported file or folder with its checkpoint: `Format.verify` of its format.

    Raises:
        UserError: no exported file, or one that cannot be compared.
    """
    return load_format(format_of(path)).verify(path, checkpoint)


def mismatches(path: str | Path, checkpoint: Checkpoint) -> dict[str, int]:
    """What `verify` found to differ, by tensor; empty if the file is exact."""
    return {name: count for name, count in verify(path, checkpoint).items() if count}


def _inspect_checkpoint(path: Path) -> Description:
    checkpoint = Checkpoint.open(path)
    quantized, unquantized = checkpoint.quantized_names, checkpoint.floating_names
    grids = {name: checkpoint.grid(name).name for name in quantized}
    types = grids | {name: checkpoint.floating_dtype(name) for name in unquantized}
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
