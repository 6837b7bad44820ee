"""Each kind of source against the library, or the document, that it comes from."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ModelError
from lrqat.importing.run import import_model
from lrqat.importing.sources import open_source
from tests.support.imported import PROJECTION, by_gguf, folder_of, state_of, weights_of
from tests.support.quantized_sources import KINDS, awq, compressed, gptq, modelopt, write


def imported(folder, output, wanted, dtype, **settings):
    """Import it, and compare every projection with `wanted`: name -> weights in `dtype`."""
    report = import_model(str(folder), output, **settings)
    checkpoint = Checkpoint.open(output)
    assert wanted
    for name, value in wanted.items():
        assert name.removesuffix(".weight") in checkpoint.quantized_names, report.tensors
        assert torch.equal(weights_of(checkpoint, name).to(dtype), value), name
    return checkpoint, report


# What comes out on a grid that another kind has too.
FURTHER = {
    "compressed-tensors, 8 bits, zero-points": compressed(
        "pack-quantized", torch.float16, "int8-asym-channel", num_bits=8, strategy="channel",
        symmetric=False,
    ),
    "compressed-tensors, one scale": compressed(
        "naive-quantized", torch.float16, "int8-channel", num_bits=8, strategy="tensor"
    ),
    "compressed-tensors, blocks": compressed(
        "int-quantized", torch.float16, "int8-g32", num_bits=8, strategy="block",
        block_structure=[16, 32],
    ),
    "compressed-tensors, packed blocks, zero-points": compressed(
        "pack-quantized", torch.float16, "int4-asym-g32", num_bits=4, strategy="block",
        block_structure=[16, 32], symmetric=False,
    ),
    "AWQ, 8 bits": awq(8),
    "ModelOpt, any float32 of the tensor": modelopt(lambda least: least * 1.1, "int5-g16"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*KINDS, *FURTHER])
def test_a_source_means_what_its_library_says(name, tmp_path):
    kind = (KINDS | FURTHER)[name]
    folder, wanted = write(kind, tmp_path / "source")
    assert len(wanted) == 7
    checkpoint, report = imported(folder, tmp_path / "out", wanted, kind.dtype)
    assert {checkpoint.grid(n).name for n in checkpoint.quantized_names} == {kind.grid}
    assert report.inexact == []


def test_gptq_of_another_version_or_order_is_refused(tmp_path):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    change = lambda name, value: gptq(4, 2, True).make(value)[0]  # noqa: E731
    folder = folder_of(tmp_path / "version", change, **settings)
    with pytest.raises(ModelError, match="of another version than it says"):
        import_model(str(folder), tmp_path / "out")

    def shuffled(name, value):
        parts = gptq(4, 1, True).make(value)[0]
        return parts | {"g_idx": parts["g_idx"].flip(0)}

    folder = folder_of(tmp_path / "order", shuffled, **settings)
    with pytest.raises(ModelError, match=r"desc_act=False"):
        import_model(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").glob("*.json"))


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
    kind = compressed(
        "pack-quantized", torch.float32, "", num_bits=4, strategy="group", group_size=32
    )
    folder, _ = write(kind, tmp_path / "source")
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
    change = lambda name, value: gptq(4, 1, True).make(value)[0]  # noqa: E731
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    folder = folder_of(tmp_path / "source", change, **settings)
    state = state_of(folder)
    name = next(n for n in state if n.endswith(PROJECTION.replace("weight", "qweight")))
    save_file(state | {name: state[name][1:].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"groups for|words"):
        import_model(str(folder), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
