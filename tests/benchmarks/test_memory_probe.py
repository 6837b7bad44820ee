import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import memory_probe
from benchmarks.memory_probe import Peak, TensorCounter, process_peak, tensor_peak

MB = 1 << 20
FLOAT = 4


def test_known_allocations():
    kept = []

    def call():
        a = torch.zeros(1000)
        b = a + 1  # a and b
        del a
        kept.append(b.view(10, 100)[2:])  # no new storage
        c = torch.cat([b, b])  # b and c: the most
        del c
        kept.append(torch.zeros(10))

    assert tensor_peak(call) == Peak(0, 3000 * FLOAT, "tensors")


def test_what_was_there_is_the_base_once_whoever_sees_it():
    used, unused = torch.zeros(100), torch.zeros(50)

    def call():
        torch.zeros(500)  # dies before `used` is first seen, which was there all along
        used[:7] + used[1:8]

    assert tensor_peak(call) == Peak(100 * FLOAT, 600 * FLOAT, "tensors")
    found = tensor_peak(call, resident=[used, used[3:], unused])
    assert found == Peak(150 * FLOAT, 650 * FLOAT, "tensors")
    assert found.added == 500 * FLOAT


def test_live_falls_when_the_last_reference_dies_and_never_twice():
    with TensorCounter() as counter:
        a = torch.ones(100)
        view = a.view(4, 25)
        for _ in range(50):
            torch.ones(10)  # addresses are used again
        assert counter.live == 100 * FLOAT
        del a
        assert counter.live == 100 * FLOAT
        del view
        assert counter.live == 0
        kept = torch.ones(30)
    assert counter.live == 30 * FLOAT
    del kept
    assert counter.live == 0
    assert (counter.base, counter.peak) == (0, 110 * FLOAT)


def test_resizing_and_tensors_made_from_python():
    with TensorCounter() as counter:
        a = torch.zeros(10)
        a.resize_(1000)
        assert counter.live == 1000 * FLOAT
        b = torch.tensor([1.0] * 20)
        assert (counter.base, counter.live) == (0, 1020 * FLOAT)
        a.untyped_storage().resize_(2000 * FLOAT)  # no operator: the next that takes it shows it
        a.sum()
        assert counter.live == 2020 * FLOAT
    assert b.sum() == 20


def test_saved_for_backward_is_live_until_backward():
    x = torch.ones(1000, requires_grad=True)
    with TensorCounter([x]) as counter:
        y = x.exp().sin()  # exp's result and sin's input are one tensor; sin's result is y
        assert counter.live == 3000 * FLOAT
        y.sum().backward()
        del y
        assert counter.live == 2000 * FLOAT  # x and its gradient
    assert x.grad is not None
    assert counter.base == 1000 * FLOAT
    assert counter.peak >= 4000 * FLOAT


def allocator_peak(call):
    """The oracle: what PyTorch's CPU allocator itself reports to the profiler, event by event."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


class Recomputed(torch.autograd.Function):
    """Saves x alone, and makes temporaries in both passes, like the layer of lrqat."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ (w.round() * 2).T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        weight = w.round() * 2
        return grad @ weight, (grad.T @ x) * 3


class Layer(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, n))

    def forward(self, x):
        return Recomputed.apply(x, self.weight)


def test_a_training_step_against_the_allocator():
    torch.manual_seed(0)
    model = nn.Sequential(Layer(256), nn.GELU(), nn.Linear(256, 256), nn.ReLU(), Layer(256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    x = torch.randn(64, 256)

    def step():
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # now the optimiser's state exists
    state = [t for s in optimizer.state.values() for t in s.values()]
    base = [*model.parameters(), *state, x]
    found = tensor_peak(step, base)
    assert found.base == sum(t.untyped_storage().nbytes() for t in base)
    oracle = allocator_peak(step)
    # The allocator also gives what a kernel frees before it returns: never less, hardly more.
    assert found.added <= oracle <= 1.02 * found.added + 4096
    again = tensor_peak(step, base)
    assert again.peak == found.peak


def test_an_error_leaves_no_mode_behind():
    threads = threading.enumerate()
    with pytest.raises(ZeroDivisionError):
        tensor_peak(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        process_peak(lambda: 1 / 0)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert threading.enumerate() == threads


def touch(megabytes):
    return lambda: torch.ones(megabytes * MB // FLOAT).sum()


@pytest.mark.parametrize("exact", [True, False])
def test_the_resident_set_holds_what_was_touched(exact, monkeypatch):
    if not exact:
        monkeypatch.setattr(memory_probe, "_reset_high_water", lambda: False)
    elif not memory_probe._reset_high_water():
        pytest.skip("this system cannot reset the mark")

    def call():
        held = torch.ones(96 * MB // FLOAT)
        if not exact:
            time.sleep(0.1)  # for the sampling thread
        return held

    process_peak(touch(1))  # loads what is loaded once
    found = process_peak(call)
    assert found.how == ("VmHWM" if exact else "sampled")
    assert 92 * MB <= found.added <= 112 * MB
    # What is over is over: the mark has been reset, and the memory given back.
    later = process_peak(touch(1))
    assert later.added < 20 * MB


def test_memory_that_is_not_touched_is_not_resident():
    found = process_peak(lambda: torch.empty(512 * MB // FLOAT))
    assert found.added < 64 * MB
    assert tensor_peak(lambda: torch.empty(512 * MB // FLOAT)).peak == 512 * MB


def test_a_peak_too_short_to_sample_is_seen_by_the_kernel():
    if not memory_probe._reset_high_water():
        pytest.skip("this system cannot reset the mark")
    found = process_peak(lambda: [touch(64)() for _ in range(2)])
    assert 60 * MB <= found.added <= 90 * MB


def test_a_fresh_process_starts_with_its_own_mark():
    """`ru_maxrss` of a child may be its parent's; what is used here must not be."""
    ballast = torch.ones(300 * MB // FLOAT)
    code = (
        "from benchmarks.memory_probe import process_peak, Peak\n"
        "found = process_peak(lambda: bytearray(8 << 20).count(b'x'))\n"
        "print(found.added)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert int(printed) < 40 * MB
    assert ballast[0] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    held = torch.ones(4 * MB // FLOAT, device="cuda")
    found = memory_probe.cuda_peak(lambda: torch.ones(64 * MB // FLOAT, device="cuda").cos())
    assert found.how == "cuda"
    assert found.base >= held.untyped_storage().nbytes()
    assert found.added == 128 * MB
