"""Paths, atomic writes, fingerprints and keyed random draws: the few words every stage says to the disk.

Output is a function of (input fingerprint, config, seed, shard): a stage writes under a temporary name, syncs, renames, then marks itself done.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import uuid
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from mc2 import __version__

JSON = dict[str, Any]


def experiments() -> Path:
    """The folder of experiments: beside the package in a checkout, inside it when installed from a wheel. Errors: ValueError if it is in neither."""
    package = Path(__file__).parent
    for folder in (package.parent / "experiments", package / "experiments"):
        if folder.is_dir():
            return folder
    raise ValueError(f"experiments: not found beside or in {package}; install mc2 again")


# --- keyed random draws -------------------------------------------------------------------------------------------------


def keyed_hash(seed: int, purpose: str, epoch: int, key: str) -> int:
    """64 random bits that depend on nothing but their arguments: not on order, workers or restarts (DESIGN decision 1)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{purpose}|{epoch}|{key}".encode(), digest_size=8).digest(), "big")


def keyed_uniform(seed: int, purpose: str, epoch: int, key: str) -> float:
    """A number in [0, 1) drawn by the key."""
    return (keyed_hash(seed, purpose, epoch, key) >> 11) * 2.0**-53


def keyed_hashes(seed: int, purpose: str, epoch: int, keys: Iterable[str]) -> NDArray[np.uint64]:
    """`keyed_hash` of many keys."""
    prefix = f"{seed}|{purpose}|{epoch}|"
    digests = [hashlib.blake2b((prefix + key).encode(), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def hashed_uniforms(hashes: NDArray[np.uint64] | np.uint64, numbers: NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each hash with its non-negative integer (an entry id, say): splitmix64 of both."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the algorithm
        z = hashes + (np.asarray(numbers).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keyed_uniforms(seed: int, purpose: str, epoch: int, key: str, numbers: NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each of the non-negative integers, drawn by the key and the integer."""
    return hashed_uniforms(np.uint64(keyed_hash(seed, purpose, epoch, key)), numbers)


def keyed_order(seed: int, purpose: str, epoch: int, keys: Iterable[str]) -> list[str]:
    """The keys in an order drawn by the key of each: the same whatever order they came in."""
    return sorted(keys, key=lambda key: (keyed_hash(seed, purpose, epoch, key), key))


# --- fingerprints -------------------------------------------------------------------------------------------------------


def fingerprint(value: object) -> str:
    """16 hex digits of the SHA-256 of the value as canonical JSON; the value must be made of plain types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- atomic writes ------------------------------------------------------------------------------------------------------


class DiskFullError(ValueError):
    """There is no room for a file: nothing else can be written either."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when it is whole and on the disk.

    Any number of processes on any number of machines may write the same file: the last one wins, whole. A failure (a full disk, say) removes the temporary
    file and leaves what was there before. Errors: DiskFullError, ValueError for a folder that cannot be written to, OSError otherwise.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # a process id is not unique among machines
    try:
        with _writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # what cannot be written to has no temporary file either
            temporary.unlink()


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """What the disk refuses, as an error with the cure."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # full, over the user's quota, over a limit on the size of files
            raise DiskFullError(f"{path}: the disk is full; free some space and run the same line again (finished work is kept)") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise ValueError(f"{path}: cannot be written ({error.strerror}); give a folder that you may write to") from error
        raise


@contextmanager
def alone(folder: Path, what: str = "") -> Iterator[bool]:
    """Only one process at a time does `what` in a folder; the others wait. False where the file system has no locks: several may do the same work there.

    `.lock` of the folder is locked at a byte that stands for `what`: one file, however many things are done side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    byte = int(hashlib.sha256(what.encode()).hexdigest()[:12], 16)
    with open(folder / ".lock", "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
        except OSError:
            yield False
        else:
            yield True


def remove_stale(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder and those below it, but for the folders of other stages."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not Path(parent, name, "inputs.json").exists()]
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                Path(parent, name).unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented UTF-8 JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_columns(file: Path | IO[bytes], *names: str) -> list[NDArray[Any]]:
    """Columns of numbers of a parquet file. Neither `read_table` nor `to_numpy`: both import pandas where it is installed, for longer than an index takes.

    Errors: OSError, KeyError for a column that is not there, pyarrow.ArrowException for what is no parquet file or has nulls.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        table = parquet.read(columns=list(names))
    return [np.from_dlpack(table[name].combine_chunks()) for name in names]


def read_json(path: Path) -> Any:
    """The value of a JSON file. Errors: ValueError that names the file if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run the stage that writes it again") from error


# --- stages that can be run again ---------------------------------------------------------------------------------------


class Stage:
    """A folder that is filled once from named inputs.

    with Stage(folder, "match", {"pool": "ab12...", "seed": 0}) as stage:
        if not stage.done:
            ...                      # write files atomically
            stage.finish({"captions": 17})

    `inputs.json` is written at the start and `done.json` at the end. Other inputs than the folder's own are an error, never a mixture; but a stage that has made no
    file yet begins anew with them, so that a setting which it refused, or a damaged source, can be mended. `done.json` has no clock in it: the same inputs give the
    same bytes.

    kept: folders in it that are right whatever the inputs are; scratch: folders of intermediate results, which are not. still_right: asked, with the names of the inputs that differ, whether the files that an
    unfinished stage has made are right with the new ones too, after it has deleted those that are not.

    The folder is locked while the stage runs, by flock: NFS and Lustre (mounted with `flock`) keep it among machines, and it ends with the process that holds
    it, kill -9 included. Where the file system has no locks, a warning is all: files are atomic and the same whoever writes them, so two jobs waste time
    but damage nothing. For the same reason the workers of a dead job may still run while the next one starts.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        inputs: Mapping[str, object],
        kept: Collection[str] = (),
        scratch: Collection[str] = (),
        still_right: Callable[[set[str]], bool] = lambda _: False,
    ) -> None:
        self.folder, self.name, self._kept, self._scratch, self._still_right = folder, name, kept, scratch, still_right
        self.inputs: JSON = json.loads(json.dumps({"stage": name, "mc2": __version__, **inputs}))
        self.fingerprint = fingerprint(self.inputs)
        self._lock: IO[bytes] | None = None
        self._alone = False  # the lock is held

    def __enter__(self) -> Self:
        with _writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "ab+")  # held until __exit__
            try:
                self._take_lock(self._lock)
                self._check_inputs()
            except BaseException:
                self._lock.close()
                raise
        return self

    def _take_lock(self, lock: IO[bytes]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().decode(errors="replace") or "not known"
            raise ValueError(
                f"{self.folder}: another job is writing here ({holder}); wait for it, or choose another output folder"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            warnings.warn(f"{self.folder}: the file system has no locks; take care that no other job writes here", stacklevel=3)
            return  # and the temporary files may be another job's
        self._alone = True
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        lock.flush()
        remove_stale(self.folder)

    def __exit__(self, *_: object) -> None:
        assert self._lock is not None
        if self._alone:
            remove_stale(self.folder)  # of workers that were killed and replaced
        self._lock.close()

    def _check_inputs(self) -> None:
        mark = self.folder / "inputs.json"
        found = read_json(mark) if mark.exists() else {}
        if found == self.inputs:
            return
        if found and not self._may_begin_anew({key for key in {*found, *self.inputs} if found.get(key) != self.inputs.get(key)}):
            check_inputs(self.folder, found, self.inputs)
        write_json(mark, self.inputs)

    def _may_begin_anew(self, different: set[str]) -> bool:
        if not self._alone or self.done or "stage" in different:
            return False
        no_results = {"inputs.json", *self._kept, *self._scratch}
        if all(path.name in no_results or path.name.startswith(".") for path in self.folder.iterdir()):
            for name in self._scratch:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            return True
        return self._still_right(different)

    @property
    def done(self) -> bool:
        """True once the stage has finished with these inputs."""
        return (self.folder / "done.json").exists()

    @property
    def results(self) -> JSON:
        """What the finished stage said of itself."""
        results: JSON = read_json(self.folder / "done.json")["results"]
        return results

    def finish(self, results: Mapping[str, object]) -> None:
        """Mark the stage as done; results are plain types."""
        write_json(self.folder / "done.json", {"fingerprint": self.fingerprint, "results": dict(results)})


def finished(folder: Path, name: str, command: str) -> JSON:
    """`done.json` of a finished stage. Errors: ValueError with the command that has not been run."""
    if not (folder / "done.json").exists() or read_json(folder / "inputs.json").get("stage") != name:
        raise ValueError(f"{folder}: has no finished stage {name!r}; run `{command}` into this folder first")
    done: JSON = read_json(folder / "done.json")
    if not isinstance(done, dict) or not {"fingerprint", "results"} <= done.keys():
        raise ValueError(f"{folder / 'done.json'}: is no mark of a finished stage; delete it and run `{command}` again")
    return done


def check_inputs(folder: Path, found: JSON, need: JSON) -> None:
    """Errors: ValueError that names every input in which the folder's run differs from this one."""
    different = sorted(key for key in {*found, *need} if found.get(key) != need.get(key))
    if different:
        what = ", ".join(f"{key}: found {found.get(key)!r}, need {need.get(key)!r}" for key in different)
        raise ValueError(f"{folder}: belongs to another run ({what}); choose another output folder or delete this one")
