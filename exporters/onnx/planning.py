"""Planning an ONNX folder: every initializer, its type and bytes, and every reason to refuse."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from exporters.embedding_and_head import find_embedding_and_head
from exporters.onnx.activations import (
    QDQ,
    integer_products,
    refuses_roundings,
    roundings,
    with_level,
)
from exporters.onnx.options import FUSION_ENTRY, Options
from exporters.onnx.plans import Plan, PlannedTensor
from exporters.onnx.tracing.probe import probe
from exporters.onnx.weights.embedding_and_head import (
    FLOATS,
    INT8_ROWS,
    embedding_or_head_type,
    refuses_types,
)
from exporters.onnx.weights.initializers import FORMS
from exporters.onnx.weights.integers import grid_of
from exporters.onnx.weights.storage import (
    INTEGER_FORMS,
    code_bits,
    code_type,
    product_type,
    refuses_grid,
)
from exporters.text_model import text_model
from lrqat.architectures import find_architecture
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import CheckpointError, UserError
from lrqat.grids.grid import Grid

_PRODUCTS = (WeightKind.LINEAR, WeightKind.CONV1D)  # y = x @ weight
_PARTS = ("weight", "weight_scale", "weight_zero_point")


def plan(checkpoint: Checkpoint, options: Options | None = None) -> Plan:
    """Plan the export of `checkpoint`; nothing is written.

    No weights are read, but for an embedding or head that is to be rounded, to say what that costs.

    Raises:
        CheckpointError: the checkpoint itself is not valid.
    """
    checkpoint = text_model(checkpoint)
    chosen = with_level(checkpoint, options or Options()).resolved()
    made = Plan(checkpoint, chosen, find_embedding_and_head(checkpoint))
    made.integer_products = integer_products(checkpoint, chosen)
    made.refusals += refuses_types(checkpoint, made.embedding_and_head, chosen)
    for name in checkpoint.quantized_names:
        _plan_trained(made, name)
    for name in checkpoint.floating_names:
        _plan_unquantized(made, name)
    found = probe(checkpoint.config, str(chosen.attention))
    made.cache = found.cache
    made.refusals += filter(None, (found.reason, _refuses_rope(checkpoint.config)))
    _plan_roundings(made)
    two_bits = any(tensor.dtype == ir.DataType.INT2 for tensor in made.tensors)
    made.options = made.options.with_integers(two_bits)
    made.notes += _notes(made)
    return made


def _plan_trained(made: Plan, name: str) -> None:
    """Add the initializers of one trained weight, or the reason why there are none."""
    try:
        grid, shape = made.checkpoint.grid(name), made.checkpoint.shape(name)
        grid.groups(shape[1])
    except CheckpointError:
        raise
    except UserError as error:
        made.refusals.append(f"{name}: {error}")
        return
    kind = made.checkpoint.kind(name)
    reason = refuses_grid(grid, made.options.float_dtype)
    if kind not in (*_PRODUCTS, WeightKind.EMBEDDING):
        return  # experts, of which `probe` says why there is no graph
    if reason:
        made.refusals.append(f"{name}: {reason}")
    elif kind == WeightKind.EMBEDDING:
        _add_rows(made, name, shape)
    else:
        _add_product(made, name, shape)


def _plan_unquantized(made: Plan, name: str) -> None:
    """Add the initializers of one unquantized tensor; embedding and head may have another type."""
    checkpoint, module = made.checkpoint, name.removesuffix(".weight")
    both, dtype, shape = made.embedding_and_head, None, checkpoint.shape(name)
    is_either = both.flag(module) is not None and name != module and len(shape) == 2
    if is_either and not made.refusals:
        choice = embedding_or_head_type(checkpoint, both, module, made.options)
        if math.isinf(choice.error):
            made.refusals.append(
                f"{choice.flag} {choice.type}: {module} has values beyond its largest; choose "
                "another"
            )
            return
        made.choices.append(choice)
        if choice.type == INT8_ROWS:
            add = _add_rows if module == both.embedding else _add_product
            return add(made, module, shape)
        dtype = FLOATS[choice.type]
    transposed = find_architecture(checkpoint.config.get("model_type")).is_transposed(name)
    projects = module in checkpoint.manifest["kept"] and module != both.embedding
    form = "linear" if projects and not transposed else "float"
    made.tensors.append(_planned(made, name, form, name, shape, None, dtype))


def _add_product(made: Plan, name: str, shape: tuple[int, ...]) -> None:
    """Add the integers and scales of a weight that is multiplied with."""
    grid = grid_of(made.checkpoint, name)
    two_bits, integers = made.options.two_bit_type == "int2", str(made.options.integer_type)
    dtype = product_type(grid, shape[0], two_bits=two_bits, integers=integers)
    assert dtype is not None  # refuses_grid
    dtypes: dict[str, ir.DataType | None] = {"integers": dtype, f"{integers}_scales": None}
    # Told to be precise (PRECISION_ENTRY), ONNX Runtime makes integers of 8 bits unsigned, and
    # version 1.32 fails on those that have several scales and no zero-points, if they stay alone.
    products = made.integer_products
    unlike = dtype == ir.DataType.INT8 and bool(products) and name not in products
    if INTEGER_FORMS[integers].has_zero_points(grid) or unlike:
        dtypes[f"{integers}_zero_points"] = dtype
    _add_parts(made, name, shape, dtypes)


def _add_rows(made: Plan, name: str, shape: tuple[int, ...]) -> None:
    """Add the integers and scales of an embedding, whose rows are looked up."""
    grid = grid_of(made.checkpoint, name)
    dtypes = {"codes": code_type(grid, shape[1]), "row_scales": None}
    if grid.zero_point:
        dtypes["row_zero_points"] = ir.DataType.INT8
    _add_parts(made, name, shape, dtypes)


def _add_parts(
    made: Plan, name: str, shape: tuple[int, ...], dtypes: dict[str, ir.DataType | None]
) -> None:
    """Add the initializers of one weight, given as types by form: integers, scales, zero-points."""
    grid, rounded = grid_of(made.checkpoint, name), name not in made.checkpoint.quantized_names
    for suffix, (form, dtype) in zip(_PARTS, dtypes.items(), strict=False):
        planned = _planned(made, f"{name}.{suffix}", form, name, shape, grid, dtype)
        made.tensors.append(replace(planned, rounded=rounded))


def _plan_roundings(made: Plan) -> None:
    """Add what inputs of layers are rounded to, and the initializers of fixed ranges."""
    products = {t.source for t in made.tensors if t.form == "integers"}
    products |= {t.source.removesuffix(".weight") for t in made.tensors if t.form == "linear"}
    made.refusals += refuses_roundings(made.checkpoint, made.options, products)
    if made.refusals:
        return
    made.roundings = roundings(made.checkpoint, made.options)
    for name, rounding in made.roundings.items():
        if rounding.grid.static:
            unsigned = ir.DataType[f"UINT{rounding.grid.bits}"]
            types = {
                "scale": ir.DataType.FLOAT,
                "zero_point": unsigned if rounding.form == QDQ else ir.DataType.FLOAT,
            }
            made.tensors += [
                _planned(made, f"{name}.input.{part}", f"input_{part}", name, (), None, dtype)
                for part, dtype in types.items()
            ]


def _refuses_rope(config: dict[str, Any]) -> str | None:
    """Frequencies that a model changes as it goes along are no function of its inputs."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    for parameters in nested or [found]:
        if parameters.get("rope_type", parameters.get("type")) == "dynamic":
            return (
                "its rotary frequencies are of the type dynamic: they depend on the longest text "
                "that was seen before, which a graph cannot know; train with the type yarn or "
                "linear instead"
            )
    return None


