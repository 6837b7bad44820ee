"""What the machine has: memory, also as a container or a GPU allows it, and bfloat16."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def process_memory() -> int:
    """Bytes that this process holds now: Python, the libraries, and whatever was loaded."""
    return int(psutil.Process().memory_info().rss)


def host_memory(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int:
    """Bytes of memory that this process may have: the machine's, or what its cgroups allow.

    Args:
        cgroups: where they are mounted.
        own: the file that names those of this process (man 7 cgroups).
    """
    return min([psutil.virtual_memory().total, *_limits(cgroups, own)])


def multiplies_bfloat16() -> bool | None:
    """Whether the CPU has instructions for it (AVX512-BF16, AMX, Arm BF16); None: not known."""
    with suppress(AttributeError, RuntimeError):
        found = torch.cpu.get_capabilities()
        return any(said is True for name, said in found.items() if "bf16" in name)
    return None


def device_memory(device: str) -> int:
    """Bytes of memory of a GPU; of a Mac's, what it may take of the machine's."""
    if torch.device(device).type == "mps":
        return int(torch.mps.recommended_max_memory())
    return int(torch.cuda.get_device_properties(device).total_memory)


def _limits(cgroups: Path, own: Path) -> Iterator[int]:
    """Every limit above this process, of version 2 and of version 1."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = root / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder == root or root in folder.parents:
                yield from _number_in(folder / name)


def _number_in(path: Path) -> Iterator[int]:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return
    if text.isdigit():  # else it is "max"
        yield int(text)
