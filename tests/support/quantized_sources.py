"""Kinds of quantized folders, each written by the library or the document that it comes from.

A kind makes the tensors that stand for a matrix, and the weights that its own library says they
mean. `write(kind, folder)` makes a folder of a random model of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers as hf
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from tests.support.imported import by_gguf, folder_of
from tests.support.zoo import SIZES

# Which integer is where in a word, by bits: awq/modules/linear/gemm.py `from_linear`, and vLLM's
# marlin_utils.py `awq_to_marlin_zero_points`.
AWQ_ORDER = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


@dataclass(frozen=True)
class Kind:
    """One way to store quantized weights.

    Attributes:
        make: a matrix (out, in) -> tensors by the end of their names, and the weights they mean.
        dtype: the type of these weights.
        grid: what an import puts them on.
        settings: the quantization_config.
    """

    make: Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
    dtype: torch.dtype
    grid: str
    settings: dict[str, Any] = field(default_factory=dict)


def config():
    """Of one layer, whose rows every kind divides into its groups."""
    return hf.LlamaConfig(**SIZES | {"num_hidden_layers": 1, "intermediate_size": 128})


def experts_config():
    """Of two layers of four experts, which its files hold one by one."""
    sizes = SIZES | {"intermediate_size": 128, "moe_intermediate_size": 64}
    return hf.Qwen3MoeConfig(
        **sizes, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, head_dim=16
    )


def write(kind, folder, of=None):
    """The folder of a random model, of `config()` or another, and name -> projections' weights."""
    wanted = {}

    def change(name, value):
        parts, wanted[name] = kind.make(value)
        return parts

    return folder_of(folder, change, of or config(), **kind.settings), wanted


def pack_bits(codes, bits):
    """Integers (n, count) as int32 words along the rows, bit by bit."""
    rows = len(codes)
    stream = (codes[..., None] >> np.arange(bits)) & 1
    octets = np.packbits(stream.reshape(rows, -1).astype(np.uint8), axis=1, bitorder="little")
    return torch.from_numpy(np.ascontiguousarray(octets).view("<i4").copy())


def rounded(value, bits, size, symmetric):
    """Codes (out, in) and zero-points (out, groups) from 0, and float16 scales (out, groups)."""
    groups = value.float().view(len(value), -1, size)
    if symmetric:
        scale = (groups.abs().amax(-1) / (2 ** (bits - 1) - 0.5)).half()
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / (2**bits - 1)).half()
        zero = (-low / scale).round().clamp(0, 2**bits - 1)
    codes = (groups / scale[..., None].float() + zero[..., None]).round().clamp(0, 2**bits - 1)
    return codes.view(value.shape).int().numpy(), zero.int().numpy(), scale


def gptq(bits, version, symmetric, *, size=32, **more):
    """GPTQ, by gptqmodel's nn_modules/qlinear/__init__.py."""

    def make(value):
        codes, zero, scale = rounded(value, bits, size, symmetric)
        parts = {
            "qweight": pack_bits(codes, bits).T,
            # Version 1 stores them less one, and 0 wraps around.
            "qzeros": pack_bits((zero.T - (version == 1)) % 2**bits, bits),
            "scales": scale.T,
            "g_idx": torch.arange(value.shape[1], dtype=torch.int32) // size,
        }
        less = torch.from_numpy(codes - zero.repeat(size, 1)).half()
        return parts, less * scale.repeat_interleave(size, 1)

    grid = f"int{bits}-{'' if symmetric else 'asym-'}g{size}"
    settings = {
        "quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric,
        "desc_act": False, "checkpoint_format": "gptq" if version == 1 else "gptq_v2", **more,
    }  # fmt: skip
    return Kind(make, torch.float16, "q4_0" if grid == "int4-g32" else grid, settings)


def awq(bits=4, **more):
    """AWQ, by awq/modules/linear/gemm.py; of 8 bits by what vLLM unpacks."""

    def packed(codes):
        order = AWQ_ORDER[bits]
        turned = codes.reshape(len(codes), -1, len(order))[:, :, order]
        return pack_bits(turned.reshape(codes.shape), bits)

    def make(value):
        codes, zero, scale = rounded(value, bits, 32, False)
        parts = {"qweight": packed(codes.T), "qzeros": packed(zero.T), "scales": scale.T}
        less = torch.from_numpy(codes - zero.repeat(32, 1)).half()
        return parts, less * scale.repeat_interleave(32, 1)

    settings = {"quant_method": "awq", "bits": bits, "group_size": 32, "zero_point": True,
                "version": "gemm", **more}  # fmt: skip
    return Kind(make, torch.float16, f"int{bits}-asym-g32", settings)


def compressed(form, dtype, grid, **arguments):
    """compressed-tensors, by the library itself."""
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    library = BaseCompressor.get_value_from_registry(form)

    def make(value):
        scale, zero = scales_for(value, args, dtype)
        parts = {"weight": value.to(dtype), "weight_scale": scale, "weight_zero_point": zero}
        if args.type == "float":
            parts = {"weight": value.to(dtype)} | float_scales_for(value, args, form)
        parts = library.compress(parts, scheme)
        return parts, library.decompress(dict(parts), scheme)["weight"].to(dtype)

    said = args.model_dump(mode="json").items()
    names = (*arguments, "type", "symmetric", "strategy")
    group = {"targets": ["Linear"], "weights": {k: v for k, v in said if k in names}}
    settings = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
                "config_groups": {"group_0": group}}  # fmt: skip
    return Kind(make, dtype, grid, settings)


