"""llama.cpp's products with Q4_1 and Q5_1 on a CPU, whose activations are rounded to Q8_1.

    y = sum over blocks of 32 of  d * d8 * sum(code * q8) + m * s8,   s8 = fp16(d8 * sum(q8))

The integers q8 and the d8 that they are multiplied by are those of Q8_0; only what the minima m are
multiplied by is another number: the sum rounded once more, of a d8 that was not rounded. So a
reference rounds its activations to Q8_0 and adds m * (s8 - d8 * sum(q8)) of every block. On x86
with AVX2; the portable code differs where it does for Q8_0 (`lrqat.activations.runtime_rounding`).
Source: ggml/src/ggml-cpu/arch/x86/quants.c `quantize_row_q8_1`, `ggml_vec_dot_q4_1_q8_1`,
`ggml_vec_dot_q5_1_q8_1`.
"""

from typing import Any

import torch
from torch.nn import functional

from exporters.gguf.layout.encoding import block_minima
from lrqat.activations.grids import ACTIVATION_GRIDS
from lrqat.activations.quantizer import attach
from lrqat.activations.runtime_rounding import round_q8_0, sums_q8_1
from lrqat.checkpoint.reader import Checkpoint

_BLOCK = 32


def attach_q8_1(model: Any, checkpoint: Checkpoint) -> None:
    """Let `model`, a reference of `checkpoint`, multiply its trained weights as Q4_1 and Q5_1 do.

    Args:
        model: whose trained weights are those of `nn.Linear` modules.
        checkpoint: exact in both types.
    """
    for name in checkpoint.quantized_names:
        module = model.get_submodule(name)
        grid, blocks = checkpoint.grid(name), module.in_features // _BLOCK
        minima = block_minima(checkpoint.scales(name), grid, blocks).astype("float32")
        module.register_forward_pre_hook(_keep_input)
        module.register_forward_hook(_AddSums(torch.from_numpy(minima)))
    attach(model, ACTIVATION_GRIDS["q8_0"], checkpoint.quantized_names)


def _keep_input(module: Any, args: tuple[Any, ...]) -> None:
    module.unrounded = args[0]  # before the hook that `attach` registers


class _AddSums:
    """Adds what the rounding of the sums changes; `minima` float32 (out, blocks)."""

    def __init__(self, minima: torch.Tensor) -> None:
        self._minima = minima

    def __call__(self, module: Any, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
        blocks = module.unrounded.unflatten(-1, (-1, _BLOCK))
        # The exact sum: at most 11 bits of d8 times 12 of the integers'.
        change = sums_q8_1(blocks) - round_q8_0(blocks).sum(-1)
        return y + functional.linear(change, self._minima)
