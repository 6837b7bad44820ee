"""A checkpoint's folder as its manifest has it, for libraries that read all that they find."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrqat.checkpoint.manifest import FILE_NAME, is_inside, read


@contextmanager
def listed_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder of the same name, with links to the files that lrqat.json lists.

    Raises:
        CheckpointError: `folder` has no valid manifest.
    """
    source = Path(os.path.realpath(folder))
    with tempfile.TemporaryDirectory(prefix="lrqat-") as made:
        view = Path(made) / (source.name or "checkpoint")
        view.mkdir()
        for name in filter(is_inside, (FILE_NAME, *read(source)["files"])):
            if (source / name).is_file():
                (view / name).parent.mkdir(parents=True, exist_ok=True)
                _link(source / name, view / name)
        yield view


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # not everybody may make links everywhere
        shutil.copyfile(source, target)
