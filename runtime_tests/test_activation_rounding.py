"""Activations rounded by us against the runtimes themselves: llama.cpp's C and ONNX Runtime."""

import ctypes

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters import gguf
from lrqat.activations.grids import quantize, range_of
from lrqat.activations.quantizer import attach
from lrqat.activations.runtime_rounding import sums_q8_1
from lrqat.activations.table import ACTIVATION_GRIDS, find_activation_grid
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import RuntimeUnavailableError
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.runtimes.onnx_runtime.session import OnnxRuntime
from tests.support.grids import SYMMETRIC_GRIDS

# grid -> name in llama.cpp, values and bytes of a block (ggml/src/ggml-common.h)
LLAMA_CPP = {"q8_0": ("q8_0", 32, 34), "q8_k": ("q8_K", 256, 292)}


def rows(count, columns, low, high, seed=0):
    """Normal numbers, each row times e^u with u even between `low` and `high`: float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, columns)) * np.exp(rng.uniform(low, high, (count, 1)))
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def library():
    try:
        loaded = ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    if not loaded.ggml_cpu_has_avx2():
        pytest.skip("the loaded llama.cpp is no AVX2 build, whose form of q8_0 ours is")
    return loaded


def call(library, name, source, target, count):
    function = getattr(library, name)
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(source.ctypes.data, target.ctypes.data, count)


def through_c(library, grid, x, form=""):
    """What llama.cpp's multiplication reads: quantize_row, then dequantize_row; and the bytes."""
    name, block, size = LLAMA_CPP[grid]
    octets, values = np.zeros((x.size // block, size), np.uint8), np.empty_like(x)
    call(library, f"quantize_row_{name}{form}", x, octets, x.size)
    call(library, f"dequantize_row_{name}", octets, values, x.size)
    return values, octets


def by_us(grid, x):
    return quantize(torch.from_numpy(x), ACTIVATION_GRIDS[grid]).numpy()


def assert_same_bits(ours, theirs):
    """Bit for bit, but for the sign of a zero: C's integers have no negative zero."""
    differ = ours.view(np.uint32) != theirs.view(np.uint32)
    assert not (differ & ((ours != 0) | (theirs != 0))).any()


@pytest.mark.parametrize(
    ("low", "high"),
    # The last two: amax / 127 is subnormal or zero as float16; x itself is subnormal.
    [(-4, 4), (-9, 15), (-20, -8), (-104, -80)],
    ids=["ordinary", "extreme", "subnormal scale", "subnormal"],
)
@pytest.mark.parametrize("grid", LLAMA_CPP)
def test_equal_to_the_c_code(grid, low, high, library):
    x = rows(4000, 256, low, high)
    x[0], x[1, 1:], x[2] = 0, 0, 1  # zeros, one value, one value many times
    x[3, ::2], x[3, 1::2] = 5, -5  # two largest values of unlike sign
    theirs, _ = through_c(library, grid, x)
    keep = np.isfinite(theirs).all(-1)  # beyond 127 * 65504 a float16 scale is infinite
    assert keep.mean() > 0.9
    assert_same_bits(by_us(grid, x)[keep], theirs[keep])
    assert not np.isfinite(by_us(grid, x)[~keep]).all(-1).any()


@pytest.mark.parametrize(("low", "high"), [(-4, 4), (-9, 7), (-20, -8)])
def test_q8_1_is_q8_0_with_the_sum_of_each_block(low, high, library):
    x = rows(4000, 32, low, high)
    x[0], x[1] = 0, 1
    octets = np.zeros((len(x), 36), np.uint8)
    call(library, "quantize_row_q8_1", x, octets, x.size)
    d, s = octets[:, :2].copy().view(np.float16), octets[:, 2:4].copy().view(np.float16)
    values = d.astype(np.float32) * octets[:, 4:].view(np.int8)
    assert_same_bits(by_us("q8_0", x), values)
    sums = sums_q8_1(torch.from_numpy(x)).numpy()
    assert_same_bits(sums, s.astype(np.float32)[:, 0])
    assert (sums != values.sum(-1)).mean() > 0.4, "which is another number than the exact sum"


def test_ties_and_every_level(library):
    """Multiples of half a step, where nearest-even and away-from-zero differ at every other."""
    x = np.resize(np.arange(-254, 255, dtype=np.float32) / 2, (509, 32))
    x[:, 0] = 127  # amax, so that the step is exactly 1
    theirs, _ = through_c(library, "q8_0", x)
    assert_same_bits(by_us("q8_0", x), theirs)
    assert (by_us("q8_0", x) == np.rint(x)).all()


def test_which_form_the_loaded_library_runs(library):
    """On AVX2 not the portable one: they differ where `runtime_rounding` says they do."""
    x = np.resize(np.arange(-254, 255, dtype=np.float32) / 2, (509, 32))
    x[:, 0] = 127
    portable, _ = through_c(library, "q8_0", x, "_ref")
    loaded, _ = through_c(library, "q8_0", x)
    ties = x % 1 != 0
    assert (loaded[~ties] == portable[~ties]).all()
    assert (np.abs(portable[ties]) > np.abs(x[ties])).all()
    assert 0.4 < (loaded[ties] != portable[ties]).mean() < 0.6


def test_a_d_of_q8_k_is_one_over_iscale_and_not_amax_over_127(library):
    x = rows(500, 256, -4, 4)
    _, octets = through_c(library, "q8_k", x)
    d = np.abs(octets[:, :4].copy().view(np.float32)[:, 0])
    amax = np.abs(x).max(-1)
    one = np.float32(1)
    assert (d == one / (np.float32(127) / amax)).all()
    assert (d != amax / np.float32(127)).any()


def run(nodes, initializers, feeds, outputs, opset=21):
    """Outputs of a small graph in ONNX Runtime, on one thread and without optimisation."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, kinds[v.dtype], v.shape) for n, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [
            numpy_helper.from_array(v, n) if isinstance(v, np.ndarray) else v
            for n, v in initializers.items()
        ],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, feeds)


@pytest.mark.parametrize("shift", [0.0, 3.0, -10.0])
def test_dynamic_ranges_are_dynamicquantizelinears(shift):
    """Per tensor, so row by row: integers, scale, zero-point and values, bit for bit."""
    grid = ACTIVATION_GRIDS["int8-token"]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    for x in rows(200, 96, -20, 20) + np.float32(shift):
        y, s, z = run(nodes, {}, {"x": x}, ["y", "s", "z"])
        tensor = torch.from_numpy(x)
        scale, zero_point = range_of(tensor.amin(), tensor.amax(), grid)
        assert float(scale) == s
        assert int(zero_point) == z
        np.testing.assert_array_equal(quantize(tensor, grid).numpy(), y)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_range_a_token_can_be_said_in_onnx(bits):
    """With the scale of every row computed in the graph and QuantizeLinear along axis 0."""
    kind = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}[bits]
    constants = {"zero": np.float32(0), "levels": np.float32(2**bits - 1), "one": np.float32(1)}
    steps = [
        ("ReduceMin", ["x", "last"], "least"), ("Min", ["least", "zero"], "low"),
        ("ReduceMax", ["x", "last"], "most"), ("Max", ["most", "zero"], "high"),
        ("Sub", ["high", "low"], "width"), ("Div", ["width", "levels"], "step"),
        ("Equal", ["step", "zero"], "empty"), ("Where", ["empty", "one", "step"], "s"),
        ("Div", ["low", "s"], "below"), ("Neg", ["below"], "above"),
        ("Clip", ["above", "zero", "levels"], "clipped"), ("Round", ["clipped"], "rounded"),
    ]  # fmt: skip
    nodes = [
        helper.make_node(
            kind_, inputs, [out], **({"keepdims": 0} if kind_.startswith("Reduce") else {})
        )
        for kind_, inputs, out in steps
    ]
    nodes += [
        helper.make_node("Cast", ["rounded"], ["z"], to=kind),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=0),
    ]
    x = rows(200, 96, -20, 20) + rows(200, 1, -5, 5, seed=1)
    x[0] = 0
    initializers = {n: np.array(v) for n, v in constants.items()} | {"last": np.array([-1])}
    (y,) = run(nodes, initializers, {"x": x}, ["y"])
    np.testing.assert_array_equal(by_us(f"int{bits}-token", x), y)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_static_ranges_are_quantizelinear_and_dequantizelinear(bits):
    kind = {4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}[bits]
    grid = ACTIVATION_GRIDS[f"int{bits}-tensor"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x = rows(300, 96, -3, 3)
    ends = [(-4, 3), (0, 5), (-9, 0), (-1e-3, 1e3)]
    for low, high in ends:
        ranges = range_of(torch.tensor(float(low)), torch.tensor(float(high)), grid)
        zero_point = helper.make_tensor("z", kind, [], [int(ranges.zero_point)])
        initializers = {"s": ranges.scale.numpy(), "z": zero_point}
        (y,) = run(nodes, initializers, {"x": x}, ["y"])
        np.testing.assert_array_equal(quantize(torch.from_numpy(x), grid, ranges).numpy(), y)


def identity_product(x, block, bits, level):
    """MatMulNBits of x with weights that are the identity, so that it returns its activations.

    Codes are 1 and 0 and the zero-point is 0: with the usual one in the middle the kernel would
    subtract a large sum, and its float32 rounding would hide the last bits.
    """
    size = x.shape[1]
    codes = np.eye(size, dtype=np.uint8)
    packed = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
    groups = size // block
    initializers = {
        "b": packed.reshape(size, groups, -1),
        "s": np.ones(size * groups, np.float32),
        "z": np.zeros((size, (groups * bits + 7) // 8), np.uint8),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", *initializers], ["y"], domain="com.microsoft", K=size, N=size,
        bits=bits, block_size=block, accuracy_level=level,
    )  # fmt: skip
    return run([node], initializers, {"x": x}, ["y"])[0]


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_accuracy_level_4_rounds_activations_as_we_do(bits, block):
    grid = find_activation_grid("ort-level4", weight_group=block)
    for count in (1, 2, 33):  # kernels for one row and for many
        x = rows(count, 512, -10, 10, seed=count)
        x[0, :block] = 0
        assert (identity_product(x, block, bits, level=1) == x).all(), "the product is an identity"
        assert_same_bits(by_us(grid.name, x), identity_product(x, block, bits, level=4))


PROMPTS = np.random.default_rng(5).integers(3, 500, (24, 2))


def typical_difference(ours, theirs):
    """Median over prompts of max |d logit|.

    Not the largest: in a prompt or two the float32 sums, which no two programs add in the same
    order, put a value on the other side of a rounding boundary, and one step is a thousand times
    as much as they differ by. With two tokens few prompts have one.
    """
    return np.median([np.abs(ours(tokens) - theirs(tokens)).max() for tokens in PROMPTS])


def assert_explains(checkpoint, grid, runtime):
    """The reference with activations on `grid` is the runtime; without it is nowhere near."""
    model = load_reference(checkpoint)
    assert typical_difference(torch_logits(model), runtime) > 1e-3
    attach(model, ACTIVATION_GRIDS[grid], checkpoint.quantized_names)
    assert typical_difference(torch_logits(model), runtime) < 5e-6


@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS)
def test_whole_models_in_llama_cpp(grid, library, make_fused, tmp_path):
    checkpoint = Checkpoint.open(make_fused(grid))
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    with LlamaCpp.open(tmp_path / "model.gguf") as llama:
        assert_explains(checkpoint, "q8_0", llama.logits)


# Weights with one scale a row are cut into groups of 32 by ONNX Runtime's own fusion.
@pytest.mark.parametrize(("grid", "group"), [("int4-g128", 128), ("int4-channel", 32)])
def test_whole_models_in_onnx_runtime_at_level_4(grid, group, make_fused, onnx_folder):
    checkpoint = Checkpoint.open(make_fused(grid))
    with OnnxRuntime.open(onnx_folder(grid), accuracy_level=4) as session:
        rounding = find_activation_grid("ort-level4", weight_group=group)
        assert_explains(checkpoint, rounding.name, session.logits)
