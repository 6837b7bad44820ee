"""Whether the files of a checkpoint are those that were written, and who may have changed which.

What carries weights and configuration must be as it was. Text for people may change. Tokenizer,
chat templates and generation settings may be changed by the user, who says so once.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lrqat.atomic_files import replaced_file, write_json
from lrqat.checkpoint.manifest import FILE_NAME, describe_files, is_inside, read, sha256_of
from lrqat.checkpoint.roles import TEMPLATES, Role, role_of
from lrqat.errors import CheckpointError


def verify_files(folder: Path, files: dict[str, Any]) -> None:
    """Compare the files of a manifest with what is on disk, but for those that only people read.

    Raises:
        CheckpointError: one with weights or configuration is missing, of another size, altered, or
            a link out of the folder; it is named. Or some of tokenizer and templates are; all of
            them are named, with what accepts them.
    """
    changed = _changed_files(folder, files)
    for name, wrong in changed.items():
        if role_of(name) is not Role.TEXT:
            raise CheckpointError(f"{folder / name} {wrong}; restore it, or train again")
    if changed:
        said = ", ".join(f"{name} {wrong}" for name, wrong in changed.items())
        raise CheckpointError(
            f"{folder}: {said}. The weights are those that were trained; if this change of "
            "tokenizer, templates or generation settings is meant, take it over with "
            "--accept-changed-tokenizer, else restore what is named"
        )


def accept_tokenizer(folder: Path) -> list[str]:
    """Take over what has become of tokenizer, chat templates and generation settings.

    Files of these that were changed, added or removed after training are recorded in lrqat.json as
    they are now, and named in its `accepted`. Nothing else is.

    Args:
        folder: of a checkpoint.

    Returns:
        Names of the files that were taken over; none if all are as they were.

    Raises:
        CheckpointError: no manifest, or a file that is a link out of the folder.
        OutputError: the manifest cannot be written.
    """
    manifest = read(folder)
    files: dict[str, Any] = manifest["files"]
    text = {name: entry for name, entry in files.items() if role_of(name) is Role.TEXT}
    changed = _changed_files(folder, text)
    taken = sorted({*changed, *unlisted_files(folder, files, Role.TEXT)})
    if not taken:
        return []
    there = [name for name in taken if (folder / name).is_file()]
    for name in there:
        _refuse_link_out(folder, name)
    kept = {name: entry for name, entry in files.items() if name not in taken}
    manifest["files"] = dict(sorted((kept | describe_files(folder, there)).items()))
    manifest["accepted"] = sorted({*taken, *manifest.get("accepted", [])})
    with replaced_file(folder / FILE_NAME, overwrite=True) as path:
        write_json(path, manifest)
    return taken


def unlisted_files(folder: Path, files: dict[str, Any], *roles: Role) -> list[str]:
    """Files of these roles that lie in `folder` and that a manifest with `files` does not name.

    They are not read. transformers, which knows no manifest, would read them.
    """
    found = (path.relative_to(folder).as_posix() for path in _files_near(folder))
    return sorted(
        name for name in found if name not in files and name != FILE_NAME and role_of(name) in roles
    )


def _files_near(folder: Path) -> list[Path]:
    """Files of the folder and its templates; its other folders are states and exports."""
    found = [*folder.glob("*"), *folder.glob(f"{TEMPLATES}/*")]
    return [path for path in found if path.is_file()]


def _changed_files(folder: Path, files: dict[str, Any]) -> dict[str, str]:
    """What is wrong with each file that is not as listed, in words.

    sha256 lets go of Python's lock, so files are read side by side.
    """
    for name in files:
        if not is_inside(name):
            raise CheckpointError(f"{folder / FILE_NAME} names {name!r}, which is not a file name")
    checked = {name: entry for name, entry in files.items() if role_of(name) is not Role.PEOPLE}
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda item: _difference(folder, *item), checked.items()))
    return {name: wrong for name, wrong in zip(checked, found, strict=True) if wrong is not None}


def _difference(folder: Path, name: str, expected: Any) -> str | None:
    if not isinstance(expected, dict):
        raise CheckpointError(f"{folder / FILE_NAME} does not describe {name!r}; restore it")
    path = folder / name
    if not path.is_file():
        return "is missing"
    _refuse_link_out(folder, name)
    size = path.stat().st_size
    if size != expected.get("bytes"):
        written = expected.get("bytes")
        return f"has {size} bytes where {written} were written: it is truncated or altered"
    if sha256_of(path) != expected.get("sha256"):
        return f"does not match the sha256 in {FILE_NAME}: it was altered after training"
    return None


def _refuse_link_out(folder: Path, name: str) -> None:
    place, real = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    if place not in real.parents:
        raise CheckpointError(
            f"{folder / name} is a link out of the folder, to {real}; make a copy of the folder "
            "that has the file itself (cp -rL)"
        )
