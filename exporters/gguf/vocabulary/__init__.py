"""A Hugging Face tokenizer as llama.cpp metadata.

Three kinds: byte-level BPE (llama.cpp's "gpt2"), BPE over characters with byte fallback, as
sentencepiece trains it ("llama"), and Unigram without ("t5"). llama.cpp has its own code for each,
so a tokenizer is accepted only when every step of its tokenizer.json is one that this code is known
to reproduce, or where it differs on texts that can be named in a note; anything else is refused
rather than written and tokenised wrongly. See docs/gguf-vocabularies.md.
"""

from exporters.gguf.vocabulary import byte_level, character_bpe, unigram
from exporters.gguf.vocabulary.files import TokenizerFiles
from exporters.gguf.vocabulary.table import Vocabulary
from lrqat.errors import ExportRefusedError

__all__ = ["TokenizerFiles", "Vocabulary", "load_vocabulary"]

_KINDS = (byte_level, character_bpe, unigram)


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
        f"the tokenizer is {model!r} of a kind without an entry for GGUF; byte-level BPE, "
        "sentencepiece's BPE with byte fallback and Unigram without have one. Export ONNX, which "
        "ships tokenizer.json"
    )
