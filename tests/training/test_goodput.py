"""Wall time of a run folder over its starts, by hand; the tables of the board."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mc2.training.board import flat
from mc2.training.goodput import FILE, Goodput
from mc2.training.pictures import Pictures, caption_table, side_by_side


def test_a_crash_and_its_restart(tmp_path: Path) -> None:
    """100 steps in 200 s, saved at 60, killed; 30 s later a process starts and trains 10 s after."""
    first = Goodput.read(tmp_path)
    first.restart(step=0, started=1000.0, now=1010.0)
    first.num_steps = 100
    for part, seconds in (("step", 200.0), ("data", 20.0), ("checkpoint", 5.0), ("evaluation", 15.0)):
        first.add(part, seconds)
    first.write(tmp_path, step=100, now=1250.0)
    second = Goodput.read(tmp_path)
    second.restart(step=60, started=1280.0, now=1290.0)
    assert dict(second.seconds) == {
        "step": 120.0,  # 40 of 100 steps are made again
        "lost": 80.0,
        "data": 20.0,
        "checkpoint": 5.0,
        "evaluation": 15.0,
        "start": 20.0,
        "down": 30.0,
    }
    assert second.shares()["goodput"] == pytest.approx(120 / 290)
    assert sum(second.shares().values()) == pytest.approx(1)


def test_a_new_run_forgets_an_old_one_and_a_broken_file(tmp_path: Path) -> None:
    goodput = Goodput.read(tmp_path)
    goodput.add("step", 5.0)
    goodput.write(tmp_path, step=3, now=10.0)
    again = Goodput.read(tmp_path)
    again.restart(step=0, started=20.0, now=21.0)
    assert dict(again.seconds) == {"start": 1.0}
    (tmp_path / FILE).write_text("{")
    assert Goodput.read(tmp_path) == Goodput()


def test_captions_and_what_is_nearest() -> None:
    captions = ["a fox", "ein | Fuchs", "renard"]
    cosine = torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.8, 0.1]])
    rows = caption_table(captions, ["en", "de", "fr"], cosine, nearest=2).splitlines()[2:]
    assert rows == [
        "| 1 | en a fox | 3 of 3 | ein \\| Fuchs, renard |",
        "| 2 | de ein \\| Fuchs | 1 of 3 | **ein \\| Fuchs**, a fox |",
    ]
    assert side_by_side(torch.zeros(3, 3, 5, 6, dtype=torch.uint8)).shape == (3, 5, 3 * (6 + 4))
    with pytest.raises(ValueError, match=r"pictures: found every_n_steps 0"):
        Pictures(every_n_steps=0)


def test_settings_by_dotted_keys() -> None:
    nested = {"class_path": "a.B", "init_args": {"towers": {"embed_dim": 8, "names": [1]}, "loss": None, "tile": 2}}
    assert flat(nested, "model.") == {"model.towers.embed_dim": 8, "model.tile": 2}
