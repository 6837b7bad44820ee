"""Which tokens begin, end and separate texts, by the names that llama.cpp has for them.

tokenizer_config.json names bos, eos and the like. A chat model may end its answers with further
tokens, which generation_config.json lists; llama.cpp knows many by their text, and takes two more
from the file, as the ends of a turn and of a message.
"""

from exporters.gguf.vocabulary.files import TokenizerFiles
from exporters.gguf.vocabulary.special_texts import ENDS, ENDS_OF_TURN


def special_ids(files: TokenizerFiles) -> tuple[dict[str, int], list[str]]:
    """Ids by role, and notes for the user."""
    found, notes = files.special_ids(), []
    if "eos" not in found:
        notes.append("no end-of-text token is named; llama.cpp will take one by its own default")
    texts = {token_id: text for text, token_id in files.vocab.items()}
    texts |= {token.token_id: token.content for token in files.added}
    known_turn = not ENDS_OF_TURN.isdisjoint(texts.values())
    unknown = [token_id for token_id in files.other_ends() if texts[token_id] not in ENDS]
    roles = ["eom"] if known_turn else ["eot", "eom"]
    found |= dict(zip(roles, unknown, strict=False))
    left = [texts[token_id] for token_id in unknown[len(roles) :]]
    if left:
        notes.append(
            f"llama.cpp will not stop at {left}, which generation_config.json lists as ends of "
            "text: a file has no more places for them"
        )
    return found, notes
