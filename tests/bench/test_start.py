"""`mc2 bench start` on a few shards: both processes give a first batch, and the second one goes on where the first one stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mc2.bench.commands import main


def test_start_and_resume_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "start.json"
    settings = {"shards": 3, "pairs": 4, "batch": 2, "workers": 0, "repeats": 1, "image_bytes": 3000, "json": figures}
    assert main(["bench", "start", *(f"--{name}={value}" for name, value in settings.items())]) == 0
    found = json.loads(figures.read_text())
    for part in ("started", "resumed"):
        assert 0 < found[part]["imports"] < found[part]["first_batch"]
        assert f"{part}: first batch after {found[part]['first_batch']:.2f} s" in capsys.readouterr().out or part == "resumed"
    with pytest.raises(ValueError, match="found shards 0"):
        main(["bench", "start", "--shards=0"])
