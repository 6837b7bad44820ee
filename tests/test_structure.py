"""The shape of the project: imports run one way, files and functions stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lrqat", "exporters", "runtime_tests", "tools")
ALLOWED = {
    "lrqat": {"lrqat"},
    "exporters": {"exporters", "lrqat"},
    "runtime_tests": {"runtime_tests", "exporters", "lrqat"},
    "tools": {"tools", "runtime_tests", "exporters", "lrqat"},
}
# What an exporter may know of lrqat: the grids and the checkpoint, never the training.
FOR_EXPORTERS = {
    "__version__", "activations", "checkpoint", "errors", "grid", "manifest", "publish",
    "stored_ranges", "write_json",
}  # fmt: skip


def sources(package):
    return [p for p in (ROOT / package).rglob("*.py") if not p.name.startswith(("test_", "conft"))]


def imported(path):
    """Dotted names that a file imports anywhere, the names of `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        # A relative import has no package in its name, and would slip past the checks below.
        assert not getattr(node, "level", 0), path
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    assert sources(package)
    for path in sources(package):
        ours = {name.split(".")[0] for name in imported(path)} & set(PACKAGES)
        assert ours <= ALLOWED[package], path


def test_exporters_know_only_the_grid_and_the_checkpoint():
    for path in sources("exporters"):
        names = set(imported(path))
        assert "lrqat" not in names, f"{path}: import names of lrqat, so that this test sees them"
        parts = {name.split(".")[1] for name in names if name.startswith("lrqat.")}
        assert parts <= FOR_EXPORTERS, path


def test_the_two_exporters_do_not_know_each_other():
    for one, other in (("gguf", "onnx"), ("onnx", "gguf")):
        for path in sources(f"exporters/{one}"):
            assert not any(name.startswith(f"exporters.{other}") for name in imported(path)), path


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_are_small(package):
    for path in sources(package):
        text = path.read_text(encoding="utf-8")
        assert path.name != "utils.py"
        assert text.count("\n") <= 310, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                length = node.end_lineno - node.lineno - docstring.count("\n")
                assert length <= 60, f"{path}: {node.name}"


def test_importing_lrqat_or_reading_a_checkpoint_loads_no_torch(fused_checkpoint):
    code = (
        "import sys, lrqat; from lrqat.checkpoint import Checkpoint\n"
        "c = Checkpoint.open(sys.argv[1]); c.quantized(c.quantized_names[0])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(fused_checkpoint)], check=True)


def test_every_public_name_is_there():
    import lrqat

    assert all(getattr(lrqat, name) is not None for name in lrqat.__all__)
