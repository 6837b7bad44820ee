"""llama.cpp's matrix products on a CPU, simulated in PyTorch: what it rounds activations to.

Every type of weights has a type that activations are rounded to before they are multiplied
(ggml-cpu/ggml-cpu.c `type_traits_cpu`, `vec_dot_type`): blocks of 8 bits under integer types, half
precision under F16, bfloat16 under BF16, nothing under F32. The sums are float32 in another order,
and a sum that differs in the last bit now and then rounds to another step in the next layer; so a
runtime and this simulation are two draws of the same rounding noise, and agree in how large it is
and not in its values.

Q4_1 and Q5_1 have minima m, and round activations to Q8_1, which stores the sum of a block again:

    y = sum over blocks of 32 of  d * d8 * sum(code * q8) + m * s8,   s8 = fp16(d8 * sum(q8))

The integers q8 and the d8 that they are multiplied by are those of Q8_0; s8 is made of a d8 that
was not rounded. So m * (s8 - d8 * sum(q8)) of every block is added to a product in Q8_0. Source:
ggml/src/ggml-cpu/arch/x86/quants.c `quantize_row_q8_1`, `ggml_vec_dot_q4_1_q8_1`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.gguf.layout.encoding import block_minima
from lrqat.activations.grids import quantize
from lrqat.activations.runtime_rounding import round_q8_0, sums_q8_1
from lrqat.activations.table import find_activation_grid
from lrqat.checkpoint.reader import Checkpoint
from lrqat.runtimes.products import Product, computed_by, identity_of

_BLOCK = 32  # of Q8_1


def _to_blocks(name: str) -> Callable[[Tensor], Tensor]:
    grid = find_activation_grid(name)
    return lambda x: quantize(x, grid)


_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "f32": lambda x: x,
    "f16": lambda x: x.half().float(),
    "bf16": lambda x: x.bfloat16().float(),
    "q8_0": _to_blocks("q8_0"),
    "q8_1": _to_blocks("q8_0"),
    "q8_k": _to_blocks("q8_k"),
}


@contextmanager
def rounding_activations(model: Any, path: Path, checkpoint: Checkpoint) -> Iterator[bool]:
    """Inside, `model` rounds the inputs of its products as llama.cpp does with the file `path`.

    Gives whether anything is rounded.

    Args:
        model: a reference of `checkpoint`, float32, on a CPU.
        path: a GGUF file of it.
        checkpoint: the fused checkpoint.

    Raises:
        GgufFileError: the file is not a valid GGUF file.
    """
    from exporters import gguf

    names = gguf.activation_types(path, checkpoint)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    products: dict[int, Product] = {}
    for name, rounding in names.items():
        parameter = parameters.get(name, parameters.get(f"{name}.weight"))
        if parameter is not None:
            products[identity_of(parameter)] = _product(rounding, name, checkpoint)

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return products.get(identity_of(weight), F.linear)(x, weight, bias)

    with computed_by(product):
        yield any(rounding != "f32" for rounding in names.values())


def _product(rounding: str, name: str, checkpoint: Checkpoint) -> Product:
    rounded = _ROUNDINGS[rounding]
    if rounding != "q8_1":
        return lambda x, weight, bias: F.linear(rounded(x), weight, bias)
    minima = _minima(name, checkpoint)

    def with_sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        blocks = x.unflatten(-1, (-1, _BLOCK))
        # The exact sum: at most 11 bits of d8 times 12 of the integers'.
        change = sums_q8_1(blocks) - round_q8_0(blocks).sum(-1)
        expert = weight.storage_offset() // weight.numel()  # 0 of a weight of its own
        return F.linear(rounded(x), weight, bias) + F.linear(change, minima[expert])

    return with_sums


def _minima(name: str, checkpoint: Checkpoint) -> Tensor:
    """What every block adds, float32 (experts, out, blocks); of one matrix, of one expert."""
    stack = [m for m in checkpoint.quantized_names if m.rpartition(".")[0] == name]
    found = []
    for module in stack if name not in checkpoint.quantized_names else [name]:
        scales, grid = checkpoint.scales(module), checkpoint.grid(module)
        blocks = checkpoint.shape(module)[1] // _BLOCK
        found.append(torch.from_numpy(block_minima(scales, grid, blocks).astype("float32")))
    return torch.stack(found)
