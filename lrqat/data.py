"""The public door to training text: rows of files and chats to documents, and those to blocks.

    from lrqat.data import documents, pack, split_held_out

    held_out, rest = split_held_out(documents("train.jsonl", tokenizer))
    blocks = pack(rest, tokenizer, length=512, needed_tokens=512 * 1000)

It is what `train` does with `--data`. Everything is defined in `lrqat.training.data`, whose modules
may move; these names stay.
"""

from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.data.chats import Chat
from lrqat.training.data.documents import Document, documents, joined, pack, split_held_out

__all__ = ["Chat", "Document", "TokenBlocks", "documents", "joined", "pack", "split_held_out"]
