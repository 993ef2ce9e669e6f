"""Shards behind a URL give what the same shards on the disk give: over a server that breaks off, with a cache that is too small, from the middle of a shard on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mc2.data import remote
from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.data.loader import Loader
from mc2.data.preprocess import ImagePreprocess
from mc2.data.remote import NotThere, RemoteCache, RemotePath
from mc2.data.shard_folder import open_folder
from mc2.data.shard_index import index_tar
from mc2.data.shard_reader import ShardReader
from mc2.records import ShardInfo, ShardManifest
from mc2.storage import write_json
from tests.data.shards import write_folder

PIECE, WHOLE_PIECE = 4096, remote.PIECE_BYTES


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(remote, "WAIT_SECONDS", (0.01,) * 6)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards with manifest and index, as `mc2 curate pack` leaves them."""
    folder, infos = write_folder(tmp_path_factory.mktemp("shards"), [9, 12, 7, 10]), []
    for file in sorted(folder.glob("*.tar")):
        rows = index_tar(file)
        table = pa.table({"key": [str(i) for i in range(len(rows))], "offset": rows[:, 0], "size": rows[:, 1]})
        pq.write_table(table, folder / f"{file.stem}.index.parquet")
        infos.append(ShardInfo(file.stem, len(rows), file.stat().st_size, ""))
    write_json(folder / "manifest.json", ShardManifest(tuple(infos), {}, {}).to_json())
    return folder


