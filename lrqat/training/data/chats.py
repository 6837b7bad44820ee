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
from collections.abc import Mapping
from typing import Any

from lrqat.errors import DataError, refusing
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

Message = dict[str, Any]


def messages_of(row: Mapping[str, Any], form: tuple[str, ...], where: str) -> list[Message]:
    """The messages of a row, in the template's form.

    Args:
        row: column to value.
        form: its columns, one of `FORMS`.
        where: the row, for messages to people.

    Raises:
        DataError: the columns hold something else.
    """
    roles = ("user", "assistant") if len(form) == 2 else ("",)
    found = [
        message
        for column, role in zip(form, roles, strict=True)
        for message in _messages(row[column], role, f"`{column}` of {where}")
    ]
    more = row.get(_MORE) if form[0] == "instruction" else None
    if more and found:
        found[0] = found[0] | {"content": f"{found[0].get('content')}\n\n{more}"}
    return found


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

    def ids(self, messages: list[Message], tools: Any, where: str) -> list[int]:
        """Token ids of a chat.

        Raises:
            DataError: no chat template, or it refuses the chat, loops, or writes without end.
        """
        if not self._tokenizer.chat_template:
            raise DataError(
                f"{where} is a chat, and the tokenizer has no chat template; give rows with a "
                "`text` column, or a tokenizer with a template"
            )
        try:
            if self._process is None:
                self._process = TemplateProcess(self._tokenizer)
            text = self._process.render(messages, tools)
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses {where}: {error}; correct the row or leave it out"
            ) from None
        with refusing(DataError, f"the tokenizer refuses {where}", "correct the row"):
            encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])


def _messages(value: Any, role: str, where: str) -> list[Message]:
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


def _message(given: Message) -> Message:
    if "from" not in given or "role" in given:
        return given
    rest = {key: item for key, item in given.items() if key not in ("from", "value")}
    role = _ROLES.get(str(given["from"]), given["from"])
    return {"role": role, "content": given.get("value"), **rest}
