"""What README.md and docs/ name is there: subcommands, options, YAML files and their keys, extras, folders, links. Commands are parsed by the real parsers, not run."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from mc2.cli import SUBCOMMANDS
from mc2.training.commands import command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README} | {f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
JOBS = {"train.sbatch": ["fit"], "curate.sbatch": ["curate", "run"], "evaluate.sbatch": ["test"]}  # whose words go to which command
LIGHTNING = ("fit", "validate", "test", "predict")


def arguments(line: str) -> tuple[str, ...]:
    """What `mc2` gets from a line, perhaps through srun or one of our job scripts; nothing from other lines."""
    words = [word for word in shlex.split(line, comments=True) if word != "..."] if "mc2 " in line or ".sbatch" in line else []
    for number, word in enumerate(words):
        if word == "mc2" or Path(word).name in JOBS:
            found = (*JOBS.get(Path(word).name, ()), *words[number + 1 :])
            return found if found and found[0] in SUBCOMMANDS else ()
    return ()


def commands(block: bool) -> Iterator[Any]:
    """Those of the shell blocks, which a reader copies; or those between backticks in prose and tables."""
    seen = set()
    for page, text in PAGES.items():
        lines = [line for language, inner in BLOCK.findall(text) if language == "bash" for line in inner.replace("\\\n", " ").splitlines()]
        quoted = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
        for line in lines if block else quoted:
            words = arguments(line) if block or re.match("mc2 |srun |sbatch ", line) else ()
            if words and words not in seen:
                seen.add(words)
                yield pytest.param(words, id=f"{page}: {' '.join(words)[:60]}")


# --- parsing without doing ----------------------------------------------------------------------------------------------


class Parsed(Exception):
    """Raised by a parser in the place of the work that would follow."""


@contextmanager
def parsing_only(really: bool) -> Iterator[None]:
    """The first parser that is asked raises Parsed, after it and those of its subcommands have parsed or, without `really`, at once."""
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        for parser in (jsonargparse.ArgumentParser, argparse.ArgumentParser):

            def stop(self: Any, *args: Any, _parse: Any = parser.parse_args, **settings: Any) -> Any:
                asked.append(self)
                if really or len(asked) > 1:
                    result = _parse(self, *args, **settings)
                if self is not asked[0]:
                    return result
                raise Parsed(self)

            patch.setattr(parser, "parse_args", stop)
        yield


@functools.cache
def lightning_parser() -> jsonargparse.ArgumentParser:
    """Of fit, validate, test and predict; all commands share it, because it takes long to build."""
    with parsing_only(really=False), pytest.raises(Parsed) as parsed:
        command_line([])
    parser: jsonargparse.ArgumentParser = parsed.value.args[0]
    return parser


def refusal(words: tuple[str, ...]) -> str:
    """What the subcommand's own parser says against the words; nothing if it takes them."""
    try:
        if words[0] in LIGHTNING:
            lightning_parser().parse_args(list(words))
        else:
            with parsing_only(really=True):
                import_module(SUBCOMMANDS[words[0]][0]).main(list(words))
    except Parsed:
        return ""
    except (ValueError, argparse.ArgumentError) as error:
        return str(error)
    except SystemExit as end:  # of --help, --print_config
        return f"status {end.code}" if end.code else ""
    return ""


BLOCKS, QUOTED = list(commands(block=True)), list(commands(block=False))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands find the files that they name: those of the repository and of the pages, and for those of the reader an experiment of ours."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    for name, text in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```", "".join(PAGES.values()), re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text, encoding="utf-8")
    for name in {word for param in BLOCKS + QUOTED for word in param.values[0] if re.fullmatch(r"(?!experiments/).*\.yaml", word)}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "experiments/quickstart.yaml", folder / name)
    return folder


@pytest.fixture(autouse=True)
def here(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    monkeypatch.syspath_prepend(reader)


@pytest.mark.parametrize("words", BLOCKS)
def test_a_command_of_a_block_can_be_typed(words: tuple[str, ...]) -> None:
    assert refusal(words) == ""


@pytest.mark.parametrize("words", QUOTED)
def test_a_command_in_prose_names_what_is_there(words: tuple[str, ...]) -> None:
    """It may leave out what its sentence is not about."""
    said = refusal(words)
    assert not said or said.startswith("need ") or "required" in said


SETTINGS = [
    pytest.param(inner, id=f"{page}: {' '.join(inner.split())[:60]}")
    for page, text in PAGES.items()
    for language, inner in BLOCK.findall(text)
    if language == "yaml"
]


@pytest.mark.parametrize("block", SETTINGS)
def test_settings_of_a_page_are_keys_of_an_experiment(block: str, reader: Path) -> None:
    """On top of the quickstart's; `{...}` and `[...]` stand for what the page shows elsewhere."""
    (reader / "shown.yaml").write_text(block.replace("{...}", "{}").replace("[...]", "[]"), encoding="utf-8")
    whole = "ReleasedModel" in block  # an experiment of its own
    assert (
        refusal(
            ("test", "--config", "shown.yaml") if whole else ("fit", "--config", "experiments/quickstart.yaml", "--config", "shown.yaml")
        )
        == ""
    )


# --- other names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["metadata", "curate", "tokenizer", "bench"])
def test_help_of_mc2_names_what_a_subcommand_has(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        import_module(SUBCOMMANDS[command][0]).main([command, "--help"])
    has = re.search(r"\{([\w,-]+)\}", capsys.readouterr().out)
    assert has is not None
    assert SUBCOMMANDS[command][1].split(":")[0].split(" | ") == has[1].split(",")


def test_every_subcommand_stands_in_the_table_of_the_readme() -> None:
    table = README.split("## What you can do")[1].split("\n\n")[1]
    assert [name for name in SUBCOMMANDS if f"`mc2 {name}" not in table] == []


def test_every_package_and_folder_stands_in_the_layout_of_the_readme() -> None:
    layout = README.split("## How the code is laid out")[1].split("```")[1]
    packages = {f"{path.parent.name}/" for path in (ROOT / "mc2").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "mc2").glob("*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"^  (\S+)", layout, re.MULTILINE)) == packages | modules
    assert {"mc2/", "experiments/", "notebooks/", "docs/", "tests/"} == set(re.findall(r"^(\S+)", layout.strip(), re.MULTILINE))


def test_extras_and_links_lead_somewhere() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page, text in PAGES.items():
        for names in re.findall(r"(?:mc2|\.)\[([a-z,]+)\]'", text):
            assert set(names.split(",")) <= extras.keys(), page
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
        for path in re.findall(r"`(?:experiments|docs|mc2|tests|notebooks)/[\w./-]+`", text):
            assert (ROOT / path.strip("`")).exists(), f"{page}: {path}"
