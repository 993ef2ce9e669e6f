"""`mc2 doctor`: whether this machine, or each node of a job, is fit for a run. One line for each thing that was looked at: ok, warn or fail, and the cure."""

from __future__ import annotations

import locale
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from mc2.training.findings import Finding, print_findings
from mc2.training.flops import peak_flops
from mc2.training.nodes import compare, gather_facts, host_name, network_message, versions
from mc2.training.precision import cpu_computes_bf16
from mc2.training.slurm import slurm_environment, started_by_srun
from mc2.usage import PlainParser

GB = 1e9
SHM_GB, DISK_GB, OPEN_FILES = 2.0, 50.0, 4096
MEETING_MINUTES = 2.0


def check_versions() -> Finding:
    """Packages that mc2 needs, by its own metadata."""
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    try:
        needed = [Requirement(line) for line in metadata.requires("mc2") or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return Finding("warn", "versions", f"{about}; mc2 is not installed, only found; run `pip install -e .` in its folder")
    wrong = []
    for requirement in needed:
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement} (not installed)")
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                wrong.append(f"{requirement} (found {found})")
    if wrong:
        return Finding("fail", "versions", f"{about}; need {', '.join(wrong)}; run `pip install -U mc2`")
    return Finding("ok", "versions", about)


def check_gpu() -> Iterator[Finding]:
    """GPUs as torch sees them, and NCCL."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            yield Finding(
                "fail",
                "gpu",
                f"nvidia-smi is here, but torch {torch.__version__} sees no GPU; check the driver, CUDA_VISIBLE_DEVICES and sbatch's --gpus",
            )
        else:
            precision = "" if cpu_computes_bf16() else ", which has no bf16: give --trainer.precision 32-true"
            yield Finding("ok", "gpu", f"none: training runs on the CPU{precision}")
        return
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{index}: {name}, {free / GB:.1f} of {total / GB:.1f} GB free"
        if free < 0.9 * total:
            yield Finding("warn", "gpu", f"{text}; another process uses it, see nvidia-smi")
        elif not torch.cuda.is_bf16_supported():
            yield Finding("warn", "gpu", f"{text}, no bf16; set trainer.precision to 32-true")
        else:
            yield Finding("ok", "gpu", text if peak_flops(name) else f"{text}, whose peak is not known here: no MFU")
    if dist.is_nccl_available():
        yield Finding("ok", "nccl", ".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[no-untyped-call]
    else:
        yield Finding("fail", "nccl", "not in this torch, need it for several GPUs; install torch's CUDA build")


def check_locale() -> Finding:
    """Captions of all languages are written and printed."""
    encodings = {
        "files": locale.getpreferredencoding(False),
        "file names": sys.getfilesystemencoding(),
        "output": sys.stdout.encoding or "none",
    }
    wrong = [f"{name} in {encoding}" for name, encoding in encodings.items() if encoding.lower().replace("-", "") != "utf8"]
    if wrong:
        return Finding("fail", "locale", f"{', '.join(wrong)}, need UTF-8; export LC_ALL=C.UTF-8 (or PYTHONUTF8=1)")
    return Finding("ok", "locale", "UTF-8")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Through it workers hand over batches."""
    if not folder.is_dir():
        return Finding("warn", "shared memory", f"no {folder}; with data.num_workers above 0 batches may not travel")
    free = shutil.disk_usage(folder).free / GB
    if free < SHM_GB:
        return Finding(
            "warn",
            "shared memory",
            f"{free:.1f} GB free in {folder}, need about {SHM_GB:g} for the workers' batches; docker run --shm-size=16g, or clear it",
        )
    return Finding("ok", "shared memory", f"{free:.1f} GB free in {folder}")


def check_disk(folder: Path) -> Finding:
    """Room for runs, and that they can be written."""
    if not os.access(folder, os.W_OK):
        return Finding("fail", "disk", f"{folder} cannot be written, need a folder for runs; give --folder")
    free = shutil.disk_usage(folder).free / GB
    if free < DISK_GB:
        return Finding(
            "warn",
            "disk",
            f"{free:.1f} GB free in {folder}; checkpoints of ViT-H/14 need {3 * 22.3:.0f}: see `mc2 plan`, make room or give --folder",
        )
    return Finding("ok", "disk", f"{free:,.0f} GB free in {folder}")


