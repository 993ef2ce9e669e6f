"""What SLURM's variables say of this process: checked before anything is started, because processes that count differently wait for each other for ever."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

FIRST_SPECIAL_STEP = 4_294_967_000  # SLURM numbers the steps of shells and batch scripts from the end of the range
NUMBERS = ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


class Slurm(SLURMEnvironment):
    """Lightning's environment without its own requeueing, which saves inside the signal handler; and also in the steps of an interactive allocation."""

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    @property
    def main_address(self) -> str:
        """Of the first node of this step: its name, or the address that SLURM has for it where the name means nothing to the resolver."""
        if "MASTER_ADDR" not in os.environ:
            node = self.resolve_root_node_address(os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1")))
            os.environ["MASTER_ADDR"] = node if resolves(node) else slurm_address(node)
        return os.environ["MASTER_ADDR"]

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Errors: ValueError if the configuration means another number of processes than SLURM has started."""
        for name, variable, option, found in (
            ("devices", "SLURM_NTASKS_PER_NODE", "--ntasks-per-node", num_devices),
            ("num_nodes", "SLURM_NNODES", "--nodes", num_nodes),
        ):
            need = int(os.environ.get(variable, found))
            if found != need:
                raise ValueError(f"trainer.{name}: found {found}, need {need} as in {variable}; change it, or sbatch's {option}")


def resolves(name: str) -> bool:
    """Whether a host of that name is known here."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def slurm_address(node: str) -> str:
    """NodeAddr of a node. Errors: ValueError if SLURM does not say."""
    try:
        answer = subprocess.run(
            ["scontrol", "show", "node", "--oneliner", node], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    found = re.search(r"NodeAddr=(\S+)", answer)
    if found is None:
        raise ValueError(f"SLURM: found no address of {node}, where all processes meet, need one; export MASTER_ADDR before srun")
    return found[1]


def started_by_srun(variables: Mapping[str, str]) -> bool:
    """Whether this process is a task of a job step."""
    step = variables.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP


def slurm_environment(variables: Mapping[str, str]) -> Slurm | None:
    """SLURM's environment for a process that it counts, None for one that it does not. Errors: ValueError for variables that contradict each other."""
    if "TORCHELASTIC_RUN_ID" in variables:  # torchrun counts
        return None
    if not started_by_srun(variables):
        if "SLURM_NTASKS" not in variables or variables.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # as Lightning has it
            return None
        if variables["SLURM_NTASKS"] != "1":
            raise ValueError(
                f"SLURM_NTASKS: found {variables['SLURM_NTASKS']} in a process that srun has not started, need srun before `mc2` (it would wait for "
                "the others); see experiments/slurm/train.sbatch, or take the variable away"
            )
        return Slurm()
    check_variables(variables)
    return Slurm()


def check_variables(variables: Mapping[str, str]) -> None:
    """Errors: ValueError if the numbers of a task are missing or contradict each other."""
    for name in NUMBERS:
        if not variables.get(name, "").isdigit():
            raise ValueError(f"{name}: found {variables.get(name)!r} in a task of srun, need a number; start it with sbatch and srun")
    tasks, nodes, rank, local, node = (int(variables[name]) for name in NUMBERS)
    per_node = int(variables.get("SLURM_NTASKS_PER_NODE", 1 if tasks == 1 else 0))
    if not per_node:
        raise ValueError(
            f"SLURM_NTASKS_PER_NODE: found none for {tasks} tasks, need the same number on every node; give sbatch --ntasks-per-node"
        )
    if tasks != nodes * per_node:
        raise ValueError(
            f"SLURM_NTASKS: found {tasks} tasks on {nodes} nodes with {per_node} each, need {nodes * per_node}; give sbatch --nodes and "
            "--ntasks-per-node and srun neither"
        )
    for name, number, limit in (("SLURM_PROCID", rank, tasks), ("SLURM_LOCALID", local, per_node), ("SLURM_NODEID", node, nodes)):
        if number >= limit:
            raise ValueError(
                f"{name}: found {number} of {limit}, need less; the variables are of different jobs: start with sbatch and srun"
            )


def add_environment(plugins: Any, variables: Mapping[str, str]) -> Any:
    """`trainer.plugins` with SLURM's environment, where there is one and the user has chosen none."""
    chosen = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
    if any(isinstance(plugin, ClusterEnvironment) for plugin in chosen):
        return plugins
    environment = slurm_environment(variables)
    return plugins if environment is None else [*chosen, environment]


def check_nodes(trainer: Trainer, variables: Mapping[str, str]) -> None:
    """Errors: ValueError for several nodes of which nobody says who is who: each would wait for the others."""
    alone = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment) and "NODE_RANK" not in variables
    if trainer.num_nodes > 1 and alone:
        raise ValueError(
            f"trainer.num_nodes: found {trainer.num_nodes} without the variables of SLURM or torchrun, need one of them to start a process on each node; "
            "submit experiments/slurm/train.sbatch, or set it to 1"
        )
