"""SLURM's variables: what is right, and every contradiction in one line before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mc2.training.commands import main
from mc2.training.slurm import Slurm, add_environment, slurm_environment
from tests.training.tiny import fit_config

TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}  # what srun sets, among others


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    return dict(TASK)


def test_a_task_of_srun_is_counted_by_slurm(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for job_name in ("train", "interactive"):  # Lightning takes the steps of an interactive allocation for processes of their own
        monkeypatch.setenv("SLURM_JOB_NAME", job_name)
        environment = slurm_environment(variables)
        assert environment is not None
        assert (environment.world_size(), environment.global_rank(), environment.local_rank(), environment.node_rank()) == (4, 3, 1, 1)
        assert not environment.auto_requeue
    assert slurm_environment({**variables, "TORCHELASTIC_RUN_ID": "x"}) is None
    mine = Slurm()
    assert add_environment(mine, variables) is mine
    assert [type(plugin) for plugin in add_environment(None, variables)] == [Slurm]


def test_without_slurm_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TASK:
        monkeypatch.delenv(name, raising=False)
    assert add_environment(None, {}) is None


def test_a_shell_of_an_allocation_is_no_task(variables: dict[str, str]) -> None:
    shell = {**variables, "SLURM_STEP_ID": "4294967290", "SLURM_JOB_NAME": "interactive"}
    assert slurm_environment(shell) is None
    with pytest.raises(ValueError, match=r"SLURM_NTASKS: found 4 in a process that srun has not started, need srun before `mc2`"):
        slurm_environment({**shell, "SLURM_JOB_NAME": "train"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_PROCID": ""}, r"SLURM_PROCID: found '' in a task of srun, need a number"),
        ({"SLURM_NNODES": "two"}, r"SLURM_NNODES: found 'two'"),
        ({"SLURM_NTASKS_PER_NODE": "0"}, r"SLURM_NTASKS_PER_NODE: found none for 4 tasks, need .*give sbatch --ntasks-per-node"),
        ({"SLURM_NTASKS": "3"}, r"SLURM_NTASKS: found 3 tasks on 2 nodes with 2 each, need 4"),
        ({"SLURM_PROCID": "4"}, r"SLURM_PROCID: found 4 of 4, need less"),
        ({"SLURM_NODEID": "2"}, r"SLURM_NODEID: found 2 of 2, need less"),
    ],
)
def test_contradictions_are_one_line(change: dict[str, str], message: str, variables: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=message):
        slurm_environment({**variables, **change})


def test_an_address_that_only_slurm_knows(variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "x")
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "no-such-host[7-9]")
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = slurm_environment(variables)
    assert environment is not None
    with pytest.raises(ValueError, match="found no address of no-such-host7, where all processes meet, need one; export MASTER_ADDR"):
        environment.main_address  # noqa: B018
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho NodeName=$4 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=x\n")
    (tmp_path / "scontrol").chmod(0o755)
    assert environment.main_address == "10.1.2.3"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"devices": 1, "num_nodes": 2},
            r"trainer.devices: found 1, need 2 as in SLURM_NTASKS_PER_NODE; change it, or sbatch's --ntasks-per-node",
        ),
        ({"devices": 2, "num_nodes": 1}, r"trainer.num_nodes: found 1, need 2 as in SLURM_NNODES; change it, or sbatch's --nodes"),
    ],
)
def test_another_number_of_processes_is_refused(
    trainer: dict[str, int], message: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variables
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    settings = fit_config(tmp_path / "run", 2)
    settings["trainer"] |= {"strategy": "ddp", **trainer}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=message):
        main(["fit", "--config", str(tmp_path / "fit.yaml")])


def test_several_nodes_without_anybody_who_counts_them_are_refused(tmp_path: Path) -> None:
    settings = fit_config(tmp_path / "run", 2)
    settings["trainer"] |= {"strategy": "ddp", "num_nodes": 2, "devices": 1}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(
        ValueError, match=r"trainer.num_nodes: found 2 without the variables of SLURM or torchrun, need .*train.sbatch, or set it to 1"
    ):
        main(["fit", "--config", str(tmp_path / "fit.yaml")])