def scales_for(value, arguments, dtype):
    """Scales and zero-points by the extremes, as llm-compressor's observer finds them."""
    size = arguments.group_size or value.shape[1]
    groups = value.float().view(len(value), -1, size)
    if arguments.strategy == "tensor":
        groups = value.float().view(1, 1, -1)
    if arguments.strategy == "block":
        height, width = arguments.block_structure
        blocks = value.float().view(len(value) // height, height, -1, width)
        groups = blocks.transpose(1, 2).flatten(2)
    steps = 2**arguments.num_bits - 1
    if arguments.symmetric:
        scale = groups.abs().amax(-1) / (steps / 2)
        zero = torch.zeros_like(scale)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / steps
        zero = (-low / scale).round() - 2 ** (arguments.num_bits - 1)
    return scale.to(dtype), zero.to(torch.int8)


def float_scales_for(value, arguments, form):
    """Scales of 4-bit floats: powers of two, or 8-bit floats and a float32 of the tensor."""
    size = arguments.group_size
    largest = value.float().view(len(value), -1, size).abs().amax(-1)
    if form.startswith("mxfp4"):
        return {"weight_scale": torch.exp2((largest / 6).log2().ceil())}
    shared = torch.exp2((448 * 6 / largest.max()).log2().floor())
    scale = (largest / 6 * shared).to(torch.float8_e4m3fn).bfloat16()  # who packs it casts it back
    return {"weight_scale": scale, "weight_global_scale": shared[None]}


def e2m1(value, scale):
    """Values of 4-bit floats (out, in) as codes of 4 bits, for scales (out, groups)."""
    latent = value.float().view(*scale.shape, -1) / scale[..., None].float()
    index = (latent.abs()[..., None] - E2M1).abs().argmin(-1)
    return (index | (latent < 0).int() << 3).view(value.shape).to(torch.uint8)


def halves(codes):
    """Two codes of a byte, the first one in the lower half."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def modelopt(shared_of=lambda least: torch.exp2(least.log2().ceil()), grid="nvfp4"):
    """NVFP4 as ModelOpt writes it, by modelopt/torch/quantization/qtensor/nvfp4_tensor.py."""

    def make(value):
        largest = value.float().view(len(value), -1, 16).abs().amax(-1)
        shared = shared_of(largest.max() / (448 * 6))
        scale = (largest / 6 / shared).to(torch.float8_e4m3fn)
        codes = e2m1(value, scale.float() * shared)
        parts = {"weight": halves(codes), "weight_scale": scale, "weight_scale_2": shared,
                 "input_scale": torch.tensor(0.01)}  # fmt: skip
        signed = torch.cat([E2M1, -E2M1])[codes.int()].view(*scale.shape, -1)
        meant = signed * (scale.float() * shared)[..., None]
        return parts, meant.view(value.shape).bfloat16()

    settings = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    return Kind(make, torch.bfloat16, grid, settings)


def qat(name="q4_0", dtype=torch.bfloat16):
    """Weights that training left on a type of llama.cpp, by gguf's quantizer."""

    def make(value):
        weights = by_gguf(value, name)[1].to(dtype)
        return {"weight": weights}, weights

    return Kind(make, dtype, name)


_GROUPS = {"strategy": "group", "group_size": 32}
_FLOATS = {"num_bits": 4, "type": "float", "symmetric": True}
KINDS = {
    "weights, q4_0": qat(),
    "weights, q8_0": qat("q8_0", torch.float16),
    "compressed-tensors": compressed(
        "pack-quantized", torch.bfloat16, "q4_0", num_bits=4, **_GROUPS
    ),
    "compressed-tensors, zero-points": compressed(
        "pack-quantized", torch.float16, "int4-asym-g32", num_bits=4, symmetric=False, **_GROUPS
    ),
    "compressed-tensors, rows": compressed(
        "pack-quantized", torch.float16, "int4-channel", num_bits=4, strategy="channel"
    ),
    "compressed-tensors, 2 bits": compressed(
        "pack-quantized", torch.bfloat16, "int2-g32", num_bits=2, **_GROUPS
    ),
    "compressed-tensors, 8 bits": compressed(
        "pack-quantized", torch.bfloat16, "int8-g32", num_bits=8, **_GROUPS
    ),
    "compressed-tensors, int8": compressed(
        "int-quantized", torch.bfloat16, "int8-channel", num_bits=8, strategy="channel"
    ),
    "compressed-tensors, NVFP4": compressed(
        "nvfp4-pack-quantized", torch.bfloat16, "nvfp4", strategy="tensor_group", group_size=16,
        scale_dtype=torch.float8_e4m3fn, **_FLOATS,
    ),
    "compressed-tensors, MXFP4": compressed(
        "mxfp4-pack-quantized", torch.bfloat16, "mxfp4", scale_dtype=torch.uint8, **_GROUPS,
        **_FLOATS,
    ),
    "GPTQ": gptq(4, 1, True),
    "GPTQ, zero-points": gptq(4, 2, False),
    "GPTQ, 2 bits": gptq(2, 2, True),
    "GPTQ, 3 bits": gptq(3, 1, False),
    "GPTQ, 8 bits": gptq(8, 1, True),
    "AWQ": awq(),
    "auto-round": awq(quant_method="auto-round", packing_format="auto_round:auto_awq"),
    "auto-round, GPTQ": gptq(
        4, 1, True, quant_method="auto-round", packing_format="auto_round:auto_gptq"
    ),
    "ModelOpt": modelopt(),
}  # fmt: skip
