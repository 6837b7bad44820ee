"""Making the plan of a GGUF file: the type of every tensor, and every reason to refuse.

That writes nothing. It reads unquantized matrices, to see whether a narrower type holds them
exactly, the scales of weights for the few types that the grid alone does not decide on, and nothing
else.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator

from exporters.embedding_and_head import find_embedding_and_head
from exporters.gguf.architecture import Architecture
from exporters.gguf.architectures import find_architecture
from exporters.gguf.blocks import find_tensor_scale, float_blocks
from exporters.gguf.converter.upstream import refuses_converter
from exporters.gguf.file_type import find_file_type
from exporters.gguf.graph.hyperparameters import hyperparameters, refusals
from exporters.gguf.metadata import vocabulary_metadata, without_fatal_name
from exporters.gguf.modelfile import plan_modelfile
from exporters.gguf.options import Options
from exporters.gguf.plans import Plan, PlannedTensor
from exporters.gguf.provenance import general_metadata, provenance
from exporters.gguf.tensors.embedding_and_head import (
    changed_values,
    check_trained,
    embedding_or_head_type,
    refuses_head_type,
)
from exporters.gguf.tensors.selection import choose_float_block, choose_integer_block, exact_types
from exporters.gguf.tensors.sources import Source, find_sources
from exporters.gguf.tensors.stored import stored_tensors
from exporters.gguf.tensors.weight_scales import refuses_scale, weight_scale
from exporters.planning import activation_grid, refuses_activations
from exporters.text_model import text_model
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError

_MOST_NAMED = 3  # types in a file's name
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME less its terminating zero


def plan(checkpoint: Checkpoint, options: Options | None = None) -> Plan:
    """Plan the export of `checkpoint`.

    Everything that stands in the way of an exact file becomes a refusal of the plan, all of them
    at once.

    Raises:
        CheckpointError: the checkpoint itself is not valid.
    """
    made = Plan(checkpoint, options or Options())
    if made.options.converter is not None:
        return _plan_converter(made)
    checkpoint = made.checkpoint = text_model(checkpoint)
    try:
        architecture = find_architecture(checkpoint.config)
    except ExportRefusedError as error:
        made.refusals.append(str(error))
        return made
    made.architecture = architecture.name
    made.refusals += refusals(architecture, checkpoint.config)
    made.notes += architecture.notes(architecture.read(checkpoint.config))
    reason = refuses_activations(checkpoint, "llama.cpp", ("q8_0", "q8_k"))
    made.refusals += [reason] if reason else []
    _plan_tensors(made, architecture)
    _plan_metadata(made, architecture)
    return made


def _plan_converter(made: Plan) -> Plan:
    """The plan of what llama.cpp's converter will lay out: the types of what it is given.

    Only running it would tell what it makes of them, which takes as long as the export.
    """
    reasons = (
        refuses_converter(made.options),
        refuses_activations(made.checkpoint, "llama.cpp", ("q8_0", "q8_k")),
    )
    made.refusals += [reason for reason in reasons if reason]
    for stored in stored_tensors(made.checkpoint):
        shape = stored.shape
        source = Source(stored.name, stored.origin, stored.quantized, shape, stored.stack)
        _add_tensor(made, source, _plan_converted)
    made.notes.append(
        "names, shapes and order are the checkpoint's; the converter in "
        f"{made.options.converter} decides on those of the file, and may cut, join, repeat or "
        "leave out tensors, whose rows keep their types"
    )
    return made


def default_name(checkpoint: Checkpoint, options: Options | None = None) -> str:
    """A file name that says what is in it: "model-q4_0.gguf", "model-q4_0-q6_k.gguf" ...

    Of several types the one of most weights comes first; after three of them it says "mixed". The
    embedding and the head are named only where nothing else is on a grid.
    """
    chosen = options or Options()
    if chosen.type != "auto":
        return f"model-{chosen.type}.gguf"
    both = find_embedding_and_head(checkpoint)
    names = [n for n in checkpoint.quantized_names if n not in (both.embedding, both.head)]
    weights: Counter[str] = Counter()
    for name in names or checkpoint.quantized_names:
        shape = checkpoint.shape(name)
        types = exact_types(checkpoint.grid(name), shape[-1], activation_grid(checkpoint, name))
        weights[types[0] if types else "none"] += math.prod(shape)
    ordered = [name for name, _ in weights.most_common()]
    listed = ordered if len(ordered) <= _MOST_NAMED else [ordered[0], "mixed"]
    return f"model-{'-'.join(listed)}.gguf"


def _plan_tensors(made: Plan, architecture: Architecture) -> None:
    try:
        sources = find_sources(made.checkpoint, architecture)
    except ExportRefusedError as error:
        made.refusals.append(str(error))
        return
    reason = refuses_head_type(sources, made.options)
    made.refusals += [reason] if reason else []
    for source in sources:
        _add_tensor(made, source, _plan_tensor)
    names = {source.name for source in sources}
    scaled = (refuses_scale(architecture, t.source, t.block, names) for t in made.tensors)
    made.refusals += filter(None, scaled)
    made.tensors = list(_with_scales(made))


def _with_scales(made: Plan) -> Iterator[PlannedTensor]:
    """Every tensor, and after it the scale that its type leaves to a tensor of its own."""
    for tensor in made.tensors:
        yield tensor
        scale = weight_scale(made.checkpoint, tensor.source, tensor.block)
        if scale is not None:
            yield PlannedTensor(scale, float_blocks()["f32"])


def _add_tensor(
    made: Plan, source: Source, planned: Callable[[Plan, Source], PlannedTensor]
) -> None:
    try:
        made.tensors.append(planned(made, source))
    except ExportRefusedError as error:
        made.refusals.append(str(error))


def _plan_converted(made: Plan, source: Source) -> PlannedTensor:
    """A tensor that llama.cpp's converter lays out: what was not trained it makes float32."""
    if not source.quantized:
        return PlannedTensor(source, float_blocks()["f32"])
    block, note = choose_integer_block(made.checkpoint, source, made.options)
    if find_tensor_scale(block) is not None:
        raise ExportRefusedError(
            f"{source.origin}: {block.TYPE} has a scale for the whole tensor, for which a "
            "converter's file has no place here; train on another grid, such as mxfp4"
        )
    return PlannedTensor(source, block, note)


