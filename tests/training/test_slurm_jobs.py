"""Jobs on a real SLURM of two nodes: the scripts of experiments/slurm, preemption, requeueing, and what goes wrong there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mc2.metadata.build import build_metadata
from mc2.training.commands import main
from tests.curation.pools import write_pool
from tests.data.shards import small_tokenizer, write_folder
from tests.engines.test_curation import WORDS
from tests.processes import run_processes
from tests.slurm_cluster import Cluster, cluster, wait_until, why_not
from tests.training.test_commands import scalars
from tests.training.tiny import fit_config

MC2 = f"{sys.executable} -m mc2"
SCRIPTS = Path(__file__).parents[2] / "experiments/slurm"
STEPS = 14
pytestmark = [pytest.mark.skipif(why_not() is not None, reason=f"SLURM: {why_not()}"), pytest.mark.timeout(900)]


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
    assert said.count("has saved its place and is queued again") == 2
    assert os.listdir(run / "checkpoints/last.ckpt")


def processes(job: str, node: str) -> list[int]:
    """Everything of a job on one of the nodes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURMD_NODENAME={node}".encode() in environment and f"SLURM_JOB_ID={job}".encode() in environment:
            found.append(int(folder.name))
    return found


def test_a_node_that_freezes_is_named_and_the_job_goes_on_when_it_is_back(slurm: Cluster, config: dict[str, Any]) -> None:
    """As without power: nothing of it answers, and no connection is closed."""
    path = slurm.folder / "freezes.yaml"
    trainer = {**config["trainer"], "max_steps": 8}
    path.write_text(yaml.safe_dump({**config, "trainer": trainer, "nodes": {"silent_seconds": 6}}))
    job = slurm.submit("--nodes=2", "--cpus-per-task=1", "--job-name=frozen", SCRIPTS / "train.sbatch", "--config", path)
    run = slurm.folder / f"runs/frozen-{job}"
    wait_until(lambda: len(seen(run)[1]) >= 3, 240, lambda: slurm.output(job))
    node = [slurm.daemons["node2"].pid, *processes(job, "node2")]
    for process in node:
        os.kill(process, signal.SIGSTOP)
    wait_until(lambda: f"job {job} is queued again" in slurm.output(job), 60, lambda: slurm.output(job))
    assert "mc2 fit on node1: node node2 has not answered for 6 s and counts as lost; the run ends here" in slurm.output(job)
    for process in node:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    slurm.wait(job, "COMPLETED")
    last = [lines[-1].split()[0] for lines in seen(run)]
    assert last == ["8", "8"]
    assert set(scalars(run)["train/loss"]) == set(range(8))


@pytest.fixture(scope="module")
def other_disk(slurm: Cluster) -> Path:
    """A folder with a command `mc2` that sees an empty folder in the place of $HIDDEN on node2."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = slurm.folder / "bin"
    folder.mkdir()
    (folder / "mc2").write_text(
        f"""#!/bin/bash
if [ -n "${{HIDDEN:-}}" ] && [ "$SLURMD_NODENAME" = node2 ]; then
    exec unshare --mount bash -c 'mount -t tmpfs tmpfs "$HIDDEN" && exec "$@"' bash {MC2} "$@"
fi
exec {MC2} "$@"
"""
    )
    (folder / "mc2").chmod(0o755)
    return folder


def test_data_that_is_missing_on_one_node_ends_the_job_with_its_name(slurm: Cluster, config: dict[str, Any], other_disk: Path) -> None:
    path = slurm.folder / "missing.yaml"
    path.write_text(yaml.safe_dump(config))
    more = {"PATH": f"{other_disk}:{slurm.environment['PATH']}", "HIDDEN": str(slurm.folder / "shards")}
    job = slurm.submit("--nodes=2", "--cpus-per-task=1", SCRIPTS / "train.sbatch", "--config", path, **more)
    slurm.wait(job, "FAILED")
    assert f"mc2 fit on node2 (rank 1): {slurm.folder}/shards: found no .tar file" in slurm.output(job)
    assert "Traceback" not in slurm.output(job)
    assert "queued again" not in slurm.output(job)


def test_the_doctor_sees_that_nodes_do_not_share_a_folder(slurm: Cluster, other_disk: Path) -> None:
    (slurm.folder / "runs").mkdir(exist_ok=True)
    doctor: list[str | Path] = ["srun", "--nodes=2", "--ntasks-per-node=1", other_disk / "mc2", "doctor", "--folder", "runs"]
    assert "ok   nodes: 2 agree, all of them see" in slurm.command(*doctor)
    done = subprocess.run(
        [*map(str, doctor)], env={**slurm.environment, "HIDDEN": "runs"}, capture_output=True, text=True, check=False, cwd=slurm.folder
    )
    assert done.returncode == 1
    assert f"fail folder: {slurm.folder}/runs of node1 is not to be seen on node2, need one folder for all nodes" in done.stdout
    assert "rank 0 of 2 on 2 nodes, meeting at 127.0.0.1:" in done.stdout


def test_curation_is_queued_again_and_goes_on_and_a_checkpoint_is_evaluated_on_two_nodes(slurm: Cluster, config: dict[str, Any]) -> None:
    """Both scripts at the same time, the first with the signal that SLURM sends before the time limit."""
    write_pool(slurm.folder / "pool", num_shards=3)
    build_metadata(slurm.folder / "metadata", [], WORDS, progress=False)
    options = ["--pool", "pool", "--metadata", "metadata", "--english_threshold", "4", "--shard_pairs", "5", "--out", "curated"]
    curation = slurm.submit("--cpus-per-task=1", SCRIPTS / "curate.sbatch", *options)
    path, run = slurm.folder / "evaluated.yaml", slurm.folder / "evaluated"
    path.write_text(
        yaml.safe_dump({**config, "trainer": {**config["trainer"], "max_steps": 2, "callbacks": None, "default_root_dir": str(run)}})
    )
    slurm.wait(curation, "RUNNING")
    wait_until(lambda: "start 1" in slurm.output(curation), 60, lambda: slurm.output(curation))
    slurm.command("scancel", "--batch", "--signal=USR1", curation)
    run_processes(undisturbed, [(path, run)] * 2, join=False, timeout=240)
    evaluation = slurm.submit("--nodes=2", "--cpus-per-task=1", SCRIPTS / "evaluate.sbatch", "--config", path, "--ckpt_path", "last")
    slurm.wait(evaluation, "COMPLETED")
    assert "test/loss" in slurm.output(evaluation)
    slurm.wait(curation, "COMPLETED")
    assert f"job {curation} has to stop and is queued again" in slurm.output(curation)
    assert "start 2" in slurm.output(curation)
    assert list((slurm.folder / "curated/shards").glob("*.tar"))
