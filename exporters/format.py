"""What a format is, and the one registry of them.

A format is a package that has the names of `Format`, and a row in `FORMATS`. The row says what is
needed before the package can be imported: how a file of the format is recognised, and what to
install. So one format works where another's dependencies are missing, and nobody else asks what a
path is: `inspect`, `evaluate` and `parity` look up what they need by the name that `recognise`
gives.
"""

from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from exporters.description import Description
from exporters.recognition import is_compact, is_gguf, is_qdq
from lrqat.checkpoint.manifest import FILE_NAME
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError, did_you_mean
from lrqat.optional_libraries import load

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Progress = Callable[[str], None]


class Plan(Protocol):
    """What `write` will do; making it writes nothing."""

    @property
    def tensors(self) -> Sized:
        """Every tensor of the file that holds weights."""

    @property
    def refusals(self) -> list[str]:
        """Reasons not to write; a plan with any cannot be written."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all of them, as they are written."""

    @property
    def compared(self) -> str:
        """What `write` compares with the checkpoint before a file gets its name, for people."""

    def summary(self) -> list[str]:
        """Lines of a table for people."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""


class Report(Protocol):
    """What was written."""

    @property
    def path(self) -> str:
        """The file or folder; of several files, the one to load."""

    @property
    def bytes(self) -> int:
        """Size of the model, without tokenizer and configuration."""

    @property
    def rounded(self) -> int:
        """Unquantized weights that were rounded because the options asked for it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""


OptionsT = TypeVar("OptionsT", bound="DataclassInstance")
PlanT = TypeVar("PlanT", bound=Plan)


class Format(Protocol[OptionsT, PlanT]):
    """The names of a format's package. Options and plans of one go to no other."""

    @property
    def Options(self) -> type[OptionsT]:  # noqa: N802  (a class)
        """A frozen dataclass with defaults; `metadata["help"]` of a field is its help text."""

    def default_name(self, checkpoint: Checkpoint, options: OptionsT | None = None) -> str:
        """Name of the file or folder inside the checkpoint's folder."""

    def plan(self, checkpoint: Checkpoint, options: OptionsT | None = None) -> PlanT:
        """Every tensor, its type, its bytes, and every reason to refuse; nothing is written."""

    def write(
        self,
        plan: PlanT,
        path: str | Path,
        overwrite: bool = False,
        progress: Progress = ...,
        verified: Progress = ...,
    ) -> Report:
        """Write, read back, compare with the checkpoint, and only then give the file its name.

        Args:
            plan: from `plan`, without refusals.
            path: the file or folder to write.
            overwrite: whether an existing one may be replaced.
            progress: called with the name of every tensor once it is written.
            verified: called with the name of every tensor once it has been compared.

        Raises:
            ExportRefusedError: the plan has refusals.
            OutputError: `path` exists, cannot be written, or reads back differently.
        """

    def verify(self, path: str | Path, checkpoint: Checkpoint) -> dict[str, int]:
        """Weights that are not the checkpoint's, by tensor; all zero is a pass (L0 of the proof).

        A scale, a minimum and a zero-point count as a weight each, a tensor that is missing counts
        whole. What a file says beside its tensors counts 1, by its key, if it is wrong.

        Raises:
            UserError: the file is damaged, or the checkpoint has no form in this format.
        """

    def inspect(self, path: Path) -> Description:
        """What a file of the format holds, ours or anybody's; no weights are read.

        Raises:
            UserError: it is damaged.
        """


# What `load_format` gives: of options and plans no more is known than what all formats share.
AnyFormat: TypeAlias = Format["DataclassInstance", Plan]


@dataclass(frozen=True)
class Registered:
    """A row of the registry.

    Attributes:
        package: the format, imported when it is used.
        extra: what installs its dependencies: pip install 'lrqat[EXTRA]'.
        recognises: whether a path is a file or folder of it; of all rows at most one does.
        folder: whether what it writes is a folder.
    """

    package: str
    extra: str
    recognises: Callable[[Path], bool]
    folder: bool = True


# By the name that `--format` takes. `lrqat.runtimes` has an opener and a prover for each name.
FORMATS = {
    "gguf": Registered("exporters.gguf", "gguf", is_gguf, folder=False),
    "onnx": Registered("exporters.onnx", "onnx", is_qdq),
    "onnx-genai": Registered("exporters.onnx_genai", "onnx", is_compact),
}
# What `recognise` calls the folder that everything is exported from.
CHECKPOINT = "checkpoint"


def load_format(name: str) -> AnyFormat:
    """The format called `name`.

    Raises:
        UserError: there is none.
        RuntimeUnavailableError: its dependencies are not installed.
    """
    package: AnyFormat = _load(name)
    _load(name, ".writer")  # a package may import what it offers on first use; now it is there
    return package


def load_options(name: str) -> "type[DataclassInstance]":
    """The `Options` of the format called `name`, without torch. Raises as `load_format`."""
    options: type[DataclassInstance] = _load(name, ".options").Options
    return options


def _load(name: str, part: str = "") -> Any:
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise UserError(f"unknown format {name!r}: {hint}known formats are {', '.join(FORMATS)}")
    row = FORMATS[name]
    needed_by = f"the {name} exporter"
    return load(row.package + part, f"lrqat[{row.extra}]", needed_by=needed_by)


def recognise(path: str | Path) -> str | None:
    """The name in `FORMATS` of what `path` is, CHECKPOINT for a fused checkpoint, or None."""
    found = next((name for name, row in FORMATS.items() if row.recognises(Path(path))), None)
    if found is None and (Path(path) / FILE_NAME).is_file():
        return CHECKPOINT
    return found


def format_of(path: str | Path) -> str:
    """The name in `FORMATS` of the exported file or folder `path`; UserError if it is none."""
    found = recognise(path)
    if found not in FORMATS:
        raise UserError(
            f"{path} is no exported file, neither a .gguf file nor an ONNX folder; write one with "
            "lrqat export"
        )
    return str(found)
