"""Finding and reading data files, plain or .gz, with errors that say what was looked for and what was found."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from zmpsl.errors import DataError

__all__ = ["find", "folder_of", "missing", "read_bytes"]

CHUNK_BYTES = 1 << 20


def folder_of(name: str, given: str | None) -> Path:
    """Gives the folder of a data set that lives in files.

    Args:
        name: The data set, for the message.
        given: `data.dir` of the job.

    Returns:
        The folder, with `~` resolved.

    Raises:
        DataError: No folder was given.
    """
    if given is None:
        raise DataError(f"data set {name!r} is read from files: give their folder as data.dir (or --data-dir)")
    return Path(given).expanduser()


def find(folders: Iterable[Path], name: str) -> Path | None:
    """Gives the first file called `name` or `name.gz` in the folders, the plain one before the .gz, or None."""
    for folder in folders:
        for path in (folder / name, folder / (name + ".gz")):
            if path.is_file():
                return path
    return None


def missing(name: str, names: Sequence[str], folders: Sequence[Path], downloadable: bool = True) -> DataError:
    """Builds the error for files that are not there.

    Args:
        name: The data set.
        names: The file names that were looked for and not found.
        folders: Where they were looked for; the first one is `data.dir`.
        downloadable: Whether `data.download: true` would help.

    Returns:
        The error, to be raised by the caller.
    """
    where = " or ".join(map(str, folders))
    there = "" if folders[0].is_dir() else f" ({folders[0]} is not a folder)"
    help_ = "put the files there, or set data.dir to the folder that holds them"
    if downloadable:
        help_ += ", or set data.download: true to fetch them"
    return DataError(f"{name}: did not find {', '.join(names)} in {where}{there}; {help_}")


def read_bytes(path: Path, limit: int) -> bytearray:
    """Reads a file, unpacking .gz, and never more than one byte above the limit.

    The size a header claims is not to be trusted with an allocation, so the file is read in chunks.

    Args:
        path: The file; a name that ends in `.gz` is unpacked.
        limit: The most bytes it may hold, unpacked.

    Returns:
        The bytes, at most `limit + 1`: one more tells the caller that the file is too long.

    Raises:
        DataError: The file cannot be read, or is not a whole gzip file.
    """
    content = bytearray()
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            while len(content) <= limit and (chunk := stream.read(min(CHUNK_BYTES, limit + 1 - len(content)))):
                content += chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file after {len(content)} unpacked bytes ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return content
