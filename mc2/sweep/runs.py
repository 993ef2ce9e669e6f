"""The runs of a sweep: `mc2 fit` in a process of its own for each experiment and seed, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mc2 import storage
from mc2.benchmarks.result_files import RESULTS, step_folder
from mc2.benchmarks.results import Result, read_results


@dataclass
class Processes:
    """Starts `mc2` commands from several threads. After `stop` nothing is started any more, and what runs gets Ctrl-C, upon which `fit` saves and ends."""

    threads_each: int
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(self, log: Path, *words: object) -> None:
        """Run `mc2 WORDS`, its output at the end of `log`. Errors: ValueError with the last line of the output if it fails."""
        command = [sys.executable, "-m", "mc2", *map(str, words)]
        environment = {"OMP_NUM_THREADS": str(self.threads_each), **os.environ}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            with self._lock:
                if self._stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        if self._stopped:
            raise KeyboardInterrupt
        if status:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise ValueError(f"`mc2 {words[0]}` failed with status {status}: {lines[-1] if lines else 'no output'} (all of it: {log})")

    def stop(self) -> None:
        """Ask what runs to end."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


@dataclass(frozen=True)
class Run:
    """One experiment with one seed, in a folder of its own. `options`: more words for `mc2 fit`."""

    experiment: str
    seed: int
    configs: tuple[Path, ...]
    folder: Path
    options: tuple[str, ...] = ()
    with_model: bool = False

    def inputs(self) -> dict[str, object]:
        """What the result depends on: the YAMLs without their comments, the seed, and the finished stages whose folders the YAMLs name."""
        values = [read_yaml(path) for path in self.configs]
        marks = {text: Path(text) / "done.json" for value in values for text in strings(value)}
        stages = {text: storage.read_json(mark)["fingerprint"] for text, mark in sorted(marks.items()) if mark.exists()}
        return {"configs": storage.fingerprint(values), "seed": self.seed, "options": list(self.options), "data": stages}

    def execute(self, processes: Processes) -> bool:
        """Train and evaluate, unless that was done; an interrupted run goes on. Returns whether there was anything to do. Errors: ValueError."""
        with storage.Stage(self.folder, "sweep run", self.inputs()) as stage:
            if stage.done:
                return False
            log, config = self.folder / "log.txt", self.folder / "config.yaml"
            words: list[object] = [word for path in self.configs for word in ("--config", path)]
            words += ["--seed_everything", self.seed, "--data.init_args.seed", self.seed, "--trainer.default_root_dir", self.folder]
            processes.run(log, "fit", *words, *self.options, "--trainer.enable_progress_bar", "false", "--ckpt_path", "last")
            steps = read_yaml(config)["trainer"]["max_steps"]
            if not (step_folder(self.folder / "results", steps) / RESULTS).exists():  # stopped between the last step and its benchmarks
                processes.run(log, "test", "--config", config, "--ckpt_path", "last")
            if self.with_model and not (self.folder / "model").exists():
                checkpoint = self.folder / "checkpoints/last.ckpt"
                processes.run(log, "export", "--config", config, "--ckpt_path", checkpoint, "--out", self.folder / "model")
            stage.finish({})
        return True

    def results(self) -> list[Result]:
        """Of a finished run. Errors: ValueError if it is not."""
        storage.finished(self.folder, "sweep run", "mc2 sweep")
        return read_results(self.folder / RESULTS)

    def pairs_seen(self) -> int:
        """Steps times batch, of one process."""
        config = read_yaml(self.folder / "config.yaml")
        return int(config["trainer"]["max_steps"]) * int(config["data"]["init_args"]["batch_size"])


def read_yaml(path: Path) -> Any:
    """Errors: ValueError that names the file."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def strings(value: Any) -> Sequence[str]:
    """All strings in a YAML value."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []
