"""What the two kinds of BPE share: checks of the model entry of tokenizer.json."""

from exporters.gguf.vocabulary.files import TokenizerFiles
from lrqat.errors import ExportRefusedError

_UNKNOWN_TO_LLAMA_CPP = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def check_bpe(files: TokenizerFiles) -> None:
    """Raise ExportRefusedError for settings of the BPE that llama.cpp does not have."""
    for key in _UNKNOWN_TO_LLAMA_CPP:
        if files.model.get(key):
            raise ExportRefusedError(f"llama.cpp's BPE has no {key}; export ONNX")


def merge_strings(files: TokenizerFiles) -> list[str]:
    """The merges as GGUF has them, "left right". Raises ExportRefusedError if some do not fit."""
    merges = [f"{left} {right}" for left, right in files.merges]
    spaced = [merge for merge in merges if merge.count(" ") != 1]
    if not merges or spaced:
        raise ExportRefusedError(f"the merges do not fit GGUF: {spaced[0] if spaced else 'none'!r}")
    if len(set(merges)) < len(merges):
        raise ExportRefusedError(
            "a merge stands twice in tokenizer.json: llama.cpp takes the first and Hugging Face "
            "the last; remove one"
        )
    return merges


def normalizer_notes(kinds: set[str | None]) -> list[str]:
    """A note on Unicode normalisation by steps of `kinds`. Raises ExportRefusedError for others."""
    if kinds - {"NFC"}:
        raise ExportRefusedError(
            f"tokenizer.json normalises text with {sorted(map(str, kinds))}, which llama.cpp's "
            "BPE does not do; export ONNX, which ships tokenizer.json"
        )
    if not kinds:
        return []
    return ["the tokenizer brings text into NFC and llama.cpp does not: give it text in NFC"]
