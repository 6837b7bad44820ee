"""Each kind of source against the library, or the document, that it comes from."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ModelError
from lrqat.importing.run import import_model
from lrqat.importing.sources import open_source
from tests.support.imported import PROJECTION, by_gguf, folder_of, state_of, weights_of


def imported(folder, output, wanted, dtype, **settings):
    """Import it, and compare every projection with `wanted`: name -> weights in `dtype`."""
    report = import_model(str(folder), output, **settings)
    checkpoint = Checkpoint.open(output)
    assert wanted
    for name, value in wanted.items():
        assert name.removesuffix(".weight") in checkpoint.quantized_names, report.tensors
        assert torch.equal(weights_of(checkpoint, name).to(dtype), value), name
    return checkpoint, report


SCHEMES = {
    "4 bits, groups": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32},
                       torch.bfloat16, "q4_0"),
    "4 bits, zero-points": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32,
                            "symmetric": False}, torch.float16, "int4-asym-g32"),
    "4 bits, rows": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, torch.float16,
                     "int4-channel"),
    "2 bits": ("pack-quantized", {"num_bits": 2, "strategy": "group", "group_size": 32},
               torch.bfloat16, "int2-g32"),
    "8 bits": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32},
               torch.bfloat16, "int8-g32"),
    "8 bits, zero-points": ("pack-quantized", {"num_bits": 8, "strategy": "channel",
                            "symmetric": False}, torch.float16, "int8-asym-channel"),
    "int-quantized": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, torch.bfloat16,
                      "int8-channel"),
    "naive": ("naive-quantized", {"num_bits": 8, "strategy": "tensor"}, torch.float16,
              "int8-channel"),
}  # fmt: skip


def scales_for(value, arguments, dtype):
    """Scales and zero-points by the extremes, as llm-compressor's observer finds them."""
    size = arguments.group_size or value.shape[1]
    groups = value.float().view(len(value), -1, size)
    if arguments.strategy == "tensor":
        groups = value.float().view(1, 1, -1)
    steps = 2**arguments.num_bits - 1
    if arguments.symmetric:
        scale = groups.abs().amax(-1) / (steps / 2)
        zero = torch.zeros_like(scale)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / steps
        zero = (-low / scale).round() - 2 ** (arguments.num_bits - 1)
    return scale.to(dtype), zero.to(torch.int8)


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors_means_what_its_library_says(name, tmp_path):
    form, settings, dtype, grid = SCHEMES[name]
    arguments = QuantizationArgs(**settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    library = BaseCompressor.get_value_from_registry(form)
    wanted = {}

    def change(name, value):
        scale, zero = scales_for(value, arguments, dtype)
        made = {"weight": value.to(dtype), "weight_scale": scale, "weight_zero_point": zero}
        made = library.compress(made, scheme)
        wanted[name] = library.decompress(dict(made), scheme)["weight"]
        return made

    said = arguments.model_dump().items()
    group = {
        "targets": ["Linear"],
        "weights": {k: v for k, v in said if k in (*settings, "type", "symmetric")},
    }
    folder = folder_of(tmp_path / "source", change, quant_method="compressed-tensors", format=form,
                       config_groups={"group_0": group}, ignore=["lm_head"])  # fmt: skip
    checkpoint, _ = imported(folder, tmp_path / "out", wanted, dtype)
    assert {checkpoint.grid(n).name for n in checkpoint.quantized_names} == {grid}
    assert len(wanted) == 14


def pack_bits(codes, bits):
    """Integers (n, count) as int32 words along the rows, bit by bit."""
    rows = len(codes)
    stream = (codes[..., None] >> np.arange(bits)) & 1
    octets = np.packbits(stream.reshape(rows, -1).astype(np.uint8), axis=1, bitorder="little")
    return torch.from_numpy(np.ascontiguousarray(octets).view("<i4").copy())


def gptq_of(value, bits, size, version, symmetric):
    """The tensors of GPTQ, by its document, and the weights that they mean."""
    rng = np.random.default_rng(0)
    rows, columns = value.shape
    groups = columns // size
    codes = rng.integers(0, 2**bits, (rows, columns))
    zeros = np.full((groups, rows), 2 ** (bits - 1))
    if not symmetric:
        zeros = rng.integers(1, 2**bits, (groups, rows))
    scales = torch.from_numpy(rng.uniform(1e-3, 1e-2, (groups, rows))).half()
    parts = {
        "qweight": pack_bits(codes, bits).T,
        "qzeros": pack_bits(zeros - (version == 1), bits),
        "scales": scales,
        "g_idx": torch.arange(columns, dtype=torch.int32) // size,
    }
    less = torch.from_numpy(codes - np.repeat(zeros.T, size, 1))
    return parts, (less.half() * scales.T.repeat_interleave(size, 1))


@pytest.mark.parametrize(
    ("bits", "version", "symmetric", "grid"),
    [(4, 1, True, "q4_0"), (4, 2, False, "int4-asym-g32"), (3, 1, False, "int3-asym-g32"),
     (2, 2, True, "int2-g32"), (8, 1, True, "int8-g32")],
)  # fmt: skip
def test_gptq_means_what_its_document_says(bits, version, symmetric, grid, tmp_path):
    wanted = {}

    def change(name, value):
        parts, wanted[name] = gptq_of(value, bits, 32, version, symmetric)
        return parts

    folder = folder_of(
        tmp_path / "source", change, quant_method="gptq", bits=bits, group_size=32, sym=symmetric,
        desc_act=False, checkpoint_format="gptq" if version == 1 else "gptq_v2",
    )  # fmt: skip
    checkpoint, _ = imported(folder, tmp_path / "out", wanted, torch.float16)
    assert {checkpoint.grid(n).name for n in checkpoint.quantized_names} == {grid}


def test_gptq_of_another_version_or_order_is_refused(tmp_path):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    change = lambda name, value: gptq_of(value, 4, 32, 2, True)[0]  # noqa: E731
    folder = folder_of(tmp_path / "version", change, **settings)
    with pytest.raises(ModelError, match="of another version than it says"):
        import_model(str(folder), tmp_path / "out")

    def shuffled(name, value):
        parts = gptq_of(value, 4, 32, 1, True)[0]
        return parts | {"g_idx": parts["g_idx"].flip(0)}

    folder = folder_of(tmp_path / "order", shuffled, **settings)
    with pytest.raises(ModelError, match=r"desc_act=False"):
        import_model(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("method", ["awq", "auto-round"])
def test_awq_means_what_its_document_says(method, tmp_path):
    rng = np.random.default_rng(0)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # awq/modules/linear/gemm.py `from_linear`
    wanted = {}

    def packed(codes):
        return pack_bits(codes.reshape(len(codes), -1, 8)[:, :, order].reshape(codes.shape), 4)

    def change(name, value):
        rows, columns = value.shape
        codes, zeros = (
            rng.integers(0, 16, (columns, rows)),
            rng.integers(0, 16, (columns // 32, rows)),
        )
        scales = torch.from_numpy(rng.uniform(1e-3, 1e-2, zeros.shape)).half()
        less = torch.from_numpy(codes - np.repeat(zeros, 32, 0)).half()
        wanted[name] = (less * scales.repeat_interleave(32, 0)).T.contiguous()
        return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}

    folder = folder_of(
        tmp_path / "source", change, quant_method=method, bits=4, group_size=32, zero_point=True,
        version="gemm", packing_format="auto_round:auto_awq",
    )  # fmt: skip
    checkpoint, _ = imported(folder, tmp_path / "out", wanted, torch.float16)
    assert checkpoint.grids == {"int4-asym-g32"}


def test_weights_of_qat_in_bfloat16_come_back_with_their_integers(tmp_path):
    integers, wanted = {}, {}

    def change(name, value):
        integers[name], weights = by_gguf(value, "q4_0")
        wanted[name] = weights.bfloat16()
        return {"weight": wanted[name]}

    folder = folder_of(tmp_path / "source", change)
    checkpoint, report = imported(folder, tmp_path / "out", wanted, torch.bfloat16)
    for name, q in integers.items():
        assert np.array_equal(checkpoint.quantized(name.removesuffix(".weight")).q, q)
    kept = [each for each in report.tensors if not each.is_exact]
    assert {each.name for each in kept} == {"model.embed_tokens", "lm_head"}
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(weights_of(checkpoint, name), state_of(folder)[name].float())


def test_a_tensor_that_is_off_stays_or_is_rounded_where_that_is_asked_for(tmp_path):
    off = "model.layers.1.mlp.up_proj"

    def change(name, value):
        weights = by_gguf(value, "q4_0")[1]
        if name.startswith(off):
            weights[0, :9] += torch.linspace(0.001, 0.0217, 9)
        return {"weight": weights.bfloat16()}

    folder = folder_of(tmp_path / "source", change)
    report = import_model(str(folder), tmp_path / "kept")
    told = next(each for each in report.tensors if each.name == off)
    assert told.grid is None
    assert told.nearest in ("q4_0", "q8_0")
    assert 0.9 < told.share < 1
    kept = Checkpoint.open(tmp_path / "kept")
    assert torch.equal(weights_of(kept, f"{off}.weight"), state_of(folder)[f"{off}.weight"].float())
    import_model(str(folder), tmp_path / "rounded", allow_inexact=True)
    rounded = Checkpoint.open(tmp_path / "rounded")
    assert rounded.grid(off).name == told.nearest
    record = rounded.manifest["training"]["imported"]["inexact"][off]
    assert 0.9 < record["share"] < 1
    assert record["difference"] > 0


def test_float32_scales_that_no_float16_replaces_are_told(tmp_path):
    arguments = QuantizationArgs(num_bits=4, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    library = BaseCompressor.get_value_from_registry("pack-quantized")

    def change(name, value):
        scale, _ = scales_for(value, arguments, torch.float32)
        return library.compress({"weight": value.float(), "weight_scale": scale}, scheme)

    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "symmetric": True, "type": "int"}}
    folder = folder_of(tmp_path / "source", change, quant_method="compressed-tensors",
                       format="pack-quantized", config_groups={"group_0": group})  # fmt: skip
    notes = {open_source(str(folder)).read(name).note for name in state_of_projections(folder)}
    assert all("no float16 number gives the same weights" in note for note in notes)


def state_of_projections(folder):
    return [n.replace("_packed", "") for n in state_of(folder) if n.endswith("weight_packed")]


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "mxfp4", "quip"])
def test_what_has_no_grid_is_refused_with_the_reason(method, tmp_path):
    change = lambda name, value: {"weight": value}  # noqa: E731
    folder = folder_of(tmp_path / "source", change, quant_method=method)
    with pytest.raises(ModelError, match=rf"is quantized by '{method}', which is not imported: "):
        open_source(str(folder))


def test_a_damaged_source_is_refused_and_leaves_nothing(tmp_path):
    change = lambda name, value: gptq_of(value, 4, 32, 1, True)[0]  # noqa: E731
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    folder = folder_of(tmp_path / "source", change, **settings)
    state = state_of(folder)
    name = next(n for n in state if n.endswith(PROJECTION.replace("weight", "qweight")))
    save_file(state | {name: state[name][1:].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"groups for|words"):
        import_model(str(folder), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
