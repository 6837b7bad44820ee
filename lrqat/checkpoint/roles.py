"""What a file of a checkpoint's folder is for, by its name; and with that, who may change it.

MODEL       weights and configuration: what was trained. Never changes.
TEXT        tokenizer, chat templates, generation settings: how text goes in and out. People
            edit them; a change is named, and taken over only when it is accepted.
PEOPLE      the card, licences, pictures: read by nobody but people.
OTHER       everything else that lies there, such as states and exports.
"""

from enum import Enum, auto
from fnmatch import fnmatch

CARD = "README.md"
# Texts under which a model may be handed on, which go with whatever is made of it.
LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
TEMPLATES = "additional_chat_templates"  # transformers' folder of named chat templates


class Role(Enum):
    """See the module."""

    MODEL = auto()
    TEXT = auto()
    PEOPLE = auto()
    OTHER = auto()


# In this order; source of the names: transformers, tokenization_utils_base.py and utils/hub.py.
_PATTERNS = {
    Role.TEXT: (
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
        "sentencepiece.bpe.model", "tekken.json", "chat_template.jinja", "chat_template.json",
        TEMPLATES, f"{TEMPLATES}/*.jinja", "generation_config.json",
    ),
    Role.MODEL: (
        "config.json", "lrqat.json", "*.safetensors", "*.index.json", "pytorch_model*.bin",
    ),
    Role.PEOPLE: (*LICENSES, "*.md", "*.png", "*.jpg", "*.svg", ".gitattributes"),
}  # fmt: skip


def is_license_file(name: str) -> bool:
    """Whether a file at the top of a folder is a licence, a notice or a policy of use."""
    return any(fnmatch(name, pattern) for pattern in LICENSES)


def role_of(name: str) -> Role:
    """The role of a file or folder of a checkpoint.

    Args:
        name: relative to the checkpoint's folder, with forward slashes.
    """
    for role, patterns in _PATTERNS.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            return role
    return Role.OTHER
