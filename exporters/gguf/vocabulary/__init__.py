"""A Hugging Face tokenizer as llama.cpp metadata.

Two kinds: byte-level BPE (llama.cpp's "gpt2") and BPE over characters with byte fallback, as
sentencepiece trains it ("llama"). llama.cpp has its own code for both, so a tokenizer is accepted
only when every step of its tokenizer.json is one that this code is known to reproduce; anything
else is refused rather than written and tokenised wrongly.
"""

from exporters.gguf.vocabulary import byte_level, character_bpe
from exporters.gguf.vocabulary.files import TokenizerFiles
from exporters.gguf.vocabulary.table import Vocabulary
from lrqat.errors import ExportRefusedError

__all__ = ["TokenizerFiles", "Vocabulary", "load_vocabulary"]

_KINDS = (byte_level, character_bpe)


def load_vocabulary(files: TokenizerFiles, size: int, pre: str | None = None) -> Vocabulary:
    """The vocabulary of `files`, filled up to `size` entries with unused ones.

    Args:
        files: what `TokenizerFiles.open` found.
        size: rows of the model's embedding.
        pre: llama.cpp's name of the pre-tokenizer, for a byte-level tokenizer that we do not know.

    Raises:
        ExportRefusedError: llama.cpp would tokenise differently, as far as one can tell.
    """
    for kind in _KINDS:
        if kind.recognises(files):
            return kind.load(files, size, pre)
    model = files.model.get("type")
    raise ExportRefusedError(
        f"the tokenizer is {model!r} of a kind without an entry for GGUF; byte-level BPE and "
        "sentencepiece's BPE with byte fallback have one. Export ONNX, which ships tokenizer.json"
    )
