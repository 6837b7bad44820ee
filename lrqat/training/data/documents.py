"""Training text: documents, to packed blocks of tokens.

A row of `lrqat.training.data.rows` is one document: a text, or a chat. Texts are tokenised as text
(names of special tokens in them are text too), begun with the BOS token where the tokenizer adds
one, and closed with the end-of-sequence token; a chat is the tokens of its template, of which some
may be learned and others only read. Documents are laid end to end and cut into blocks of one
length, so no padding is ever computed; chats with a part that is only read begin within the block
that they end in (`whole_chats`). The start of the text is held out for evaluation when no other
text is given for it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.errors import DataError
from lrqat.evaluation.text import window_bos
from lrqat.settings import AUTO
from lrqat.text_files import ROWS, form_of
from lrqat.training.data import chats
from lrqat.training.data.apart import keep_apart
from lrqat.training.data.blocks import MOST_TOKENS, TokenBlocks, refuse_too_short
from lrqat.training.data.bos import begin_blocks
from lrqat.training.data.chats import Chat
from lrqat.training.data.loss_on import LOSS_ON
from lrqat.training.data.packing import STREAM
from lrqat.training.data.rows import Row, read_rows
from lrqat.training.data.whole_chats import pack_whole

Document = str | Chat
Say = Callable[[str], None]

# Characters tokenised in one call: bounds memory, and lets the tokenizer use every core.
_PIECE = 1 << 15
_PIECES_PER_CALL = 64
# A tenth of the text is held out, until that is this much.
_HELD_OUT_CHARACTERS = 200_000
_HELD_OUT_SHARE = 10
_CHARACTERS_PER_TOKEN = 4  # about; for the size of chats
_TEXT = ("text",)


def documents(
    source: str,
    tokenizer: Any,
    *,
    loss_on: str = "all",
    say: Say = lambda message: None,
) -> Iterator[Document]:
    """The documents of a file, folder or hub dataset, one at a time; blank rows are passed over.

    Args:
        source: see `lrqat.training.data.rows.read_rows`. All rows must have the same columns of
            `text`, or of one form of `lrqat.training.data.chats`; other columns are not looked at.
        tokenizer: its chat template renders chats.
        loss_on: which tokens are learned, a key of `LOSS_ON`.
        say: told once what rows are read as.

    Raises:
        DataError: nothing there, not readable, no usable column, or no text in any row.
    """
    form: tuple[str, ...] | None = None
    forms = _forms(tokenizer)
    with chats.ChatTokens(tokenizer) as tokens:
        for number, row in enumerate(read_rows(source), 1):
            where = f"row {number} of {source}"
            found = _form_of(row, forms, where)
            if found is None:
                continue
            if form is None:
                form = found
                learned = _loss_on(form, loss_on, where)
                if form_of(Path(source)) in ROWS or len(row) > 1:
                    say(f"{source}: {_described(form, learned)}")
            if found != form:
                raise DataError(
                    f"{where} has {_columns(found)} where the rows before it have "
                    f"{_columns(form)}; give files of one form, each with a --data of its own"
                )
            document = _document(row, form, learned, tokens, where)
            if document:
                yield document
    if form is None:
        raise DataError(f"{source} is empty: no row of it has any text; give --data some text")


def _forms(tokenizer: Any) -> tuple[tuple[str, ...], ...]:
    """The forms of rows; a row that has the columns of several is read by the first.

    A row's text beside a chat is that chat, rendered by a template of somebody else's.
    """
    return (*chats.FORMS, _TEXT) if tokenizer.chat_template else (_TEXT, *chats.FORMS)


def _form_of(row: Row, forms: Iterable[tuple[str, ...]], where: str) -> tuple[str, ...] | None:
    """The columns that hold a row's text or chat; None if they are null."""
    found = [form for form in forms if set(form) <= row.keys()]
    if not found:
        raise DataError(
            f"{where} has the columns {', '.join(map(str, row))}; `text` (strings) is needed, or "
            f"one of {', '.join(map(_columns, chats.FORMS))} (chats); rename a column"
        )
    return next((form for form in found if all(row[name] is not None for name in form)), None)


def _loss_on(form: tuple[str, ...], asked: str, where: str) -> str:
    """Which tokens of rows of a form are learned: what is asked for, or what is usual."""
    if form != _TEXT:
        return ("assistant" if len(form) == 1 else "completion") if asked == AUTO else asked
    if asked not in (AUTO, "all"):
        raise DataError(
            f"{where} is a text, which has no {asked} to take the loss on; leave --loss-on out, or "
            "give rows of chats"
        )
    return "all"


def _described(form: tuple[str, ...], learned: str) -> str:
    what = "texts" if form == _TEXT else "chats by the tokenizer's template"
    return f"rows of {_columns(form)}, read as {what}; loss on {LOSS_ON[learned]}"


def _columns(form: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in form)


def _document(
    row: Row, form: tuple[str, ...], learned: str, tokens: chats.ChatTokens, where: str
) -> Document:
    """The document of a row; empty if there is nothing in it, or nothing to learn."""
    if form != _TEXT:
        said = chats.conversation_of(row, form, where)
        answers = None if learned == "all" else said.answers(learned)
        if not said.messages or answers == []:
            return ""
        return tokens.chat(said.messages, row.get("tools"), where, answers)
    text = row["text"]
    if not isinstance(text, str):
        raise DataError(f"`text` of {where} is {text!r:.40}, no string; put it in quotes")
    return text if text.strip() else ""


