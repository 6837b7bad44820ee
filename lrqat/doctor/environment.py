"""This machine, and what is installed on it."""

import importlib.metadata
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from lrqat import __version__
from lrqat.portable import cores
from lrqat.training.machine import host_memory, multiplies_bfloat16

# What a report of a fault should name.
_LIBRARIES = (
    "torch", "transformers", "accelerate", "tokenizers", "safetensors", "compressed-tensors",
    "datasets", "numpy", "gguf", "onnx", "onnx-ir", "onnxscript", "onnxruntime",
    "onnxruntime-genai", "xllamacpp", "openvino", "bitsandbytes",
)  # fmt: skip
_DEVELOPMENT = "dev"  # the extra of those who work on lrqat itself


@dataclass(frozen=True)
class Extra:
    """A group of optional dependencies.

    Attributes:
        name: as in lrqat[NAME].
        missing: distributions of it that are not installed, or too old.
        command: what installs it.
    """

    name: str
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Environment:
    """What was found.

    Attributes:
        lrqat: version of this package.
        python: version and implementation.
        system: operating system and machine.
        devices: what torch can compute on, each with its memory.
        cores: that this process may use.
        cpu_vectors: the instructions that torch uses on the CPU.
        cpu_bfloat16: whether the CPU multiplies bfloat16 by itself; None: it is not known.
        memory: bytes that this process may have, and that are free now.
        disk: path -> free bytes there.
        versions: distribution -> version of what is installed.
        extras: the optional dependencies.
    """

    lrqat: str
    python: str
    system: str
    devices: dict[str, str]
    cores: int
    cpu_vectors: str
    cpu_bfloat16: bool | None
    memory: dict[str, int]
    disk: dict[str, int]
    versions: dict[str, str]
    extras: list[Extra]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def find(cls) -> "Environment":
        """Look around."""
        virtual = psutil.virtual_memory()
        total = host_memory()
        return cls(
            lrqat=__version__,
            python=f"{platform.python_version()} ({platform.python_implementation()})",
            system=f"{platform.system()} {platform.release()}, {platform.machine()}",
            devices=_devices(),
            cores=cores(),
            cpu_vectors=torch.backends.cpu.get_cpu_capability(),
            cpu_bfloat16=multiplies_bfloat16(),
            memory={"total": total, "free": min(total, virtual.available)},
            disk=_free_disk(),
            versions=_versions(),
            extras=_extras(),
        )


def _devices() -> dict[str, str]:
    found = {"cpu": _cpu_name()}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{device.name}, {device.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU, which shares the memory of the machine"
    return found


def _cpu_name() -> str:
    with suppress(AttributeError, RuntimeError):
        return str(torch.cpu.get_capabilities()["cpu_name"])
    return platform.processor() or platform.machine()


def _free_disk() -> dict[str, int]:
    """Where a run writes: here, and in the cache of models."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache"))
    found = {}
    for place in (Path.cwd(), home):
        with suppress(OSError):
            found[str(place)] = shutil.disk_usage(place).free
    return found


def _version_of(distribution: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def _versions() -> dict[str, str]:
    found = {name: _version_of(name) for name in _LIBRARIES}
    return {name: version for name, version in found.items() if version}


def _extras() -> list[Extra]:
    """The extras of this distribution, as its metadata lists them."""
    try:
        described = importlib.metadata.metadata("lrqat")
        lines = importlib.metadata.requires("lrqat") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return []
    requirements = [Requirement(line) for line in lines]
    names = [name for name in described.get_all("Provides-Extra") or [] if name != _DEVELOPMENT]
    return [
        Extra(name, _missing(name, requirements), f"pip install 'lrqat[{name}]'") for name in names
    ]


def _missing(extra: str, requirements: list[Requirement]) -> tuple[str, ...]:
    base = {"extra": ""}
    own = [
        each
        for each in requirements
        if each.marker and each.marker.evaluate({"extra": extra}) and not each.marker.evaluate(base)
    ]
    missing: list[str] = []
    for each in own:
        if each.name == "lrqat":  # an extra that is another's
            for other in each.extras:
                missing += _missing(other, requirements)
            continue
        version = _version_of(each.name)
        if version is None:
            missing.append(each.name)
        elif not each.specifier.contains(version, prereleases=True):
            missing.append(f"{each.name} ({version} is installed, {each.specifier} is needed)")
    return tuple(missing)
