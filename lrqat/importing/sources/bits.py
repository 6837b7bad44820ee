"""Integers of a few bits in int32 words, as GPTQ, AWQ and compressed-tensors lay them out.

All of them count from the lowest bit of the first word, and an integer may go on in the next word
(3 bits). They differ in the dimension that is packed, and AWQ in the order within a word.
"""

import torch
from torch import Tensor


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers int16 (rows, count) of int32 words (rows, n), packed along the rows.

    Raises:
        ValueError: n is not what so many integers take.
    """
    needed = -(-count * bits // 32)
    if words.dtype != torch.int32 or words.ndim != 2 or words.shape[1] < needed:
        raise ValueError(
            f"{tuple(words.shape)} words of {words.dtype} do not hold {count} integers"
        )
    rows = len(words)
    found = torch.empty(rows, count, dtype=torch.int16)
    if 32 % bits == 0:
        per_word = 32 // bits
        for i in range(per_word):
            part = (words >> (bits * i)) & ((1 << bits) - 1)
            columns = found[:, i::per_word]
            columns.copy_(part[:, : columns.shape[1]])
        return found
    padded = torch.cat([words, torch.zeros(rows, 1, dtype=torch.int32)], 1).to(torch.int64)
    padded &= 0xFFFFFFFF
    first = torch.arange(count) * bits
    word, shift = first // 32, first % 32
    both = padded[:, word] | padded[:, word + 1] << 32
    return found.copy_((both >> shift) & ((1 << bits) - 1))
