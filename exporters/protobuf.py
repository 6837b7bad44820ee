"""Protobufs by their wire format alone: what a file holds before a library is given it.

A message is fields one after the other: a varint of number * 8 + form, then a varint (form 0), as
many bytes as a varint says (form 2), or 8 or 4 bytes (forms 1 and 5). Libraries build objects of
all of it, some hundred times the size of an empty message of two bytes. Source: protobuf.dev,
"Encoding".
"""

import mmap
from collections.abc import Iterator
from itertools import islice

Place = tuple[int, int]  # start and end of a message in the file
_VARINT, _BYTES, _FIXED_SIZES = 0, 2, {1: 8, 5: 4}


def parts(data: mmap.mmap, number: int, message: Place, most: int) -> Iterator[Place]:
    """The fields `number` among the first `most` fields of a message."""
    found = islice(fields(data, *message), most)
    return (place for each, place in found if each == number)


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, Place]]:
    """Number and place of every field of a message; number 0 stands for those without a length.

    Raises:
        ValueError: it is no message.
    """
    while start < end:
        key, start = _varint(data, start)
        form = key & 7
        size = _FIXED_SIZES.get(form, 0)
        if form in (_VARINT, _BYTES):
            value, start = _varint(data, start)
            size = value if form == _BYTES else 0
        elif not size:
            raise ValueError("a form of fields that protobufs no longer have")
        if start + size > end:
            raise ValueError("a field that is longer than its message")
        yield (key >> 3 if form == _BYTES else 0), (start, start + size)
        start += size


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """A number of at most ten bytes, seven bits each, lowest first; and where it ends."""
    value = 0
    for i, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, start + i + 1
    raise ValueError("a number that does not end")