def split_held_out(given: Iterator[Document]) -> tuple[Document, Iterator[Document]]:
    """Take the start of a text for evaluation: (what is held out, the remaining documents).

    A tenth of the text, and at most some 200,000 characters. Documents stay whole, unless a text
    alone would be more than that, or leave less than half of it: such a text is cut at the end of a
    line or else of a word.

    Raises:
        DataError: there is no text, or not enough to take a tenth of it.
    """
    start, size = [], 0
    for document in given:
        start.append(document)
        size += _size(document)
        if size >= _HELD_OUT_SHARE * _HELD_OUT_CHARACTERS:
            break
    if not size:
        raise DataError("the training text is empty; give --data some text")
    most = min(_HELD_OUT_CHARACTERS, size // _HELD_OUT_SHARE)
    held_out, size = [], 0
    while size + _size(start[0]) <= most:
        held_out.append(start.pop(0))
        size += _size(held_out[-1])
    if size < most / 2 and isinstance(start[0], str):
        end = _end_of_line(start[0], most - size)
        held_out.append(start[0][:end])
        start[0] = start[0][end:]
    if not any(held_out):
        raise DataError(
            f"the training text is too short to hold a tenth of its {len(start)} documents out for "
            "evaluation; give --eval-data, or more text"
        )
    return joined(held_out), itertools.chain(start, given)


def _size(document: Document) -> int:
    """Characters of a document, blank ones around it not counted."""
    if isinstance(document, str):
        return len(document.strip())
    return _CHARACTERS_PER_TOKEN * len(document)


def _end_of_line(text: str, most: int) -> int:
    """Where to cut `text` after at most `most` characters from its first one that is not blank."""
    start = len(text) - len(text.lstrip())
    for mark in ("\n", " "):
        end = text.rfind(mark, start, start + most) + 1
        if end - start > most / 2:
            return end
    return start + most


def joined(given: list[Document]) -> Document:
    """Documents of one form as one: texts with line ends between them, chats end to end."""
    texts = [document for document in given if isinstance(document, str)]
    ids = [document.ids for document in given if not isinstance(document, str)]
    return "\n".join(texts) if texts else Chat(list(itertools.chain.from_iterable(ids)))


def pack(
    given: Iterable[Document],
    tokenizer: Any,
    *,
    length: int,
    needed_tokens: int,
    how: str = STREAM,
    progress: Any = None,
    say: Say = lambda message: None,
) -> TokenBlocks:
    """Tokenise documents into blocks of `length` tokens.

    Args:
        given: documents of one form.
        tokenizer: a Hugging Face tokenizer.
        length: tokens per block.
        needed_tokens: what the run will look at; reading stops at the larger of this and 2^26.
        how: end to end, or kept apart, see `lrqat.training.data.apart`.
        progress: called with the number of tokens so far, or None.
        say: told how many chats were cut.

    Raises:
        DataError: less than one block of text.
    """
    most = max(needed_tokens, MOST_TOKENS)
    rest = iter(given)
    start = list(itertools.islice(rest, 1))
    rest = itertools.chain(start, rest)
    if start and isinstance(start[0], Chat) and start[0].learned is not None:
        chats_alone = (document for document in rest if isinstance(document, Chat))
        return pack_whole(
            chats_alone, length=length, most=most, how=how, progress=progress, say=say
        )
    parts: list[NDArray[np.int32]] = []
    total, begins = 0, []
    for part, is_first in _token_parts(rest, tokenizer):
        parts.append(part)
        begins += [total] if is_first and len(part) else []
        total += len(part)
        if progress:
            progress(total)
        if total >= most:
            break
    refuse_too_short(total, length)
    tokens, starts = np.concatenate(parts), np.zeros(total, bool)
    starts[begins] = True
    bos = window_bos(tokenizer)
    if bos is not None:
        tokens, starts = begin_blocks(tokens, starts, length, how, bos)
    return keep_apart(tokens, starts, length, how)


def _token_parts(
    given: Iterable[Document], tokenizer: Any
) -> Iterator[tuple[NDArray[np.int32], bool]]:
    """Tokens, and whether a document begins with them."""
    bos, eos = window_bos(tokenizer), tokenizer.eos_token_id
    for document in given:
        if isinstance(document, Chat):
            yield np.array(document.ids, np.int32), True
            continue
        is_first = True
        if bos is not None:
            yield np.array([bos], np.int32), True
            is_first = False
        pieces = _pieces(document)
        while group := list(itertools.islice(pieces, _PIECES_PER_CALL)):
            ids = tokenizer(
                group, add_special_tokens=False, split_special_tokens=True, verbose=False
            )["input_ids"]
            yield np.fromiter(itertools.chain.from_iterable(ids), np.int32), is_first
            is_first = False
        if eos is not None:
            yield np.array([eos], np.int32), False


def _pieces(text: str) -> Iterator[str]:
    """Cut a document at line ends into pieces of about `_PIECE` characters."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        yield text[start:end]
        start = end
