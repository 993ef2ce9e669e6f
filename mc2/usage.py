"""From the words of a command line to the call of a function; words that are wrong become one line that says which and where help is."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jsonargparse


class UsageError(ValueError):
    """Words that no parser takes. The command ends with status 2."""


class Parser(jsonargparse.ArgumentParser):
    """Of functions. Errors: UsageError."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})  # "--step 5" would set --steps

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(explained(self, message)) from ex


class PlainParser(argparse.ArgumentParser):
    """Of options without types and YAML. Errors: UsageError."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(explained(self, message))


def call(functions: Callable[..., Any] | Mapping[str, Callable[..., Any]], argv: list[str], prog: str, description: str = "") -> Any:
    """What the function returns that the words choose, called with what they say: options are its parameters, help is its docstring.

    A single function takes what it needs in order, `mc2 compare A B`; one of several by name, `mc2 curate run --pool P`. Errors: UsageError.
    """
    several = isinstance(functions, Mapping)
    settings: dict[str, Any] = {"description": description} if description else {}
    components: Any = dict(functions) if isinstance(functions, Mapping) else functions
    return jsonargparse.auto_cli(components, args=argv, prog=prog, as_positional=not several, parser_class=Parser, **settings)


def one_line(message: str) -> str:
    """What jsonargparse says in several lines, without the types it tried in vain and the values it was given."""
    lines = [line.strip() for line in message.split("Given value type:")[0].splitlines()]
    if "Errors:" in lines:  # a union: one line for each type it tried
        key = [line for line in lines if line.startswith("Parser key")]
        tried = [line.removeprefix("- ") for line in lines[lines.index("Errors:") + 1 :]]
        lines = key + [line for line in tried if line != "Expected a <class 'NoneType'>"]
    return re.sub(r'^Parser key "([^"]*)":', r"\1:", " ".join(" ".join(lines).split()))


def explained(parser: argparse.ArgumentParser, message: str) -> str:
    """The message of a parser in one line, with what was meant perhaps, and where help is."""
    command, text = parser.prog.replace(" [options]", ""), one_line(message)
    options = {option.removeprefix("--"): option for option in parser._option_string_actions}
    if missing := re.fullmatch(r"the following arguments are required: (.*)", text):
        paths = [name.rpartition(".") for name in missing[1].split(", ")]
        command = " ".join([command, *sorted({path for path, _, _ in paths if path})])
        names = [options.get(name, f"--{name}" if path else name.upper()) for path, _, name in paths]
        text = f"need {' and '.join(names)}"
    elif choices := re.match(r'expected "subcommand" to be one of \{([^}]*)\}', text):
        text = f"found no subcommand, need one of {choices[1].replace(',', ', ')}"
    elif choice := re.match(r"argument subcommand: invalid choice: '(.*)' \(choose from (.*)\)", text):
        names = choice[2].replace("'", "").split(", ")
        text = f"found no subcommand {choice[1]!r}, need one of {', '.join(names)}{guess(choice[1], names)}"
    elif unknown := re.match(r"unrecognized arguments: (\S+)", text):
        text = f"found no option {unknown[1]}{guess(unknown[1], options.values())}"
    elif wrong := re.fullmatch(r"([\w.]+): Expected a <class '(\w+)'>(?:\. Got value: (.*))?", text):
        text = f"--{wrong[1]}: {f'found {wrong[3]}, ' if wrong[3] else ''}need {wrong[2]}"
    return f"{text}; see `{command} --help`"


def guess(word: str, names: Iterable[str]) -> str:
    """ "; did you mean --out" for --outt; nothing where no name is near."""
    plain = [name.lstrip("-") for name in names]
    begun = [name for name in plain if name.startswith(word.lstrip("-"))]
    near = begun or difflib.get_close_matches(word.lstrip("-"), plain, n=1)
    return f"; did you mean {word[: len(word) - len(word.lstrip('-'))]}{near[0]}" if near else ""
