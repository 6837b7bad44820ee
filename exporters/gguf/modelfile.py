"""The Modelfile: how Ollama is told of a GGUF file's chats, ends and sampling.

    FROM ./model-q4_0.gguf
    TEMPLATE ...                 in Go's template language, where the chat template has a form
                               that it can say (`exporters.gguf.chat_form`)
    PARAMETER stop "<|im_end|>"

Ollama up to 0.29 renders Go templates alone. From 0.30 on it runs llama.cpp's server, which renders
the file's own Jinja template where the Modelfile has no TEMPLATE, or where the Jinja has something
that TEMPLATE lacks, such as tools. So TEMPLATE is written only where it gives the same text, and
else left out with the reason. Sources: ollama, docs/modelfile.mdx, docs/template.mdx, and
server/routes.go `shouldUseGoTemplate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.end_tokens import end_tokens
from exporters.gguf.chat_form import ChatForm, OtherFormError, find_chat_form
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.naming import sampling
from lrqat.checkpoint.reader import Checkpoint
from lrqat.foreign_text import shown

_TEMPLATE = "tokenizer.chat_template"
_TOKENS, _BOS = "tokenizer.ggml.tokens", "tokenizer.ggml.bos_token_id"
NAME = "Modelfile"
_EOS, _ADDS_BOS = "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_bos_token"
# Ollama's names of samplers' settings, by the fields of gguf-py's `Metadata`.
_PARAMETERS = {
    "sampling_temp": "temperature",
    "sampling_top_k": "top_k",
    "sampling_top_p": "top_p",
    "sampling_min_p": "min_p",
    "sampling_penalty_repeat": "repeat_penalty",
}


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says of a model.

    Attributes:
        lines: all but the first, which names the file.
        notes: what a user should know.
    """

    lines: tuple[str, ...]
    notes: tuple[str, ...]

    def text(self, file: str) -> str:
        """The Modelfile of a GGUF file of that name beside it."""
        return "".join(f"{line}\n" for line in (f"FROM ./{file}", *self.lines))


def plan_modelfile(checkpoint: Checkpoint, metadata: Sequence[KeyValue]) -> Modelfile:
    """The Modelfile of a GGUF file with `metadata`, made from `checkpoint`."""
    said = {entry.key: entry.value for entry in metadata}
    template, note = _template(said)
    lines = [f'TEMPLATE """{template}"""' if template is not None else f"# {note}"]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in _stops(checkpoint, said)]
    lines += [
        f"PARAMETER {_PARAMETERS[field]} {value:g}" for field, value in sampling(checkpoint).items()
    ]
    return Modelfile(tuple(lines), (note,) if note else ())


def _template(said: dict[str, Any]) -> tuple[str | None, str]:
    """The Go template, or None and why there is none."""
    if _TEMPLATE not in said:
        return None, "no TEMPLATE: the tokenizer has no chat template"
    bos, eos = (_token(said, key) for key in (_BOS, _EOS))
    try:
        form = find_chat_form(str(said[_TEMPLATE]), bos, eos)
        return go_template(form, bos if said.get(_ADDS_BOS) else ""), ""
    except OtherFormError as error:
        reason = " ".join(shown(str(error)).split())
        return None, (
            f"no TEMPLATE: the chat template cannot be said in Go's language ({reason}); Ollama "
            "0.30 and newer renders the template in the file itself"
        )


def go_template(form: ChatForm, bos: str) -> str:
    """A form in Go's template language, with the variables that Ollama gives.

    Args:
        form: what is written around messages.
        bos: the token that the tokenizer puts before every text, which must not come twice.

    Raises:
        OtherFormError: a text that a Modelfile cannot hold.
    """
    opening = _literal(form.opening.removeprefix(bos))
    if form.system is not None:
        before, after = form.system[0].removeprefix(bos), form.system[1]
        system = f"{_literal(before)}{{{{ .System }}}}{_literal(after)}"
        opening = f"{{{{ if .System }}}}{system}{{{{ else }}}}{opening}{{{{ end }}}}"
    turns = [
        f'if eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
        for role, (before, after) in form.around.items()
    ]
    messages = "{{ else ".join(turns)
    made = (
        f"{opening}{{{{ range .Messages }}}}{{{{ {messages}{{{{ end }}}}{{{{ end }}}}"
        f"{_literal(form.prompt)}"
    )
    if '"""' in made:
        raise OtherFormError('it writes """, which ends a text in a Modelfile')
    return made


def _literal(text: str) -> str:
    """A text as a template has it, in which two braces begin an action."""
    return text.replace("{{", '{{ "{{" }}')


def _stops(checkpoint: Checkpoint, said: dict[str, Any]) -> list[str]:
    """Texts of the tokens that end an answer."""
    tokens = said.get(_TOKENS, [])
    ids = end_tokens(Path(checkpoint.path), checkpoint.config)
    return [str(tokens[each]) for each in ids if each < len(tokens)]


def _token(said: dict[str, Any], key: str) -> str:
    tokens, number = said.get(_TOKENS, []), said.get(key)
    return str(tokens[number]) if isinstance(number, int) and number < len(tokens) else ""


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
