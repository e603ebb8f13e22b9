"""A slow link in user space: TCP proxies on other loopback addresses that share one rate per direction."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

__all__ = ["Bucket", "Shaper"]

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
