"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd in a temporary folder, stopped at the end."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import free_port

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("node1", "node2")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# cred_expire: a requeued job waits that long. The partition "urgent" takes nodes from "main", whose jobs get SIGTERM and seconds to leave, and come back.
CONFIGURATION = """
ClusterName=mc2tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=00:00:00
ReturnToService=2
KillWait=20
SlurmdTimeout=300
MpiDefault=none
"""


def why_not() -> str | None:
    """Why SLURM cannot be started here, or None."""
    missing = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    return f"no {', '.join(missing)}; as root: apt-get install --no-install-recommends slurm-wlm munge" if missing else None


def wait_until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Errors: AssertionError with `what()` if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@dataclass
class Cluster:
    """What a user has of it: commands. `daemons`: name -> process, for tests in which a node dies."""

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        return {**inherited, "SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": PATH}

    def command(self, *words: str | Path, **more: str) -> str:
        """What a command prints. Errors: AssertionError with what it says if it fails."""
        done = subprocess.run(
            [*map(str, words)], env={**self.environment, **more}, capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *words: str | Path, **more: str) -> str:
        """sbatch's options, script and arguments -> the job's id. Its output goes to <folder>/<id>.out."""
        return self.command("sbatch", "--parsable", f"--output={self.folder}/%j.out", *words, **more)

    def state(self, job: str) -> str:
        shown = self.command("scontrol", "show", "job", "--oneliner", job)
        return shown.split("JobState=")[1].split()[0]

    def output(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, job: str, *states: str, seconds: float = 240) -> None:
        wait_until(lambda: self.state(job) in states, seconds, lambda: f"job {job} is {self.state(job)}, not {states}:\n{self.output(job)}")

    def start(self, name: str, *words: str | Path) -> None:
        """A daemon that stays in the foreground."""
        with open(self.folder / f"{name}.out", "ab") as log:
            command = [shutil.which(str(words[0]), path=PATH) or "", *map(str, words[1:])]
            self.daemons[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-f", self.folder / "slurm.conf", "-N", node)

    def answers(self) -> bool:
        done = subprocess.run(["srun", "-N2", "-t1", "true"], env=self.environment, capture_output=True, timeout=20, check=False)
        return done.returncode == 0


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes with two CPUs each, ready for jobs."""
    slurm, host = Cluster(folder), socket.gethostname()
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    lines = [CONFIGURATION.format(folder=folder, host=host, port=free_port(), user=getpass.getuser())]
    lines += [f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2" for node in NODES]
    lines += ["PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=20"]
    lines += ["PartitionName=urgent Nodes=ALL State=UP PriorityTier=9 PreemptMode=OFF"]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    try:
        files = [
            f"--{name}={folder}/munge.{end}"
            for name, end in (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))
        ]
        slurm.start("munged", "munged", "--foreground", "--force", f"--key-file={key}", *files)
        wait_until((folder / "munge.socket").exists, 10, lambda: (folder / "munged.out").read_text())
        slurm.start("slurmctld", "slurmctld", "-D", "-f", folder / "slurm.conf")
        for node in NODES:
            slurm.start_node(node)
        wait_until(slurm.answers, 30, lambda: (folder / "slurmctld.log").read_text())
        yield slurm
    finally:
        subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], env=slurm.environment, capture_output=True, timeout=20, check=False)
        for daemon in reversed(slurm.daemons.values()):
            daemon.send_signal(signal.SIGCONT)
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
