"""Several nodes in one run: whether they agree before the first step, and whether they are all still there."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from mc2 import __version__
from mc2.data.loader import Loader
from mc2.training.findings import Finding

NODE_LOST = 220  # exit status
MOST_SKEW = 5.0  # seconds
VERDICT_SECONDS = 5.0  # longer than it takes the first node to tell the others


@dataclass(frozen=True)
class Facts:
    """What one rank knows; ranks that know different things train different models, or wait for each other."""

    host: str
    time: float
    sees_folder: bool
    settings: dict[str, str] = field(default_factory=dict)  # name -> value that must be the same everywhere


def host_name() -> str:
    """The node's name for SLURM, or the machine's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def versions() -> dict[str, str]:
    return {"mc2": __version__, "torch": str(torch.__version__), "python": sys.version.split()[0]}


def gather_facts(folder: Path, settings: dict[str, str], patience_seconds: float = 10.0) -> list[Facts]:
    """The facts of all ranks, on all of them; a collective. Rank 0 leaves a mark in `folder`, which the others look for: a network file system may show it late."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [Facts(host_name(), time.time(), True, settings)]
    mark = [f".seen-by-all-{secrets.token_hex(4)}"]
    dist.broadcast_object_list(mark, src=0)
    path = folder / mark[0]
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    dist.barrier()
    now = time.time()
    facts = Facts(host_name(), now, path.exists() or appears(path, patience_seconds), settings)
    of_all = [facts] * dist.get_world_size()
    dist.all_gather_object(of_all, facts)
    if dist.get_rank() == 0:
        path.unlink()
    return of_all


def appears(path: Path, seconds: float) -> bool:
    """Whether a file comes to be seen in that time. The folder is read again: a file system may remember that a name is not there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if path.parent.is_dir() and path.name in os.listdir(path.parent):
            return True
    return False


def compare(facts: Sequence[Facts], folder: Path) -> list[Finding]:
    """What is not the same everywhere."""
    own, findings = facts[0], []
    blind = sorted({each.host for each in facts if not each.sees_folder})
    if blind:
        text = f"{folder} of {own.host} is not to be seen on {', '.join(blind)}, need one folder for all nodes; choose one on a shared file system"
        findings.append(Finding("fail", "folder", text))
    for name, value in own.settings.items():
        other = next((each for each in facts if each.settings.get(name) != value), None)
        if other is not None:
            text = f"found {value} on {own.host} and {other.settings.get(name)} on {other.host}, need the same on all nodes"
            findings.append(Finding("fail", name, text))
    first, last = min(facts, key=lambda each: each.time), max(facts, key=lambda each: each.time)
    if last.time - first.time > MOST_SKEW:
        text = f"that of {last.host} is {last.time - first.time:,.0f} s ahead of {first.host}'s; times in logs and TensorBoard mislead; run chrony on both"
        findings.append(Finding("warn", "clocks", text))
    return findings


class Nodes(Callback):
    """Before the first step: versions, data and checkpoint are the same on all ranks and the run folder is one. Later: a node that is silent for `silent_seconds`
    ends the run on all others with one line that names it and status 220; with MC2_REQUEUE in the environment (train.sbatch) they queue the job again first.

    Several nodes only. The watch is a small process on each node and needs UDP at the number of the port where the processes met; where that is blocked it is blind,
    and SLURM alone notices. null: no watch.
    """

    def __init__(self, silent_seconds: float | None = 45.0) -> None:
        if silent_seconds is not None and silent_seconds < 1:
            raise ValueError(f"nodes.silent_seconds: found {silent_seconds}, need at least 1, or null for no watch")
        self.silent_seconds = silent_seconds
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if trainer.world_size == 1:
            return
        settings = {**versions(), "checkpoint": Path(str(trainer.ckpt_path)).name}
        loader = trainer.train_dataloader
        if isinstance(loader, Loader):
            settings |= {f"data {name}": str(value) for name, value in loader.mixture.identity().items()}
        facts = gather_facts(Path(trainer.default_root_dir), settings)
        findings = compare(facts, Path(trainer.default_root_dir))
        for finding in findings:
            if finding.level == "warn":
                rank_zero_only(print)(f"warning: {finding.about}: {finding.text}", file=sys.stderr)
        failed = [f"{finding.about}: {finding.text}" for finding in findings if finding.level == "fail"]
        if failed:
            raise ValueError("; ".join(failed))
        if trainer.num_nodes > 1 and self.silent_seconds is not None:
            token = [secrets.token_hex(8)]
            dist.broadcast_object_list(token, src=0)
            if trainer.local_rank == 0:
                self._start(token[0], trainer.node_rank)

    def _start(self, token: str, node: int) -> None:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        command = [sys.executable, "-m", "mc2.training.heartbeat", token, address, port, str(node), str(self.silent_seconds), host_name()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._listen, args=(self._process,), name="nodes", daemon=True)
        self._thread.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Ends this process, which may hang in a collective, when the watch says so."""
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if line:
            print(f"mc2 fit on {host_name()}: {line}", file=sys.stderr, flush=True)
            queue_again(os.environ)
            os._exit(NODE_LOST)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """A lost connection may be a lost node: give the watch the time to say so."""
        if self._thread is not None and self.silent_seconds is not None and network_message(exception):
            self._thread.join(self.silent_seconds + VERDICT_SECONDS)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        if self._process is None or self._thread is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("end")  # said, because forked workers may hold the pipe open
            self._process.stdin.close()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()
        self._process = self._thread = None


def queue_again(variables: Mapping[str, str]) -> None:
    """Queue this job of SLURM again if it wants that. From within: `srun` in its script waits for tasks of the lost node, for minutes."""
    job = variables.get("SLURM_JOB_ID")
    if "MC2_REQUEUE" in variables and job is not None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # several nodes may ask: all but the first are refused
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0:
                print(f"job {job} is queued again", file=sys.stderr, flush=True)


def network_message(error: BaseException) -> str | None:
    """What a failure of torch's communication means, in one line; None for any other error."""
    text = " ".join(str(error).split())
    place = f"{os.environ.get('MASTER_ADDR', 'the first node')}:{os.environ.get('MASTER_PORT', '?')}"
    if "EADDRINUSE" in text:
        return f"{place}: found the port in use, need a free one, where all processes meet; export MASTER_PORT=NUMBER (experiments/slurm/train.sbatch looks for one)"
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return f"{place}: found nobody there, or not all processes ({text[:200]}), need all of them at once; look for what the others said, and whether the port is open"
    if isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "onnection closed", "onnection reset"))
    ):
        return f"lost the other ranks ({text[:200]}), need all of them; one has died or hangs, look for what it said; go on with --ckpt_path last"
    return None
