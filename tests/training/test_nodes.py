"""Ranks that do not agree before the first step, nodes that go silent, and what failures of the network say."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from mc2 import __version__
from mc2.training.commands import main
from mc2.training.heartbeat import Watch
from mc2.training.nodes import NODE_LOST, Facts, Nodes, compare, gather_facts, network_message
from tests.data.shards import small_tokenizer, write_folder
from tests.processes import free_port, run_processes
from tests.training.tiny import fit_config


def facts(host: str, time: float = 0.0, sees: bool = True, **settings: str) -> Facts:
    return Facts(host, time, sees, settings)


def test_what_differs_between_nodes_is_named_with_both(tmp_path: Path) -> None:
    assert compare([facts("a", torch="2"), facts("b", 4.0, torch="2")], tmp_path) == []
    found = compare(
        [facts("a", torch="2", data="x"), facts("b", 75.2, False, torch="3", data="x"), facts("c", -1.0, torch="2", data="x")], tmp_path
    )
    assert [(each.level, each.about) for each in found] == [("fail", "folder"), ("fail", "torch"), ("warn", "clocks")]
    assert f"{tmp_path} of a is not to be seen on b, need one folder for all nodes" in found[0].text
    assert "found 2 on a and 3 on b, need the same" in found[1].text
    assert "that of b is 76 s ahead of c's" in found[2].text


def gather(folder: Path, rank: int) -> list[tuple[str, bool, dict[str, str]]]:
    """Rank 1 has another disk under the same name."""
    os.environ["SLURMD_NODENAME"] = f"node{rank}"
    found = gather_facts(folder / "shared" if rank != 1 else folder / "other", {"rank": str(rank)}, patience_seconds=0.5)
    return [(each.host, each.sees_folder, each.settings) for each in found]


def test_every_rank_hears_of_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    first, second = run_processes(gather, [(tmp_path, 0), (tmp_path, 1)], timeout=60)
    assert first == second == [("node0", True, {"rank": "0"}), ("node1", False, {"rank": "1"})]
    assert list((tmp_path / "shared").iterdir()) == []


def fit_on(config: Path, rank: int) -> str:
    """What `mc2 fit` says; rank 1 has an older mc2."""
    os.environ["SLURMD_NODENAME"] = f"node{rank}"
    if rank == 1:
        import mc2.training.nodes

        mc2.training.nodes.versions = lambda: {"mc2": "0.0.1"}
    try:
        main(["fit", "--config", str(config)])
    except ValueError as error:
        return str(error)
    return ""


def test_nodes_with_other_versions_or_other_shards_do_not_train(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    for rank in (0, 1):
        settings = fit_config(tmp_path / "run", 2)
        settings["trainer"] |= {"strategy": "ddp", "devices": 2, "limit_val_batches": 0}
        shards = write_folder(tmp_path / f"shards{rank}", [3, 3 + rank])
        preprocess = {"class_path": "mc2.data.preprocess.ImagePreprocess", "init_args": {"image_size": 16}}
        data = {"shards": str(shards), "tokenizer": str(tokenizer), "batch_size": 2, "context_length": 8, "preprocess": preprocess}
        settings["data"] = {"class_path": "mc2.data.datamodule.ShardDataModule", "init_args": data}
        (tmp_path / f"{rank}.yaml").write_text(yaml.safe_dump(settings))
    said = run_processes(fit_on, [(tmp_path / f"{rank}.yaml", rank) for rank in (0, 1)], join=False, timeout=240)
    assert f"mc2: found {__version__} on node0 and 0.0.1 on node1, need the same on all nodes" in said[0]
    assert re.search(r"data shards: found \w+ on node0 and \w+ on node1, need the same", said[0])
    assert said[0] == said[1]


# --- the watch ----------------------------------------------------------------------------------------------------------


def test_who_is_lost_by_the_clock() -> None:
    watch = Watch(10.0)
    assert watch.silent(0.0) == []  # nobody was ever heard: perhaps the port is blocked
    watch.hear(1, "b", 1.0)
    watch.hear(2, "c", 4.0)
    assert [watch.silent(now) for now in (5.0, 10.0, 11.5)] == [[], [], ["b"]]
    assert watch.silent(14.5) == ["b", "c"]
    watch.hear(1, "b", 15.0)
    watch.forget(2)
    assert watch.silent(15.5) == []
    assert watch.silent(100.0) == []  # the watch itself was asleep
    assert watch.silent(104.0) == []
    assert [watch.silent(now) for now in (108.0, 110.5)] == [[], ["b"]]


SILENT = 5.0


def heartbeat(stack: ExitStack, node: int, port: int, token: str = "x") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mc2.training.heartbeat", token, "127.0.0.1", str(port), str(node), str(SILENT), f"node{node}"]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    return process


def line_of(process: subprocess.Popen[str]) -> str:
    """What it says when it ends."""
    assert process.stdout is not None
    return process.stdout.readline()


def watched(port: int) -> None:
    """A training process that hangs, with its watch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURMD_NODENAME": "node0"}
    Nodes(SILENT)._start("x", 0)
    time.sleep(100)


