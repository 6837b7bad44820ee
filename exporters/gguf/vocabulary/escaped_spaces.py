r"""How sentencepiece-like tokenizers write spaces: U+2581, and perhaps one before the text.

A tokenizer.json says it by a normalizer (Prepend, Replace) or by the pre-tokenizer Metaspace.
llama.cpp replaces every space and, if `add_space_prefix` is set, puts one before a text and after
every added token.

    steps of tokenizer.json                  add_space_prefix   what llama.cpp does otherwise
    Prepend, Replace                         yes                nothing
    Replace                                  no                 nothing
    Metaspace, prepend_scheme "never"        no                 nothing
    Metaspace, prepend_scheme "always"       yes                a second space before one
    Metaspace, prepend_scheme "first"        yes                that, and one after added tokens

A Split at spaces after Replace finds none, and Metaspace's own `split` cuts only where no token
could lie across, unless tokens have U+2581 inside: then it is refused.

Source: src/llama-vocab.cpp `llama_vocab::impl::tokenize`; tokenizers, pre_tokenizers/metaspace.rs.
"""

from typing import Any

from exporters.gguf.vocabulary.bpe import normalizer_notes
from exporters.gguf.vocabulary.files import TokenizerFiles, steps_of
from lrqat.errors import ExportRefusedError

SPACE = "\u2581"
_AT_START = (
    "before a text that starts with a space (or one behind an added token) Hugging Face puts no "
    "second space, and llama.cpp does: such a text has one token more in llama.cpp"
)
_AFTER_ADDED = (
    "after an added token llama.cpp puts a space before the text that follows, as Llama 2's own "
    "tokenizer did, and Hugging Face's does not"
)
_KNOWN: dict[tuple[str, ...], tuple[bool, tuple[str, ...]]] = {
    ("prepend", "replace"): (True, ()),
    ("replace",): (False, ()),
    ("metaspace always",): (True, (_AT_START,)),
    ("metaspace first",): (True, (_AT_START, _AFTER_ADDED)),
    ("metaspace never",): (False, ()),
}


def space_prefix(files: TokenizerFiles) -> tuple[bool, list[str]]:
    """Whether a space goes before a text, and notes. Raises ExportRefusedError if unknown."""
    normalizers = steps_of(files.tokenizer.get("normalizer"), "normalizers")
    named = [_name(step) for step in normalizers]
    is_nfc = named[:1] == ["NFC"]
    notes = normalizer_notes({"NFC"} if is_nfc else set())
    steps = named[is_nfc:]
    for step in steps_of(files.tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if not ("replace" in steps and _splits_at_spaces(step)):
            steps.append(_name(step))
        if step.get("type") == "Metaspace" and step.get("split", True):
            _check_split(files)
    found = _KNOWN.get(tuple(steps))
    if found is None:
        raise ExportRefusedError(
            f"tokenizer.json prepares text by {steps}, which llama.cpp's sentencepiece tokenizer "
            "is not known to do; export ONNX, which ships tokenizer.json"
        )
    return found[0], [*notes, *found[1]]


def _name(step: dict[str, Any]) -> str:
    kind = step.get("type")
    if kind == "Prepend" and step.get("prepend") == SPACE:
        return "prepend"
    replaces_space = step.get("content") == SPACE and step.get("pattern") == {"String": " "}
    if kind == "Replace" and replaces_space:
        return "replace"
    if kind == "Metaspace" and step.get("replacement") == SPACE:
        older = "always" if step.get("add_prefix_space", True) else "never"
        return f"metaspace {step.get('prepend_scheme', older)}"
    return str(kind) if kind == "NFC" else f"{kind} {step!r}"


def _splits_at_spaces(step: dict[str, Any]) -> bool:
    return step.get("type") == "Split" and step.get("pattern") == {"String": " "}


def _check_split(files: TokenizerFiles) -> None:
    across = next((text for text in files.vocab if SPACE in text[1:]), None)
    if across is not None:
        raise ExportRefusedError(
            f"tokenizer.json cuts text at spaces although the token {across!r} has one inside; "
            "llama.cpp does not cut and would use it. Set Metaspace's split to false if the model "
            "was trained so, or export ONNX"
        )
