"""The shape of the project: imports go down, files and functions stay small."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Every sub-package and what it may import; itself it always may. Nothing else is allowed, so an
# import that runs upwards, or a new sub-package, is a decision that is taken here.
_CORE = {"lrqat", "lrqat.atomic_files", "lrqat.grids"}
_MODEL = _CORE | {"lrqat.checkpoint", "lrqat.layers", "lrqat.init", "lrqat.activations"}
_TRAINING = _MODEL | {"lrqat.cards", "lrqat.models", "lrqat.evaluation", "lrqat.recipes"}
_EXPORTER = _CORE | {"lrqat.checkpoint", "exporters"}
_RUNTIMES = _TRAINING | {"exporters", "exporters.gguf", "exporters.onnx", "exporters.onnx_genai"}
_ALL = _RUNTIMES | {
    "lrqat.training",
    "lrqat.runtimes",
    "lrqat.budget",
    "lrqat.importing",
    "lrqat.publication",
}
ALLOWED = {
    "lrqat": set(),
    "lrqat.atomic_files": {"lrqat"},
    "lrqat.grids": {"lrqat"},
    "lrqat.checkpoint": _CORE,
    "lrqat.layers": _CORE,
    "lrqat.cards": _CORE | {"lrqat.checkpoint", "lrqat.layers"},
    "lrqat.init": _CORE | {"lrqat.layers"},
    "lrqat.activations": _CORE | {"lrqat.layers"},
    "lrqat.recipes": _CORE,
    # A GGUF file may be the base model.
    "lrqat.models": _MODEL | {"lrqat.cards", "lrqat.recipes", "exporters.gguf"},
    # A GGUF file may be imported; what is written is what fusing writes. Configurations of others
    # have patterns of names, as recipes have.
    "lrqat.importing": _CORE
    | {
        "lrqat.cards",
        "lrqat.checkpoint",
        "lrqat.models",
        "lrqat.recipes",
        "exporters.gguf",
    },
    "lrqat.evaluation": {"lrqat", "lrqat.atomic_files"},
    "lrqat.budget": _TRAINING,
    "lrqat.training": _TRAINING | {"lrqat.budget"},
    "lrqat.runtimes": _RUNTIMES,
    "lrqat.demo": _RUNTIMES | {"lrqat.training", "lrqat.runtimes"},
    "lrqat.publication": _EXPORTER | {"lrqat.cards"},
    "lrqat.doctor": _ALL,
    "lrqat.reporting": _ALL,
    "lrqat.cli": _ALL | {"lrqat.demo", "lrqat.doctor", "lrqat.reporting"},
    "exporters": _EXPORTER - {"exporters"},
    "exporters.gguf": _EXPORTER | {"lrqat.activations", "lrqat.cards", "lrqat.recipes"},
    "exporters.onnx": _EXPORTER | {"lrqat.activations"},
    "exporters.onnx_genai": _EXPORTER | {"exporters.onnx"},
    "benchmarks": _ALL | {"lrqat.cli", "lrqat.demo"},
    "tools": {"lrqat.cli", "benchmarks"},
}
TOPS = {name.split(".")[0] for name in ALLOWED}
# What stands at the top for whoever comes from outside: `python -m lrqat` is the program, and
# `lrqat.data` the text for Python users. What `lrqat` offers is imported when it is asked for.
ENTRANCE = {
    Path("lrqat/__main__.py"): {"lrqat.cli"},
    Path("lrqat/data.py"): {"lrqat.training"},
}


def sources(top):
    return sorted((ROOT / top).rglob("*.py"))


def package_of(dotted):
    """The sub-package of a module: the longest name in the table that it begins with."""
    parts = dotted.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in ALLOWED), parts[0])


def imported(path):
    """Dotted names that a file imports anywhere, the names of `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        # A relative import has no package in its name, and would slip past the checks below.
        assert not getattr(node, "level", 0), path
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("top", sorted(TOPS))
def test_imports_go_down(top):
    assert sources(top)
    for path in sources(top):
        own = path.relative_to(ROOT)
        here = package_of(".".join(own.with_suffix("").parts).removesuffix(".__init__"))
        there = {package_of(name) for name in imported(path) if name.split(".")[0] in TOPS}
        assert there - {here} <= ALLOWED[here] | ENTRANCE.get(own, set()), path


def test_the_table_has_no_circle_and_no_stranger():
    """Whatever may be imported stands lower; and every folder of ours is in the table."""
    placed, left = set(), dict(ALLOWED)
    while left:
        floor = {name for name, below in left.items() if below <= placed}
        assert floor, f"a circle among {sorted(left)}"
        placed |= floor
        left = {name: below for name, below in left.items() if name not in floor}
    folders = {path.parent.relative_to(ROOT).parts[:2] for path in sources("lrqat")}
    assert {".".join(parts) for parts in folders} == {n for n in ALLOWED if n.startswith("lrqat")}


def lines_of(node, text):
    """Lines of a module, function or class without those of its docstring."""
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", text.count("\n"))
    docstring = ast.get_docstring(node, clean=False)
    return last - first + 1 - (docstring.count("\n") + 1 if docstring else 0)


@pytest.mark.parametrize("top", sorted(TOPS | {"tests", "runtime_tests"}))
def test_files_and_functions_are_small(top):
    """At most 300 and 40 lines without docstrings."""
    longer = set()
    for path in sources(top):
        assert path.name != "utils.py"
        text, own = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        tree = ast.parse(text)
        if lines_of(tree, text) > 300:
            longer.add(own)
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in ast.walk(tree) if isinstance(node, functions)]
        longer |= {f"{own}: {node.name}" for node in found if lines_of(node, text) > 40}
    assert not longer


def test_importing_lrqat_or_reading_a_checkpoint_loads_no_torch(fused_checkpoint):
    code = (
        "import sys, lrqat\n"
        "c = lrqat.Checkpoint.open(sys.argv[1]); c.quantized(c.quantized_names[0])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(fused_checkpoint)], check=True)


def test_every_public_name_is_there_and_no_module_has_it():
    """`lrqat.prepare` is the function, whatever has been imported before."""
    import lrqat

    for name in lrqat.__all__:
        assert getattr(lrqat, name) is not None
        assert importlib.util.find_spec(f"lrqat.{name}") is None, name


def test_bars_are_ours():
    """`lrqat.progress` knows a log file from a terminal; tqdm alone does not."""
    for path in [path for top in TOPS - {"benchmarks"} for path in sources(top)]:
        if path != ROOT / "lrqat" / "progress.py":
            assert not any(name.split(".")[0] == "tqdm" for name in imported(path)), path


def test_what_stands_at_the_entrance_is_for_those_outside():
    """Nothing of ours imports it, so that there is one way to each name, and no circle."""
    doors = {".".join(path.with_suffix("").parts) for path in ENTRANCE}
    for path in [path for top in TOPS for path in sources(top)]:
        inside = {
            name for name in imported(path) if any(f"{name}.".startswith(f"{d}.") for d in doors)
        }
        assert not inside, path
