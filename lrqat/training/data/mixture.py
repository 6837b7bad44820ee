"""Blocks of several sources as one text, every stretch of which holds all of them by their shares.

What is measured before training (importance, a teacher's cache) reads the start of the text, so
the sources alternate instead of following one another.
"""

from collections.abc import Sequence

import numpy as np

from lrqat.training.data.blocks import TokenBlocks


def counts_of(blocks: Sequence[int], shares: Sequence[float] | None, needed: int) -> list[int]:
    """How many blocks of each source there will be.

    With shares, as many as the source allows that runs out first, or the run needs: a source that
    has fewer is then read again from its start.

    Args:
        blocks: how many each source has.
        shares: of the mixture, 1 together; None: all of every source.
        needed: how many the run looks at.
    """
    if shares is None:
        return list(blocks)
    total = max(needed, min(n / share for n, share in zip(blocks, shares, strict=True)))
    return [max(1, round(share * total)) for share in shares]


def mix(parts: Sequence[TokenBlocks], counts: Sequence[int]) -> TokenBlocks:
    """`counts[i]` blocks of `parts[i]`, each source spread evenly over the whole."""
    rows = [np.arange(count) % len(part) for part, count in zip(parts, counts, strict=True)]
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    order = np.argsort(places, kind="stable")
    tokens = np.concatenate([part.tokens[row] for part, row in zip(parts, rows, strict=True)])
    learned = None
    if any(part.learned is not None for part in parts):
        masks = [np.ones_like(p.tokens, bool) if p.learned is None else p.learned for p in parts]
        learned = np.concatenate([mask[row] for mask, row in zip(masks, rows, strict=True)])
        learned = learned[order].reshape(-1)
    starts = None
    if any(part.starts is not None for part in parts):  # all are cut in one way
        known = [part.starts[row] for part, row in zip(parts, rows, strict=True)
                 if part.starts is not None]  # fmt: skip
        starts = np.concatenate(known)[order].reshape(-1)
    return TokenBlocks(tokens[order].reshape(-1), parts[0].tokens.shape[1], learned, starts)