def _plan_tensor(made: Plan, source: Source) -> PlannedTensor:
    if len(source.name.encode()) > _MAX_NAME_BYTES:
        raise ExportRefusedError(f"{source.name!r} is longer than {_MAX_NAME_BYTES} bytes")
    if source.quantized:
        exact, note = choose_integer_block(made.checkpoint, source, made.options)
        check_trained(made.checkpoint, source, exact, made.options)
        return PlannedTensor(source, exact, note)
    if source.is_float32 or made.options.type == "f32":
        return PlannedTensor(source, float_blocks()["f32"])
    changed = changed_values(made.checkpoint, source)
    block, note = choose_float_block(made.checkpoint, source, made.options, changed)
    choice = embedding_or_head_type(source, block, changed)
    made.choices += [choice] if choice else []
    return PlannedTensor(source, block, note)


def _plan_metadata(made: Plan, architecture: Architecture) -> None:
    checkpoint = made.checkpoint
    made.metadata += general_metadata(checkpoint, find_file_type(made))
    made.metadata += hyperparameters(architecture, checkpoint.config)
    try:
        entries, notes = vocabulary_metadata(checkpoint, made.options.pre)
        made.metadata, name_notes = without_fatal_name(made.metadata + entries)
        made.notes += [*notes, *name_notes]
    except ExportRefusedError as error:
        made.refusals.append(str(error))
    made.metadata += provenance(checkpoint)
    if made.options.modelfile:
        made.modelfile = plan_modelfile(checkpoint, made.metadata)
