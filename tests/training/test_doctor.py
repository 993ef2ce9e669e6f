"""`mc2 doctor` on this machine, and every line that it can say of another one."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mc2.training import doctor
from mc2.training.doctor import (
    check_cores,
    check_disk,
    check_gpu,
    check_locale,
    check_name,
    check_open_files,
    check_shared_memory,
    check_slurm,
    check_versions,
    main,
)
from tests.training.test_slurm import TASK

TOPICS = ("versions", "gpu", "locale", "shared memory", "disk", "open files", "cores", "network", "slurm")


def test_a_laptop_is_told_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TASK:
        monkeypatch.delenv(name, raising=False)
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[5:].split(":")[0] for line in lines if "gpu: 0" not in line and "nccl" not in line] == list(TOPICS)
    assert {line[:4] for line in lines} <= {"ok  ", "warn"}
    with pytest.raises(ValueError, match=r"--folder: found no folder at .*nowhere, need the one for runs"):
        main(["doctor", "--folder", str(tmp_path / "nowhere")])


def test_a_locale_without_unicode_fails(tmp_path: Path) -> None:
    """In a process of its own: Python settles it at its start."""
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "mc2", "doctor", "--folder", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"fail locale: files in " in done.stdout
    assert b"need UTF-8; export LC_ALL=C.UTF-8" in done.stdout
    assert check_locale().level == "ok"


def test_versions_are_compared_with_what_mc2_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda _name: ["torch>=99", "numpy>=1", "no-such-package>=2", 'ray>=1; extra == "ray"']
    )
    found = check_versions()
    assert found.level == "fail"
    assert "need torch>=99 (found " in found.text
    assert "no-such-package>=2 (not installed); run `pip install -U mc2`" in found.text
    assert "numpy" not in found.text
    assert "ray" not in found.text


def test_a_driver_that_torch_cannot_use_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [each.level for each in check_gpu()] == ["ok"]
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (found,) = check_gpu()
    assert found.level == "fail"
    assert "sees no GPU; check the driver, CUDA_VISIBLE_DEVICES" in found.text


def test_what_is_scarce_is_told_with_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "SHM_GB", 1e9)
    assert "see `mc2 plan`, make room or give --folder" in check_disk(tmp_path).text
    assert "docker run --shm-size=16g" in check_shared_memory(tmp_path).text
    assert "batches may not travel" in check_shared_memory(tmp_path / "none").text
    assert check_disk(Path("/proc/1/nowhere")).level == "fail"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert "256 at most, need 4096 for many workers; ulimit -n" in check_open_files().text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert "give sbatch --cpus-per-task" in check_cores({}).text
    finally:
        os.sched_setaffinity(0, cores)


def test_names_and_variables_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "15007"}.items():
        monkeypatch.setenv(name, value)
    assert check_slurm(TASK).text == "job 7, rank 3 of 4 on 2 nodes, meeting at 10.0.0.1:15007"
    assert check_slurm({**TASK, "SLURM_PROCID": "x"}).level == "fail"
    monkeypatch.setattr(socket, "gethostbyname", lambda _host: "127.0.1.1")  # as Debian's installer leaves it
    assert "where other nodes do not reach it; correct /etc/hosts" in check_name(TASK).text
    assert check_name({}).level == "ok"
    monkeypatch.setattr(socket, "gethostbyname", lambda _host: (_ for _ in ()).throw(OSError()))
    assert "leads to no address" in check_name(TASK).text
