"""Chunks -> tasks: gathers the chunks of each tensor in one pooled buffer. No socket in here."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from zmpsl.errors import LocalProtocolError, RemoteProtocolError
from zmpsl.transport.buffers import BufferPool, Slab
from zmpsl.transport.task import Task
from zmpsl.transport.wire import Header

__all__ = ["Assembly"]

# More tensors than this half-received at once is no chain of ours: each sender sends one tensor after the other.
MAX_OPEN_PER_OWNER = 8


class Assembly:
    """Half-received tensors of one inbox.

    Use: `place(header)` tells where the chunk's bytes go; after they are there, `finish(header)` gives the task if it
    was the last chunk.
    """

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._open: dict[Task, tuple[Header, Slab]] = {}
        self._single: Slab | None = None  # a tensor of one chunk, between `place` and `finish`

    def place(self, header: Header) -> Slab:
        """Gives the memory for a chunk.

        Returns:
            A uint8 array of `header.raw` bytes.

        Raises:
            RemoteProtocolError: The chunk is not the one that must come next; the tensor is given up.
        """
        if header.raw == header.total:
            self._single = self._pool.take(header.total)
            return self._single
        if header.offset == 0:
            self._begin(header)
            buffer = self._pool.take(header.total)
        else:
            buffer = self._next(header)
        self._open[header.task] = header, buffer
        return buffer[header.offset : header.offset + header.raw]

    def finish(self, header: Header) -> Task | None:
        """Gives the task with its tensor if this was the last chunk, else None."""
        if header.dtype is None:
            return header.task
        if header.offset + header.raw < header.total:
            return None
        if header.raw == header.total:
            buffer, self._single = self._single, None
        else:
            buffer = self._open.pop(header.task)[1]
        if buffer is None:
            raise LocalProtocolError(f"{header.task} is finished before its place was asked for")
        return replace(header.task, tensor=np.ndarray(header.shape, header.dtype, buffer))

    def clear(self) -> None:
        """Gives up all tensors."""
        self._open.clear()

    def drop(self, header: Header) -> None:
        """Gives up the tensor a broken chunk belonged to."""
        self._open.pop(header.task, None)
        self._single = None

    def _next(self, header: Header) -> Slab:
        before, buffer = self._open.pop(header.task, (None, None))
        if before is None or buffer is None or before.offset + before.raw != header.offset:
            raise RemoteProtocolError(f"chunk at {header.offset} of {header.task} does not follow what came before")
        if (before.shape, before.dtype) != (header.shape, header.dtype):
            raise RemoteProtocolError(f"chunk of {header.task} is of another tensor than the one before")
        return buffer

    def _begin(self, header: Header) -> None:
        same = sum(
            task.owner == header.task.owner and task.sender == header.task.sender
            for task in self._open
            if task != header.task
        )
        if same >= MAX_OPEN_PER_OWNER:
            raise RemoteProtocolError(
                f"owner {header.task.owner} has {same} unfinished tensors; the oldest sender gave up on them"
            )
