"""A TCP proxy that does harm: resets, cuts in the middle of a frame, silence, delay, a slow line, flipped bits.

    harm = Harm()
    proxy = Proxy(("127.0.0.2", 0), ("127.0.0.1", 5600), harm)      works in a thread of its own until closed
    harm.silent = True                                              holds all bytes back; what comes later is held too
    proxy.reset()                                                   ends every connection with a TCP reset

Bytes held back are delivered once the silence is over, as TCP does after a partition.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

__all__ = ["Harm", "Proxy"]

PIECE = 16 << 10
# Pieces under way in the proxy per direction of a connection: few, or it would swallow what the line cannot carry.
WINDOW = 16
LOOK_S = 0.005
SPAN = 32  # bytes within which bits are flipped together


@dataclass
class Harm:
    """What a proxy does to the bytes; may be changed while it works, from any thread.

    Attributes:
        silent: Hold all bytes back.
        one_way: With `silent`, only those on the way to the target.
        delay_s: Added on each way.
        bytes_per_s: Rate of each direction of all connections together, 0 for none.
        cut_after: Gives after how many bytes to the target a new connection is reset, None for never.
        flip_every: A bit of every so many bytes is flipped, 0 for never.
        flip_bits: So many at a time, within a few bytes.
        counts: How often what happened.
    """

    silent: bool = False
    one_way: bool = False
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    cut_after: Callable[[], int | None] = lambda: None
    flip_every: int = 0
    flip_bits: int = 1
    counts: dict[str, int] = field(default_factory=lambda: {"connections": 0, "bytes": 0, "resets": 0, "flips": 0})

    def holds(self, towards: bool) -> bool:
        """Tells whether bytes in this direction wait now."""
        return self.silent and (towards or not self.one_way)


class Proxy:
    """Forwards connections, with harm.

    Args:
        listen: Host and port to listen at; port 0 for any.
        target: Host and port to lead to; port 0 for the one listened at.
        harm: What to do to them; several proxies may share one.
        seed: Of the bits to flip.
    """

    def __init__(self, listen: tuple[str, int], target: tuple[str, int], harm: Harm, seed: int = 0) -> None:
        self._harm, self._random = harm, random.Random(seed)
        self._listener = socket.create_server(listen, backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._target = (target[0], target[1] or self.port)
        self._open: dict[int, list[asyncio.StreamWriter]] = {}
        self._tasks: dict[int, asyncio.Task[None] | None] = {}
        self._free_at = {True: 0.0, False: 0.0}
        self._until_flip = harm.flip_every
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name=f"proxy {self.port}", daemon=True)
        self._thread.start()

    def reset(self) -> int:
        """Resets all connections; gives how many there were."""
        done = asyncio.run_coroutine_threadsafe(self._reset_all(), self._loop)
        return done.result(10)

    def close(self) -> None:
        """Ends all."""
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    # -- in the proxy's own thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, sock=self._listener, limit=PIECE))
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        # Not gathered here they would be when Python collects garbage, wherever it then is.
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _reset_all(self) -> int:
        numbers = list(self._open)
        for number in numbers:
            self._harm.counts["resets"] += 1
            self._reset(number)
        return len(numbers)

    def _reset(self, number: int) -> None:
        for writer in self._open.pop(number, []):
            own = writer.get_extra_info("socket")
            if own is not None and own.fileno() >= 0:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            far, there = await asyncio.open_connection(*self._target, limit=PIECE)
        except OSError:
            back.transport.abort()  # nobody is there
            return
        number = self._harm.counts["connections"] = self._harm.counts["connections"] + 1
        self._tasks[number] = asyncio.current_task()  # asyncio itself would let go of it
        self._open[number] = [back, there]
        for writer in self._open[number]:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left = self._harm.cut_after()
        await asyncio.gather(
            self._pump(number, near, there, True, left), self._pump(number, far, back, False, None),
            return_exceptions=True,
        )  # fmt: skip
        self._open.pop(number, None)
        self._tasks.pop(number, None)

    async def _pump(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter, towards: bool, left: int | None
    ) -> None:
        """One direction of a connection: reads into a queue whose other end keeps to rate and delay."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW)
        delivery = asyncio.create_task(self._deliver(queue, sink, towards))
        try:
            while data := await source.read(PIECE):
                if left is not None and len(data) >= left:
                    await queue.put((0.0, data[:left]))  # the first bytes of a frame whose rest never comes
                    await queue.join()
                    self._harm.counts["resets"] += 1
                    self._reset(number)
                    return
                left = None if left is None else left - len(data)
                await queue.put((self._due(len(data), towards), self._flipped(data)))
            await queue.put((0.0, b""))
            await delivery
        except OSError:
            self._reset(number)  # one end was reset, so is the other
        finally:
            delivery.cancel()

    async def _deliver(
        self, queue: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, towards: bool
    ) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            while self._harm.holds(towards):
                await asyncio.sleep(LOOK_S)
            if not data:
                sink.close()
                return
            if not sink.is_closing():
                sink.write(data)
                with suppress(OSError):  # the reader of the same connection learns of it too
                    await sink.drain()
            self._harm.counts["bytes"] += len(data)
            queue.task_done()

    def _due(self, nbytes: int, towards: bool) -> float:
        now = self._loop.time()
        if self._harm.bytes_per_s:
            self._free_at[towards] = max(self._free_at[towards], now) + nbytes / self._harm.bytes_per_s
            now = self._free_at[towards]
        return now + self._harm.delay_s

    def _flipped(self, data: bytes) -> bytes:
        if not self._harm.flip_every:
            return data
        self._until_flip -= len(data)
        if self._until_flip > 0:
            return data
        self._until_flip = self._harm.flip_every
        self._harm.counts["flips"] += 1
        changed, at = bytearray(data), self._random.randrange(len(data))
        near = range(at, min(at + SPAN, len(data)))
        for bit in self._random.sample(range(8 * len(near)), min(self._harm.flip_bits, 8 * len(near))):
            changed[near[bit >> 3]] ^= 1 << (bit & 7)
        return bytes(changed)
