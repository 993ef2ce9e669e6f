"""`mc2 metadata`, through the one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mc2.cli import main


def test_build_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "titles.json").write_text(json.dumps({"de": ["Österreich"], "zu": ["iNingizimu Afrika"]}))
    out = str(tmp_path / "metadata")
    build = [
        "metadata",
        "build",
        "--out",
        out,
        "--unigram_languages",
        "[is]",
        "--titles",
        str(tmp_path / "titles.json"),
        "--progress",
        "false",
    ]
    assert main(build) == 0
    assert "in 3 languages, fingerprint" in capsys.readouterr().out
    assert main(["metadata", "show", "--folder", out]) == 0
    assert "is Icelandic" in capsys.readouterr().out
    assert main(["metadata", "show", "--folder", out, "--language", "de", "--number", "101"]) == 0
    assert "Österreich" in capsys.readouterr().out
    assert main(["metadata", "show", "--folder", out, "--language", "fr"]) == 1
    assert "has no metadata for 'fr', need one of de, is, zu" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "message"), [('{"de": "Wien"}', "need {language: [title, ...]}"), ("[", "not valid JSON")])
def test_titles_that_are_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str, message: str) -> None:
    (tmp_path / "titles.json").write_text(value)
    assert main(["metadata", "build", "--out", str(tmp_path / "out"), "--titles", str(tmp_path / "titles.json")]) == 1
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
