"""Chats: the forms in which rows hold them, and their tokens by the tokenizer's chat template.

    messages                [{"role": "user", "content": "..."}, ...]
    conversations           the same, or ShareGPT's [{"from": "human", "value": "..."}, ...]
    prompt and completion   two texts, or two lists of messages: a user's, and the answer

A `tools` column goes to the template with them.
"""

from collections.abc import Mapping
from typing import Any

from lrqat.errors import DataError

# ShareGPT's names of roles; others stay as they are, and the template judges them.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
# In order: a row that has several of them is read by the first.
FORMS = (("messages",), ("conversations",), ("prompt", "completion"))

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
    return [
        message
        for column, role in zip(form, roles, strict=True)
        for message in _messages(row[column], role, f"`{column}` of {where}")
    ]


def chat_ids(messages: list[Message], tools: Any, tokenizer: Any, where: str) -> list[int]:
    """Token ids of a chat, as they occur in use: `apply_chat_template(messages, tokenize=True)`.

    What the template writes is all there is: special tokens are those tokens, and nothing is put
    before or after them.

    Raises:
        DataError: no chat template, or it refuses the chat.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{where} is a chat, and the tokenizer has no chat template; give rows with a `text` "
            "column, or a tokenizer with a template"
        )
    try:
        encoded = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            tokenize=True,
            return_dict=True,
            tokenizer_kwargs={"verbose": False},
        )
    except Exception as error:  # a template is a program, and raises what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the chat template refuses {where}: {reason}; correct the row or leave it out"
        ) from None
    return list(encoded["input_ids"])


def _messages(value: Any, role: str, where: str) -> list[Message]:
    if role and isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(
            f'{where} is no chat; a list such as [{{"role": "user", "content": "..."}}] is needed'
        )
    return [_message(item) for item in value]


def _message(given: Message) -> Message:
    if "from" not in given or "role" in given:
        return given
    rest = {key: item for key, item in given.items() if key not in ("from", "value")}
    role = _ROLES.get(str(given["from"]), given["from"])
    return {"role": role, "content": given.get("value"), **rest}
