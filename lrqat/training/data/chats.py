"""Chats: the forms in which rows hold them, and their tokens by the tokenizer's chat template.

    messages                [{"role": "user", "content": "..."}, ...]
    conversations           the same, or ShareGPT's [{"from": "human", "value": "..."}, ...]
    prompt and completion   two texts, or two lists of messages: a user's, and the answer
    instruction and output  two texts, as Alpaca's: a user's, followed by `input` if it says
                            something, and the answer

In a table of texts (CSV), a list of messages may be written as JSON. A `tools` column goes to the
template with them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrqat.errors import DataError, refusing
from lrqat.training.data.answer_spans import ANSWERING, AnswersError, Messages, Spans
from lrqat.training.data.template_process import TemplateError, TemplateProcess

# ShareGPT's names of roles; others stay as they are, and the template judges them.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
# In order: a row that has several of them is read by the first.
FORMS = (
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("instruction", "output"),
)
_MORE = "input"  # of an instruction: what it is about


@dataclass(frozen=True)
class Chat:
    """The tokens of a chat.

    Attributes:
        ids: token ids, (n,).
        learned: (n,) whether the loss is taken of a token's prediction; None: of all.
    """

    ids: list[int]
    learned: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Conversation:
    """The messages of a row.

    Attributes:
        messages: in the template's form.
        prompt: how many of them are the prompt, where the row says so.
    """

    messages: Messages
    prompt: int | None = None

    def answers(self, loss_on: str) -> list[int]:
        """Which messages are learned: `assistant` all answers, `completion` those after the prompt.

        Where the row does not say what its prompt is, that is the last answer.
        """
        found = [i for i, m in enumerate(self.messages) if m.get("role") == ANSWERING]
        if loss_on == "assistant":
            return found
        if self.prompt is None:
            return found[-1:]
        return [i for i in found if i >= self.prompt]


def conversation_of(row: Mapping[str, Any], form: tuple[str, ...], where: str) -> Conversation:
    """The messages of a row.

    Args:
        row: column to value.
        form: its columns, one of `FORMS`.
        where: the row, for messages to people.

    Raises:
        DataError: the columns hold something else.
    """
    if len(form) == 1:
        return Conversation(_messages(row[form[0]], "", f"`{form[0]}` of {where}"))
    prompt, answer = (
        _messages(row[column], role, f"`{column}` of {where}")
        for column, role in zip(form, ("user", ANSWERING), strict=True)
    )
    more = row.get(_MORE) if form[0] == "instruction" else None
    if more and prompt:
        prompt[0] = prompt[0] | {"content": f"{prompt[0].get('content')}\n\n{more}"}
    return Conversation(prompt + answer, len(prompt))


class ChatTokens:
    """Chats to token ids, as they occur in use: `apply_chat_template(messages, tokenize=True)`.

    What the template writes is all there is: special tokens are those tokens, and nothing is put
    before or after them. The template is run in another process, see `TemplateProcess`, which
    ends with the `with` block.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._process: TemplateProcess | None = None  # text without chats needs none

    def __enter__(self) -> "ChatTokens":
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.close()

    def chat(
        self,
        messages: Messages,
        tools: Any,
        where: str,
        answers: Sequence[int] | None = None,
        *,
        prompted: bool = False,
    ) -> Chat:
        """The tokens of a chat.

        Args:
            messages: in the template's form.
            tools: for the template, or None.
            where: the row, for messages to people.
            answers: which messages are learned; None: all tokens are.
            prompted: whether what asks for an answer follows, `add_generation_prompt`; then
                without `answers`.

        Raises:
            DataError: no chat template, or it refuses the chat, loops, or writes without end; or
                it does not show where the answers are.
        """
        if not self._tokenizer.chat_template:
            raise DataError(
                f"{where} is a chat, and the tokenizer has no chat template; give rows with a "
                "`text` column, or a tokenizer with a template"
            )
        text, spans = self._rendered(messages, tools, where, answers, prompted)
        if spans is not None and not self._tokenizer.is_fast:
            raise DataError(
                "this tokenizer does not say which characters its tokens are of, so the answers of "
                f"{where} cannot be told from the rest; give --loss-on all"
            )
        with refusing(DataError, f"the tokenizer refuses {where}", "correct the row"):
            encoded = self._tokenizer(
                text,
                add_special_tokens=False,
                verbose=False,
                return_offsets_mapping=spans is not None,
            )
        ids = list(encoded["input_ids"])
        return Chat(ids, None if spans is None else _inside(encoded["offset_mapping"], spans))

    def _rendered(
        self,
        messages: Messages,
        tools: Any,
        where: str,
        answers: Sequence[int] | None,
        prompted: bool,
    ) -> tuple[str, Spans | None]:
        try:
            if self._process is None:
                self._process = TemplateProcess(self._tokenizer)
            if answers is None:
                return self._process.render(messages, tools, prompted), None
            return self._process.render_answers(messages, tools, answers)
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses {where}: {error}; correct the row or leave it out"
            ) from None
        except AnswersError as error:
            raise DataError(
                f"the chat template does not show where the answers of {where} are: {error}; give "
                "--loss-on completion (the last answer) or all, or a template that marks answers "
                "with {% generation %}"
            ) from None


def _inside(offsets: Sequence[tuple[int, int]], spans: Spans) -> list[bool]:
    """Which tokens have a character in a span. Args: both as characters [start, end)."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    inside = np.zeros(len(offsets), bool)
    for start, end in spans:
        inside |= (ends > start) & (starts < end)
    return inside.tolist()


def _messages(value: Any, role: str, where: str) -> Messages:
    if role and isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, str):
        value = _from_json(value)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(
            f'{where} is no chat; a list such as [{{"role": "user", "content": "..."}}] is needed'
        )
    return [_message(item) for item in value]


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _message(given: dict[str, Any]) -> dict[str, Any]:
    if "from" not in given or "role" in given:
        return given
    rest = {key: item for key, item in given.items() if key not in ("from", "value")}
    role = _ROLES.get(str(given["from"]), given["from"])
    return {"role": role, "content": given.get("value"), **rest}
