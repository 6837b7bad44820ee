"""What will be published, looked at before anything is sent.

    lrqat.json, weights, tokenizer ...       the checkpoint, at the top: what its manifest lists
    LICENSE, NOTICE ...                      those of the base model, with or without it
    model-q4_0.gguf, Modelfile               GGUF files, beside it
    onnx/model.onnx, onnx/model.onnx_data    ONNX folders, each under its name
    README.md                                a card of all of them

Every hash is compared and every exported weight is compared with the checkpoint, so the card may
say so. States of the run, and whatever else lies in a checkpoint's folder, are in no list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.description import differing
from exporters.format import CHECKPOINT, recognise
from exporters.inspection import inspect, verify
from lrqat.cards.card import model_card
from lrqat.cards.checkpoint import describe_checkpoint
from lrqat.cards.commands import GGUF, Artefact
from lrqat.cards.measurements import home_of
from lrqat.cards.origin import Origin
from lrqat.checkpoint.manifest import FILE_NAME
from lrqat.checkpoint.publishing import PICTURE
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.roles import CARD, Role, is_license_file, role_of
from lrqat.errors import OutputError, UserError
from lrqat.publication.measured import known, model_paths
from lrqat.publication.refusals import (
    choose_license,
    files_of_export,
    refuse_local_paths,
    refuse_repository,
)

_MODELFILE = "Modelfile"
_TOP = ("config.json", "generation_config.json")  # where transformers.js and Optimum look


@dataclass(frozen=True)
class Publication:
    """What `publish` sends, in one commit.

    Attributes:
        repository: owner/name.
        files: name in the repository -> the file, all but the card.
        card: README.md.
        license: what the card names.
    """

    repository: str
    files: dict[str, Path]
    card: str
    license: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by name in the repository, the card included."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return dict(sorted((sizes | {CARD: len(self.card.encode())}).items()))


def plan_publication(
    paths: Sequence[str | Path],
    repository: str,
    *,
    checkpoint: str | Path | None = None,
    license_: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Publication:
    """Look at files and folders, and put together what is published.

    Args:
        paths: a checkpoint, .gguf files and ONNX folders made from it; any of them may be missing.
        repository: owner/name.
        checkpoint: that exported files were made from; None: the one among `paths`, or in whose
            folder they lie.
        license_: in place of the source's.
        say: told what is compared.

    Raises:
        UserError: nothing of ours, files of several checkpoints, no checkpoint, or no licence.
        CheckpointError: the checkpoint is not as it was written.
        OutputError: an export that is not the checkpoint's, paths of this machine, unknown files.
    """
    refuse_repository(repository)
    given = [Path(path) for path in paths]
    kinds = {path: _kind(path) for path in given}
    opened = Checkpoint.open(_home(given, kinds, checkpoint))
    license_name = choose_license(Origin.of_manifest(opened.manifest), license_)
    files: dict[str, Path] = {}
    artefacts = []
    # The checkpoint comes first in the card.
    for path in sorted(given, key=lambda path: kinds[path] != CHECKPOINT):
        if kinds[path] == CHECKPOINT:
            found, artefact = _checkpoint(opened), describe_checkpoint(opened)
        else:
            say(f"comparing {path} with {opened.path}")
            found, artefact = _export(path, kinds[path], opened)
        twice = files.keys() & found.keys()
        if twice:
            raise UserError(f"two of the files are called {min(twice)}; rename one of them")
        files |= found
        artefacts.append(artefact)
    for name, path in (_licenses(opened) | _at_the_top(files)).items():
        files.setdefault(name, path)
    refuse_local_paths(files.items())
    card = model_card(
        opened.manifest,
        artefacts,
        repository=repository,
        license_=license_,
        modelfile=_MODELFILE in files,
    )
    return Publication(repository, dict(sorted(files.items())), card, license_name)


def _kind(path: Path) -> str:
    found = recognise(path) if path.exists() else None
    if found is None:
        raise UserError(f"{path} is no checkpoint, .gguf file or ONNX folder; check the path")
    return found


def _home(given: list[Path], kinds: dict[Path, str], asked: str | Path | None) -> Path:
    """The folder of the one checkpoint that everything is of."""
    homes = [Path(asked)] if asked is not None else []
    homes += [path for path in given if kinds[path] == CHECKPOINT]
    if not homes:
        homes = [home for path in given if (home := home_of(path)) is not None]
    different = list(dict.fromkeys(home.resolve() for home in homes))
    if len(different) > 1:
        raise UserError(
            f"these are of several checkpoints ({', '.join(map(str, homes))}); publish each in a "
            "repository of its own"
        )
    if not different:
        raise UserError(
            f"{given[0]} does not lie in the folder of its checkpoint, from which the card takes "
            "its figures; name that with --checkpoint"
        )
    return homes[0]


def _checkpoint(opened: Checkpoint) -> dict[str, Path]:
    """The files that its manifest lists, and the picture of the steps; its card is made anew."""
    names = [FILE_NAME, *sorted(opened.files - {CARD})]
    files = {name: opened.path / name for name in names if (opened.path / name).is_file()}
    picture = opened.path / PICTURE
    return files | ({PICTURE: picture} if picture.is_file() else {})


def _licenses(opened: Checkpoint) -> dict[str, Path]:
    """Texts under which the base model was handed on: they go with its exports, too."""
    found = {name: opened.path / name for name in sorted(opened.files) if is_license_file(name)}
    return {name: path for name, path in found.items() if path.is_file()}


def _export(path: Path, kind: str, checkpoint: Checkpoint) -> tuple[dict[str, Path], Artefact]:
    """Files of an exported file or folder by their names, compared with the checkpoint."""
    compared = verify(path, checkpoint)
    if any(compared.values()):
        raise OutputError(
            f"{path} is not what {checkpoint.path} holds: {differing(compared)}; export it again"
        )
    model, found = model_paths(path), inspect(path)
    if kind == GGUF:
        files = {file.name: file for file in model} | _modelfile(path)
    else:
        every = files_of_export(path, model)
        files = {f"{path.name}/{f.relative_to(path).as_posix()}": f for f in every}
    artefact = Artefact(
        kind=kind,
        path=path.name,
        bytes=found.bytes,
        bits_per_weight=found.bits_per_weight,
        compared=len(compared),
        pieces=len(model) - 1,
        measured=known(path, checkpoint.path),
    )
    return files, artefact


def _modelfile(path: Path) -> dict[str, Path]:
    """The Modelfile beside a GGUF file, if it is that file's."""
    beside = path.with_name(_MODELFILE)
    try:
        first = beside.read_text(encoding="utf-8").partition("\n")[0] if beside.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return {}
    return {_MODELFILE: beside} if first == f"FROM ./{path.name}" else {}


def _at_the_top(files: dict[str, Path]) -> dict[str, Path]:
    """Configuration and tokenizer of an ONNX folder, which are looked for above the graph."""
    found: dict[str, Path] = {}
    for name, path in files.items():
        folder, _, rest = name.partition("/")
        if rest in _TOP or (rest and folder != rest and role_of(rest) is Role.TEXT):
            found.setdefault(rest, path)
    return found