def check_open_files() -> Finding:
    """Workers keep shards and pipes open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        return Finding(
            "warn", "open files", f"{soft} at most, need {OPEN_FILES} for many workers; ulimit -n {min(hard, 65536) if hard > 0 else 65536}"
        )
    return Finding("ok", "open files", f"{soft} at most")


def check_cores(variables: Mapping[str, str]) -> Finding:
    """What this process may use: SLURM gives one core to a task that asks for none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = variables.get("OMP_NUM_THREADS", "not set")
    if cores == 1:
        return Finding(
            "warn", "cores", "1 for this process, which workers of the data share with it; give sbatch --cpus-per-task, and srun too"
        )
    return Finding("ok", "cores", f"{cores} for this process, OMP_NUM_THREADS {threads}")


def check_slurm(variables: Mapping[str, str]) -> Finding:
    """Whether SLURM's variables agree."""
    try:
        environment = slurm_environment(variables)
    except ValueError as error:
        return Finding("fail", "slurm", str(error))
    if environment is None:
        return Finding("ok", "slurm", "not used here")
    what = f"job {variables.get('SLURM_JOB_ID')}, rank {variables.get('SLURM_PROCID', '0')} of {variables['SLURM_NTASKS']} on {variables.get('SLURM_NNODES', '1')} nodes"
    return Finding("ok", "slurm", f"{what}, meeting at {environment.main_address}:{environment.main_port}")


def check_name(variables: Mapping[str, str]) -> Finding:
    """Whether this machine's own name leads to an address, as gloo and NCCL ask."""
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return Finding(
            "warn",
            "network",
            f"the name {host} leads to no address; add it to /etc/hosts, or export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )
    if address.startswith("127.") and int(variables.get("SLURM_NNODES", "1")) > 1 and "GLOO_SOCKET_IFNAME" not in variables:
        return Finding(
            "warn",
            "network",
            f"the name {host} leads to {address}, where other nodes do not reach it; correct /etc/hosts, or export GLOO_SOCKET_IFNAME",
        )
    return Finding("ok", "network", f"{host} is {address}")


def examine(folder: Path, variables: Mapping[str, str]) -> list[Finding]:
    """Everything about this process."""
    local = (check_locale(), check_shared_memory(), check_disk(folder), check_open_files(), check_cores(variables), check_name(variables))
    return [check_versions(), *check_gpu(), *local, check_slurm(variables)]


def meet(variables: Mapping[str, str]) -> bool:
    """Join all tasks of the job step, or those of torchrun; False if this process is alone. Errors: RuntimeError of torch if they do not meet."""
    if started_by_srun(variables) and "RANK" not in variables:
        environment = slurm_environment(variables)
        assert environment is not None
        os.environ.update({"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)})
        os.environ.update({"RANK": str(environment.global_rank()), "WORLD_SIZE": str(environment.world_size())})
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    dist.init_process_group("gloo", timeout=timedelta(minutes=MEETING_MINUTES))
    return True


def check_together(own: list[Finding], folder: Path) -> list[Finding]:
    """On rank 0 what is wrong on the other ranks, once for each host, and what differs between them; a collective."""
    facts = gather_facts(folder, versions())
    parts: list[tuple[str, list[Finding]]] = [("", [])] * dist.get_world_size()
    dist.all_gather_object(parts, (host_name(), [finding for finding in own if finding.level != "ok"]))
    elsewhere = {
        Finding(each.level, f"{each.about} on {host}", each.text): None for host, found in parts[1:] for each in found if each not in own
    }
    different = compare(facts, folder) or [Finding("ok", "nodes", f"{len({each.host for each in facts})} agree, all of them see {folder}")]
    return [*elsewhere, *different]


def main(argv: list[str]) -> int:
    """Print what was found. Exit status 0 unless something fails."""
    parser = PlainParser(
        prog="mc2 doctor",
        description="Whether this machine is fit for a run; under srun (srun --nodes 2 --ntasks-per-node 1 mc2 doctor) whether the nodes are, together.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where runs are to be written, on a file system that all nodes share (default: here)"
    )
    own = parser.parse_args(argv[1:])
    folder = own.folder.absolute()
    if not folder.is_dir():
        raise ValueError(f"--folder: found no folder at {folder}, need the one for runs; create it on a file system that all nodes share")
    findings = examine(folder, os.environ)
    together = False
    try:
        if all(finding.level != "fail" for finding in findings if finding.about == "slurm") and (together := meet(os.environ)):
            findings += check_together(findings, folder)
    except RuntimeError as error:
        findings.append(Finding("fail", "nodes", network_message(error) or str(error)))
    if not together or dist.get_rank() == 0:
        print_findings(findings)
    return 1 if any(finding.level == "fail" for finding in findings) else 0