class Server(ThreadingHTTPServer):
    """Files of a folder over HTTP. `faults`: so many answers break off in the middle; `ranges`: byte ranges are answered; `asked`: (name, first, last) of each.

    `statuses`: what the next requests get instead of an answer, 0: a connection that is closed. `num_requests`: of both kinds.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.faults, self.ranges, self.num_requests = folder, 0, True, 0
        self.asked: list[tuple[str, int, int]] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shards"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.num_requests += 1
        file = self.server.folder / self.path.partition("?")[0].removeprefix("/shards/")
        status = self.server.statuses.pop(0) if self.server.statuses else 200 if file.is_file() else 404
        if status != 200:
            self.close_connection = not status
            if status:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            return
        data = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.ranges else None
        first, last = (int(found[1]), int(found[2])) if found else (0, len(data) - 1)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(data[first : last + 1])))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if body:
            if found:
                self.server.asked.append((file.name, first, last))
            broken = bool(found) and self.server.faults > 0
            self.server.faults -= broken
            self.wfile.write(data[first : last + 1][: 100 if broken else None])
            self.close_connection = broken

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with Server(shards) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def loader(shards: str | Path, tokenizer_folder: Path, cache: Path, max_bytes: int = 10**9, **settings: Any) -> Loader:
    defaults: dict[str, Any] = {"batch_size": 4, "steps_per_epoch": 100, "shuffle_shards": 2, "shuffle_block": 3}
    preprocess, remote_cache = ImagePreprocess(image_size=8), RemoteCache(str(cache), max_bytes)
    module = ShardDataModule(
        str(shards), str(tokenizer_folder), **{**defaults, **settings}, preprocess=preprocess, remote_cache=remote_cache
    )
    return module.loader(0, 1)


def same(ours: list[PairBatch], theirs: list[PairBatch]) -> bool:
    return all(a.keys == b.keys and torch.equal(a.image, b.image) for a, b in zip(ours, theirs, strict=True))


def test_over_a_server_that_breaks_off_batches_are_those_of_the_disk(
    shards: Path, server: Server, tokenizer_folder: Path, tmp_path: Path
) -> None:
    whole = list(islice(loader(shards, tokenizer_folder, tmp_path), 20))
    server.faults = 5
    first = loader(server.url, tokenizer_folder, tmp_path / "cache")
    assert same(list(islice(first, 8)), whole[:8])
    assert server.faults == 0
    done = [*dict.fromkeys(server.asked)]
    assert len(server.asked) == len(done) + 5  # what broke off is asked for again, nothing else
    assert all(last - first < PIECE for _, first, last in done)
    server.asked.clear()
    rest = loader(server.url, tokenizer_folder, tmp_path / "cache", num_workers=1)
    rest.load_state_dict(first.state_dict())
    assert same(list(islice(rest, 12)), whole[8:])
    assert not {*server.asked} & {*done}  # pieces are kept, and shared by processes
    rest.close()


def test_a_resume_asks_only_for_what_is_behind_it(shards: Path, server: Server, tokenizer_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 3, "shuffle_shards": 1}
    first = loader(shards, tokenizer_folder, tmp_path, **settings)
    next(iter(first))  # the first block: three records of one shard
    rest = loader(server.url, tokenizer_folder, tmp_path / "cache", **settings)
    rest.load_state_dict(first.state_dict())
    next(iter(rest))
    name, start, _ = server.asked[0]
    begin = int(index_tar(shards / name)[3, 0])
    assert start == begin // PIECE * PIECE > 0


def test_a_url_may_carry_a_key(shards: Path, server: Server, tokenizer_folder: Path, tmp_path: Path) -> None:
    ours = loader(f"{server.url}?key=a%2Fb", tokenizer_folder, tmp_path / "cache")
    assert same(list(islice(ours, 5)), list(islice(loader(shards, tokenizer_folder, tmp_path), 5)))


def test_the_records_of_an_open_block_cost_no_request_each(shards: Path, server: Server, tmp_path: Path) -> None:
    """A resume in the middle of a block takes its records one by one."""
    reader = ShardReader(open_folder(server.url, RemoteCache(str(tmp_path))))
    reader.record("00001.tar", 0)
    before = server.num_requests
    assert [reader.record("00001.tar", number).key for number in range(12)] == [f"1-{number:04d}" for number in range(12)]
    pieces = -(-(shards / "00001.tar").stat().st_size // PIECE)
    assert server.num_requests - before < pieces


def test_a_cache_that_is_too_small_stays_small(shards: Path, server: Server, tokenizer_folder: Path, tmp_path: Path) -> None:
    whole = list(islice(loader(shards, tokenizer_folder, tmp_path), 20))
    small = loader(server.url, tokenizer_folder, tmp_path / "cache", 3 * PIECE, num_workers=1)
    for number, batch in enumerate(islice(small, 20)):
        assert same([batch], [whole[number]])
        assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir() if not file.name.startswith(".")) <= 4 * PIECE
    small.close()
    with pytest.raises(ValueError, match=r"found max_bytes 5, need at least 4096"):
        RemoteCache(str(tmp_path), 5)


AS_NOBODY = """
import os, sys
from mc2.data.remote import PIECE_BYTES, RemoteCache
os.setgroups([]), os.setgid(65534), os.setuid(65534)
cache = RemoteCache(sys.argv[1], PIECE_BYTES)
for name in ("whole", "private", "new"):
    with cache.open(name, PIECE_BYTES, lambda: b"2" * PIECE_BYTES) as piece:
        data = piece.read()
    assert len(data) == PIECE_BYTES
    print(name, *set(data.decode()))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user for a test")
