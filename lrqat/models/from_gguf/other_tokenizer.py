"""A tokenizer that is given beside a model, compared with what the model has of its own."""

from pathlib import Path
from typing import Any

from lrqat.errors import ModelError
from lrqat.models.from_gguf.folder import is_gguf, tokens_of


def refuse_other_tokens(name: str, tokenizer: Any, model: str, rows: int) -> None:
    """Raise ModelError if `tokenizer` is not one of the model.

    Args:
        name: of the tokenizer.
        tokenizer: loaded.
        model: a folder, hub id or GGUF file; of the last, every token is compared.
        rows: of the model's embedding.
    """
    if len(tokenizer) > rows:
        raise ModelError(
            f"--tokenizer {name} has {len(tokenizer):,} tokens and the embedding of {model} "
            f"{rows:,} rows; give the tokenizer that the model was trained with"
        )
    if not is_gguf(model):
        return
    theirs = tokens_of(Path(model))[: len(tokenizer)]
    ours = tokenizer.convert_ids_to_tokens(range(len(theirs)))
    for i, (own, other) in enumerate(zip(theirs, ours, strict=True)):
        if other is not None and own != other:
            raise ModelError(
                f"--tokenizer {name} calls token {i} {other!r:.40} and {model} {own!r:.40}; give "
                "the tokenizer that the model was trained with"
            )
