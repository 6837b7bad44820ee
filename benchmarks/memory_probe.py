"""Peak memory of a call, measured three ways; and which of them to trust for what.

`tensor_peak` counts bytes of live tensors, to the byte and the same on every machine and run. Trust
it to compare two ways of computing the same thing, to check an estimate, and in tests. It sees
every tensor that an operator takes or returns, also inside autograd functions and backward passes,
and it does not see what a kernel allocates for itself and frees before it returns, what belongs to
no tensor (Python, thread stacks, libraries), or how an allocator rounds. So it is a lower bound of
what the allocator hands out. It slows the call down: take no times while it runs.

`process_peak` is the largest resident set of this process: what the machine must have. Trust it to
answer "does it fit", and only for a first call in a fresh process: memory that was freed but not
given back to the system is in the base already, so a later call seems to need less. A first call
also pays for what is loaded once. Pages of mapped files (safetensors) count while they are
resident, though the system could drop them. Where Linux lets the kernel's own mark be reset
(/proc/self/clear_refs, since 4.0) it is exact but for some pages; elsewhere it is sampled about
every millisecond, and a shorter peak is missed: `how` says which. `ru_maxrss` is not used: it
cannot be reset, and it may stem from the process that started this one.

`cuda_peak` is what PyTorch's allocator had handed out at most on one GPU, with its rounding to 512
bytes and kernels' workspaces. Trust it for GPUs; a GPU must have more: the context, memory of
libraries, and what the allocator holds in fragments (`torch.cuda.max_memory_reserved`).

All throw away what the call returns. Everything is in bytes.
"""

import gc
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SAMPLE_SECONDS = 0.001
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # man 5 proc: resets VmHWM to the current resident set


@dataclass(frozen=True)
class Peak:
    """Memory before and during a call.

    Attributes:
        base: bytes when it began.
        peak: the most bytes at one time, the base included.
        how: what was measured: "tensors", "VmHWM", "sampled" or "cuda".
    """

    base: int
    peak: int
    how: str

    @property
    def added(self) -> int:
        """Bytes that the call needed beyond the base."""
        return self.peak - self.base


def tensor_peak(call: Callable[[], Any], resident: Iterable[Tensor] = ()) -> Peak:
    """Peak of the bytes of live tensors during `call`, each storage once, on all devices together.

    Args:
        call: what to measure.
        resident: tensors that exist already and belong to the base even if `call` never uses them
            (parameters, gradients, optimiser state). Those that it uses are counted anyway.
    """
    counter = TensorCounter(resident)
    with counter:
        call()
    return Peak(counter.base, counter.peak, "tensors")


class TensorCounter(TorchDispatchMode):
    """Counts bytes of live storages while it is entered; for loops that `tensor_peak` does not fit.

    A storage that an operator takes and that nobody has seen yet was there before, so it is added
    to the base and to the peak so far. That is wrong only for one made meanwhile without an
    operator (`torch.from_numpy`): its bytes are counted, but in the base. A storage made inside is
    counted until it dies, also after the counter is left.

    Attributes:
        base: bytes that were there on entry.
        live: bytes alive now.
        peak: the most that was ever alive.
    """

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.base = self.live = self.peak = 0
        # By address of the storage's C++ object; the reference tells when it is freed.
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        # Backward passes of a GPU run in other threads; a storage may die inside `_count`.
        self._lock = threading.RLock()
        for tensor in resident:
            self._existed(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # torch.tensor makes its storage first and hands it to this operator: it is new.
        if func is not torch.ops.aten.lift_fresh.default:
            for tensor in _tensors((args, kwargs)):
                self._existed(tensor)
        result = func(*args, **(kwargs or {}))
        # The arguments too: an operator may have resized one.
        for tensor in _tensors((result, args, kwargs)):
            self._count(tensor)
        self._raise_peak()
        return result

    def _existed(self, tensor: Tensor) -> None:
        added = self._count(tensor, only_new=True)
        self.base += added
        self.peak += added

    def _count(self, tensor: Tensor, only_new: bool = False) -> int:
        """Bring the storage of `tensor` up to date. Returns the bytes that this added."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            known = self._alive.get(key)
            if known is not None and (only_new or known[1] == size):
                return 0
            reference = known[0] if known else weakref.ref(storage, lambda _: self._freed(key))
            self._alive[key] = reference, size
            added = size - (known[1] if known else 0)
            self.live += added
        return added

    def _raise_peak(self) -> None:
        with self._lock:
            self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        with self._lock:
            self.live -= self._alive.pop(key)[1]


def process_peak(call: Callable[[], Any]) -> Peak:
    """Peak resident set of this process during `call`."""
    gc.collect()
    process = psutil.Process()
    exact = _reset_high_water()
    base = process.memory_info().rss
    sampled = _sampled_peak(call, process)
    return Peak(base, max(sampled, _high_water() if exact else 0), "VmHWM" if exact else "sampled")


def cuda_peak(call: Callable[[], Any], device: torch.device | str | int | None = None) -> Peak:
    """Peak of what PyTorch's allocator had handed out on a GPU during `call`.

    Args:
        call: what to measure.
        device: the GPU; None is the current one.
    """
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return Peak(base, torch.cuda.max_memory_allocated(device), "cuda")


def _tensors(tree: Any) -> list[Tensor]:
    """Tensors that have memory: sparse ones and those of the meta device have none of their own."""
    return [
        leaf
        for leaf in tree_leaves(tree)
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_meta
    ]


def _reset_high_water() -> bool:
    """Set the kernel's mark to the current resident set. Returns whether that could be done."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
        return _high_water() > 0
    except OSError:
        return False


def _high_water() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _sampled_peak(call: Callable[[], Any], process: psutil.Process) -> int:
    samples = [process.memory_info().rss]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            samples[0] = max(samples[0], process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(samples[0], process.memory_info().rss)
