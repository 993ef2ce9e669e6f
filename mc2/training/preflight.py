"""What else a run needs than a GPU's memory: enough shards for every rank and worker, a loader that keeps up, room for checkpoints, and its sbatch file."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule

from mc2 import storage
from mc2.data.datamodule import ShardDataModule
from mc2.training.findings import Finding
from mc2.training.recipe import ENGLISH_EPOCH, NUM_EPOCHS

GB = 1e9
SETTINGS: Any = Namespace  # jsonargparse's class has no types


def data_findings(data: Any, num_ranks: int, seen_pairs: float) -> list[Finding]:
    """How the shards are dealt out, and how many English pairs a run of so many sees. Errors: ValueError of the data module where a rank or worker would go without,
    for which the others would wait.
    """
    settings = data.get("init_args") or SETTINGS()
    shards = settings.get("shards") or []
    paths = [
        *([shards] if isinstance(shards, str) else [each["shards"] for each in shards]),
        settings.get("tokenizer"),
    ]  # one folder, or data sets with weights
    missing = [str(path) for path in paths if path is None or not Path(path).exists()]
    if missing:
        text = f"{' and '.join(missing)} not here, so shards per rank and worker are not checked, nor English pairs counted; plan again where they are"
        return [Finding("warn", "data", text)]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=LightningDataModule)
    module = parser.instantiate_classes(SETTINGS(data=data)).data
    if not isinstance(module, ShardDataModule):
        return [Finding("warn", "data", f"{type(module).__name__} does not say how it is dealt out to {num_ranks} ranks")]
    return [Finding("ok", "data", "; ".join(module.summary(num_ranks))), english_finding(module.expected_shares(), seen_pairs)]


def english_finding(shares: Mapping[str, float], seen_pairs: float) -> Finding:
    """`shares` of the languages, empty where nobody knows them."""
    if not shares:
        return Finding("warn", "english", "the shards do not say how many pairs of each language they have; those of `mc2 curate pack` do")
    share = shares.get("en", 0.0)
    text = f"{share * seen_pairs:,.4g} of {seen_pairs:,.4g} pairs seen, {share:.1%}; CLIP's English schedule sees {ENGLISH_EPOCH * NUM_EPOCHS:,.4g}"
    return Finding("ok", "english", text)


def measured_per_worker(path: Path) -> tuple[float, int]:
    """Pairs a second of a worker, and the edge of the images, of `mc2 bench loader --json`. Errors: ValueError if the file is something else."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        return float(figures["samples_per_second_of_a_worker"]), int(figures["sample"]["image_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--loader: found no figures in {path}, need a file of `mc2 bench loader --json FILE`") from error


def loader_finding(measured: tuple[float, int] | None, need: float, workers: int, image_size: int) -> Finding:
    """`need`: pairs a second of one rank at the planned utilisation."""
    wanted = f"each rank needs {need:,.0f} pairs/s"
    if measured is None:
        return Finding("warn", "loader", f"{wanted}; measure with `mc2 bench loader --json FILE` on a node and give --loader FILE")
    of_one, size = measured
    if size != image_size:
        return Finding(
            "warn", "loader", f"{wanted}, but images of {size} px were measured; need `mc2 bench loader --image_size {image_size}`"
        )
    given = of_one * max(1, workers)
    text = f"{wanted}, {max(1, workers)} workers make {given:,.0f} where each has a core"
    if given < need:
        return Finding("warn", "loader", f"{text}: the GPU waits; set data.num_workers to {math.ceil(need / of_one)}")
    return Finding("ok", "loader", text)


def disk_finding(run: Path, checkpoint: float, keep: int) -> Finding:
    """Room for `keep` checkpoints and the one that is being written."""
    need = (keep + 1) * checkpoint
    here = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(here).free
    text = f"{keep} checkpoints of {checkpoint / GB:,.2f} GB and one that is being written: {need / GB:,.2f} GB, {free / GB:,.1f} GB are free at {here}"
    return (
        Finding("ok", "disk", text)
        if free > need
        else Finding("warn", "disk", f"{text}; make room, lower checkpoints.keep or choose another folder")
    )


def sbatch_text(arguments: Sequence[str], name: str, num_nodes: int, devices: int, num_workers: int, gpus: bool) -> str:
    """experiments/slurm/train.sbatch for one configuration: its numbers of nodes and tasks, CPUs for each task and its workers, and the arguments of `mc2 fit`."""
    text = (storage.experiments() / "slurm/train.sbatch").read_text(encoding="utf-8")
    header = {"job-name": name, "nodes": num_nodes, "ntasks-per-node": devices, "cpus-per-task": num_workers + 1}
    for option, value in header.items():
        text, found = re.subn(rf"^#SBATCH --{option}=.*$", f"#SBATCH --{option}={value}", text, flags=re.MULTILINE)
        assert found == 1, option
    if gpus:
        text = text.replace("#SBATCH --time", f"#SBATCH --gpus-per-node={devices}\n#SBATCH --time", 1)
    assert text.count('"$@"') == 1
    head = f"#!/bin/bash\n# Written by `mc2 plan --sbatch` from experiments/slurm/train.sbatch: submit with `sbatch` from {Path.cwd()}.\n"
    return head + text[text.index("#SBATCH") :].replace('"$@"', f'{shlex.join(arguments)} "$@"')
