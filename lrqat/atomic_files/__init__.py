"""Putting finished files in place: all of them, or none, and never over something without leave.

Whatever is written here appears whole or not at all, however the process ends:

    replaced_file, replaced_files    files in a folder that is somebody's
    replaced_folder                  a folder that is ours alone, such as an ONNX export
    staged_folder                    a folder that also holds what is not replaced, such as states

Work in progress lies beside its target, under names that begin with a dot. A lock says which
process it belongs to, so what a killed one left is recognised and removed by the next that writes
there (`locked`, `recover`, `is_present`).
"""

from lrqat.atomic_files.files import (
    fsync,
    is_present,
    refuse_present,
    replaced_file,
    replaced_files,
    umask,
    write_json,
)
from lrqat.atomic_files.folders import (
    is_unsettled,
    recover,
    refuse_occupied,
    replaced_folder,
    staged_folder,
    sweep,
    sweep_leftovers,
)
from lrqat.atomic_files.foresight import refuse_unwritable
from lrqat.atomic_files.locks import locked
from lrqat.atomic_files.overlap import refuse_overlap
from lrqat.atomic_files.refusals import explain_os_errors, refuse_existing

__all__ = [
    "explain_os_errors",
    "fsync",
    "is_present",
    "is_unsettled",
    "locked",
    "recover",
    "refuse_existing",
    "refuse_occupied",
    "refuse_overlap",
    "refuse_present",
    "refuse_unwritable",
    "replaced_file",
    "replaced_files",
    "replaced_folder",
    "staged_folder",
    "sweep",
    "sweep_leftovers",
    "umask",
    "write_json",
]
