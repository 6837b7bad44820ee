"""Reading a fused checkpoint: integers, scales and floating tensors, one at a time, without torch.

A fused checkpoint is a Hugging Face folder in compressed-tensors' `pack-quantized` format plus
`lrqat.json` (see `lrqat.checkpoint.manifest`). Each quantised weight X is three tensors:

    X.weight_packed  int32 (out, ceil(in * bits / 32))   integers, see `lrqat.grids.packing`
    X.weight_scale   float32 (out, groups)               values as the grid stores them
    X.weight_shape   int64 (2,)                          out, in

and, where its grid has them, the parts named in `lrqat.checkpoint.stored_scales`: zero-points,
minima, and the two levels of scales. Everything else is a plain floating tensor. Files are treated
as hostile: hashes are compared before anything is read, and shapes, integers and scales are checked
when they are.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.checkpoint import manifest as manifests
from lrqat.checkpoint.publishing import recover
from lrqat.checkpoint.safetensors_file import StoredTensor, TensorFile
from lrqat.checkpoint.stored_scales import PARTS, StoredScales, read_scales
from lrqat.checkpoint.verification import verify_files
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.config_bounds import refuse_absurd_counts
from lrqat.errors import CheckpointError
from lrqat.foreign_files import parse_json, read_bytes
from lrqat.grids.grid import Grid, find_grid
from lrqat.grids.packing import unpack_grid

PACKED, SHAPE = ".weight_packed", ".weight_shape"
# Scales and zero-points of static activation grids; see `lrqat.activations.quantizer.describe`.
ACTIVATION_FILE = "lrqat-activations.safetensors"


@dataclass(frozen=True)
class QuantizedTensor:
    """One trained weight.

    Attributes:
        name: module name, without ".weight".
        q: int8 (out, in), integers of the grid.
        scales: scales and what goes with them.
        grid: the grid it was trained on.
    """

    name: str
    q: NDArray[np.int8]
    scales: StoredScales
    grid: Grid

    @property
    def scale(self) -> NDArray[np.float32]:
        """float32 (out, groups), finite, non-zero, as the grid stores them."""
        return self.scales.scale

    def take(self, rows: NDArray[np.intp]) -> "QuantizedTensor":
        """The rows `rows`; one index for all parts, so a row never parts from its scales."""
        return QuantizedTensor(self.name, self.q[rows], self.scales.take(rows), self.grid)

    @classmethod
    def join(cls, name: str, tensors: Sequence["QuantizedTensor"]) -> "QuantizedTensor":
        """The rows of several tensors of one grid and one number of columns, as one tensor."""
        q = np.concatenate([tensor.q for tensor in tensors])
        scales = StoredScales.join([tensor.scales for tensor in tensors])
        return cls(name, q, scales, tensors[0].grid)

    def dequantize(self) -> NDArray[np.float32]:
        """The weights scale * q - offset as float32 (out, in); see `lrqat.grids.grid`."""
        rows, columns = self.q.shape
        values = self.q.reshape(rows, self.scale.shape[1], -1).astype(np.float32)
        values *= self.scale[:, :, None]
        offset = self.scales.offset
        if offset is not None:
            values -= offset[:, :, None]
        return values.reshape(rows, columns)


@dataclass(frozen=True)
class PackedTensor:
    """One trained weight as the file holds it: unpacked some rows at a time, it never is whole.

    Attributes:
        name: module name, without ".weight".
        words: int32 (out, words), the packed integers.
        scales: scales and what goes with them, checked.
        grid: the grid it was trained on.
        columns: in.
    """

    name: str
    words: NDArray[np.int32]
    scales: StoredScales
    grid: Grid
    columns: int

    def take(self, rows: NDArray[np.intp] | slice) -> "PackedTensor":
        """The rows `rows`; one index for all parts, so a row never parts from its scales."""
        scales = self.scales.take(rows)
        return PackedTensor(self.name, self.words[rows], scales, self.grid, self.columns)

    def unpack(self) -> QuantizedTensor:
        """All its rows. Raises CheckpointError if their integers are not the grid's."""
        try:
            q = unpack_grid(self.words, self.grid, self.columns)
        except ValueError as error:
            raise CheckpointError(f"{self.name}: {error}") from None
        _refuse_foreign_integers(self.name, q, self.grid)
        return QuantizedTensor(self.name, q, self.scales, self.grid)


