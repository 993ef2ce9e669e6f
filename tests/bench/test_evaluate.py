"""The benchmark of an evaluation, small: both sides find the same accuracies. Never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mc2.bench import evaluate_speed, retrieval_memory
from mc2.cli import main

SMALL = ["--languages", "2", "--images", "12", "--classes", "5", "--batch", "5", "--size", "tiny"]


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With two processes, and the memory of retrieval: the features at least, and no more than the goal."""
    path = tmp_path / "figures.json"
    monkeypatch.setattr(retrieval_memory, "IMAGES", 300)
    monkeypatch.setattr(retrieval_memory, "CAPTIONS", 700)
    assert main(["bench", "evaluate", *SMALL, "--processes", "2", "--retrieval", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["processes"]["ratio"] == pytest.approx(figures["processes"]["seconds_of_one"] / figures["processes"]["seconds_of_all"])
    retrieval = figures["retrieval"]
    assert (retrieval["images"], retrieval["captions"], len(retrieval["codes"])) == (300, 700, 1)
    assert 4 * retrieval["embed_dim"] * (300 + 700) < retrieval["extra_bytes"] < 1e9
    assert retrieval["seconds"] > 0
    assert figures["ratio"] == pytest.approx(figures["sides"]["clip-benchmark"]["seconds"] / figures["sides"]["mc2"]["seconds"])
    assert {"commit", "machine", "versions", "sample"} <= set(figures)
    assert "as fast as clip-benchmark's loop over languages" in " ".join(capsys.readouterr().out.split())


def test_sides_that_differ_are_no_measurement(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(evaluate_speed, "our_side", lambda *_: {"af": 2.0})
    monkeypatch.setattr(evaluate_speed, "their_side", lambda *_: {"af": 0.5})
    assert main(["bench", "evaluate", *SMALL]) == 1
    assert "1 languages differ, af: 2.0 here and 0.5 in clip-benchmark" in capsys.readouterr().err


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "evaluate", "--images", "3"]) == 1
    assert "found 16 classes for 3 images" in capsys.readouterr().err
