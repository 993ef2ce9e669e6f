"""Small readers of the files that data sets ship; each error names the file, and where people get it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mc2 import storage

Rows = list[dict[str, str]]


def need(path: Path, source: str) -> Path:
    """The path. Errors: ValueError if nothing is there."""
    if not path.exists():
        raise ValueError(f"{path}: not found; {source}")
    return path


def read_lines(path: Path, source: str) -> list[str]:
    """The lines of a UTF-8 file without their ends; other line separators of Unicode stay part of a line, and an empty last line is none."""
    try:
        text = need(path, source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); {source}") from error
    lines = [line.removesuffix("\r").strip() for line in text.split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def read_csv(path: Path, columns: Sequence[str], source: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header, as they are asked for. Errors: ValueError for a missing column, or without a row."""
    number = 0
    with open(need(path, source), encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: has no column {missing[0]!r}; need {', '.join(columns)}; {source}")
        for number, row in enumerate(reader, start=1):
            if any(row[column] is None for column in columns):
                raise ValueError(f"{path}: row {number} is cut off; {source}")
            yield row
    if number == 0:
        raise ValueError(f"{path}: found no row; {source}")


def read_jsonl(path: Path, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file:line", object) for every line."""
    for number, line in enumerate(read_lines(path, source), start=1):
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}); {source}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{where}: found {type(value).__name__}, need an object; {source}")
        yield where, value


def read_json(path: Path, source: str) -> Any:
    """The value of a JSON file."""
    return storage.read_json(need(path, source))


def package_file(package: str, name: str, extra: str) -> Path:
    """A data file inside an installed package, which is not imported. Errors: ValueError that names the extra to install, or says the package has no such file."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"benchmarks: {name} comes with the package {package}, which is not installed; `pip install mc2[{extra}]` or give the file"
        )
    return need(Path(spec.submodule_search_locations[0]) / name, f"the installed {package} is another release; give the file")


def check_unique(where: str, what: str, keys: Sequence[str]) -> None:
    """Errors: ValueError that names the first key that occurs twice."""
    if len(set(keys)) < len(keys):
        key, count = Counter(keys).most_common(1)[0]
        raise ValueError(f"{where}: {what} {key!r} occurs {count} times; need each once")


def check_prompts(where: str, prompts: Sequence[str]) -> None:
    """Errors: ValueError for no prompt, or one that has not exactly one {}."""
    for prompt in prompts or [""]:
        if prompt.count("{}") != 1:
            raise ValueError(f"{where}: prompt {prompt!r} has {prompt.count('{}')} places for the name; need one {{}}")
