"""Attention with the cache inside: the same numbers from fewer nodes, or the graph as it was."""

import collections

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.tape import Tape

from exporters.onnx.passes.compact_attention import compact_attention, with_cache_inside

onnxruntime = pytest.importorskip("onnxruntime")
BATCH, HEADS, KV_HEADS, SIZE, NEW, PAST = 2, 6, 2, 8, 3, 5
TOTAL = PAST + NEW
SPLIT, WHOLE = (BATCH, NEW, -1, SIZE), (BATCH, NEW, HEADS * SIZE)


class Layer:
    """One attention as transformers' graph has it; the parts can be left out or changed."""

    def __init__(self):
        self.tape = Tape()
        self.inputs = {
            "q": self.value("q", [BATCH, NEW, HEADS * SIZE]),
            "k": self.value("k", [BATCH, NEW, KV_HEADS * SIZE]),
            "v": self.value("v", [BATCH, NEW, KV_HEADS * SIZE]),
            "past_key": self.value("past_key", [BATCH, KV_HEADS, PAST, SIZE]),
            "past_value": self.value("past_value", [BATCH, KV_HEADS, PAST, SIZE]),
            "cos": self.value("cos", [BATCH, NEW, SIZE // 2]),
            "sin": self.value("sin", [BATCH, NEW, SIZE // 2]),
            "mask": self.value("mask", [BATCH, 1, NEW, TOTAL]),
        }

    @staticmethod
    def value(name, shape):
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    def op(self, op_type, inputs, shape, **attributes):
        found = self.tape.op(op_type, inputs, attributes=attributes)
        found.shape, found.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        return found

    def numbers(self, *numbers):
        return self.tape.op("Constant", [], attributes={"value_ints": list(numbers)})

    def heads(self, name, count, rotary=False, normed=False):
        value = self.op(
            "Reshape", [self.inputs[name], self.numbers(*SPLIT)], [BATCH, NEW, count, SIZE]
        )
        if normed:
            value = self.op("Sigmoid", [value], value.shape)
        value = self.op("Transpose", [value], [BATCH, count, NEW, SIZE], perm=[0, 2, 1, 3])
        if rotary:
            value = self.op(
                "RotaryEmbedding", [value, self.inputs["cos"], self.inputs["sin"]], value.shape
            )
        return value

    def cached(self, past, new, axis=-2):
        shape = [BATCH, KV_HEADS, TOTAL, SIZE]
        return self.op("Concat", [self.inputs[past], new], shape, axis=axis)

    def repeated(self, value):
        groups = HEADS // KV_HEADS
        shape = [BATCH, KV_HEADS, groups, TOTAL, SIZE]
        found = self.op("Unsqueeze", [value, self.numbers(2)], [BATCH, KV_HEADS, 1, TOTAL, SIZE])
        found = self.op("Expand", [found, self.numbers(*shape)], shape)
        shape = [BATCH, HEADS, TOTAL, SIZE]
        return self.op("Reshape", [found, self.numbers(*shape)], shape)

    def attention(self, *inputs):
        return self.op("Attention", inputs, [BATCH, HEADS, NEW, SIZE], scale=0.3)

    def merged(self, y):
        y = self.op("Transpose", [y], [BATCH, NEW, HEADS, SIZE], perm=[0, 2, 1, 3])
        return self.op("Reshape", [y, self.numbers(*WHOLE)], WHOLE)

    def model(self, **outputs):
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            list(self.inputs.values()), list(outputs.values()), nodes=self.tape.nodes,
            opset_imports={"": 23}, name="layer",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)


def plain(rotary=True, normed=False, merge=True):
    layer = Layer()
    q = layer.heads("q", HEADS, rotary, normed)
    key = layer.cached("past_key", layer.heads("k", KV_HEADS, rotary, normed))
    value = layer.cached("past_value", layer.heads("v", KV_HEADS))
    y = layer.attention(q, layer.repeated(key), layer.repeated(value), layer.inputs["mask"])
    return layer.model(y=layer.merged(y) if merge else y, key=key, value=value)


def computed(model):
    random = np.random.default_rng(0)
    feeds = {i.name: random.normal(size=i.shape.numpy()).astype("f4") for i in model.graph.inputs}
    proto = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def operators(model):
    found = collections.Counter(node.op_type for node in model.graph)
    del found["Constant"]
    return found


@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        ({}, {"Attention": 1, "RotaryEmbedding": 2}),
        ({"rotary": False}, {"Attention": 1}),
        (
            {"normed": True},  # two extra reshapes: norms of heads are computed in four dimensions
            {"Attention": 1, "RotaryEmbedding": 2, "Sigmoid": 2, "Reshape": 4},
        ),
        (
            {"merge": False},
            {"Attention": 1, "RotaryEmbedding": 2, "Reshape": 1, "Transpose": 1},
        ),
    ],
)
def test_a_layer_computes_the_same_with_the_cache_inside(options, nodes):
    expected = computed(plain(**options))
    model = plain(**options)
    assert compact_attention(model) is True
    assert with_cache_inside(model) == 1
    assert operators(model) == nodes
    assert compact_attention(model) is False
    found = computed(model)
    assert list(found) == list(expected) == ["y", "key", "value"]
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() < 1e-6 * np.abs(values).max()


def test_heads_that_no_transposition_made_are_transposed():
    layer = Layer()
    past = layer.inputs["past_key"]
    q = layer.heads("q", HEADS)
    key = layer.cached("past_key", layer.op("Sigmoid", [layer.heads("k", KV_HEADS)], [
        BATCH, KV_HEADS, NEW, SIZE,
    ]))  # fmt: skip
    value = layer.cached("past_value", layer.heads("v", KV_HEADS))
    y = layer.attention(q, layer.repeated(key), layer.repeated(value))
    model = layer.model(y=layer.merged(y), key=key, value=value)
    expected = computed(model)
    compact_attention(model)
    assert operators(model)["Concat"] == 0
    assert len(past.uses()) == 1
    found = computed(model)
    assert all(np.allclose(found[name], values, atol=1e-6) for name, values in expected.items())


def read_elsewhere(layer, key):
    """A mask that depends on the cache: Attention cannot wait for itself."""
    shape = layer.tape.op("Shape", [key])
    return layer.op("Expand", [layer.inputs["mask"], shape], [BATCH, KV_HEADS, NEW, TOTAL])


@pytest.mark.parametrize("what", ["mask", "axis", "one", "times", "unknown"])
def test_what_is_no_plain_cache_stays_as_it_is(what):
    layer = Layer()
    key = layer.cached(
        "past_key", layer.heads("k", KV_HEADS), axis={"axis": 0}.get(what, -2)
    )  # fmt: skip
    value = layer.cached("past_value", layer.heads("v", KV_HEADS))
    mask = layer.inputs["mask"]
    if what == "mask":
        read_elsewhere(layer, key)
    if what == "one":
        value = layer.op("Sigmoid", [value], value.shape)
    pair = [layer.repeated(key), layer.repeated(value)]
    if what == "times":
        pair[0].shape = ir.Shape([BATCH, HEADS + 1, TOTAL, SIZE])
    y = layer.attention(layer.heads("q", HEADS), *pair, mask)
    if what == "unknown":
        y.shape = None
    model = layer.model(y=layer.merged(y), key=key, value=value)
    before = operators(model)
    assert with_cache_inside(model) == 0
    compact_attention(model)
    assert with_cache_inside(model) == 0
    found = operators(model)
    assert found["Attention"] == 1
    assert {name: found[name] for name in ("Concat", "Reshape", "Transpose")} == {
        name: before[name] for name in ("Concat", "Reshape", "Transpose")
    }


def test_an_exported_cache_is_concatenated_nowhere(onnx_folder):
    model = ir.load(onnx_folder("q4_0") / "model.onnx")
    nodes = [node for node in model.graph if node.op_type == "Attention"]
    assert len(nodes) == 2
    outputs = [value.name for node in nodes for value in node.outputs[1:]]
    assert outputs == [f"present.{i}.{part}" for i in range(2) for part in ("key", "value")]
    assert outputs == [value.name for value in model.graph.outputs[1:]]
    pasts = [value.name for node in nodes for value in node.inputs[4:]]
    assert pasts == [name.replace("present", "past_key_values") for name in outputs]
    assert not any(node.op_type == "Transpose" for node in model.graph)
