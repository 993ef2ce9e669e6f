"""Shards behind a URL (http, s3, gs and whatever else fsspec reads): read in byte ranges, kept in a bounded folder on the disk that all processes share.

A tar is never fetched as a whole: what is read of it comes in pieces of PIECE_BYTES, each a file of the cache. A lost connection costs a piece, not the shard.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec

from mc2 import storage

PIECE_BYTES = 8 * 2**20
SILENCE_SECONDS = 30  # of a server, after which a connection counts as lost
WAIT_SECONDS = (0.5, 1, 2, 4, 8, 16, 32, 60)  # before each new try

LATER = (408, 425, 429)  # answers of the 400s that say "not now"; all others of them say "never"

Result = TypeVar("Result")


class NotThere(ValueError):
    """Nothing has this URL."""


def check_protocol(url: str) -> None:
    """Errors: ValueError for a kind of URL that nothing reads; one whose package is missing is an error where it is read."""
    try:
        fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
    except ImportError:
        pass
    except ValueError as error:
        raise ValueError(f"{url}: {error}; look at the URL") from error


def is_url(path: str | Path) -> bool:
    """Whether a folder of shards is named by a URL ("s3://bucket/shards") and not by a path."""
    return "://" in str(path)


@dataclass(frozen=True)
class RemoteCache:
    """Where pieces of remote shards are kept, and how many bytes of them: those that were not read for the longest time go first.

    folder: on a local disk, one for all processes of a machine. Pieces that other processes are reading stay readable to them. What another user's pieces do not
    allow is left: they may be read and not removed, or not even read.
    """

    folder: str = "~/.cache/mc2/shards"
    max_bytes: int = 50_000_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < PIECE_BYTES:
            raise ValueError(f"data.remote_cache: found max_bytes {self.max_bytes}, need at least {PIECE_BYTES}")

    def open(self, name: str, num_bytes: int, fetch: Callable[[], bytes]) -> IO[bytes]:
        """A piece by its name, fetched if it is not there in its full length."""
        path = Path(self.folder).expanduser() / name
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            if path.stat().st_size == num_bytes:
                piece = path.open("rb")
                with suppress(OSError):  # another user's, or removed meanwhile: it is open
                    os.utime(path)
                return piece
        data = fetch()
        try:
            storage.write_bytes(path, data)
        except ValueError:
            if not os.path.exists(path):  # Path.exists raises where the folder may not be looked into
                raise
            return io.BytesIO(data)  # another user's piece, which this one may not read or replace
        self._make_room(path.parent)
        try:
            return path.open("rb")
        except FileNotFoundError:  # another process has made room
            return io.BytesIO(data)

    def _make_room(self, folder: Path) -> None:
        pieces = []
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    if not entry.name.startswith(".") or stat.st_mtime < time.time() - 3600:  # not what another process is writing
                        pieces.append((stat.st_mtime_ns, stat.st_size, entry.path))
        too_many = sum(size for _, size, _ in pieces) - self.max_bytes
        for _, size, path in sorted(pieces):
            if too_many <= 0:
                return
            with suppress(PermissionError):
                Path(path).unlink(missing_ok=True)
                too_many -= size


@dataclass(frozen=True)
class RemotePath:
    """A file or folder behind a URL, with what the readers of shards need of a Path. `version`: changes when the contents do, so that no old piece is taken for a new one."""

    url: str
    cache: RemoteCache
    version: str = ""

    def __truediv__(self, name: str) -> RemotePath:
        folder, mark, query = self.url.partition("?")  # a key of access, say
        return RemotePath(f"{folder.rstrip('/')}/{name}{mark}{query}", self.cache, self.version)

    def __str__(self) -> str:
        return self.url

    def open(self, mode: str = "rb", num_bytes: int | None = None) -> IO[bytes]:  # noqa: ARG002  (as Path has it)
        """The bytes of a file, which can be read from any place on. num_bytes: if they are known; else the server is asked.

        Errors: ValueError, here and when it is read, once no new try helps.
        """
        return io.BufferedReader(RemoteFile(self, self.num_bytes() if num_bytes is None else num_bytes), buffer_size=2**16)

    def num_bytes(self) -> int:
        """Errors: NotThere, ValueError."""
        found: int | None = self._try(lambda files, path: files.size(path))
        if found is None:
            raise ValueError(f"{self.url}: the server does not say how many bytes it has (Content-Length); use one that does")
        return found

    def exists(self) -> bool:
        """Errors: ValueError if the server does not say so."""
        try:
            self.num_bytes()  # not fsspec's exists, for which a server that is too busy has nothing
        except NotThere:
            return False
        return True

    def read_bytes(self) -> bytes:
        """A whole small file. Errors: NotThere, ValueError."""
        return bytes(self._try(lambda files, path: files.cat_file(path)))

    def read_range(self, start: int, end: int) -> bytes:
        """Errors: ValueError, for a server that does not answer byte ranges too."""

        def fetch(files: Any, path: str) -> bytes:
            data: bytes = files.cat_file(path, start=start, end=end)
            if len(data) < end - start:
                raise OSError(f"the connection broke off after {len(data)} of {end - start} bytes")
            return data

        data = self._try(fetch)
        if len(data) > end - start:
            raise ValueError(
                f"{self.url}: asked for {end - start} bytes, got {len(data)}: the server does not answer byte ranges; use one that does"
            )
        return data

    def _try(self, work: Callable[[Any, str], Result]) -> Result:
        """What the work returns, tried again with longer waits after what may pass: a lost connection, a server that is too busy or broken."""
        for wait_seconds in (*WAIT_SECONDS, None):
            try:
                return work(*fsspec.core.url_to_fs(self.url, **_settings(self.url)))  # made anew: a connection does not survive a fork
            except Exception as error:  # every kind of file system has its own for a connection that is lost
                reason = _reason(error)
                if isinstance(reason, FileNotFoundError) or _status(reason) in (404, 410):
                    raise NotThere(f"{self.url}: is not there; look at the URL, and whether everything was copied") from error
                if isinstance(reason, PermissionError | ImportError) or _says_never(reason):
                    raise ValueError(
                        f"{self.url}: cannot be read ({_in_words(reason)}); look at the URL, the permissions and the packages of fsspec"
                    ) from error
                if wait_seconds is None:
                    raise ValueError(f"{self.url}: cannot be read after {len(WAIT_SECONDS) + 1} tries ({_in_words(reason)})") from error
                time.sleep(wait_seconds * random.Random().uniform(0.5, 1))  # processes that failed together do not come back together
        raise AssertionError


def _reason(error: BaseException) -> BaseException:
    """What happened: fsspec says FileNotFoundError of whatever kept it from asking an HTTP server for the size."""
    from aiohttp import ClientError  # not at the start of every run: half a second

    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, ClientError | TimeoutError) else error


def _status(error: BaseException) -> int | None:
    """The status of an HTTP answer; None for what is none."""
    from aiohttp import ClientResponseError

    return error.status if isinstance(error, ClientResponseError) else None


def _says_never(error: BaseException) -> bool:
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in LATER


def _in_words(error: BaseException) -> str:
    status = _status(error)
    return repr(error) if status is None else f"HTTP status {status}"  # its own words have all headers, credentials too


def _settings(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)}}


class RemoteFile(io.RawIOBase):
    """The bytes of a remote file, through the cache."""

    def __init__(self, path: RemotePath, num_bytes: int) -> None:
        self._path, self._num_bytes, self._position = path, num_bytes, 0
        self._number, self._piece = -1, None  # type: tuple[int, IO[bytes] | None]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._num_bytes:
            return 0
        number, start = divmod(self._position, PIECE_BYTES)
        piece = self._open(number)
        piece.seek(start)
        data = piece.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _open(self, number: int) -> IO[bytes]:
        if number != self._number or self._piece is None:
            first, path = number * PIECE_BYTES, self._path
            last = min(first + PIECE_BYTES, self._num_bytes)
            name = storage.fingerprint([path.url, path.version, self._num_bytes, first, last])
            self._close_piece()
            self._piece = path.cache.open(name, last - first, lambda: path.read_range(first, last))
            self._number = number
        return self._piece

    def _close_piece(self) -> None:
        if self._piece is not None:
            self._piece.close()
            self._piece = None

    def close(self) -> None:
        self._close_piece()
        super().close()
