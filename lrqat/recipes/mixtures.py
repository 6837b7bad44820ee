"""llama-quantize's mixtures of types: what each gives to which weights. The one table.

A mixture is a type for most weights, and exceptions for weights of a role: conditions on where in
the model the weight stands, of which the first that holds counts.

Source: src/llama-quant.cpp of llama.cpp, `llama_tensor_get_type_impl`, `tensor_type_fallback` and
`llama_ftype_get_default_type`; tools/quantize/quantize.cpp for the names. What they say of Falcon
and GLM 5 alone is not here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lrqat.architectures import Role

F16 = "F16"


@dataclass(frozen=True)
class Place:
    """Where a weight stands, as far as types depend on it.

    Attributes:
        index: how many weights of its kind come before it.
        count: how many of its kind there are, or layers.
        sharing: attention heads that share a key-value head.
        experts: of a layer; 0 where there are none.
        imatrix: whether llama-quantize has an importance matrix.
    """

    index: int
    count: int
    sharing: int
    experts: int
    imatrix: bool


Condition = Callable[[Place], bool]
Choices = tuple[tuple[Condition, str], ...]


def _always(place: Place) -> bool:
    return True


def _more_bits(place: Place) -> bool:
    """The first and the last eighth, and every third between them."""
    eighth = place.count // 8
    ends = place.index < eighth or place.index >= 7 * place.count // 8
    return ends or (place.index - eighth) % 3 == 2


def _first(part: int) -> Condition:
    return lambda place: place.index < place.count // part


def _among(number: int) -> Condition:
    return lambda place: place.index < number


def _middle(place: Place) -> bool:
    return place.count // 8 <= place.index < 7 * place.count // 8


def _shared(place: Place) -> bool:
    return place.sharing >= 4


def _shared_or_experts(place: Place) -> bool:
    return place.sharing >= 4 or place.experts >= 4


def eight(place: Place) -> bool:
    """Eight experts, as Mixtral has: llama-quantize's own exception."""
    return place.experts == 8


def _imatrix(place: Place) -> bool:
    return place.imatrix


def _no(condition: Condition) -> Condition:
    return lambda place: not condition(place)


def _both(one: Condition, other: Condition) -> Condition:
    return lambda place: one(place) and other(place)


@dataclass(frozen=True)
class Mixture:
    """One of llama-quantize's file types.

    Attributes:
        usual: type of what no choice names.
        choices: role -> conditions and types; the first that holds counts.
        head: type of the output head, and of an embedding that is tied to it, if `usual` fits.
        stacks: type of stacked experts, where it is another.
        smallest: whether it is of llama-quantize's smallest, whose value and key projections get no
            more bits for eight experts, or in a Llama of 80 layers, than `choices` says.
    """

    usual: str
    choices: Mapping[Role, Choices] = field(default_factory=dict)
    head: str = "Q6_K"
    stacks: str | None = None
    smallest: bool = False


def _to(name: str) -> Choices:
    return ((_always, name),)


_OUTPUT_OF_EIGHT: Choices = ((eight, "Q5_K"),)
_MORE_Q6 = ((_more_bits, "Q6_K"),)


def _small(usual: str, embedding: str, better: str, head_output: str | None = None) -> Mixture:
    """The mixtures of one and two bits: `better` for what is not left to `usual`."""
    output: Choices = ((eight, "Q5_K"), *(_to(head_output) if head_output else ()))
    choices = {
        Role.EMBEDDING: _to(embedding),
        Role.VALUE: ((_shared_or_experts, "Q4_K"), *_to(better)),
        Role.KEY: ((eight, "Q4_K"),),
        Role.DOWN: ((_first(8), better),),
        Role.ATTENTION_OUTPUT: output,
    }
    return Mixture(usual, choices, head="Q5_K", smallest=True)


def _iq4(usual: str) -> Mixture:
    choices = {
        Role.VALUE: ((_shared, "Q5_K"),),
        Role.DOWN: ((_both(_first(8), _no(_imatrix)), "Q5_K"),),
        Role.ATTENTION_OUTPUT: _OUTPUT_OF_EIGHT,
    }
    return Mixture(usual, choices)


def _guarded(usual: str, with_minimum: str) -> Mixture:
    return Mixture(usual, {Role.DOWN: ((_both(_first(8), _imatrix), with_minimum),)})


def _ternary(usual: str) -> Mixture:
    return Mixture(usual, {Role.EMBEDDING: _to("Q4_K")})


