"""Which of llama.cpp's pre-tokenizers cuts text as a tokenizer.json does.

Upstream's converter finds the name by hashing the ids of a test string, which only works for the
tokenizers it has seen; here the steps of tokenizer.json themselves are compared with a table, so
any vocabulary trained on a known pre-tokenizer is recognised.

A name stands for a way to cut and for whether whole words are taken from the vocabulary without
merging (`ignore_merges`). Where the table has the cut with the other habit, it serves as well if
merging makes every token of the vocabulary out of its own text: then the habit changes nothing.
"""

from typing import Any

from tokenizers import models

from exporters.gguf.vocabulary.files import TokenizerFiles, steps_of
from exporters.gguf.vocabulary.pre_tokenizer_table import COVERING, KNOWN_NAMES, ROWS, Row, Step
from lrqat.errors import ExportRefusedError, did_you_mean


def choose_pre_tokenizer(files: TokenizerFiles, asked: str | None) -> tuple[str, list[str]]:
    """llama.cpp's name for the pre-tokenizer of `files`, and notes for the user.

    Args:
        files: of a byte-level BPE.
        asked: the user's name for it, or None.

    Raises:
        ExportRefusedError: none of the known ones does the same and none was asked for; or the one
            asked for is unknown, or known to cut otherwise.
    """
    if asked is not None and asked not in KNOWN_NAMES:
        hint = did_you_mean(asked, sorted(KNOWN_NAMES))
        raise ExportRefusedError(
            f"--pre {asked!r} is no byte-level pre-tokenizer of the llama.cpp that this is made "
            f"for: {hint}known are {', '.join(sorted(KNOWN_NAMES))}"
        )
    steps = tuple(
        _canonical(step) for step in steps_of(files.tokenizer.get("pre_tokenizer"), "pretokenizers")
    )
    ignore_merges = bool(files.model.get("ignore_merges"))
    rows = _rows_for(files, steps, ignore_merges)
    if not rows:
        return _named_by_the_user(steps, ignore_merges, asked)
    row = rows[0] if asked is None else next((row for row in rows if asked in row.names), None)
    if row is None:
        raise ExportRefusedError(
            f"--pre {asked} cuts text otherwise than tokenizer.json, which does as {rows[0].name} "
            "does; leave --pre away"
        )
    return asked or row.name, [row.note] if row.note else []


def _rows_for(files: TokenizerFiles, steps: tuple[Step, ...], ignore_merges: bool) -> list[Row]:
    """Rows that do the same, one with the same habit first."""
    same_cut = [row for row in ROWS if row.steps == steps]
    exact = [row for row in same_cut if row.ignore_merges == ignore_merges]
    if len(exact) == len(same_cut) or not _merges_make_all(files):
        return exact
    return sorted(same_cut, key=lambda row: row.ignore_merges != ignore_merges)


def _merges_make_all(files: TokenizerFiles) -> bool:
    """Whether merging alone makes every token of the vocabulary out of its own text."""
    try:
        model = models.BPE(files.vocab, files.merges)
        added = {token.content for token in files.added}
        return all(
            [token.id for token in model.tokenize(text)] == [token_id]
            for text, token_id in files.vocab.items()
            if text not in added
        )
    except Exception:  # tokenizers raises nothing narrower for merges that do not fit
        return False


def _named_by_the_user(
    steps: tuple[Step, ...], ignore_merges: bool, asked: str | None
) -> tuple[str, list[str]]:
    if asked is not None:
        return asked, [
            f"that llama.cpp's {asked} cuts text as tokenizer.json does is your word; compare "
            "tokens of your own text (`lrqat parity` does)"
        ]
    raise ExportRefusedError(
        f"no pre-tokenizer of llama.cpp is known to cut text as this tokenizer.json does "
        f"(steps {steps}, ignore_merges {ignore_merges}; known: "
        f"{', '.join(dict.fromkeys(row.name for row in ROWS))}). If you know which one "
        "does, name it with --pre NAME; or export ONNX, which ships tokenizer.json"
    )


def _canonical(step: dict[str, Any]) -> Step:
    """A step as a comparable tuple; one that no row has stays as it is."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return ("bytes", bool(step.get("use_regex", True)))
    if kind == "Digits":
        return ("digits", bool(step.get("individual_digits")))
    if kind == "Punctuation":
        return ("punctuation", str(step.get("behavior", "Isolated")))
    regex = _split_regex(step) if kind == "Split" else None
    if regex is not None:
        return ("digits", True) if regex == r"\p{N}" else ("split", regex)
    return tuple(sorted((key, repr(value)) for key, value in step.items()))


def _split_regex(step: dict[str, Any]) -> str | None:
    """The expression of a Split that keeps matches and what is between them, each as a piece."""
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        return None
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")  # either spelling means the same
    way = (step.get("behavior"), bool(step.get("invert")))
    if way == ("Isolated", False) or (way == ("Removed", True) and regex in COVERING):
        return regex
    return None
