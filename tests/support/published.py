"""Small folders, published in each way, and what lies in a folder."""

import os

from lrqat.atomic_files import (
    replaced_folder,
    staged_folder,
)

MARKER = "marker.json"


def kept(folder):
    return [name for name in os.listdir(folder) if name.startswith("mine")]


def write(folder, text):
    """An artefact: a marker, a file, a folder of files, and one that only this generation has."""
    (folder / "inner").mkdir()
    for name in (MARKER, "weights", "inner/template", f"only-{text}"):
        (folder / name).write_text(text)


def tree(folder):
    """Content by name; None where there is no folder."""
    if not folder.is_dir():
        return None
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def artefact(text):
    return dict.fromkeys([MARKER, "inner/template", f"only-{text}", "weights"], text)


def put_replaced(target, text):
    with replaced_folder(target, True, MARKER) as staging:
        write(staging, text)


def put_staged(target, text):
    with staged_folder(target, MARKER, kept) as staging:
        write(staging, text)
