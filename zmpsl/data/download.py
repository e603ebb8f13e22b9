"""Fetches public data sets: resumed after a cut, checked against the published md5, put in place all at once.

    present -> leave it            NAME.part -> ask for the rest (Range) -> md5 right -> rename to NAME
    absent  -> NAME.part                                                 -> md5 wrong -> delete, try the next host

An archive is unpacked into a hidden folder beside its place first, so that no half file ever has a final name.
Owners on one machine may share a folder: a lock lets one of them fetch while the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from types import MappingProxyType
from urllib.error import HTTPError, URLError

from zmpsl.errors import DataError

__all__ = ["SOURCES", "Remote", "Source", "fetch", "fetch_source"]

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
_LIMIT_BYTES = 1 << 28  # the largest official file has 170 MB; a server that sends more is not to fill the disk
_TIMEOUT_S = 30.0
_ATTEMPTS = 20  # per host; each but the first must have brought something new


@dataclass(frozen=True)
class Remote:
    """One file on a host: its md5 as published and, if it is an archive, the members that are wanted from it."""

    name: str
    md5: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The files of one data set and the hosts, tried in this order, that have them."""

    base_urls: tuple[str, ...]
    files: tuple[Remote, ...]


SOURCES: Mapping[str, Source] = MappingProxyType({
    "mnist": Source(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/",),
        (
            Remote("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            Remote("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            Remote("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            Remote("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
    "fashion-mnist": Source(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),  # has no https; the md5 is what counts
        (
            Remote("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            Remote("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            Remote("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            Remote("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    "cifar10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            Remote(
                "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
                (
                    *(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
                    "cifar-10-batches-bin/test_batch.bin",
                ),
            ),
        ),
    ),
    "cifar100": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            Remote(
                "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8",
                ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin"),
            ),
        ),
    ),
})  # fmt: skip


def fetch(name: str, dir: str | Path, base_urls: Sequence[str] | None = None) -> list[Path]:
    """Fetches the files of a public data set that are not in the folder yet.

    Args:
        name: `mnist`, `fashion-mnist`, `cifar10` or `cifar100`.
        dir: The folder, made if need be. Files already there are never touched, an archive put there by hand is
            unpacked without asking any host.
        base_urls: Hosts to ask instead of the official ones.

    Returns:
        The files that were put in place, archives excepted.

    Raises:
        DataError: The data set is not a public one, no host gave a file with the right md5, or the folder cannot be
            written; says how to put the files there by hand.
    """
    if name not in SOURCES:
        raise DataError(f"data set {name!r} cannot be downloaded, only {', '.join(SOURCES)} can")
    source = SOURCES[name]
    return fetch_source(source if base_urls is None else Source(tuple(base_urls), source.files), Path(dir))


def fetch_source(source: Source, folder: Path) -> list[Path]:
    """Does the work of `fetch` for any files on any hosts."""
    placed: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            for remote in source.files:
                if remote.members:
                    placed += _fetch_archive(source, remote, folder)
                elif not ((folder / remote.name).exists() or (folder / remote.name.removesuffix(".gz")).exists()):
                    placed.append(_download(source, remote, folder))
    except OSError as error:
        raise DataError(f"cannot write data to {folder}: {error}") from error
    return placed


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the system lets go of it when a process dies."""
    with (folder / ".download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_archive(source: Source, remote: Remote, folder: Path) -> list[Path]:
    if all((folder / member).exists() for member in remote.members):
        return []
    archive = folder / remote.name
    by_hand = archive.exists()
    if by_hand and (digest := _md5(archive)) != remote.md5:
        raise DataError(f"{archive}: md5 is {digest}, expected {remote.md5}: delete it, or put the official file there")
    if not by_hand:
        _download(source, remote, folder)
    placed = _unpack(archive, remote.members, folder)
    if not by_hand:
        archive.unlink()
    return placed


def _unpack(archive: Path, members: Sequence[str], folder: Path) -> list[Path]:
    """Takes the wanted members, and nothing else, out of an archive.

    Only their bytes are taken, into files this function names: links, owners, modes and other paths in the archive
    have no effect.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as scratch:
        unpacked: dict[str, Path] = {}
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.name in members and member.isreg() else None
                    if content is not None:
                        unpacked[member.name] = Path(scratch) / str(len(unpacked))
                        with content, unpacked[member.name].open("wb") as out:
                            shutil.copyfileobj(content, out)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(f"{archive}: damaged archive ({error})") from error
        if absent := [name for name in members if name not in unpacked]:
            raise DataError(f"{archive}: lacks {', '.join(absent)}")
        for name in members:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            unpacked[name].replace(folder / name)
    return [folder / name for name in members]


def _download(source: Source, remote: Remote, folder: Path) -> Path:
    """Gets one file from the first host that has it whole and right."""
    target = folder / remote.name
    part = folder / (remote.name + ".part")
    failures = []
    for base in source.base_urls:
        url = base.rstrip("/") + "/" + remote.name
        _log.info("fetching %s into %s", url, target)
        reason = _from_host(url, part, remote.md5)
        if reason is None:
            part.replace(target)
            _log.info("fetched %s, %d bytes, md5 %s", target, target.stat().st_size, remote.md5)
            return target
        failures.append(f"{url}: {reason}")
    what = f"unpacked ({', '.join(remote.members)}) or as it is" if remote.members else "as it is"
    raise DataError(
        f"cannot fetch {remote.name}: {'; '.join(failures)}. Without a network, fetch it on another machine "
        f"(md5 {remote.md5}) and put it, {what}, into {folder}"
    )


def _from_host(url: str, part: Path, md5: str) -> str | None:
    """Fills the .part file from one URL, going on where it ends; gives the reason of a failure, None when whole.

    It tries again only while there is hope: after a cut that came with new bytes, or when what was resumed turned
    out to be wrong and is to be fetched from its beginning.
    """
    reason = ""
    for _ in range(_ATTEMPTS):
        start = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, start)
        except HTTPError as error:
            with error:  # closes its socket
                if error.code != 416 or start == 0:  # 416: nothing comes after what we have, so the md5 decides
                    return f"HTTP {error.code} {error.reason}"
        except (URLError, HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
            if (part.stat().st_size if part.exists() else 0) <= start:
                return reason
            continue
        digest = _md5(part)
        if digest == md5:
            return None
        part.unlink()
        reason = f"md5 is {digest}, expected {md5}"
        if start == 0:
            return reason
    return reason


def _receive(url: str, part: Path, start: int) -> None:
    """Appends to the .part file what the host sends from byte `start` on, or all of it if the host knows no ranges."""
    headers = {"User-Agent": "zmpsl", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
        if not isinstance(response, HTTPResponse):
            raise DataError(f"{url} is no http or https URL")
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise OSError(f"asked for bytes {start}-, was sent {response.headers.get('Content-Range')!r}")
        told = response.headers.get("Content-Length", "")
        size = start if resumed else 0
        end = size + int(told) if told.isdecimal() else None
        with part.open("ab" if resumed else "wb") as out:
            while chunk := response.read1(_CHUNK_BYTES):
                size += len(chunk)
                if size > _LIMIT_BYTES:
                    part.unlink()
                    raise DataError(f"{url} sends more than {_LIMIT_BYTES} bytes, more than any file zmpsl fetches")
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    if end is not None and size < end:
        raise OSError(f"the connection ended after {size} of {end} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
