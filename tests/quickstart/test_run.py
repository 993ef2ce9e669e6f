"""`mc2 quickstart` from end to end on a few drawings, run again, interrupted, and refused; and the report that it leaves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import mc2
from mc2.benchmarks.results import COLUMNS, read_results
from mc2.quickstart.run import Quickstart, run_mc2


def files(folder: Path) -> dict[str, bytes]:
    """Everything but logs and checkpoints, which have clocks in them."""
    skipped = ("events.", "last.ckpt", "step=")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(skipped)
    }


@pytest.mark.timeout(600)
def test_a_second_run_changes_nothing(quickstart_run: Quickstart, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(quickstart_run.out)
    quickstart_run.run()
    assert files(quickstart_run.out) == before
    assert f"Open {quickstart_run.out}/report.html" in capsys.readouterr().out


@pytest.mark.timeout(600)
def test_results_and_model_are_what_the_readme_says(quickstart_run: Quickstart) -> None:
    assert (quickstart_run.out / "results.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    results = read_results(quickstart_run.out / "results.csv")
    assert {row.task for row in results} == {"emoji_held_out", "emoji_plain", "flags"}
    held_out = [row for row in results if row.task == "emoji_held_out" and row.metric == "top1" and not row.is_mean]
    assert len(held_out) == 14
    assert all((row.num_samples, row.num_candidates) == (6, 6) for row in held_out)
    clip = mc2.load(quickstart_run.out / "model")
    image_ND = clip.encode_image([Image.new("RGB", (100, 50), "red"), Image.new("L", (9, 9))])
    assert image_ND.shape == clip.encode_text(["ein Fuchs", "キツネ"]).shape == (2, 192)
    assert image_ND.norm(dim=1).tolist() == pytest.approx([1, 1])


@pytest.mark.timeout(600)
def test_report_is_one_file_that_names_nothing_outside_itself(quickstart_run: Quickstart) -> None:
    page = (quickstart_run.out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert page.count("<img") == page.count('src="data:image/') > 10
    assert "&lt;b&gt;猫&lt;/b&gt;" in page
    assert "<b>猫</b>" not in page
    assert 'dir="rtl"' in page
    assert "mean of seen" in page


@pytest.mark.timeout(600)
def test_a_folder_of_other_settings_is_refused(quickstart_run: Quickstart) -> None:
    with pytest.raises(
        ValueError, match=r"pool: belongs to another run \(seed: found 0, need 1\); choose another output folder or delete this one"
    ):
        Quickstart(quickstart_run.out, seed=1).run()


@pytest.mark.timeout(600)
def test_checkpoint_ranks_texts_for_an_image(quickstart_run: Quickstart, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.jpg")
    train = quickstart_run.out / "train"
    run_mc2(
        "predict",
        "--config",
        train / "config.yaml",
        "--ckpt_path",
        "last",
        "--images",
        f"[{tmp_path}/blue.jpg]",
        "--texts",
        "[ein Fuchs, 猫]",
    )
    output = capfd.readouterr().out
    assert "ein Fuchs" in output
    assert "猫" in output


def test_a_failed_subcommand_is_an_error_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"`mc2 curate` failed with status 1; its message is above"):
        run_mc2("curate", "pack", "--pool", "nowhere", "--matched", "nowhere", "--balance", "nowhere", "--out", "nowhere")
    assert "nowhere" in capfd.readouterr().err


def test_help_explains_every_option() -> None:
    output = subprocess.run([sys.executable, "-m", "mc2", "quickstart", "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("out", "seed", "dirt", "english_threshold", "vocab_size", "steps", "workers", "queries"):
        line = re.search(rf"--{option} \S+(.+?)(?=\n  --|\Z)", output, re.DOTALL)
        assert line, option
        assert len(line.group(1).split("(type")[0].split()) >= 3, option
