"""Workers end with their run, in the middle of a batch too, and make the same batches however they are started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from mc2.curation.balance import Balance, LanguageBalance
from mc2.data.preprocess import ImagePreprocess
from mc2.data.shard_data import ShardData
from tests.data.shards import jpeg, packed, write_folder, write_tar

MOST_SECONDS = 15  # to end in, on a machine that has more to do; the drought takes longer


@pytest.fixture(scope="module")
def drought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards` of which `balance` accepts no pair, and a loader does not give up before its hundredth pass."""
    folder = tmp_path_factory.mktemp("drought")
    image, caption = jpeg(), packed(("a fox", "en", ()))
    write_tar(folder / "shards" / "0.tar", [file for pair in range(5000) for file in ((f"{pair}.jpg", image), (f"{pair}.json", caption))])
    rejecting = LanguageBalance(np.full(1, 5), 5, np.array([0.5]))
    Balance(0.06, None, "paper", {"en": rejecting}).save(folder / "balance", entries=lambda _: ["a"])
    return folder


DRY = """
import multiprocessing, sys, time
from threading import Thread
from mc2.data.shard_data import ShardData

def say():
    while not multiprocessing.active_children():
        time.sleep(0.1)
    time.sleep(1)
    print("busy", flush=True)

folder, tokenizer = sys.argv[1:]
loader = ShardData(f"{folder}/shards", tokenizer, balance=f"{folder}/balance", batch_size=4, num_workers=1).loader(0, 1)
Thread(target=say, daemon=True).start()
try:
    next(iter(loader))
except KeyboardInterrupt:
    loader.close()
    for worker in multiprocessing.active_children():
        worker.join()
    print("closed")
"""


@pytest.mark.parametrize(
    ("number", "everybody", "said"),
    [
        pytest.param(signal.SIGINT, True, "closed\n", id="ctrl-c"),  # in a terminal
        pytest.param(signal.SIGTERM, True, "", id="slurm"),
        pytest.param(signal.SIGKILL, False, "", id="kill-9"),
    ],
)
def test_no_worker_outlives_a_run_that_is_stopped_inside_a_batch(
    number: signal.Signals, everybody: bool, said: str, drought: Path, tokenizer_folder: Path
) -> None:
    command = [sys.executable, "-c", DRY, str(drought), str(tokenizer_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "busy\n"
            (os.killpg if everybody else os.kill)(process.pid, number)
            found = process.communicate(timeout=MOST_SECONDS)  # until nobody holds the pipes; a worker does
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert found == (said, "")
    assert process.returncode == (0 if said else -number)


SPAWN = """
import multiprocessing, sys, torch
from mc2.data.preprocess import ImagePreprocess
from mc2.data.shard_data import ShardData

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    data = ShardData(sys.argv[1], sys.argv[2], batch_size=4, steps_per_epoch=20, num_workers=1, preprocess=ImagePreprocess(image_size=8))
    torch.save([(batch.keys, batch.image.clone(), batch.tokens.clone()) for batch in data.loader(0, 1)], sys.argv[3])
"""


def test_workers_that_do_not_fork_make_the_same_batches(tokenizer_folder: Path, tmp_path: Path) -> None:
    """macOS spawns."""
    shards, script, file = write_folder(tmp_path / "shards", [9, 12, 4, 10]), tmp_path / "script.py", tmp_path / "batches"
    script.write_text(SPAWN)  # workers that do not fork import it
    subprocess.run([sys.executable, str(script), str(shards), str(tokenizer_folder), str(file)], check=True, timeout=120)
    module = ShardData(str(shards), str(tokenizer_folder), batch_size=4, steps_per_epoch=20, preprocess=ImagePreprocess(image_size=8))
    for ours, theirs in zip(module.loader(0, 1), torch.load(file), strict=True):
        assert ours.keys == theirs[0]
        assert torch.equal(ours.image, theirs[1])
        assert torch.equal(ours.tokens, theirs[2])
