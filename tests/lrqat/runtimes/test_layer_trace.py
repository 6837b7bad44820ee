"""Which layer is named as the first that leaves the reference."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.tape import Tape

from lrqat.errors import UserError
from lrqat.models.hidden_states import Anatomy
from lrqat.runtimes.layer_trace import (
    FLOAT32_BOUND,
    HALF_BOUND,
    Difference,
    LayerTrace,
    compare_states,
)
from lrqat.runtimes.onnx_runtime.hidden_states import find_hidden_states

NAMES = ("embedding", "layer 0", "layer 1", "layer 2", "final norm")


def trace(*relative, bound=FLOAT32_BOUND):
    differences = tuple(Difference(*found) for found in zip(NAMES, relative, relative, strict=True))
    return LayerTrace("file", "runtime", True, differences, bound)


@pytest.mark.parametrize(
    ("relative", "first"),
    [
        ((0, 1e-6, 2e-6, 2e-6, 3e-6), None),  # an intact file
        ((0, 1e-9, 2e-5, 2e-5, 3e-5), None),  # a jump, and still what summation explains
        ((0, 1e-6, 4e-5, 0.1, 0.1), "layer 1"),
        ((0, 1e-6, 2e-6, 2e-6, 3e-4), "final norm"),
        ((0.5, 0.1, 0.5, 0.5, 0.5), "embedding"),
        ((0, 2e-5, 1.5e-4, 1.4e-3, 1e-2), None),  # ten times, never more
        ((0, 1e-6, float("nan"), float("nan"), float("nan")), "layer 1"),
        ((0, 1e-6, float("inf"), 1, 1), "layer 1"),
    ],
)
def test_the_first_jump_above_the_bound_is_named(relative, first):
    found = trace(*relative)
    assert found.first == first
    assert found.to_json()["first"] == first
    assert (first or "none") in found.verdict


def test_growth_without_a_jump_is_said():
    assert "grow past the bound" in trace(0, 2e-5, 1.5e-4, 1.4e-3, 1e-2).verdict
    assert "grow" not in trace(0, 1e-6, 2e-6, 2e-6, 3e-6).verdict


def test_half_precision_has_its_own_bound_and_rounded_activations_none():
    relative = (0, 1e-3, 2e-3, 2e-3, 3e-3)
    assert trace(*relative).first == "layer 0"
    assert trace(*relative, bound=HALF_BOUND).first is None
    rounded = trace(*relative, bound=None)
    assert rounded.first is None
    assert "no layer can be named" in rounded.verdict


def test_a_runtime_that_shows_nothing_says_so():
    nothing = LayerTrace("file", "runtime", True, (), FLOAT32_BOUND)
    assert nothing.first is None
    assert nothing.verdict == "runtime shows no hidden states of this graph"
    assert nothing.to_json()["layers"] == []


def test_what_json_cannot_say_is_null():
    layers = trace(0, 1e-6, float("nan"), float("inf"), 1).to_json()["layers"]
    assert [entry["relative"] for entry in layers] == [0, 1e-6, None, None, 1]


def test_every_token_is_measured_by_its_own_norm():
    """The first token's activations are huge, and hide nothing of the others."""
    expected = np.ones((3, 4), np.float32)
    expected[0] *= 1e4
    found = expected.copy()
    found[1, 2] += 0.5
    (difference,) = compare_states({"layer 0": expected}, {"layer 0": found})
    assert difference == Difference("layer 0", 0.5, 0.25)


def test_a_token_of_zeros_may_stay_zero():
    zeros = np.zeros((1, 4), np.float32)
    assert compare_states({"a": zeros}, {"a": zeros})[0].relative == 0
    assert compare_states({"a": zeros}, {"a": zeros + 1})[0].relative == np.inf


def test_places_that_a_runtime_hides_are_left_out_and_another_width_is_refused():
    states = {name: np.ones((2, 4), np.float32) for name in NAMES}
    shown = {name: states[name] for name in NAMES[:2]}
    assert [found.place for found in compare_states(states, shown)] == list(NAMES[:2])
    with pytest.raises(UserError, match="another model"):
        compare_states(states, {"layer 1": np.ones((2, 8), np.float32)})


def graph_of(layers):
    """Embedding, layers of norm, product and sum, a norm, a head; the cache is an output."""
    tape = Tape()
    ids = ir.Value(name="input_ids", shape=ir.Shape([1, 3]), type=ir.TensorType(ir.DataType.INT64))
    weights = {}

    def weight(name):
        weights[name] = ir.Value(name=name, const_value=ir.tensor(np.eye(4, dtype=np.float32)))
        return weights[name]

    def op(op_type, *inputs):
        return tape.op(op_type, inputs)

    hidden = op("Gather", weight("model.embed_tokens.weight"), ids)
    size = op("Shape", hidden)  # read by every layer, and nothing of the tokens' values
    sums, presents = [hidden], []
    for i in range(layers):
        normed = op("Mul", hidden, weight(f"model.layers.{i}.norm.weight"))
        product = op("MatMul", normed, weight(f"model.layers.{i}.proj.weight"))
        product = op("Reshape", product, size)
        presents.append(op("Identity", product))
        hidden = op("Add", hidden, product)
        sums.append(hidden)
    sums.append(op("Mul", hidden, weight("model.norm.weight")))
    logits = op("MatMul", sums[-1], weight("lm_head.weight"))
    logits.name = "logits"
    graph = ir.Graph(
        [ids], [logits, *presents], nodes=tape.nodes, initializers=list(weights.values()),
        opset_imports={"": 23}, name="model",
    )  # fmt: skip
    return graph, dict(zip(("embedding", "layer 0", "layer 1", "final norm"), sums, strict=True))


def test_hidden_states_are_found_in_a_graph_by_what_all_paths_run_through():
    graph, expected = graph_of(2)
    assert find_hidden_states(graph, Anatomy("model.layers", 2, ("lm_head",))) == expected


def test_weights_of_other_names_show_nothing():
    graph, _ = graph_of(2)
    assert find_hidden_states(graph, Anatomy("transformer.h", 2, ("lm_head",))) == {}