def test_a_silent_node_is_named_on_all_others(capfd: pytest.CaptureFixture[str]) -> None:
    """Three runs side by side: one in which a node freezes and another one ends in order, beside a stranger; one whose first node freezes; a process that hangs."""
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        child = os.fork()  # before the others: it would keep their pipes open
        if child == 0:
            watched(ports[2])
        nodes = [heartbeat(stack, node, ports[0]) for node in range(4)]
        stranger = heartbeat(stack, 9, ports[0], token="another run")
        first, second = heartbeat(stack, 0, ports[1]), heartbeat(stack, 1, ports[1])
        other = heartbeat(stack, 1, ports[2])
        time.sleep(SILENT - 1)
        for node in nodes:  # SLURM sends them to every process of a job; the watch ends with its own node's training
            node.send_signal(signal.SIGTERM)
            node.send_signal(signal.SIGUSR1)
        assert nodes[3].stdin is not None
        nodes[3].stdin.close()
        assert line_of(nodes[3]) == "\n"
        for frozen in (nodes[2], stranger, first, other):
            os.kill(frozen.pid, signal.SIGSTOP)
        expected = "node node2 has not answered for 5 s and counts as lost; the run ends here and goes on from its last checkpoint\n"
        assert [line_of(node) for node in nodes[:2]] == [expected] * 2
        assert line_of(second) == expected.replace("node2", "node0")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == NODE_LOST
        assert f"mc2 fit on node0: {expected.replace('node2', 'node1')}" in capfd.readouterr().err


# --- what the network says ----------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        here = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "tests",
        }
        for name, value in {**here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        settings = fit_config(tmp_path / "run", 2)
        settings["trainer"] |= {"strategy": "ddp", "devices": 2}
        (tmp_path / "fit.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(ValueError, match=rf"127.0.0.1:{port}: found the port in use, need a free one, .*; export MASTER_PORT=NUMBER"):
            main(["fit", "--config", str(tmp_path / "fit.yaml")])


def test_other_errors_are_left_alone() -> None:
    assert network_message(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert network_message(ValueError("loss: found 1, need 2")) is None
    gone = network_message(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:9918.\nThis is typical"))
    assert gone is not None
    assert gone.startswith("lost the other ranks ([gloo/transport")
    assert "\n" not in gone
    assert "found nobody there" in str(network_message(dist.DistStoreError("timed out")))


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Root may write everywhere but where there is no folder."""
    (tmp_path / "file").touch()
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(fit_config(tmp_path / "file/run", 2)))
    message = rf"trainer.default_root_dir: found .*/file/run, where nothing can be written \({os.strerror(errno.ENOTDIR)}\), need a folder"
    with pytest.raises(ValueError, match=message):
        main(["fit", "--config", str(tmp_path / "fit.yaml")])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ro", r"nothing can be written \(Read-only file system\)"),
        ("size=64k", r"a checkpoint could not be written \(.*\); the ones before it are whole; make room and go on with --ckpt_path last"),
    ],
)
def test_a_read_only_and_a_full_disk(options: str, message: str, tmp_path: Path) -> None:
    """Real ones; the full one is met while the checkpoint of step 2 is written, and leaves no half of it under its name."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        settings: dict[str, Any] = fit_config(disk / "run", 4)
        settings["checkpoints"] = {"every_n_steps": 2}
        settings["trainer"]["logger"] = False
        (tmp_path / "fit.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(ValueError, match=message):
            main(["fit", "--config", str(tmp_path / "fit.yaml")])
        assert not list(disk.glob("run/checkpoints/step=*"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
