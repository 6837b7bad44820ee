"""Which of llama.cpp's pre-tokenizers cuts text as a tokenizer.json does.

llama.cpp knows pre-tokenizers by name, each with its regular expression and its habit of taking
whole words from the vocabulary without merging (`ignore_merges`). Upstream's converter finds the
name by hashing the ids of a test string, which only works for the tokenizers it has seen; here the
steps of tokenizer.json themselves are compared, so any vocabulary trained on a known pre-tokenizer
is recognised. The tests hold every row against llama.cpp.

Source: src/llama-vocab.cpp, the `tokenizer_pre` names and `llm_tokenizer_bpe`.
"""

from typing import Any

from exporters.gguf.vocabulary.files import steps_of
from lrqat.errors import ExportRefusedError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST

Step = tuple[Any, ...]

# (steps, ignore_merges) to llama.cpp's name. Where several names share a regular expression the one
# that stands for nothing else is taken.
PRE_TOKENIZERS: dict[tuple[tuple[Step, ...], bool], str] = {
    ((("bytes", True),), False): "gpt-2",
    ((("digits",), ("bytes", True)), False): "smollm",
    ((("split", LLAMA3), ("bytes", False)), True): "llama-bpe",
    ((("split", LLAMA3), ("bytes", False)), False): "smaug-bpe",
    ((("split", QWEN2), ("bytes", False)), False): "qwen2",
}


def find_pre_tokenizer(pre_tokenizer: Any, ignore_merges: bool) -> str:
    """llama.cpp's name for the `pre_tokenizer` of a tokenizer.json.

    Raises:
        ExportRefusedError: none of the known ones does the same.
    """
    steps = tuple(_canonical(step) for step in steps_of(pre_tokenizer, "pretokenizers"))
    name = PRE_TOKENIZERS.get((steps, ignore_merges))
    if name:
        return name
    known = ", ".join(sorted(PRE_TOKENIZERS.values()))
    raise ExportRefusedError(
        f"no pre-tokenizer of llama.cpp is known to cut text as this tokenizer.json does "
        f"(steps {steps}, ignore_merges {ignore_merges}; known: {known}). If you know which one "
        "does, name it with --pre NAME; or export ONNX, which ships tokenizer.json"
    )


def _canonical(step: dict[str, Any]) -> Step:
    """A step as a comparable tuple; one that no row has stays as it is."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return ("bytes", bool(step.get("use_regex", True)))
    if kind == "Digits" and step.get("individual_digits"):
        return ("digits",)
    pattern = step.get("pattern")
    is_plain = step.get("behavior") == "Isolated" and not step.get("invert")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if kind == "Split" and is_plain and isinstance(regex, str):
        return ("split", regex)
    return tuple(sorted((key, repr(value)) for key, value in step.items()))
