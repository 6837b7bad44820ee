"""Unigram without byte fallback, llama.cpp's "t5": sentencepiece's other model.

Both runtimes cut a text so that the sum of the pieces' scores is greatest, and put the unknown
token for characters without a piece. llama.cpp has no byte fallback here, and no normalisation
unless sentencepiece's own table comes along, which is refused.

Source: src/llama-vocab.cpp `llm_tokenizer_ugm_session`; tokenizers, models/unigram.
"""

import numpy as np
from gguf import TokenType

from exporters.gguf.vocabulary.added_tokens import place_added_tokens
from exporters.gguf.vocabulary.chat_templates import read_chat_templates
from exporters.gguf.vocabulary.escaped_spaces import space_prefix
from exporters.gguf.vocabulary.files import TokenizerFiles
from exporters.gguf.vocabulary.special_ids import special_ids
from exporters.gguf.vocabulary.table import Vocabulary, fill_table
from lrqat.errors import ExportRefusedError

_ROUNDED_SCORES = (
    "the scores have more digits than GGUF stores: two ways to cut a text whose sums agree to "
    "seven digits may change places"
)


def recognises(files: TokenizerFiles) -> bool:
    """Whether the files hold a Unigram model."""
    return files.model.get("type") == "Unigram" and isinstance(files.model["vocab"], list)


def load(files: TokenizerFiles, size: int, pre: str | None) -> Vocabulary:
    """Build the vocabulary; see `load_vocabulary` for arguments and errors."""
    if pre is not None:
        raise ExportRefusedError(f"--pre {pre} is for byte-level tokenizers; this one has none")
    if files.model.get("byte_fallback"):
        raise ExportRefusedError(
            "the tokenizer is a Unigram with byte fallback, and llama.cpp's Unigram has none: it "
            "would put the unknown token where Hugging Face puts bytes. Export ONNX, which ships "
            "tokenizer.json"
        )
    add_space_prefix, notes = space_prefix(files)
    pieces = {token_id: text for token_id, (text, _) in enumerate(files.model["vocab"])}
    types = dict.fromkeys(pieces, int(TokenType.NORMAL))
    notes += place_added_tokens(files, pieces, types)
    unknown = files.model.get("unk_id")
    if type(unknown) is not int or unknown not in pieces:
        raise ExportRefusedError("the Unigram model has no unknown token; export ONNX")
    types[unknown] = int(TokenType.UNKNOWN)
    tokens, token_types = fill_table(pieces, types, size)
    ids, id_notes = special_ids(files)
    scores = [score for _, score in files.model["vocab"]]
    if not np.array_equal(np.asarray(scores, np.float32), np.asarray(scores, np.float64)):
        notes.append(_ROUNDED_SCORES)
    add_bos, add_eos = files.added_around()
    return Vocabulary(
        "t5",
        tokens,
        token_types,
        scores=[*map(float, scores), *[0.0] * (size - len(scores))],
        special_ids={**ids, "unk": unknown},
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=add_space_prefix,
        templates=read_chat_templates(files.folder, files.settings, files.listed),
        notes=[*notes, *id_notes],
    )
