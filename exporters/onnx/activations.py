"""What becomes of activations, keys and values that were fake-quantized in training.

The input of a projection is rounded in one of three forms:

    arithmetic   the operations of `lrqat.activations.grids`, traced into the graph as they are: any
                 grid. The product stays a MatMulNBits.
    qdq          QuantizeLinear and DequantizeLinear with the trained range: grids of one fixed
                 range per layer. What NPU compilers look for; ONNX Runtime's CPU multiplies the
                 integers if weights have 8 bits and per-row scales, and is slow with others.
    kernel       nothing in the graph: ONNX Runtime's MatMulNBits at accuracy level 4 rounds so
                 itself (`ort-level4-gN`, with weights in the same blocks).

Keys and values are rounded in the cache (`exporters.onnx.tracing.cache`).
"""

from dataclasses import dataclass

from exporters.embedding_and_head import find_embedding_and_head
from exporters.onnx.options import Options
from exporters.onnx.presets import PRESETS
from exporters.onnx.weights.embedding_and_head import INT8_ROWS
from exporters.planning import activation_grid
from lrqat.activations.table import BLOCK, ActivationGrid, find_activation_grid
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import GridError

ARITHMETIC, QDQ, KERNEL = "arithmetic", "qdq", "kernel"
_KERNEL_ROUNDING, _KERNEL_LEVEL = "ort-level4", 4
# ONNX Runtime cuts weights with one scale per row into blocks of 32.
_BLOCK_OF_ROWS = 32


@dataclass(frozen=True)
class Rounding:
    """How the input of one layer is rounded.

    Attributes:
        grid: the activation grid.
        form: "arithmetic", "qdq" or "kernel".
    """

    grid: ActivationGrid
    form: str


def roundings(checkpoint: Checkpoint, options: Options) -> dict[str, Rounding]:
    """The rounding of every layer that has one, by module name, for resolved `options`.

    Raises:
        GridError: a grid that is not in the table.
    """
    found = {}
    for name, grid in _grids(checkpoint).items():
        found[name] = Rounding(grid, _form(checkpoint, name, grid, options))
    return found


def integer_products(checkpoint: Checkpoint, options: Options) -> frozenset[str]:
    """Modules whose integers ONNX Runtime's CPU multiplies with those of 8-bit activations."""
    if options.preset != "cpu":
        return frozenset()
    try:
        found = roundings(checkpoint, options)
    except GridError:  # which `refuses_roundings` says
        return frozenset()
    return frozenset(n for n, each in found.items() if each.form == QDQ and each.grid.bits == 8)


def with_level(checkpoint: Checkpoint, options: Options) -> Options:
    """`options` with the accuracy level that a model trained for the kernel's rounding needs.

    The level is one for all products of integers, so a head of integers must have had it too.
    """
    grids, both = _grids(checkpoint), find_embedding_and_head(checkpoint)
    possible = _KERNEL_LEVEL in PRESETS[options.preset].accuracy_level
    kernel = all(_kernel_rounds(checkpoint, name, grid) for name, grid in grids.items())
    head = both.of_logits
    rounded = head is not None and both.asked_type(head, options) == INT8_ROWS
    if (rounded or head in checkpoint.quantized_names) and head not in grids:
        return options
    if options.accuracy_level is None and grids and possible and kernel:
        return options.with_level(_KERNEL_LEVEL)
    return options


def cache_bits(checkpoint: Checkpoint) -> int | None:
    """Bits that keys and values were rounded to, or None."""
    bits: int | None = (checkpoint.manifest.get("activations") or {}).get("kv_bits")
    return bits


def refuses_roundings(checkpoint: Checkpoint, options: Options, layers: set[str]) -> list[str]:
    """Reasons why the rounding of some layer would not be as trained.

    Args:
        checkpoint: the fused checkpoint.
        options: resolved.
        layers: modules that are products in the graph.
    """
    try:
        found = roundings(checkpoint, options)
    except GridError as error:
        return [f"activations: {error}"]
    foreign = sorted(found.keys() - layers)
    reasons = [f"{name}: its rounded input has no form in ONNX here" for name in foreign]
    doubled = {r.grid.name for r in found.values() if r.form != KERNEL}
    if doubled and options.accuracy_level == _KERNEL_LEVEL:
        reasons.append(
            f"the model was trained with activations on {', '.join(sorted(doubled))}, and "
            f"--accuracy-level {_KERNEL_LEVEL} would round them once more; leave it out"
        )
    halved = sorted({r.grid.name for r in found.values() if r.grid.rounding == "q8_0"})
    if halved and not PRESETS[options.preset].keeps_half_steps:
        reasons.append(
            f"activations on {', '.join(halved)} have steps in half precision, and --preset "
            f"{options.preset}'s runtime leaves their rounding out; train on int8-token, or export "
            "for another runtime"
        )
    computed = sorted({r.grid.name for r in found.values() if not r.grid.static})
    computed += [] if cache_bits(checkpoint) is None else ["a rounded cache"]
    if computed and not PRESETS[options.preset].computes_ranges:
        reasons.append(
            f"the ranges of {', '.join(computed)} are computed for every token, which --preset "
            f"{options.preset}'s compiler does not take; train on int16-tensor or int8-tensor, or "
            "export for another runtime"
        )
    if cache_bits(checkpoint) not in (None, 4, 8):
        reasons.append(
            f"a cache of {cache_bits(checkpoint)!r} bits; there are 4 and 8; train again"
        )
    return reasons


def _grids(checkpoint: Checkpoint) -> dict[str, ActivationGrid]:
    record = checkpoint.manifest.get("activations") or {}
    names = {name: activation_grid(checkpoint, name) for name in record.get("modules", {})}
    return {name: find_activation_grid(grid) for name, grid in names.items() if grid is not None}


def _form(checkpoint: Checkpoint, name: str, grid: ActivationGrid, options: Options) -> str:
    if options.accuracy_level == _KERNEL_LEVEL and _kernel_rounds(checkpoint, name, grid):
        return KERNEL
    if not grid.static:
        return ARITHMETIC
    if options.activation_form != "fast":
        return str(options.activation_form)
    return QDQ if grid.bits == 8 and _integer_product(checkpoint, name) else ARITHMETIC


def _kernel_rounds(checkpoint: Checkpoint, name: str, grid: ActivationGrid) -> bool:
    """Whether the kernel's own rounding of the input of `name` is `grid`."""
    if grid.per != BLOCK or grid.rounding != _KERNEL_ROUNDING:
        return False
    if name not in checkpoint.quantized_names:
        return False
    weights = checkpoint.grid(name)
    # The 2-bit kernel computes in float32 for some block sizes; we did not look which.
    return grid.block == (weights.group_size or _BLOCK_OF_ROWS) and weights.q_min < -2


def _integer_product(checkpoint: Checkpoint, name: str) -> bool:
    """Whether ONNX Runtime multiplies integers there: 8-bit weights, one scale per row."""
    if name not in checkpoint.quantized_names:
        return False
    weights = checkpoint.grid(name)
    return weights.symmetric and weights.group_size is None and weights.q_min < -8
