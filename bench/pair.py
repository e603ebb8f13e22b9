"""Two processes, sender and receiver of one transport, and the commands that make them work. For bench/hop.py.

Commands and figures are small tuples on a pipe; tensors never are. The processes live through all repetitions, and a
transport that is not being measured waits in a read, so it costs the others nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np
from peers import LOOPBACK, TIMEOUT_S, End, Gloo, Grpc, Pyzmq, Raw
from proxy import Harm, Proxy

if TYPE_CHECKING:
    from two_hosts import Line

__all__ = ["KINDS", "BenchError", "Pair", "Stream"]

# Starting a side may have to import torch on a busy machine.
START_S = 120


def _zmpsl(receiver: bool, codec: str, host: str) -> End:
    from zmpsl_end import Zmpsl  # here: the other transports' processes need none of it

    return Zmpsl(receiver, codec, host)


def _zmpsl_curve(receiver: bool, codec: str, host: str) -> End:
    from zmpsl_end import Zmpsl

    return Zmpsl(receiver, codec, host, keys=True)


def _zmpsl_bare(receiver: bool, codec: str, host: str) -> End:
    from zmpsl_end import Zmpsl

    return Zmpsl(receiver, codec, host, sealed=False)


KINDS: dict[str, Callable[[bool, str, str], End]] = {
    "zmpsl": _zmpsl, "zmpsl-curve": _zmpsl_curve, "zmpsl-bare": _zmpsl_bare, "raw": Raw, "pyzmq": Pyzmq, "gloo": Gloo,
    "grpc": Grpc,
}  # fmt: skip


class BenchError(Exception):
    """A side failed, did not answer in time, or received something else than was sent."""


class Stream(NamedTuple):
    """Figures of one stream.

    Attributes:
        wall_s: From the first send to the acknowledgement.
        sender_s: CPU time of the sender's process in it, all threads.
        receiver_s: The same of the receiver's.
        other_cores: How many cores other processes kept busy meanwhile; 0 where the system does not tell.
    """

    wall_s: float
    sender_s: float
    receiver_s: float
    other_cores: float


# -- in the two processes ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Sends file descriptor 1 to /dev/null: gloo reports its connection there, and stdout is for the table."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


class _Side:
    """Carries out commands with an end; one method per command."""

    def __init__(self, end: End, receiver: bool) -> None:
        self._end, self._receiver = end, receiver
        self._tensor = np.zeros(0, np.float32)  # sender: what it sends; receiver: the last that came
        self._streams = 0

    def connect(self, peer: str) -> None:
        self._end.connect(peer)

    def prepare(self, size: int) -> None:
        """Sender: makes the next stream's tensor; no two are the same, so a buffer left unwritten cannot pass."""
        if self._receiver:
            return
        self._streams += 1
        if self._tensor.size != size:
            # Like activations after a ReLU, so that a codec has something to find.
            self._tensor = np.maximum(np.random.default_rng(size).standard_normal(size, np.float32), 0)
        self._tensor[0] = self._tensor[-1] = self._streams

    def stream(self, size: int, n: int) -> tuple[float, float]:
        """Gives wall seconds and CPU seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        if self._receiver:
            self._tensor = self._end.receive(size, n)
        else:
            self._end.send(self._tensor, n)
        return time.perf_counter() - wall, time.process_time() - cpu

    def checksum(self) -> int:
        """Gives the CRC-32 of the tensor of the last stream; the receiver lets go of it."""
        total = crc32(self._tensor.data.cast("B"))
        if self._receiver:
            self._tensor = np.zeros(0, np.float32)
        return total

    def echo(self, size: int, n: int) -> tuple[float, bool]:
        """Gives the median seconds of a round trip of the last stream's tensor, and whether it came back unchanged."""
        if self._receiver:
            self._end.reflect(size, n)
            return 0.0, True
        took, back = [], self._tensor
        for _ in range(n):
            start = time.perf_counter()
            back = self._end.echo(self._tensor)
            took.append(time.perf_counter() - start)
        return statistics.median(took), bool(np.array_equal(back, self._tensor))

    def allocations(self) -> int | None:
        return self._end.allocations()


