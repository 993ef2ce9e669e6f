"""Jobs on a real SLURM of two nodes: the scripts of experiments/slurm, preemption, requeueing, and what goes wrong there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mc2.training.commands import main
from tests.data.shards import small_tokenizer, write_folder
from tests.processes import run_processes
from tests.slurm_cluster import Cluster, cluster, wait_until, why_not
from tests.training.test_commands import scalars
from tests.training.tiny import fit_config

SCRIPTS = Path(__file__).parents[2] / "experiments/slurm"
STEPS = 14
pytestmark = [pytest.mark.skipif(why_not() is not None, reason=f"SLURM: {why_not()}"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def config(slurm: Cluster) -> dict[str, Any]:
    """Two nodes with a process each, FSDP2, real shards; every rank keeps a list of what it has seen."""
    settings = fit_config(slurm.folder / "overruled", STEPS)
    shards = write_folder(slurm.folder / "shards", [9, 12, 4, 10, 7, 13])
    settings["data"] = {
        "class_path": "mc2.data.datamodule.ShardDataModule",
        "init_args": {
            "shards": str(shards),
            "tokenizer": str(small_tokenizer(slurm.folder / "tokenizer")),
            "batch_size": 4,
            "steps_per_epoch": 5,
            "num_workers": 1,
            "context_length": 8,
            "shuffle_block": 3,
            "val_pairs": 8,
            "preprocess": {"class_path": "mc2.data.preprocess.ImagePreprocess", "init_args": {"image_size": 16}},
        },
    }
    settings["trainer"] |= {
        "num_nodes": 2,
        "devices": 1,
        "strategy": {
            "class_path": "mc2.training.parallel.FSDP2Strategy",
            "init_args": {"save_distributed_checkpoint": True, "timeout_minutes": 1},
        },
        "callbacks": [{"class_path": "tests.training.tiny.Seen", "init_args": {"pause": 0.3}}],
    }
    del settings["trainer"]["enable_progress_bar"]  # the script's own default
    settings["checkpoints"] = {"every_n_steps": 2, "async_save": True}
    return settings


def seen(run: Path) -> list[list[str]]:
    """For both ranks the lines "step loss keys"."""
    files = [run / f"seen-{rank}" for rank in (0, 1)]
    return [file.read_text().splitlines() if file.exists() else [] for file in files]


def undisturbed(config: Path, run: Path) -> None:
    """The same run in two processes of this machine."""
    over = [
        "--trainer.num_nodes",
        "1",
        "--trainer.devices",
        "2",
        "--trainer.default_root_dir",
        str(run),
        "--data.init_args.num_workers",
        "0",
    ]
    assert main(["fit", "--config", str(config), *over]) == 0


def test_a_run_that_was_preempted_and_ran_out_of_time_equals_one_that_was_never_disturbed(slurm: Cluster, config: dict[str, Any]) -> None:
    """SIGTERM when another job takes the nodes, SIGUSR1 as before the time limit; each time the job comes back by itself and goes on in its folder."""
    path = slurm.folder / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    job = slurm.submit("--nodes=2", "--cpus-per-task=1", "--job-name=tiny", SCRIPTS / "train.sbatch", "--config", path)
    run = slurm.folder / f"runs/tiny-{job}"
    run_processes(undisturbed, [(path, slurm.folder / "whole")] * 2, join=False, timeout=240)
    wait_until(lambda: len(seen(run)[1]) >= 3, 240, lambda: slurm.output(job))
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    slurm.wait(job, "PENDING")
    first = len(seen(run)[1])
    slurm.wait(urgent, "COMPLETED")
    wait_until(lambda: len(seen(run)[1]) >= first + 3, 240, lambda: slurm.output(job))
    slurm.command("scancel", "--signal=USR1", job)
    slurm.wait(job, "PENDING")
    second = len(seen(run)[1])
    slurm.wait(job, "COMPLETED")
    assert 3 <= first < second < STEPS
    assert seen(run) == seen(slurm.folder / "whole")
    assert seen(run)[0] != seen(run)[1]
    assert [len(lines) for lines in seen(run)] == [STEPS] * 2
    parts, whole = scalars(run), scalars(slurm.folder / "whole")
    assert parts["train/loss"] == whole["train/loss"]
    assert set(parts["train/loss"]) == set(range(STEPS))
    said = slurm.output(job)
    for start in (1, 2, 3):
        assert f"job {job}, start {start}, on node[1-2]: runs/tiny-{job}" in said
    assert said.count("and is queued again") == 2
    assert "ended with status 143" in said
    assert "ended with status 138" in said
    assert os.listdir(run / "checkpoints/last.ckpt")
