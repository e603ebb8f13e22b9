"""CURVE on sockets: key pairs, the options of both ends, and the gate that decides which keys may connect.

libzmq asks the gate (ZAP, ZeroMQ RFC 27) during each handshake with one of the context's servers. The gate is a thread
of its own, so that a role that computes for seconds still answers within libzmq's handshake limit; it only looks keys
up in tables that the role's own thread replaces. pyzmq's ThreadAuthenticator is not used: it can only say yes or no,
and no is final for a connection: a peer that has the new plan a moment before us would never come back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import zmq
from zmq.utils import z85

from zmpsl.errors import JobError, LocalProtocolError
from zmpsl.keys import SecretKey, Security

__all__ = [
    "CONTROL", "DATA", "FAILED", "Denial", "Gate", "check_pair", "new_pair", "protect_client", "protect_server",
    "why_failed",
]  # fmt: skip

# ZAP domains.
CONTROL, DATA = "control", "data"
FAILED = int(
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
ZAP_ADDRESS = "inproc://zeromq.zap.01"
# A key that is not known yet is looked up again for this long, well within the handshake's own limit of 2 s: the plan
# or the changed allow-list that has it may be on its way.
HOLD_S = 1.5
LOOK_AGAIN_MS = 20


def new_pair(name: str, role: str) -> SecretKey:
    """Makes a key pair.

    Raises:
        JobError: The name cannot be one.
    """
    public, secret = (z85.decode(half).hex() for half in zmq.curve_keypair())
    try:
        return msgspec.convert({"name": name, "role": role, "public": public, "secret": secret}, SecretKey)
    except msgspec.ValidationError as error:
        raise JobError(f"{name!r} cannot be the name of a key: use letters, digits, dot, dash, at most 63") from error


def check_pair(security: Security) -> None:
    """Checks that the two halves of our key belong together, where we have one.

    Raises:
        JobError: They do not.
    """
    key = security.key
    if key is not None and z85.decode(zmq.curve_public(z85.encode(bytes.fromhex(key.secret)))).hex() != key.public:
        raise JobError(f"the two halves of key {key.name} do not belong together; make a new one with: zmpsl keys new")


def protect_server(socket: zmq.Socket[bytes], security: Security, domain: str) -> None:
    """Makes a socket take only connections that know our public key and that the gate lets pass. Before bind."""
    if security.key is None:
        return
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(security.key.secret))
    socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
    # Without this, a server whose gate is gone would let everybody in.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def protect_client(socket: zmq.Socket[bytes], security: Security, server: str) -> None:
    """Makes a socket connect only to who holds the secret half of `server`. Before connect.

    Raises:
        LocalProtocolError: It is not known whom we connect to.
    """
    if security.key is None:
        return
    if not server:
        raise LocalProtocolError("a protected link needs the public key of the other end")
    socket.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(server))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(security.key.public))
    socket.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(security.key.secret))


def why_failed(event: int, value: int) -> str:
    """Says in words why a handshake failed, as a socket's monitor reports it."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "the key was refused"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return "one side uses keys and the other does not"
        if value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
            return "the other side expects another key here"
        return f"not what ZeroMQ would say (0x{value:x})"
    return "it was hung up on: this side expects another key there, or the other end is no zmpsl or does not answer"


class Denial(NamedTuple):
    """Somebody who was not let in."""

    domain: str
    public: str
    address: str


class Gate:
    """Lets keys pass, or not, for all servers of one context. Ends by itself when the context is terminated.

    Args:
        context: The role's own zmq context; make the gate before anything is bound.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        self._allowed: Mapping[str, frozenset[str]] = {}
        self._final: frozenset[str] = frozenset()
        self._held: list[tuple[float, list[bytes]]] = []
        self._denials: deque[Denial] = deque(maxlen=64)
        self._thread = threading.Thread(target=self._serve, name="zmpsl gate", daemon=True)
        self._thread.start()

    def allow(self, domain: str, keys: frozenset[str], *, final: bool) -> None:
        """Replaces the keys that may connect to the servers of a domain.

        Args:
            domain: Which servers.
            keys: Public keys.
            final: Tell any other that it is refused, and that is the end of it; else it may try again.
        """
        self._final = self._final | {domain} if final else self._final - {domain}
        self._allowed = {**self._allowed, domain: keys}

    def denials(self) -> list[Denial]:
        """Takes out who was not let in since the last call."""
        found = []
        while self._denials:
            found.append(self._denials.popleft())
        return found

    def join(self) -> None:
        """Waits for the thread, after the context was terminated."""
        self._thread.join(5)

    # -- in the gate's own thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while True:
                if self._socket.poll(LOOK_AGAIN_MS if self._held else None):
                    self._consider(self._socket.recv_multipart(), time.monotonic())
                waiting, self._held = self._held, []
                for since, frames in waiting:
                    self._consider(frames, since)
        except zmq.ContextTerminated:
            self._socket.close(linger=0)

    def _consider(self, frames: list[bytes], since: float) -> None:
        """One request: identity, empty, version, request id, domain, address, routing id, mechanism, key."""
        if len(frames) != 9 or frames[2] != b"1.0" or frames[7] != b"CURVE" or len(frames[8]) != 32:
            self._answer(frames, b"400", b"no request of ours", "")
            return
        domain, public = frames[4].decode("utf-8", "replace"), frames[8].hex()
        if public in self._allowed.get(domain, frozenset()):
            self._answer(frames, b"200", b"OK", public)
        elif time.monotonic() - since < HOLD_S and len(self._held) < 256:
            self._held.append((since, frames))
        else:
            self._denials.append(Denial(domain, public, frames[5].decode("utf-8", "replace")))
            # Without an answer the connection soon ends, and the peer tries again; after a no it never would.
            if domain in self._final:
                self._answer(frames, b"400", b"unknown key", "")

    def _answer(self, frames: list[bytes], code: bytes, text: bytes, user: str) -> None:
        if len(frames) > 3:
            self._socket.send_multipart([frames[0], b"", b"1.0", frames[3], code, text, user.encode(), b""])
