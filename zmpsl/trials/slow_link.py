"""A slow link to try things on: TCP proxies in user space, or a network namespace whose loopback the kernel slows down.

A proxy needs no rights, but is one more process on the way and carries some Gbit/s at most. A namespace of its own
(`unshare`) with a token bucket on its loopback (`tc`) is the kernel's own link; it goes when its last process does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from urllib.parse import urlsplit

__all__ = ["Bucket", "Shaper", "private_network", "slow_loopback"]

PIECE = 16 << 10
# Small, or the proxy would swallow whole tensors at the speed of loopback and the sender would see no slow link.
WINDOW = 64 << 10


class Bucket:
    """A rate that all connections of one direction share.

    Args:
        bytes_per_s: The rate.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, nbytes: int) -> None:
        """Returns when that many bytes may have passed."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + nbytes / self._rate
            due = self._free_at
        time.sleep(max(0.0, due - time.monotonic()))


class Shaper:
    """Forwards connections to a port of 127.0.0.1, each direction at its bucket's rate.

    Args:
        endpoint: Where to listen, `tcp://127.0.0.2:PORT`; the same port of 127.0.0.1 is where it leads.
        bucket: Of the bytes towards that port. The way back is not slowed: a PUSH hears nothing but heartbeats.
    """

    def __init__(self, endpoint: str, bucket: Bucket) -> None:
        address = urlsplit(endpoint)
        self._target = ("127.0.0.1", address.port)
        self._bucket = bucket
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        self._listener.bind((address.hostname, address.port))
        self._listener.listen()
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for each in (near, far):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [near, far]
                threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                if slow:
                    self._bucket.wait(len(data))
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends all connections."""
        for each in self._open:
            each.close()


def private_network() -> list[str] | None:
    """Gives the command to put in front of one that shall have a network of its own, None where that is not allowed.

    It needs `unshare`, `ip` and `tc`, and either root or user namespaces; all of it is tried.
    """
    if any(shutil.which(program) is None for program in ("unshare", "ip", "tc")):
        return None
    prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    trial = " && ".join(" ".join(command) for command in _commands(1e9))
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([*prefix, "sh", "-c", trial], capture_output=True, timeout=10, check=False)
        return prefix if done.returncode == 0 else None
    return None


def slow_loopback(bits_per_s: float) -> None:
    """Sets the rate of loopback. Only within a network of our own: everybody's loopback would slow down.

    Raises:
        OSError: It is not allowed.
    """
    for command in _commands(bits_per_s):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _commands(bits_per_s: float) -> list[list[str]]:
    # Packets of the size that networks have; what may pass at once is 2 ms worth, or the kernel could not keep up.
    burst = max(1 << 15, int(bits_per_s / 8 * 0.002))
    shape = ["tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", f"{bits_per_s:.0f}bit"]
    return [
        ["ip", "link", "set", "lo", "mtu", "1500", "up"],
        [*shape, "burst", str(burst), "latency", "50ms"],
    ]
