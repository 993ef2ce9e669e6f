"""`mc2 curate run` over 200,000 captions: killed at random moments, on a full disk, twice at once. It ends with the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mc2.metadata.build import build_metadata
from tests.curation.pools import folder_bytes, image_file, tar_bytes

SHARDS, PAIRS, CAPTIONS = 20, 1000, 10

WORDS = {
    "en": "the brown fox in snow house by sea dog and cat garden moon over mountains black horse runs through field with children",
    "de": "der braune Fuchs im Schnee das alte Haus am Meer Hund und Katze schlafen Garten Mond über den Bergen schwarzes Pferd läuft",
    "fr": "le renard brun dans la neige une vieille maison au bord de mer chien et chat dorment jardin lune sur les montagnes cheval",
    "ru": "бурая лиса в снегу старый дом у моря собака и кошка спят сад луна над горами чёрная лошадь бежит по полю дети",
    "ja": "雪の中の 茶色い キツネ 海辺の 古い 家 犬と 猫が 庭で 眠る 月が 山の 上に 黒い 馬が 走る 公園で 遊ぶ 子供たち",
}


def write_pool(folder: Path, rng: random.Random) -> None:
    """20 shards of 1,000 pairs with 10 captions each, made of words that get rarer and rarer; now and then an image is broken."""
    folder.mkdir()
    words = {language: text.split() for language, text in WORDS.items()}
    weights = {language: [1 / rank for rank in range(1, len(words[language]) + 1)] for language in words}
    images = [image_file(seed) for seed in range(16)]
    for shard in range(SHARDS):
        members = []
        for number in range(PAIRS):
            key = f"{shard:05d}{number:04d}"
            languages = rng.choices(list(words), [5, 2, 2, 1, 1], k=CAPTIONS)
            texts = [" ".join(rng.choices(words[language], weights[language], k=6)) for language in languages]
            image = images[number % 16] if number % 100 else b"broken"
            members += [(f"{key}.jpg", image), (f"{key}.json", json.dumps({"captions": texts}).encode())]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line, but for the output folder."""
    folder = tmp_path_factory.mktemp("killed")
    write_pool(folder / "pool", random.Random(0))
    entries = {code: [word.strip("の") for word in words.split()] for code, words in WORDS.items()}
    build_metadata(folder / "metadata", [], entries, progress=False)
    options = ["--english_threshold", "9000", "--shard_pairs", "700", "--workers", "2", "--progress", "false"]
    return [sys.executable, "-m", "mc2", "curate", "run", "--pool", f"{folder}/pool", "--metadata", f"{folder}/metadata", *options]


@pytest.fixture(scope="module")
def undisturbed(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run([*inputs, "--out", str(out)], check=True, capture_output=True)
    return out


class Driver:
    """A running command in a session of its own."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)

    def workers(self) -> list[int]:
        """Children of its fork server."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":  # the session
                parents[int(stat.parent.name)] = int(fields[1])
        return [pid for pid, parent in parents.items() if parents.get(parent) == self.process.pid]

    def finished(self) -> bool:
        """True once it has ended well. Errors: AssertionError with its last words if it has not."""
        if self.process.poll() is None:
            return False
        assert self.process.returncode == 0, self.log.read_text()
        return True

    def kill_everything(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_a_worker(self, rng: random.Random) -> bool:
        """False if there was none."""
        workers = self.workers()
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        return bool(workers)


def files(folder: Path) -> int:
    return sum(not path.name.startswith(".") for path in folder.rglob("*"))


def moments(total: int, number: int, rng: random.Random) -> Iterator[tuple[int, float]]:
    """How many files there shall be, and the seconds after that, for each kill."""
    for milestone in sorted(rng.sample(range(total - 4), number)):  # the report comes last, and takes seconds
        yield milestone, rng.uniform(0.0, 0.3)


@pytest.mark.timeout(900)
def test_a_run_killed_ten_times_ends_with_the_same_bytes(inputs: list[str], undisturbed: Path, tmp_path: Path) -> None:
    rng, out, kills = random.Random(2), tmp_path / "out", {"everything": 0, "worker": 0}
    command = [*inputs, "--out", str(out)]
    driver = Driver(command, tmp_path / "log")
    for number, (milestone, seconds) in enumerate(moments(files(undisturbed), 15, rng)):
        while files(out) < milestone and not driver.finished():
            time.sleep(0.01)
        time.sleep(seconds)
        if number % 3 == 2:
            kills["worker"] += driver.kill_a_worker(rng)
        else:
            driver.kill_everything()
            kills["everything"] += 1
            driver = Driver(command, tmp_path / "log")
    driver.process.wait(300)
    assert driver.finished()
    assert kills["everything"] == 10
    assert kills["worker"] >= 3
    assert folder_bytes(out) == folder_bytes(undisturbed)
    assert [path.name for path in out.rglob(".*.tmp")] == []


def test_two_at_once(inputs: list[str], undisturbed: Path, tmp_path: Path) -> None:
    """One is refused, the other is not disturbed; the workers of one that was killed may still write when the next one starts."""
    command = [*inputs, "--out", str(tmp_path / "out")]
    first = Driver(command, tmp_path / "log")
    while files(tmp_path / "out") < 5:
        time.sleep(0.01)
    second = subprocess.run(command, check=False, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"another job is writing here (process {first.process.pid} on " in second.stderr
    first.process.kill()  # the driver alone
    first.process.wait()
    third = Driver(command, tmp_path / "log")
    third.process.wait(300)
    assert third.finished()
    assert folder_bytes(tmp_path / "out") == folder_bytes(undisturbed)


LIMITED = """
import resource, sys
from mc2.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # a disk with too little room for some of the files
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_up(inputs: list[str], undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    limited = subprocess.run([sys.executable, "-c", LIMITED, *inputs[3:], "--out", str(out)], check=False, capture_output=True, text=True)
    assert limited.returncode == 1
    assert "mc2 curate: " in limited.stderr
    assert "the disk is full; free some space and run the same line again (finished work is kept)" in limited.stderr
    assert limited.stderr.count("\n") == 1
    whole = folder_bytes(undisturbed)
    assert {name for name, data in folder_bytes(out).items() if whole.get(name) != data} == set()
    assert [path.name for path in out.rglob(".*.tmp")] == []
    subprocess.run([*inputs, "--out", str(out)], check=True, capture_output=True)
    assert folder_bytes(out) == whole
