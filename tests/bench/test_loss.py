"""`mc2 bench loss`: figures that can be believed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mc2.bench.commands import main
from mc2.bench.loss_speed import OURS, Setting, extra_bytes_in_a_fresh_process, inputs, make_features, step_of

SMALL = ["bench", "loss", "--batch", "300", "--dim", "16", "--repeats", "1", "--tile", "100", "--device", "cpu"]


def test_both_sides_compute_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json", str(tmp_path / "new/figures.json")]) == 0
    figures = json.loads((tmp_path / "new/figures.json").read_text())
    assert figures["largest_gradient_difference"] < 1e-4
    assert figures["sides"].keys() == {"mc2", "open_clip"}
    assert figures["seconds_ratio"] > 0
    assert {"commit", "machine", "versions"} <= figures.keys()
    assert "300 x 300 logits" in " ".join(capsys.readouterr().out.split())


def test_extra_memory_is_at_most_an_eighth() -> None:
    """Of the six matrices of 16 MiB that 2048 pairs make there; at 8192 pairs the features hardly count any more."""
    setting = Setting.checked(2048, 64, 1, None, 256, "cpu")
    ours, theirs = (extra_bytes_in_a_fresh_process(side, setting) for side in setting.sides)
    assert theirs > 4 * 2048 * 2048 * 4
    assert 0 < ours < theirs / 8


def test_simulated_ranks_count_as_columns() -> None:
    """Against a plain log-softmax over all columns; the columns of others get only my rows, as a rank would see before the exchange."""
    setting = Setting.checked(20, 8, 1, 50, 7, "cpu")
    image, text, scale = inputs(setting)
    loss_B, _ = step_of(OURS, setting)((image, text, scale))
    columns = torch.cat([text, make_features(30, setting, 2)])
    logits = scale * image @ columns.T
    need = -(logits.log_softmax(1) + logits.log_softmax(0)).diagonal().mean() / 2
    torch.testing.assert_close(loss_B.mean(), need)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--batch", "0"], "found batch 0, need at least 1"), (["--columns", "299"], "found columns 299, need at least the 300 of the batch")],
)
def test_wrong_settings_before_any_work(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([*SMALL, *arguments])
