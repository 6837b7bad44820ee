"""Added tokens: what is matched in a text before anything else, and what llama.cpp makes of them.

Special ones become control tokens, which llama.cpp reads in a text only where its caller asks for
it (prompts made by a chat template), and Hugging Face always. The others become user-defined
tokens, which both always read. Source: src/llama-vocab.cpp `tokenizer_st_partition`.
"""

from collections.abc import Callable, Iterable

from gguf import TokenType

from exporters.gguf.vocabulary.files import AddedToken, TokenizerFiles
from exporters.gguf.vocabulary.special_texts import FORCED_CONTROL


def place_added_tokens(
    files: TokenizerFiles,
    pieces: dict[int, str],
    types: dict[int, int],
    text_of: Callable[[AddedToken], str] = lambda token: token.content,
) -> list[str]:
    """Put the added tokens into `pieces` and `types`, by id; notes on what llama.cpp does not do.

    Args:
        files: whose `added_tokens` they are.
        pieces: text of every token; changed.
        types: its `gguf.TokenType`; changed.
        text_of: the text that llama.cpp is to look for.
    """
    for token in files.added:
        pieces[token.token_id] = text_of(token)
        kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        types[token.token_id] = int(kind)
    plain = [token for token in files.added if not token.special]
    stripping = (token for token in files.added if token.lstrip or token.rstrip)
    return [
        *_note(stripping, "takes the white space beside {} into the token", "leaves it as text"),
        *_note((t for t in plain if t.single_word), "reads {} as whole words alone", "anywhere"),
        *_note(
            (t for t in plain if t.content in FORCED_CONTROL),
            "reads {} in any text",
            "makes a control token of it, because of its text, and reads it in prompts alone",
        ),
    ]


def _note(tokens: Iterable[AddedToken], theirs: str, ours: str) -> list[str]:
    found = [token.content for token in tokens]
    if not found:
        return []
    named = repr(found[0]) + (f" and {len(found) - 1} more added tokens" if found[1:] else "")
    return [f"Hugging Face {theirs.format(named)}; llama.cpp {ours}"]
