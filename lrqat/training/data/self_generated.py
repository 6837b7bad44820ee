"""Training text that the model writes itself, for when its own training text is not to be had.

A sequence begins with a random token of the vocabulary. The next few tokens are the most likely
ones, so that it finds a topic, and all others are drawn from the full softmax (temperature 1, no
cut-off), so that the text has the model's own distribution. Where the model ends a text, the next
one begins in the same way, in the same block.
Source: Liu et al., "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models",
2023, section 3.1, which ends a sequence there instead.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrqat.errors import DataError
from lrqat.evaluation.perplexity import Progress
from lrqat.evaluation.text import window_bos
from lrqat.layers.modes import evaluating
from lrqat.models.positions import trained_positions
from lrqat.training.data.blocks import TokenBlocks

# Most likely tokens after the first one. The paper says 3 to 5.
_GREEDY = 4


def start_ids(tokenizer: Any) -> list[int]:
    """Tokens that a sequence may begin with: the vocabulary without special tokens."""
    return sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))


def write_blocks(
    model: Any,
    tokenizer: Any,
    *,
    blocks: int,
    length: int,
    batch_size: int,
    seed: int,
    progress: Progress | None = None,
) -> TokenBlocks:
    """Let `model` write `blocks` blocks of `length` tokens for training it.

    Args:
        model: the causal LM in full precision; its mode is left as it was.
        tokenizer: its tokenizer, for the tokens that begin and end a text.
        blocks: how many.
        length: tokens a block.
        batch_size: blocks written side by side. The cache of keys and values grows with it.
        seed: with the same batch size, dtype and device, the same seed gives the same tokens.
        progress: wraps the iterable of steps, one token of every block of a batch each.

    Raises:
        DataError: the model's context is shorter than `length`.
    """
    bos, eos = window_bos(tokenizer), tokenizer.eos_token_id
    return generate_blocks(
        model,
        starts=start_ids(tokenizer),
        bos=bos,
        eos=eos,
        blocks=blocks,
        length=length,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )


@torch.no_grad()
def generate_blocks(
    model: Any,
    *,
    starts: Sequence[int],
    bos: int | None,
    eos: int | None,
    blocks: int,
    length: int,
    batch_size: int,
    seed: int,
    progress: Progress | None = None,
) -> TokenBlocks:
    """`write_blocks` with the tokens given.

    Args:
        model: a causal LM.
        starts: a sequence begins with one of these, drawn at random.
        bos: token before every sequence, or None.
        eos: token after which the next sequence begins, or None.
        blocks: how many.
        length: tokens a block.
        batch_size: blocks written side by side.
        seed: of all that is drawn.
        progress: wraps the iterable of steps.

    Raises:
        DataError: the model's context is shorter than `length`.
    """
    refuse_short_context(model.config, length)
    sizes = [min(batch_size, blocks - done) for done in range(0, blocks, batch_size)]
    generator = torch.Generator(model.device).manual_seed(seed)
    begin = torch.tensor(starts, device=model.device)
    tokens = np.empty((blocks, length), np.int32)
    steps = [(i * batch_size, size, at) for i, size in enumerate(sizes) for at in range(length)]
    with evaluating(model):
        for first, size, at in progress(steps) if progress else steps:
            if at == 0:
                writer = _Writer(model, begin, bos, eos, size, generator)
            tokens[first : first + size, at] = writer.step().cpu().numpy()
    return TokenBlocks(tokens.reshape(-1), length)


class _Writer:
    """A batch of blocks in the making. `_since` counts the tokens of each row's sequence."""

    def __init__(
        self,
        model: Any,
        starts: Tensor,
        bos: int | None,
        eos: int | None,
        size: int,
        generator: torch.Generator,
    ) -> None:
        self._model, self._starts, self._bos, self._eos = model, starts, bos, eos
        self._generator = generator
        self._opening = 1 if bos is None else 2  # tokens of a sequence that the model does not give
        self._since = torch.zeros(size, dtype=torch.long, device=starts.device)
        self._last: Tensor | None = None
        self._past: Any = None

    def step(self) -> Tensor:
        """The next token of every row: int64 (size,)."""
        token = self._start()
        if self._last is not None:
            token = torch.where(self._since < self._opening, token, self._continue(self._last))
        if self._bos is not None:
            token = torch.where(self._since == 0, self._bos, token)
        self._since += 1
        if self._eos is not None:
            ended = (token == self._eos) & (self._since > self._opening)
            self._since[ended] = 0
        self._last = token
        return token

    def _start(self) -> Tensor:
        drawn = torch.randint(
            len(self._starts),
            self._since.shape,
            generator=self._generator,
            device=self._starts.device,
        )
        return self._starts[drawn]

    def _continue(self, last: Tensor) -> Tensor:
        """What the model gives after `last`: its most likely token, or one drawn."""
        output = self._model(
            input_ids=last.unsqueeze(1), past_key_values=self._past, use_cache=True
        )
        self._past = output.past_key_values
        probabilities = output.logits[:, -1].float().softmax(-1)
        drawn = torch.multinomial(probabilities, 1, generator=self._generator).squeeze(1)
        greedy = self._since < self._opening + _GREEDY
        return torch.where(greedy, probabilities.argmax(-1), drawn)


def refuse_short_context(config: Any, length: int) -> None:
    """Raise DataError if a model of `config` cannot write `length` tokens that are its own kind."""
    context = trained_positions(config)
    if context is not None and context < length:
        raise DataError(
            f"the model has a context of {context} tokens and cannot write sequences of {length}; "
            f"give --sequence-length {context} or less"
        )
