"""The stages of curation write the same bytes with every engine, from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mc2.cli import main
from mc2.metadata.build import build_metadata
from tests.curation.pools import folder_bytes, write_pool

WORDS = {
    "en": ["fox", "snow", "house", "sea", "dog", "the", "a"],
    "de": ["Fuchs", "Schnee", "Haus", "der", "im"],
    "ja": ["キツネ", "雪", "の"],
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("curation")
    write_pool(folder / "pool", num_shards=7)
    build_metadata(folder / "metadata", [], WORDS, progress=False)
    inputs = ["--pool", f"{folder}/pool", "--metadata", f"{folder}/metadata"]
    return ["curate", "run", *inputs, "--english_threshold", "4", "--shard_pairs", "5", "--progress", "false"]


@pytest.fixture(scope="module")
def done(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("here") / "out"
    assert main([*options, "--out", str(out), "--workers", "1"]) == 0
    return folder_bytes(out)


def test_local_processes(options: list[str], done: dict[str, bytes], tmp_path: Path) -> None:
    assert main([*options, "--out", str(tmp_path), "--workers", "2"]) == 0
    assert folder_bytes(tmp_path) == done


def test_slurm_and_again_with_groups_of_another_size(options: list[str], done: dict[str, bytes], tmp_path: Path) -> None:
    command = [
        *options,
        "--out",
        str(tmp_path),
        "--engine",
        "slurm",
        "--workers",
        "2",
        "--slurm.cluster",
        "local",
        "--slurm.cpus_per_task",
        "2",
    ]
    assert main([*command, "--slurm.items_per_task", "7"]) == 0
    assert folder_bytes(tmp_path) == done
    assert list((tmp_path / ".logs" / "slurm" / "match").glob("*_log.out"))
    for name in ("matched/done.json", "matched/00001.parquet", "matched/00005.parquet"):
        (tmp_path / name).unlink()
    assert main([*command, "--slurm.items_per_task", "3"]) == 0
    assert folder_bytes(tmp_path) == done


def test_a_ray_that_runs_already_and_relative_paths(options: list[str], done: dict[str, bytes], ray_address: str, tmp_path: Path) -> None:
    """A driver in a folder where the Ray was not started."""
    command = [sys.executable, "-m", "mc2", *options, "--out", "out", "--engine", "ray", "--ray.address", ray_address]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert folder_bytes(tmp_path / "out") == done


def test_no_ray_at_the_address(options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ray = ["--engine", "ray", "--ray.address", "127.0.0.1:1"]
    assert subprocess.run([sys.executable, "-m", "mc2", *options, "--out", str(tmp_path / "out"), *ray], check=False).returncode == 1
    assert capfd.readouterr().err.startswith(
        "mc2 curate: engine: no Ray at 127.0.0.1:1 (Connection refused); start one, or leave out --ray.address"
    )
