"""Every YAML of the quickstart trains for two steps (those of the recipe: tests/training/test_recipe.py); and the numbers of a finished quickstart, where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mc2.benchmarks.results import read_results
from mc2.quickstart.run import Quickstart
from mc2.training.commands import main
from tests.data.shards import small_tokenizer, write_folder
from tests.training.test_recipe import merged

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs/quickstart"
PARENTS = {
    "quickstart_english.yaml": "quickstart.yaml",
    "quickstart_distilled.yaml": "quickstart.yaml",
}  # an ablation holds only what differs from its parent


@pytest.mark.timeout(900)
@pytest.mark.parametrize("experiment", sorted(path.name for path in (ROOT / "experiments").glob("quickstart*.yaml")))
def test_every_experiment_trains_for_two_steps(experiment: str, quickstart_run: Quickstart, tmp_path: Path) -> None:
    """The command of the YAML's own head, with the debug overlay, on the folders of a small quickstart."""
    chain = [*([PARENTS[experiment]] if experiment in PARENTS else []), experiment, "overlays/debug.yaml"]
    configs = []
    for name in chain:
        path = tmp_path / Path(name).name
        path.write_text((ROOT / "experiments" / name).read_text(encoding="utf-8").replace("runs/quickstart", str(quickstart_run.out)))
        configs += ["--config", str(path)]
    command = [sys.executable, "-m", "mc2", "fit", *configs, "--trainer.default_root_dir", str(tmp_path / "run")]
    done = subprocess.run([*command, "--data.init_args.batch_size", "16"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {row.task for row in read_results(tmp_path / "run/results.csv")} == {"emoji_held_out", "emoji_plain", "flags"}
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


MODELS = sorted((ROOT / "experiments/models").glob("*.yaml"))


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_own_data_takes_any_model(model: Path) -> None:
    """Nothing of the first file stays in towers or preprocessing."""
    both, alone = merged([ROOT / "experiments/own_data.yaml", model]), merged([model])
    assert both["model"]["init_args"]["towers"] == alone["model"]["init_args"]["towers"]
    assert both["data"]["init_args"]["preprocess"] == alone["data"]["init_args"]["preprocess"]


def test_own_data_trains_for_two_steps(tmp_path: Path) -> None:
    """The command of the README, on a few small shards."""
    argv = ["fit"]
    for name in ("own_data.yaml", "models/tiny.yaml", "overlays/debug.yaml"):
        argv += ["--config", str(ROOT / "experiments" / name)]
    argv += ["--data.init_args.shards", str(write_folder(tmp_path / "shards", [40])), "--data.init_args.balance", "null"]
    argv += ["--data.init_args.tokenizer", str(small_tokenizer(tmp_path / "tokenizer")), "--data.init_args.batch_size", "8"]
    argv += ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(argv) == 0
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.skipif(not (RUN / "results.csv").exists(), reason="no finished quickstart here; `mc2 quickstart` makes one")
@pytest.mark.parametrize(
    ("task", "group", "least", "num_candidates"),
    [("emoji_held_out", "mean", 0.40, 400), ("flags", "mean:left out - script seen", 0.25, 200)],
)
def test_quickstart_reaches_its_bars(task: str, group: str, least: float, num_candidates: int) -> None:
    row = next(r for r in read_results(RUN / "results.csv") if (r.task, r.language, r.metric) == (task, group, "top1"))
    assert row.value >= least
    assert row.num_candidates >= num_candidates
