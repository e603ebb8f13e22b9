"""The transports bench/hop.py compares zmpsl with. An End is one side of a connection, alone in its own process.

Data flow from the sender to the receiver. A stream is n times the same tensor and one acknowledgement after the last;
an echo is one tensor there and back. Nothing is pickled: every transport gets the tensor's own bytes. An end is told
the host it is at; gloo and gRPC are for the loopback interface only.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["LOOPBACK", "TIMEOUT_S", "End", "Gloo", "Grpc", "Pyzmq", "Raw", "Tensor"]

Tensor = NDArray[np.float32]

# No wait inside an end is longer than this.
TIMEOUT_S = 60
LOOPBACK = "127.0.0.1"


class End(Protocol):
    """One side of a transport.

    Attributes:
        address: What the other side needs to `connect`; empty where it needs nothing.
    """

    address: str

    def connect(self, peer: str) -> None:
        """Connects with the other side, whose address is `peer`; returns when data can flow."""

    def send(self, tensor: Tensor, n: int) -> None:
        """Sender: sends the tensor n times and waits for the acknowledgement."""

    def receive(self, size: int, n: int) -> Tensor:
        """Receiver: takes n tensors of `size` elements, acknowledges, gives the last one."""

    def echo(self, tensor: Tensor) -> Tensor:
        """Sender: sends the tensor and gives what came back."""

    def reflect(self, size: int, n: int) -> None:
        """Receiver: sends n tensors of `size` elements back."""

    def allocations(self) -> int | None:
        """Receive buffers allocated so far; None where the transport has no pool."""

    def close(self) -> None:
        """Frees everything."""


class Raw:
    """A plain TCP socket and one thread per side: sendall, and recv_into one buffer."""

    def __init__(self, receiver: bool, _codec: str, host: str) -> None:
        self._listener = socket.create_server((host, 0)) if receiver else None
        self.address = "" if self._listener is None else f"{host}:{self._listener.getsockname()[1]}"
        self._buffer = np.zeros(0, np.float32)

    def connect(self, peer: str) -> None:
        if self._listener is not None:
            self._listener.settimeout(TIMEOUT_S)
            self._socket, _ = self._listener.accept()
            self._listener.close()
        else:
            host, _, port = peer.partition(":")
            self._socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Python's own timeout would poll before every call; the kernel's costs nothing.
        self._socket.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", TIMEOUT_S, 0))

    def send(self, tensor: Tensor, n: int) -> None:
        data = tensor.data.cast("B")
        for _ in range(n):
            self._socket.sendall(data)
        self._fill(memoryview(bytearray(1)))

    def receive(self, size: int, n: int) -> Tensor:
        data = self._place(size)
        for _ in range(n):
            self._fill(data)
        self._socket.sendall(b"a")
        return self._buffer

    def echo(self, tensor: Tensor) -> Tensor:
        data = self._place(tensor.size)
        self._socket.sendall(tensor.data.cast("B"))
        self._fill(data)
        return self._buffer

    def reflect(self, size: int, n: int) -> None:
        data = self._place(size)
        for _ in range(n):
            self._fill(data)
            self._socket.sendall(data)

    def allocations(self) -> None:
        return None

    def close(self) -> None:
        self._socket.close()

    def _place(self, size: int) -> memoryview:
        if self._buffer.size != size:
            self._buffer = np.zeros(size, np.float32)
        return self._buffer.data.cast("B")

    def _fill(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            got = self._socket.recv_into(data[done:])
            if not got:
                raise ConnectionError(f"the other side of the raw socket closed it after {done} of {len(data)} bytes")
            done += got


class Pyzmq:
    """Bare pyzmq: PUSH and PULL, one frame per tensor, blocking calls; nothing is checked, packed or kept.

    What zmpsl's own work costs is the difference to this; where zmpsl is faster, it is because small tensors share
    frames and large ones are cut into chunks. Tensors are used where libzmq received them, whatever their alignment.
    """

    def __init__(self, _receiver: bool, _codec: str, host: str) -> None:
        import zmq

        self._context = zmq.Context()
        self._push, self._pull = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        for each in (self._push, self._pull):
            each.setsockopt(zmq.LINGER, 0)
            each.setsockopt(zmq.SNDTIMEO, 1000 * TIMEOUT_S)
            each.setsockopt(zmq.RCVTIMEO, 1000 * TIMEOUT_S)
            each.set_hwm(8)  # the default, 1000, is 64 GB of the largest tensors
        self.address = f"tcp://{host}:{self._pull.bind_to_random_port(f'tcp://{host}')}"

    def connect(self, peer: str) -> None:
        self._push.connect(peer)

    def send(self, tensor: Tensor, n: int) -> None:
        for _ in range(n):
            self._put(tensor)
        self._pull.recv()

    def receive(self, size: int, n: int) -> Tensor:
        for _ in range(n):
            last = self._pull.recv(copy=False)
        self._push.send(b"a")
        return np.frombuffer(last.buffer, np.float32, size)

    def echo(self, tensor: Tensor) -> Tensor:
        self._put(tensor)
        return np.frombuffer(self._pull.recv(copy=False).buffer, np.float32, tensor.size)

    def reflect(self, size: int, n: int) -> None:
        for _ in range(n):
            self._put(np.frombuffer(self._pull.recv(copy=False).buffer, np.float32, size))

    def allocations(self) -> None:
        return None

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _put(self, tensor: Tensor) -> None:
        # Below that a copy is faster than pyzmq's book of what libzmq still holds.
        self._push.send(tensor, copy=tensor.nbytes < 1 << 18)


class Gloo:
    """torch.distributed's send and recv over gloo, blocking, into one tensor. Rank 1 is the receiver.

    Gloo's event thread spins while data wait for a recv that is not posted yet. With few cores that takes the CPU from
    the threads it waits for: small tensors stream at a small part of what their round trip promises.
    """

    def __init__(self, receiver: bool, _codec: str, _host: str) -> None:
        names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0] if names else "lo")
        import torch
        import torch.distributed

        torch.set_num_threads(1)
        self._torch, self._dist, self._receiver = torch, torch.distributed, receiver
        self._store = self._open_store(0) if receiver else None
        self.address = "" if self._store is None else str(self._store.port)
        self._buffer, self._ack = torch.zeros(0), torch.zeros(1)

    def _open_store(self, port: int) -> Any:
        limit = timedelta(seconds=TIMEOUT_S)
        return self._dist.TCPStore(  # type: ignore[attr-defined]
            LOOPBACK, port, 2, self._receiver, limit, wait_for_workers=False
        )

    def connect(self, peer: str) -> None:
        store = self._store or self._open_store(int(peer))
        limit = timedelta(seconds=TIMEOUT_S)
        self._dist.init_process_group("gloo", store=store, rank=int(self._receiver), world_size=2, timeout=limit)

    def send(self, tensor: Tensor, n: int) -> None:
        ours = self._torch.from_numpy(tensor)
        for _ in range(n):
            self._dist.send(ours, 1)
        self._dist.recv(self._ack, 1)

    def receive(self, size: int, n: int) -> Tensor:
        self._place(size)
        for _ in range(n):
            self._dist.recv(self._buffer, 0)
        self._dist.send(self._ack, 0)
        return self._result()

    def echo(self, tensor: Tensor) -> Tensor:
        self._place(tensor.size)
        self._dist.send(self._torch.from_numpy(tensor), 1)
        self._dist.recv(self._buffer, 1)
        return self._result()

    def reflect(self, size: int, n: int) -> None:
        self._place(size)
        for _ in range(n):
            self._dist.recv(self._buffer, 0)
            self._dist.send(self._buffer, 0)

    def allocations(self) -> None:
        return None

    def close(self) -> None:
        self._dist.destroy_process_group()

    def _place(self, size: int) -> None:
        if self._buffer.numel() != size:
            self._buffer = self._torch.zeros(size)

    def _result(self) -> Tensor:
        result: Tensor = self._buffer.numpy()
        return result


class Grpc:
    """gRPC without generated code, bytes in and bytes out: a stream is one client-streaming call, an echo a unary call.

    Four unary calls under way reach a third of the streaming call's rate at 64 KiB, and no more than it above.
    A tensor becomes `bytes` each time it is sent, as it must; the received `bytes` are used where they are.
    """

    def __init__(self, receiver: bool, _codec: str, _host: str) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        self._grpc, self.address = grpc, ""
        self._options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._arrived = threading.Condition()
        self._count, self._last = 0, b""
        if receiver:
            methods = {
                "take": grpc.stream_unary_rpc_method_handler(self._take),
                "echo": grpc.unary_unary_rpc_method_handler(self._reflect),
            }
            self._server = grpc.server(ThreadPoolExecutor(2), options=self._options)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hop", methods),))
            self.address = f"{LOOPBACK}:{self._server.add_insecure_port(f'{LOOPBACK}:0')}"
            self._server.start()

    def connect(self, peer: str) -> None:
        if self.address:
            return
        self._channel = self._grpc.insecure_channel(peer, options=self._options)
        self._grpc.channel_ready_future(self._channel).result(TIMEOUT_S)
        self._call_take = self._channel.stream_unary("/hop/take")
        self._call_echo = self._channel.unary_unary("/hop/echo")

    def send(self, tensor: Tensor, n: int) -> None:
        self._call_take((tensor.tobytes() for _ in range(n)), timeout=TIMEOUT_S)

    def receive(self, size: int, n: int) -> Tensor:
        self._wait(n)
        return np.frombuffer(self._last, np.float32, size)

    def echo(self, tensor: Tensor) -> Tensor:
        return np.frombuffer(self._call_echo(tensor.tobytes(), timeout=TIMEOUT_S), np.float32)

    def reflect(self, size: int, n: int) -> None:
        self._wait(n)

    def allocations(self) -> None:
        return None

    def close(self) -> None:
        if self.address:
            self._server.stop(None).wait(TIMEOUT_S)
        else:
            self._channel.close()

    def _take(self, tensors: Iterator[bytes], _context: Any) -> bytes:
        count, last = 0, b""
        for data in tensors:
            count, last = count + 1, data
        self._note(count, last)
        return b""

    def _reflect(self, data: bytes, _context: Any) -> bytes:
        self._note(1, data)
        return data

    def _note(self, count: int, last: bytes) -> None:
        with self._arrived:
            self._count, self._last = self._count + count, last
            self._arrived.notify()

    def _wait(self, n: int) -> None:
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._count >= n, TIMEOUT_S):
                raise TimeoutError(f"{self._count} of {n} gRPC messages came within {TIMEOUT_S} s")
            self._count = 0
