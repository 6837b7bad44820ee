"""The mask of attention in fewer nodes, and what is left alone."""

import collections

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.tape import Tape

from exporters.onnx.passes.plain_mask import plain_mask

onnxruntime = pytest.importorskip("onnxruntime")
INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL


def typed(value, shape, dtype=INT64):
    value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
    return value


class Mask:
    """Padding looked up at every position, as transformers' graph does it; parts can be changed."""

    def __init__(self, *, start=0, step=1, batch="batch", true=True):
        self.tape = Tape()
        self.padding = typed(ir.Value(name="padding"), ["batch", "total"], BOOL)
        self.causal = typed(ir.Value(name="causal"), [1, 1, "queries", "total"], BOOL)
        rows = self.index("Shape", 0, [1, 2, 3], [batch, 1, 1, 1], start, step)
        columns = self.index("Shape", 1, [0, 1, 2], [1, 1, 1, "total"], 0, 1)
        shape = self.op("Shape", [self.op("Max", [rows, columns])])
        last = self.numbers(-1)
        parts = [
            self.op("Unsqueeze", [self.op("Expand", [index, shape]), last])
            for index in (rows, columns)
        ]
        places = self.op("Concat", parts, axis=-1)
        found = typed(
            self.op("GatherND", [self.padding, places]), ["batch", 1, 1, "total"], BOOL
        )  # fmt: skip
        both = [self.constant(true), self.causal]
        seen = typed(self.op("And", both), self.causal.shape, BOOL)
        seen = typed(self.op("And", [seen, found]), ["batch", 1, "queries", "total"], BOOL)
        wanted = self.op("Shape", [seen])
        seen = typed(self.op("Expand", [seen, wanted]), ["batch", 1, "queries", "total"], BOOL)
        self.seen = self.op("Cast", [seen], to=int(ir.DataType.FLOAT))

    def op(self, op_type, inputs, **attributes):
        return self.tape.op(op_type, inputs, attributes=attributes)

    def numbers(self, *numbers):
        return self.op("Constant", [], value_ints=list(numbers))

    def constant(self, number):
        held = ir.tensor(np.array(number))
        return typed(self.op("Constant", [], value=held), [], held.dtype)

    def index(self, op_type, axis, axes, shape, start, step):
        length = self.op(op_type, [self.padding], start=axis, end=axis + 1)
        stop = self.op("Squeeze", [length])
        if start:
            stop = self.op("Add", [stop, self.constant(start)])
        numbers = self.op("Range", [self.constant(start), stop, self.constant(step)])
        return typed(self.op("Unsqueeze", [numbers, self.numbers(*axes)]), shape)

    def model(self):
        self.seen.name = "seen"
        typed(self.seen, ["batch", 1, "queries", "total"], ir.DataType.FLOAT)
        graph = ir.Graph(
            [self.padding, self.causal], [self.seen], nodes=self.tape.nodes,
            opset_imports={"": 23}, name="mask",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)


def computed(model):
    random = np.random.default_rng(0)
    feeds = {"padding": random.random((3, 7)) < 0.7, "causal": random.random((1, 1, 4, 7)) < 0.6}
    proto = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def operators(model):
    found = collections.Counter(node.op_type for node in model.graph)
    del found["Constant"]
    return found


def test_a_mask_is_the_same_in_three_nodes():
    expected = computed(Mask().model())
    model = Mask().model()
    assert plain_mask(model) is True
    assert plain_mask(model) is False
    assert operators(model) == {"Unsqueeze": 1, "And": 1, "Cast": 1}
    assert 0 < expected.mean() < 1
    assert np.array_equal(computed(model), expected)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"start": -1}, {"GatherND", "Range"}),  # other rows
        ({"step": 2}, {"GatherND", "Range"}),
        ({"batch": 1}, {"GatherND", "Range"}),  # the first row for all
        ({"true": False}, set()),  # And with false is no And with true
    ],
)
def test_what_is_no_plain_mask_stays_as_it_is(changed, kept):
    model = Mask(**changed).model()
    plain_mask(model)
    found = operators(model)
    assert kept <= set(found)
    assert found["And"] == (1 if changed.get("true", True) else 2)


def test_an_expansion_to_another_shape_stays():
    mask = Mask()
    expand = [node for node in mask.tape.nodes if node.op_type == "Expand"][-1]
    typed(expand.outputs[0], ["batch", 8, "queries", "total"], BOOL)
    model = mask.model()
    plain_mask(model)
    assert operators(model)["Expand"] == 1
