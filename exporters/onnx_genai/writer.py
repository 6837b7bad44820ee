"""Writing the compact form: given to the builder, read back, compared, and only then named."""

import json
import shutil
from pathlib import Path

import onnx_ir as ir

from exporters.end_tokens import end_tokens, one_or_list
from exporters.format import Progress
from exporters.onnx.folder.loadable import refuse_unloadable
from exporters.onnx.folder.model_file import MODEL
from exporters.onnx.writer import Report
from exporters.onnx_genai.building import build
from exporters.onnx_genai.olive import write_olive
from exporters.onnx_genai.parts import EMBEDDING
from exporters.onnx_genai.planning import Plan
from exporters.onnx_genai.verification import verify
from exporters.planning import refuse_inexact
from exporters.provenance import provenance
from lrqat.atomic_files import refuse_occupied, replaced_folder, write_json
from lrqat.errors import OutputError


def write(
    plan: Plan,
    path: str | Path,
    overwrite: bool = False,
    progress: Progress = lambda name: None,
    verified: Progress = lambda name: None,
) -> Report:
    """Write `plan` to the folder `path`; if anything fails, `path` is as it was.

    Args:
        plan: what `exporters.onnx_genai.plan` returned, without refusals.
        path: folder to write.
        overwrite: whether an existing folder may be replaced.
        progress: called with the name of every part as it is handed to the builder.
        verified: called with the name of every part once it has been compared.

    Raises:
        ExportRefusedError: the plan has refusals, or the builder failed.
        OutputError: the folder exists, cannot be written, reads back differently, or does not load.
    """
    refuse_inexact(plan.refusals)
    target = Path(path)
    refuse_occupied(target, overwrite, MODEL)
    with replaced_folder(target, overwrite, MODEL) as staging:
        scratch = staging / "scratch"  # in there, so that nothing stays if this is killed
        source = scratch / "olive"
        source.mkdir(parents=True)
        write_olive(plan, source, progress)
        build(plan, source, staging, scratch / "cache")
        shutil.rmtree(scratch)
        _describe(plan, staging)
        mismatches = verify(staging, plan.checkpoint, verified)
        wrong = [name for name, count in mismatches.items() if count]
        if wrong:
            raise OutputError(
                f"{target} was not written: {len(wrong)} weights are not the checkpoint's, the "
                f"first {wrong[0]}; this version of onnxruntime-genai lays them out otherwise, use "
                "--format onnx"
            )
        refuse_unloadable(staging, target)
        size = sum(file.stat().st_size for file in staging.glob(f"{MODEL}*"))
    return Report(str(target), size, len(mismatches), len(plan.tensors))


def _describe(plan: Plan, folder: Path) -> None:
    """Add the `lrqat.*` properties to the builder's file, and the size of heads to its inputs.

    Generation ends at the tokenizer's end of text too, of which the builder does not know.
    The weights stay where they are.
    """
    model = ir.load(folder / MODEL)
    for key, fact in provenance(plan.checkpoint).items():
        model.metadata_props[key] = fact if isinstance(fact, str) else json.dumps(fact)
    genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    ends = end_tokens(plan.checkpoint.path, plan.checkpoint.config)
    if ends and genai["model"].get("eos_token_id") != one_or_list(ends):
        genai["model"]["eos_token_id"] = one_or_list(ends)
        write_json(folder / "genai_config.json", genai)
    head_size = int(genai["model"]["decoder"]["head_size"])
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape) == 4:
            value.shape = ir.Shape([*value.shape[:3], head_size])
    _give_rows(model, plan)
    ir.save(model, folder / MODEL)


def _give_rows(model: ir.Model, plan: Plan) -> None:
    """Make scales and zero-points of a looked-up table two-dimensional, [vocabulary, ...].

    The builder flattens all it loads in Olive's format, which MatMulNBits takes, and
    GatherBlockQuantized, which shares them with a head that is the embedding, does not.
    """
    if not any(part.name == EMBEDDING for part in plan.tensors):
        return
    rows = plan.checkpoint.shape(EMBEDDING)[0]
    lookups = [node for node in model.graph if node.op_type == "GatherBlockQuantized"]
    for value in (value for node in lookups for value in node.inputs[2:]):
        assert value is not None
        flat = value.const_value
        assert isinstance(flat, ir.ExternalTensor)
        shape = ir.Shape([rows, flat.size // rows])
        value.shape = shape
        value.const_value = ir.ExternalTensor(
            flat.location, flat.offset, flat.length, flat.dtype,
            shape=shape, name=str(flat.name), base_dir=flat.base_dir,
        )  # fmt: skip