class Checkpoint:
    """A fused checkpoint that has been opened and verified. Use `Checkpoint.open`.

    Attributes:
        path: its folder.
        manifest: what lrqat.json holds.
        config: what config.json holds.
        files: names of the files that the manifest lists. Nothing else in the folder is read.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], config: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.config = config
        self.files = frozenset(manifest["files"])
        self._file_of = _index(path, self.files)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Checkpoint":
        """Open the checkpoint in the folder `path`.

        With `verify` (the default) the sha256 of every file is compared with lrqat.json first.
        Raises CheckpointError if anything is missing, altered or inconsistent, or if the folder is
        replaced meanwhile.
        """
        path = Path(path)
        recover(path)
        if not path.is_dir():
            raise CheckpointError(f"no checkpoint folder at {path}")
        manifest = manifests.read(path)
        if verify:
            verify_files(path, manifest["files"])
        try:
            config = parse_json(read_bytes(path / "config.json"))
        except ValueError as error:
            raise CheckpointError(f"{path / 'config.json'} cannot be read: {error}") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{path / 'config.json'} holds no JSON object")
        refuse_absurd_counts(path, config)
        opened = cls(path, manifest, config)
        if manifests.read(path) != manifest:
            raise CheckpointError(f"{path} was replaced while it was read; run the command again")
        return opened

    def file(self, name: str) -> Path | None:
        """The path of a file that the manifest lists; None of any other, for it does not exist."""
        path = self.path / name
        return path if name in self.files and path.is_file() else None

    @property
    def parts(self) -> list[Path]:
        """Files and folders that it consists of; an export may lie beside them."""
        names = {manifests.FILE_NAME, *(name.split("/")[0] for name in self.files)}
        return [self.path / name for name in sorted(names)]

    @property
    def quantized_names(self) -> list[str]:
        """Module names of the quantised projections, in the manifest's order."""
        return list(self.manifest["tensors"])

    @cached_property
    def floating_names(self) -> list[str]:
        """Names of the tensors that stay in floating point, sorted.

        The weight of an embedding on a grid, which is there for transformers, is none of them.
        """
        suffixes = (PACKED, SHAPE, *PARTS.values(), ".weight")
        parts = {name + suffix for name in self.quantized_names for suffix in suffixes}
        return sorted(set(self._file_of) - parts - set(self.activation_names))

    @property
    def activation_names(self) -> list[str]:
        """Names of the tensors of static activation grids."""
        return [name for name, file in self._file_of.items() if file.path.name == ACTIVATION_FILE]

    @property
    def grids(self) -> set[str]:
        """Names of the grids that occur."""
        return {entry["grid"] for entry in self.manifest["tensors"].values()}

    def grid(self, name: str) -> Grid:
        """The grid of the projection `name`. Raises CheckpointError for another name."""
        return find_grid(self._entry(name)["grid"])

    def kind(self, name: str) -> WeightKind:
        """What holds the weight in the model. Raises CheckpointError for what is no kind."""
        said = self._entry(name).get("kind", WeightKind.LINEAR)
        try:
            return WeightKind(said)
        except ValueError:
            raise CheckpointError(
                f"lrqat.json says that {name} is a weight of kind {said!r}; known are "
                f"{', '.join(WeightKind)}; restore the file, or use the lrqat that wrote it"
            ) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a quantised projection (out, in) or of a floating tensor; nothing is read."""
        if name in self.manifest["tensors"]:
            out_features, in_features = self._entry(name)["shape"]
            return int(out_features), int(in_features)
        return self._stored(name).shape

    def quantized(self, name: str) -> QuantizedTensor:
        """Read one projection. Raises CheckpointError if its integers or scales are not valid."""
        return self.packed(name).unpack()

    def packed(self, name: str) -> PackedTensor:
        """Read one projection, without unpacking its integers; raises as `quantized` does."""
        grid, (rows, columns) = self.grid(name), self.shape(name)
        packed = self.floating(name + PACKED)
        stored_shape = self.floating(name + SHAPE).tolist()
        if stored_shape != [rows, columns]:
            raise CheckpointError(
                f"{name}: the tensor file says {stored_shape}, lrqat.json says {[rows, columns]}"
            )
        if packed.dtype != np.int32 or packed.ndim != 2 or packed.shape[0] != rows:
            raise CheckpointError(f"{name}: packed integers are {packed.dtype} {packed.shape}")
        return PackedTensor(name, packed, self.scales(name), grid, columns)

    def scales(self, name: str) -> StoredScales:
        """Read the scales of one projection and what goes with them, but no integers.

        Raises CheckpointError if they are not valid.
        """
        rows, columns = self.shape(name)
        return read_scales(self.floating, name, self.grid(name), rows, columns)

    def floating(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read one floating tensor, or consecutive rows of it, in the type it is stored in.

        bfloat16 is ml_dtypes'.
        """
        self._stored(name)
        return self._file_of[name].read(name, rows)

    def floating_dtype(self, name: str) -> str:
        """The safetensors name of a floating tensor's type: F32, F16 or BF16; nothing is read."""
        return self._stored(name).dtype

    def stored_bytes(self, name: str) -> int:
        """Bytes that a projection (all its parts) or a floating tensor takes in the files."""
        suffixes = (PACKED, SHAPE, *PARTS.values()) if name in self.manifest["tensors"] else ("",)
        parts = [name + suffix for suffix in suffixes]
        return sum(self._stored(part).nbytes for part in parts if part in self._file_of)

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self.manifest["tensors"]:
            raise CheckpointError(f"lrqat.json has no entry for {name!r}")
        return self.manifest["tensors"][name]

    def _stored(self, name: str) -> StoredTensor:
        if name not in self._file_of:
            raise CheckpointError(f"{self.path} has no tensor {name!r}")
        return self._file_of[name].tensors[name]


def _refuse_foreign_integers(name: str, q: NDArray[np.int8], grid: Grid) -> None:
    if q.size and (q.min() < grid.q_min or q.max() > grid.q_max):
        raise CheckpointError(
            f"{name}: integers {q.min()}..{q.max()} leave {grid.name}'s {grid.q_min}..{grid.q_max}"
        )
    if grid.levels is not None and not np.isin(q, grid.levels).all():
        raise CheckpointError(f"{name}: integers that are no level of {grid.name}; train again")


def _index(path: Path, listed: Collection[str]) -> dict[str, TensorFile]:
    """Map each tensor name to the one listed safetensors file that holds it."""
    names = sorted(name for name in listed if name.endswith(".safetensors"))
    if not names:
        raise CheckpointError(f"{path / manifests.FILE_NAME} lists no .safetensors file")
    index: dict[str, TensorFile] = {}
    for file in (TensorFile(path / name) for name in names):
        twice = index.keys() & file.tensors.keys()
        if twice:
            first = min(twice)
            raise CheckpointError(
                f"{first!r} is both in {index[first].path.name} and in {file.path.name} of {path}; "
                "restore it, or train again"
            )
        index |= dict.fromkeys(file.tensors, file)
    return index