def _serve(pipe: Connection, kind: str, receiver: bool, codec: str, host: str, world: str) -> None:
    """Main function of a side, in a network namespace if it is told one: obeys until the pipe is closed."""
    end = None
    try:
        if world:
            from two_hosts import enter  # here: it needs zmpsl whole, and the other transports none of it

            enter(world)
        with _quiet_stdout():
            end = KINDS[kind](receiver, codec, host)
            side = _Side(end, receiver)
            pipe.send(("ok", end.address))
            while True:
                name, *values = pipe.recv()
                pipe.send(("ok", getattr(side, name)(*values)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the parent is done
    except Exception:
        with contextlib.suppress(OSError):
            pipe.send(("error", traceback.format_exc()))
    finally:
        if end is not None:
            with contextlib.suppress(Exception):  # the other side may have gone first
                end.close()


# -- in the parent ----------------------------------------------------------------------------------------------------


def _machine_busy_s() -> float:
    """Gives the CPU seconds the whole machine has used since it started; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, *interrupts = map(int, stat.read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _place(line: Line | None, receiver: bool) -> tuple[str, str]:
    """Host and network namespace of a side; the receiver is at the far end of a line."""
    if line is None:
        return LOOPBACK, ""
    from two_hosts import FAR, NEAR

    return (FAR, line.far) if receiver else (NEAR, line.near)


class Pair:
    """Sender and receiver of one transport, connected.

    Args:
        kind: Key of KINDS.
        codec: Codec of zmpsl's link; the others pack nothing.
        mbit: Rate of the line between them each way, in Mbit/s; as fast as it goes where 0. Only for zmpsl's own kinds.
        line: They are on two hosts with this line between them, instead of on the loopback interface.

    Raises:
        BenchError: A side could not start.
    """

    def __init__(self, kind: str, codec: str, mbit: float = 0.0, line: Line | None = None) -> None:
        self.kind = kind
        self._mbit = mbit
        self._lines: list[Proxy] = []
        self._sides = []
        context = multiprocessing.get_context("spawn")  # gloo and grpc do not survive a fork
        for receiver in (True, False):
            pipe, other = context.Pipe()
            name = f"{kind} {'receiver' if receiver else 'sender'}"
            about = other, kind, receiver, codec, *_place(line, receiver)
            process = context.Process(target=_serve, args=about, name=name, daemon=True)
            process.start()
            other.close()
            self._sides.append((pipe, process))

    def connect(self) -> None:
        """Waits until both sides have started, and connects them."""
        addresses = [self._answer(side, START_S) for side in (0, 1)]
        if self._mbit:
            addresses = [self._behind_a_line(address) for address in addresses]
        self._ask("connect", receiver=(addresses[1],), sender=(addresses[0],))

    def stream(self, size: int, n: int) -> Stream:
        """Sends n tensors of `size` elements one way, and checks the last one.

        Raises:
            BenchError: It did not arrive as it was sent.
        """
        self._ask("prepare", (size,), (size,))
        busy_s, start_s = _machine_busy_s(), time.perf_counter()
        (_, receiver_s), (wall_s, sender_s) = self._ask("stream", (size, n), (size, n))
        busy_s, took_s = _machine_busy_s() - busy_s, time.perf_counter() - start_s
        arrived, sent = self._ask("checksum", (), ())
        if arrived != sent:
            raise BenchError(f"{self.kind}: {size} float32 with CRC-32 {sent:08x} were sent, {arrived:08x} arrived")
        return Stream(wall_s, sender_s, receiver_s, max(0.0, busy_s - sender_s - receiver_s) / took_s)

    def echo(self, size: int, n: int) -> float:
        """Gives the median seconds of n round trips; the tensor is the last stream's.

        Raises:
            BenchError: The last tensor did not come back as it was sent.
        """
        _, (median_s, same) = self._ask("echo", (size, n), (size, n))
        if not same:
            raise BenchError(f"{self.kind}: {size} float32 did not come back as they were sent")
        return float(median_s)

    def allocations(self) -> int | None:
        """Receive buffers both sides' pools have allocated so far; None without a pool."""
        counts = self._ask("allocations", (), ())
        return None if counts[0] is None else sum(counts)

    def close(self) -> None:
        """Ends both processes, by force where they do not follow."""
        for pipe, _ in self._sides:
            pipe.close()
        for _, process in self._sides:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)
        for line in self._lines:
            line.close()

    def _behind_a_line(self, address: str) -> str:
        """Gives the address at which a slow line to this one begins."""
        endpoint, _, public = address.partition(" ")
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        self._lines.append(Proxy((host, 0), (host, int(port)), Harm(bytes_per_s=self._mbit * 125e3)))
        return f"tcp://{host}:{self._lines[-1].port} {public}".rstrip()

    def _ask(self, command: str, receiver: tuple[Any, ...], sender: tuple[Any, ...]) -> list[Any]:
        for (pipe, process), values in zip(self._sides, (receiver, sender), strict=True):
            try:
                pipe.send((command, *values))
            except OSError as error:
                raise BenchError(f"{process.name} is gone (exit code {process.exitcode})") from error
        return [self._answer(side, TIMEOUT_S + 30) for side in (0, 1)]

    def _answer(self, side: int, limit_s: float) -> Any:
        pipe, process = self._sides[side]
        try:
            if not pipe.poll(limit_s):
                raise BenchError(f"{process.name} did not answer within {limit_s:.0f} s")
            status, value = pipe.recv()
        except (EOFError, OSError) as error:
            process.join(1)  # so that there is an exit code
            raise BenchError(f"{process.name} ended without an answer (exit code {process.exitcode})") from error
        if status != "ok":
            raise BenchError(f"{process.name} failed:\n{value}")
        return value
