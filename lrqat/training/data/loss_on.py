"""Which tokens of a document are learned: what `--loss-on` takes."""

from lrqat.settings import AUTO

LOSS_ON = {
    AUTO: "the answers of chats, and all of texts",
    "assistant": "all answers of a chat",
    "completion": "the completion of a prompt, or the last answer of a chat",
    "all": "all tokens",
}
