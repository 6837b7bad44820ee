"""The wheel holds the program with all its commands and files, and needs nothing of the tree."""

import json
import keyword
import re
import subprocess
import sys
import tomllib

import pytest

from exporters.format import FORMATS
from lrqat.cli import program
from tests.support.paths import ROOT

# Runs command lines, one after the other, with the wheel's folder in the place of the checkout,
# which an editable installation puts on the path. Prints exit status and output of each.
IN_WHEEL = """
import contextlib, io, json, runpy, sys
from pathlib import Path
wheel, root, lines = json.loads(sys.argv[1])
sys.path = [wheel] + [p for p in sys.path if Path(p).resolve() != Path(root)]
results = []
for line in lines:
    sys.argv = ["lrqat", *line]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module("lrqat", run_name="__main__")
        except SystemExit as stop:
            results.append((stop.code, out.getvalue()))
ours = [m for name, m in sys.modules.items() if name.split(".")[0] in ("lrqat", "exporters")]
assert all(Path(m.__file__).is_relative_to(wheel) for m in ours), "not from the wheel"
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Folder that the wheel, built from this checkout, is installed in."""
    folder = tmp_path_factory.mktemp("wheel") / "site"
    arguments = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments, str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def run_from(wheel, lines, folder):
    """(exit status, standard output) of each command line, run in `folder` from the wheel alone."""
    given = json.dumps([str(wheel), str(ROOT), [[str(a) for a in line] for line in lines]])
    command = [sys.executable, "-I", "-c", IN_WHEEL, given]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_wheel_has_every_command(wheel, tmp_path):
    lines = [["--help"], *([name, "--help"] for name in program.COMMANDS)]
    results = run_from(wheel, lines, tmp_path)
    assert [status for status, _ in results] == [0] * len(lines)
    for name, (_, shown) in zip(program.COMMANDS, results[1:], strict=True):
        assert shown.startswith(f"usage: lrqat {name} ")
        assert "tools/" not in shown


@pytest.mark.slow
def test_a_checkpoint_is_exported_and_measured_from_the_wheel_alone(
    wheel, fused_checkpoint, text_file, tmp_path
):
    measured = ["--data", text_file, "--context", 64, "--windows", 2, "--json"]
    lines = [
        ["export", fused_checkpoint, "--format", "gguf", "--output", "model.gguf"],
        ["export", fused_checkpoint, "--format", "onnx", "--output", "onnx"],
        ["inspect", "onnx", "--checkpoint", fused_checkpoint],
        ["report", fused_checkpoint, "--output", "report.html"],
        ["evaluate", fused_checkpoint, *measured],
        ["evaluate", "onnx", *measured],
        ["evaluate", "model.gguf", *measured],
    ]
    results = run_from(wheel, lines, tmp_path)
    assert [status for status, _ in results] == [0] * len(lines)
    assert (tmp_path / "report.html").read_text().count('role="img"') > 10
    assert (tmp_path / "onnx" / "README.md").read_text().startswith("# ")
    reference, onnx, gguf = (json.loads(shown)["perplexity"] for _, shown in results[4:])
    assert onnx == pytest.approx(reference, rel=1e-5)
    assert gguf == pytest.approx(reference, rel=2e-2)


@pytest.mark.slow
def test_the_program_of_the_wheel_starts(wheel, tmp_path):
    command = [str(wheel / "bin" / "lrqat"), "--version"]
    environment = {"PYTHONPATH": str(wheel)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.split()[0]) == (0, "lrqat")


def test_the_program_lists_its_commands_without_torch_or_numpy():
    code = (
        "import sys\n"
        "from lrqat.cli.program import dispatch\n"
        "assert dispatch(['--help']) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name, summary in program.COMMANDS.items():
        assert f"  {name:<10}{summary}\n" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80, "of a terminal"


def test_no_help_loads_torch():
    """Of any command, also of one that is added, with whatever else it has to say."""
    calls = [[name, "--help"] for name in program.COMMANDS]
    calls += [["export", "--format", name, "--help"] for name in FORMATS]
    calls += [["--version"], ["train", "--help-all"], ["--print-completion", "bash"]]
    code = (
        "import sys\n"
        "from lrqat.cli.program import dispatch\n"
        f"for call in {calls}:\n"
        "    try:\n"
        "        dispatch(call)\n"
        "    except SystemExit as done:\n"
        "        assert done.code in (0, None), call\n"
        "    loaded = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    assert not loaded, (call, loaded)\n"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name in program.COMMANDS:
        assert f"usage: lrqat {name} " in ran.stdout
    assert "default: None" not in ran.stdout


def test_tools_has_every_command_and_they_are_alike():
    """`python tools/NAME.py` is `lrqat NAME` from a checkout; the rest measures."""
    files = {path.stem: path.read_text() for path in (ROOT / "tools").glob("[!_]*.py")}
    assert files.keys() == {*program.COMMANDS, "bench", "random_model"}
    plain = [name for name in program.COMMANDS if not keyword.iskeyword(name)]
    for name in plain:
        imports = ", ".join(sorted(["command", name]))
        expected = files["train"].replace("`lrqat train`", f"`lrqat {name}`")
        expected = expected.replace("command, train\n", f"{imports}\n")
        assert files[name] == expected.replace("(train.main)", f"({name}.main)"), name
    for name in ("inspect", "import"):  # of a library's name, and of a keyword's
        command = [sys.executable, ROOT / "tools" / f"{name}.py", "--help"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert f"usage: {name}.py " in ran.stdout


def test_a_command_that_does_not_exist_names_the_nearest(capsys):
    with pytest.raises(program.UserError, match="did you mean train"):
        program.dispatch(["trian"])
    assert program.dispatch([]) == 2
    assert "usage: lrqat COMMAND" in capsys.readouterr().out


def test_a_shell_completes_every_command_and_option(capsys):
    assert program.dispatch(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0
    for part in (
        *program.COMMANDS,
        "--grid-for",
        "--accuracy-levels",
        "--checkpoint",
        "--save-config",
    ):
        assert part in script
    with pytest.raises(program.UserError, match="did you mean bash"):
        program.dispatch(["--print-completion", "bsh"])


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, capsys):
    from lrqat.cli import command

    def missing(name):
        def main(argv):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return main

    monkeypatch.setattr(
        "importlib.metadata.requires",
        lambda name: ["onnx>=1.21; extra == 'onnx'", "onnx-ir>=1.1; extra == 'onnx'", "torch>=2"],
    )
    with pytest.raises(SystemExit) as stop:
        command.run(missing("onnx_ir.passes"))
    assert stop.value.code == 2
    assert "pip install 'lrqat[onnx]'" in capsys.readouterr().err
    for name in ("torch", "lrqat.gone", "onnx_i"):
        with pytest.raises(ModuleNotFoundError):
            command.run(missing(name))


def test_every_extra_that_a_message_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    sources = [*(ROOT / "lrqat").rglob("*.py"), *(ROOT / "exporters").rglob("*")]
    texts = [path.read_text() for path in sources if path.suffix in (".py", ".md")]
    named = {n for text in texts for found in re.findall(r"lrqat\[([a-z0-9,-]+)\]", text)
             for n in found.split(",")}  # fmt: skip
    assert named
    assert named <= extras.keys()
    assert {"gguf", "onnx", "onnx-genai"} <= extras.keys(), "load_format names them by the format"
