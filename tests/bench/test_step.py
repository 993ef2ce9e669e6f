"""The benchmark of a training step, small: both sides do the same work. Never how fast."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch

from mc2.bench import step_speed
from mc2.bench.step_speed import Batch, Setting, exempt, measure, our_step, their_step
from mc2.cli import main
from mc2.interchange.open_clip_folder import model_cfg
from mc2.interchange.weight_names import to_theirs
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.vision_tower import VisionConfig
from mc2.training.optimizer import decays

CONFIG = TwoTowerConfig(16, VisionConfig(image_size=32, patch_size=16, width=64, layers=2, heads=1), TextConfig(50, 8, 64, 2, 1))
SETTING = Setting(CONFIG, batch=6, precision="32-true", compile=False, steps=1, repeats=1, device="cpu")


def test_both_sides_take_the_same_steps() -> None:
    """Equal losses after steps too: the gradients, the optimizer and what it decays are equal."""
    torch.manual_seed(0)
    towers, batch = TwoTower(CONFIG), Batch.random(CONFIG, 6, "cpu")
    theirs = their_step(SETTING, towers, batch)  # copies the weights
    ours = our_step(SETTING, towers, batch)
    losses = [(float(ours()), float(theirs())) for _ in range(5)]
    assert losses[0][0] > 1.2 * losses[4][0]
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=2e-3)  # AdamW's first steps are signs: rounding near 0 shows


def test_the_same_parameters_decay() -> None:
    towers = TwoTower(CONFIG)
    cfg = model_cfg(towers)
    model = open_clip.CLIP(cfg["embed_dim"], cfg["vision_cfg"], step_speed.text_cfg(cfg["text_cfg"]))
    theirs = sum(p.numel() for name, p in model.named_parameters() if not exempt(name, p))
    assert theirs == sum(p.numel() for p in towers.parameters() if decays(p))


def test_sides_that_differ_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_speed, "to_theirs", lambda weights, places: {k: 2 * v for k, v in to_theirs(weights, places).items()})
    with pytest.raises(ValueError, match="the sides do not do the same work"):
        measure(SETTING)


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--vocab_size", "100", "--batch", "2", "--steps", "1", "--repeats", "2", "--device", "cpu", "--json", str(path)]
    assert main(["bench", "step", *arguments]) == 0
    figures = json.loads(path.read_text())
    ours, theirs = figures["sides"]["mc2"], figures["sides"]["open_clip"]
    assert figures["ratio"] == pytest.approx(ours["pairs_per_second"] / theirs["pairs_per_second"])
    assert len(ours["pairs_per_second_of_each_round"]) == 2
    assert ours["mfu"] is None  # no number rather than a wrong one
    assert {"commit", "machine", "versions", "sample"} <= set(figures)
    assert "as many pairs a second as open_clip" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "message"), [({"batch": 0}, "found batch 0"), ({"steps": 0}, "found steps 0")])
def test_what_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTING, **change)  # type: ignore[arg-type]