def default_name(checkpoint: Checkpoint, options: Options | None = None) -> str:
    """The folder inside the checkpoint's, as Optimum and transformers.js look for it."""
    return "onnx"


def _planned(
    made: Plan,
    name: str,
    form: str,
    source: str,
    shape: tuple[int, ...],
    grid: Grid | None = None,
    dtype: ir.DataType | None = None,
) -> PlannedTensor:
    found = dtype or made.options.float_dtype
    return PlannedTensor(name, form, source, found, FORMS[form].shape(shape, grid))


def _notes(made: Plan) -> list[str]:
    """What the user should know."""
    notes = _wider(made) + made.notes_of_folder
    if made.loads_head:
        notes.append(
            f"{made.embedding_and_head.of_logits} is stored in 8 bits and is float32 once it is "
            "loaded, which is faster; with --accuracy-level 4 it stays in 8 bits"
        )
    if FUSION_ENTRY in made.options.session_entries:
        notes += _unfused(made)
    if made.options.float_dtype == ir.DataType.FLOAT16:
        notes.append("float16: what is unquantized is rounded, and products are in half precision")
    return notes


def _unfused(made: Plan) -> list[str]:
    """How many weights ONNX Runtime dequantises at every step, off its own kernels."""
    found = {t.source for t in made.tensors if t.form == "integers" and t.dtype.bitwidth == 8}
    found |= {t.source for t in made.tensors if t.form == "unsigned_scales" and len(t.shape) == 1}
    if not found:
        return []
    return [
        f"{len(found)} weights have 8 bits, or rows that divide into no blocks of 16, and are "
        "dequantised at every step: of them ONNX Runtime 1.32 makes no quantised products for "
        f"--preset {made.options.preset}; train on 4 bits or less"
    ]


def _wider(made: Plan) -> list[str]:
    """Which integers are in a wider type than they need."""
    found: Counter[tuple[Grid, str]] = Counter()
    for tensor in made.tensors:
        if tensor.trained:
            grid = made.checkpoint.grid(tensor.source)
            columns = made.checkpoint.shape(tensor.source)[1]
            codes = tensor.form == "codes"
            width = code_bits(grid, columns) if codes else tensor.dtype.bitwidth
            found[grid, f"INT{width}"] += width > grid.bits
    return [
        f"{grid.name}: the {f'{len(grid.levels)} levels' if grid.levels else f'{grid.bits} bits'} "
        f"of {count} weights are stored as {dtype}, exactly"
        for (grid, dtype), count in found.items()
        if count
    ]