MIXTURES: dict[str, Mixture] = {
    "Q2_0": _ternary("Q2_0"),
    "TQ1_0": _ternary("TQ1_0"),
    "TQ2_0": _ternary("TQ2_0"),
    "IQ1_S": _small("IQ1_S", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ1_M": _small("IQ1_M", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ2_XXS": _small("IQ2_XXS", "Q2_K", "Q2_K"),
    "IQ2_XS": _small("IQ2_XS", "Q2_K", "Q2_K"),
    "IQ2_S": _small("IQ2_XS", "IQ3_S", "IQ3_S", "IQ3_S"),
    "IQ2_M": _small("IQ2_S", "IQ3_S", "IQ3_S", "IQ3_S"),
    "Q2_K": Mixture("Q2_K", {
        Role.VALUE: ((_shared, "Q4_K"), *_to("Q3_K")),
        Role.DOWN: _to("Q3_K"),
        Role.ATTENTION_OUTPUT: (*_OUTPUT_OF_EIGHT, *_to("Q3_K")),
    }),
    "Q2_K_S": Mixture("Q2_K", {
        Role.VALUE: ((_shared, "Q4_K"),),
        Role.DOWN: ((_first(8), "Q4_K"),),
    }),
    "IQ3_XXS": Mixture("IQ3_XXS", {
        Role.EMBEDDING: _to("IQ3_S"),
        Role.QUERY: _to("IQ2_S"),
        Role.KEY: _to("IQ2_S"),
        Role.VALUE: ((_shared, "Q4_K"), (_no(_imatrix), "IQ3_S")),
        Role.DOWN: ((_both(_first(8), _no(_imatrix)), "Q4_K"), (_no(_imatrix), "Q3_K")),
        Role.ATTENTION_OUTPUT: (*_OUTPUT_OF_EIGHT, *_to("IQ3_S")),
    }, head="Q5_K"),
    "IQ3_XS": Mixture("IQ3_S", {
        Role.QUERY: _to("IQ3_XXS"),
        Role.KEY: _to("IQ3_XXS"),
        Role.VALUE: ((_shared, "Q4_K"),),
        Role.GATE: ((_middle, "IQ3_XXS"),),
        Role.UP: ((_middle, "IQ3_XXS"),),
        Role.ATTENTION_OUTPUT: _OUTPUT_OF_EIGHT,
    }),
    "IQ3_S": Mixture("IQ3_S", {
        Role.VALUE: ((_shared, "Q4_K"),),
        Role.ATTENTION_OUTPUT: _OUTPUT_OF_EIGHT,
    }),
    "IQ3_M": Mixture("IQ3_S", {
        Role.VALUE: _to("Q4_K"),
        Role.DOWN: ((_first(8), "Q4_K"), (_both(eight, _more_bits), "Q4_K")),
        Role.ATTENTION_OUTPUT: (*_OUTPUT_OF_EIGHT, *_to("Q4_K")),
    }),
    "Q3_K_S": Mixture("Q3_K", {Role.ATTENTION_OUTPUT: _OUTPUT_OF_EIGHT}),
    "Q3_K_M": Mixture("Q3_K", {
        Role.VALUE: ((_among(2), "Q5_K"), *_to("Q4_K")),
        Role.DOWN: ((_first(16), "Q5_K"), *_to("Q4_K")),
        Role.ATTENTION_OUTPUT: (*_OUTPUT_OF_EIGHT, *_to("Q4_K")),
    }),
    "Q3_K_L": Mixture("Q3_K", {
        Role.VALUE: _to("Q5_K"),
        Role.DOWN: _to("Q5_K"),
        Role.ATTENTION_OUTPUT: ((_no(eight), "Q5_K"),),
    }),
    "IQ4_XS": _iq4("IQ4_XS"),
    "IQ4_NL": _iq4("IQ4_NL"),
    "Q4_0": _guarded("Q4_0", "Q4_1"),
    "Q4_1": Mixture("Q4_1"),
    "Q4_K_S": Mixture("Q4_K", {
        Role.VALUE: ((_among(4), "Q5_K"),),
        Role.DOWN: ((_first(8), "Q5_K"),),
        Role.ATTENTION_OUTPUT: _OUTPUT_OF_EIGHT,
    }),
    "Q4_K_M": Mixture("Q4_K", {
        Role.VALUE: _MORE_Q6,
        Role.DOWN: _MORE_Q6,
        Role.ATTENTION_OUTPUT: _OUTPUT_OF_EIGHT,
    }),
    "Q5_0": _guarded("Q5_0", "Q5_1"),
    "Q5_1": Mixture("Q5_1"),
    "Q5_K_S": Mixture("Q5_K"),
    "Q5_K_M": Mixture("Q5_K", {Role.VALUE: _MORE_Q6, Role.DOWN: _MORE_Q6}),
    "Q6_K": Mixture("Q6_K"),
    "Q8_0": Mixture("Q8_0", head="Q8_0"),
    "MXFP4_MOE": Mixture("Q8_0", head="Q8_0", stacks="MXFP4"),
}  # fmt: skip

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# What takes the place of a type whose blocks a row does not fill; F16 if that does not fit either.
FALLBACKS = {
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
