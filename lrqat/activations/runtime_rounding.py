"""What the runtimes do to activations inside a quantised matrix product, block by block.

The files these runtimes open say how weights are quantised; the activations are rounded by the
kernel, each row on its own, and nothing in the file can turn that off. All three forms are
symmetric and have 255 levels:

    q_i = round(x_i * (127 / amax)),  amax = max |x_i| over the block        x_hat_i = d * q_i

    q8_0   block of 32     d = fp16(amax / 127)     llama.cpp under Q4_0, Q5_0, Q8_0, IQ4_NL ...
    q8_k   block of 256    d = 1 / (127 / amax)     llama.cpp under all K-quants, IQ*, TQ*
    ort    weight's block  d = amax / 127           ONNX Runtime, MatMulNBits, accuracy_level=4

Every product and quotient is one float32 operation and rounding is to nearest, ties to even.

q8_0 is the AVX2 form (ggml/src/ggml-cpu/arch/x86/quants.c, `quantize_row_q8_0`), which prebuilt x86
libraries run; the portable C form multiplies by 1 / d instead and rounds ties away from zero, which
moves a few values in a million by a step. q8_k is `quantize_row_q8_K_ref` of
ggml/src/ggml-quants.c: its iscale = -127 / (signed maximum) negates q and d together, so the values
are those of the formula above. The ort form was found by experiment: with weights that make the
product an identity, onnxruntime 1.32 on x86 returns exactly these values for 4 and 8 bits, blocks
of 16 to 256, one row or many. Its kernels for ARM were not tried.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LEVELS = 127.0


def number(value: float, like: Tensor) -> Tensor:
    """`value` as a tensor () beside `like`, so that dividing by it, or it, is one exact division.

    With a Python number torch would multiply by a reciprocal: of the divisor on a GPU, and
    everywhere in `127.0 / tensor`.
    """
    return like.new_full((), value)


def round_q8_0(blocks: Tensor) -> Tensor:
    """Values of `blocks` (..., blocks, 32) after llama.cpp's Q8_0, AVX2 form; same shape.

    A block whose amax / 127 exceeds the float16 range has no finite d, here and in C.
    """
    amax, steps = _steps(blocks)
    d = amax.div(number(LEVELS, amax)).to(torch.float16).to(amax.dtype)
    return steps.mul_(d)


def sums_q8_1(blocks: Tensor) -> Tensor:
    """What llama.cpp's Q8_1 stores for the sum of each block: (..., blocks, 32) to (..., blocks).

    Its integers and scales are those of Q8_0; the sum is fp16(d * sum q), of the d that has not
    been rounded (`quantize_row_q8_1`, AVX2 form).
    """
    amax, steps = _steps(blocks)
    sums = amax.div(number(LEVELS, amax)).mul_(steps.sum(-1, keepdim=True))
    return sums.to(torch.float16).to(amax.dtype).squeeze(-1)


def round_q8_k(blocks: Tensor) -> Tensor:
    """Values of `blocks` (..., blocks, 256) after llama.cpp's Q8_K; same shape."""
    amax, steps = _steps(blocks)
    d = number(1.0, amax).div(number(LEVELS, amax).div(amax))
    return steps.mul_(torch.where(amax > 0, d, torch.zeros_like(d)))


def round_ort(blocks: Tensor) -> Tensor:
    """Values of `blocks` (..., blocks, size) in MatMulNBits at accuracy level 4; same shape."""
    amax, steps = _steps(blocks)
    return steps.mul_(amax.div(number(LEVELS, amax)))


def _steps(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The amax (..., blocks, 1), and the rounded x * 127 / amax, all zero where that overflows.

    127 / amax is infinite below 3.8e-37: then llama.cpp's d is zero as float16 and its q are
    whatever the conversion of an infinity gives, so the values are zeros either way.
    """
    amax = blocks.abs().amax(-1, keepdim=True)
    inverse = number(LEVELS, amax).div(amax)
    inverse = torch.where(inverse.isinf(), torch.zeros_like(inverse), inverse)
    return amax, (blocks * inverse).round_()


# Name of the grid's rounding -> function of (..., blocks, size).
BLOCK_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "q8_0": round_q8_0,
    "q8_k": round_q8_k,
    "ort-level4": round_ort,
}
