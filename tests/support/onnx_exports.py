"""ONNX exports whose graph is traced once a session for every shape of model.

Tracing is nine tenths of an export of a tiny model. Its result depends on the configuration, the
planned tensors and the options, never on a weight, so what the tests write again and again takes
the graph of the first time. `test_two_exports_are_the_same_bytes` holds such a folder to one that
was traced anew.
"""

import contextlib
import copy
import json

import pytest

from exporters import onnx
from exporters.onnx import writer

_TRACES = {}


def _shape_of(plan):
    """Everything of a plan that a skeleton is made of, as text."""
    config = {k: v for k, v in plan.checkpoint.config.items() if k != "quantization_config"}
    parts = plan.options.to_json(), config, plan.tensors, plan.embedding_and_head, plan.roundings
    return json.dumps(parts, default=repr, sort_keys=True)


def _copy(model):
    """A copy whose new nodes get the names that those of the original would get."""
    found = model.clone()
    found.graph._name_authority = copy.deepcopy(model.graph._name_authority)
    return found


@contextlib.contextmanager
def reused_traces():
    """While inside, `exporters.onnx.write` traces no shape of model twice."""
    build, trace = writer.build_skeleton, writer.trace

    def build_and_note(plan):
        skeleton = build(plan)
        skeleton.shape = _shape_of(plan)
        return skeleton

    def trace_once(skeleton, opset, form, shape):
        if skeleton.shape not in _TRACES:
            _TRACES[skeleton.shape] = trace(skeleton, opset, form, shape)
        return _copy(_TRACES[skeleton.shape])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "build_skeleton", build_and_note)
        patch.setattr(writer, "trace", trace_once)
        yield


def write_onnx(plan, folder, **choices):
    """`exporters.onnx.write` with reused traces."""
    with reused_traces():
        return onnx.write(plan, folder, **choices)
