"""Sizes of files as people write them."""

import re

from lrqat.errors import UserError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kMG]?)(i?)B?", re.IGNORECASE)
_LONGEST = 32
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


def parse_size(text: str, flag: str) -> int:
    """Bytes that "70MB", "1.2GiB" or a number of bytes says; decimal unless there is an i.

    Args:
        text: what the user wrote.
        flag: the option, for the message.

    Raises:
        UserError: it says no size.
    """
    found = _SIZE.fullmatch(text.strip()) if len(text) < _LONGEST else None
    size = 0
    if found:
        power = _POWERS[found[2].lower()]
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if not 0 < size < 1 << 63:
        raise UserError(f"{flag} {text[:_LONGEST]!r} is no size; write 70MB, 1.2GB or 64MiB")
    return size