def test_two_users_of_a_machine_share_a_cache() -> None:
    """As in /tmp, a user may not touch or remove the pieces of another; one of them may not even be read."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        for name in ("whole", "private"):
            RemoteCache(folder).open(name, WHOLE_PIECE, lambda: b"1" * WHOLE_PIECE).close()
        os.chmod(Path(folder, "private"), 0o600)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, folder], stdout=subprocess.PIPE, text=True, check=True)
        assert done.stdout.splitlines() == ["whole 1", "private 2", "new 2"]
        assert sorted(os.listdir(folder)) == ["private", "whole"]


def test_every_file_system_of_fsspec_will_do(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(shards), "/bucket/shards", recursive=True)
    ours = loader("memory://bucket/shards", tokenizer_folder, tmp_path / "cache", batch_size=5)
    assert same(list(islice(ours, 6)), list(islice(loader(shards, tokenizer_folder, tmp_path, batch_size=5), 6)))
    files.rm("/bucket/shards/manifest.json")
    with pytest.raises(ValueError, match=r"memory://bucket/shards: found no manifest\.json, need one"):
        open_folder("memory://bucket/shards")
    files.rm("/bucket", recursive=True)


def test_what_cannot_be_reached_is_said_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^htps://x/y: Protocol not known: htps; look at the URL$"):
        open_folder("htps://x/y")
    (tmp_path / "file").touch()
    folder = open_folder(server.url, RemoteCache(str(tmp_path / "file")))
    with pytest.raises(ValueError, match=r"cannot be written .*; give a folder that you may write to"):
        next(ShardReader(folder).read("00001.tar"))


def test_what_is_in_a_piece_is_what_is_in_the_file(shards: Path, server: Server, tmp_path: Path) -> None:
    data, rng = (shards / "00001.tar").read_bytes(), np.random.default_rng(0)
    with (RemotePath(server.url, RemoteCache(str(tmp_path))) / "00001.tar").open() as file:
        for start, length in rng.integers(0, len(data), (100, 2)).tolist():
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        assert file.seek(-10, 2) == len(data) - 10
        assert file.read() == data[-10:]
    piece = next(tmp_path.iterdir())
    piece.write_bytes(b"cut off")  # by a full disk, say
    with (RemotePath(server.url, RemoteCache(str(tmp_path))) / "00001.tar").open() as file:
        assert file.read() == data


def test_what_cannot_be_read_is_an_error_that_says_why(server: Server, tmp_path: Path) -> None:
    folder = RemotePath(server.url, RemoteCache(str(tmp_path)))
    server.ranges = False
    with pytest.raises(ValueError, match="the server does not answer byte ranges"), (folder / "00001.tar").open() as file:
        file.read(1)
    server.ranges, server.faults = True, 100
    with (
        pytest.raises(ValueError, match=r"00001\.tar: cannot be read after 7 tries \(ClientPayloadError"),
        (folder / "00001.tar").open() as file,
    ):
        file.read(1)
    server.faults = 0


READS: Sequence[Callable[[RemotePath], object]] = (
    RemotePath.read_bytes,
    RemotePath.num_bytes,
    RemotePath.exists,
    lambda path: path.read_range(0, 9),
)


@pytest.mark.parametrize("read", READS)
def test_what_may_pass_is_tried_again_and_what_may_not_is_an_error_at_once(
    read: Callable[[RemotePath], object], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests for what fails: a size is asked for with HEAD, and then with GET."""
    waits: list[float] = []
    monkeypatch.setattr(remote, "WAIT_SECONDS", (0.01, 0.02, 0.04))
    monkeypatch.setattr("mc2.data.remote.time.sleep", waits.append)
    file = RemotePath(server.url, RemoteCache(str(tmp_path))) / "00001.tar"
    expected = read(file)
    for statuses in ((503, 503), (429, 429), (500, 502), (0, 0), (408, 0)):
        server.statuses = [*statuses]
        assert read(file) == expected
        assert not server.statuses
        assert waits or 0 in statuses  # aiohttp itself tries once more where a connection was closed that it had kept
        waits.clear()
    for status in (400, 401, 403, 451):
        server.statuses, server.num_requests = [status] * 2, 0
        with pytest.raises(ValueError, match=rf"^http://.*/00001\.tar: cannot be read \(HTTP status {status}\); look at .*$"):
            read(file)
        assert server.num_requests <= 2
    server.statuses = [503] * 8
    with pytest.raises(ValueError, match=r"^http://.*/00001\.tar: cannot be read after 4 tries \(HTTP status 503\)$"):
        read(file)
    assert len(waits) == 3  # what was refused was not tried again
    assert all(0.5 * longest <= wait <= longest for wait, longest in zip(waits, remote.WAIT_SECONDS, strict=True))


def test_what_is_not_there_is_an_error_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mc2.data.remote.time.sleep", pytest.fail)
    nothing = RemotePath(server.url, RemoteCache(str(tmp_path))) / "nothing.tar"
    for read in READS:
        if read is RemotePath.exists:
            assert not read(nothing)
            continue
        with pytest.raises(NotThere, match=r"^http://.*/nothing\.tar: is not there; look at the URL"):
            read(nothing)
    with pytest.raises(ValueError, match=r"^http://.*/shards/below: found no manifest\.json, need one"):
        open_folder(f"{server.url}/below")
