"""Documents that share a sequence: whether a model keeps them apart if positions start anew.

transformers makes the mask of attention from positions that start anew within a sequence
(`masking_utils.find_packed_sequence_indices`), for windows too. Models that keep a state, or make
masks of their own, do not look at them. Nobody keeps a list: a few tokens are tried.
"""

from typing import Any

import torch
from torch import Tensor

from lrqat.layers.modes import evaluating

_LENGTHS = (5, 9, 7)
# Logits of a sequence differ by the order of summation from those of its documents alone; where
# attention crosses, they are other logits. Relative to the largest.
_NOISE = 1e-4
_ROUNDINGS = 4  # of the largest, in a type of few digits


def positions_of(starts: Tensor) -> Tensor:
    """Positions that start anew: int64 (..., length) of where documents start, bool (..., length).

    A sequence begins a document, whatever `starts` says of its first token.
    """
    places = torch.arange(starts.shape[-1], device=starts.device).expand(starts.shape)
    return places - torch.where(starts, places, 0).cummax(-1).values


@torch.no_grad()
def keeps_apart(model: Any) -> bool:
    """Whether logits of documents in one sequence are those of each document alone.

    Args:
        model: a causal LM whose weights are there; its mode is left as it was.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, sum(_LENGTHS)), generator=generator).to(device)
    parts = tokens.split(_LENGTHS, dim=1)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[0, [sum(_LENGTHS[:i]) for i in range(len(_LENGTHS))]] = True
    with evaluating(model):
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], 1)
        try:
            packed = model(
                input_ids=tokens, position_ids=positions_of(starts), use_cache=False
            ).logits
        except (TypeError, ValueError):  # it takes no positions
            return False
    bound = max(_NOISE, _ROUNDINGS * torch.finfo(alone.dtype).eps) * alone.float().abs().max()
    return bool((packed.float() - alone.float()).abs().max() <= bound)
