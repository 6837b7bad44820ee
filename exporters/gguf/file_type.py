"""What `general.file_type` says of a file: the recipe of llama-quantize that it is most like.

llama-quantize names a file by the recipe that it was asked for, whatever types the embedding and
the head get, which in a small model are most of the bytes. So do we: the layers decide.
"""

import math
from collections import Counter
from collections.abc import Mapping

from gguf import LlamaFileType

from exporters.gguf.plans import Plan, PlannedTensor
from lrqat.architectures import role_of
from lrqat.errors import RecipeError
from lrqat.recipes.llama_quantize import choose_types
from lrqat.recipes.mixtures import MIXTURES
from lrqat.recipes.model_shape import ModelShape

_LAYER, _WEIGHT = "blk.", ".weight"


def find_file_type(plan: Plan) -> int:
    """The number of the recipe whose types the layers have, or else of the type of most weights.

    Args:
        plan: with all its tensors.
    """
    trained = [tensor for tensor in plan.tensors if tensor.source.quantized]
    layers = [tensor for tensor in trained if tensor.source.name.startswith(_LAYER)] or trained
    weights: Counter[str] = Counter()
    for tensor in layers:
        weights[tensor.block.NAME] += math.prod(tensor.source.shape)
    if not weights:
        return LlamaFileType.ALL_F32
    most = weights.most_common(1)[0][0]
    recipe = _find_recipe(plan, most.upper())
    own = {tensor.block.NAME: tensor.block.FILE_TYPE for tensor in layers}[most]
    return LlamaFileType.__members__.get(f"MOSTLY_{recipe}", own)  # it lacks Q2_0


def _find_recipe(plan: Plan, most: str) -> str | None:
    """The recipe that gives the layers the types that they have, several of them; or None.

    Of several, as there are where rows fit no block of what was asked for, the one whose own type
    is that of most weights, or at least occurs.
    """
    chosen = {t.source.origin.removesuffix(_WEIGHT): t for t in plan.tensors if _is_chosen(t)}
    types = {module: tensor.block.NAME.upper() for module, tensor in chosen.items()}
    if len(set(types.values())) < 2:
        return None
    shapes = {module: tensor.source.shape for module, tensor in chosen.items()}
    try:
        model = ModelShape.of(plan.checkpoint.config, shapes, tied=False)
        equal = [name for name in MIXTURES if _gives(name, model, types)]
    except RecipeError:  # a model that llama-quantize has rules of its own for
        return None
    usual = {name: MIXTURES[name].usual for name in equal}
    order = sorted(equal, key=lambda n: (usual[n] != most, usual[n] not in types.values()))
    return next(iter(order), None)


def _is_chosen(tensor: PlannedTensor) -> bool:
    """Whether it is a weight of a layer that llama-quantize chooses a type for."""
    source = tensor.source
    module = source.origin.removesuffix(_WEIGHT)
    is_weight = len(source.shape) > 1 and source.name.startswith(_LAYER)
    return is_weight and (source.quantized or role_of(module) is not None)


def _gives(name: str, model: ModelShape, types: Mapping[str, str]) -> bool:
    return any(choose_types(name, model, imatrix=imatrix) == types for imatrix in (False, True))
