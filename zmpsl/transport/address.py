"""Which addresses may be used: TCP only, and only loopback unless told otherwise."""

from __future__ import annotations

import re
from ipaddress import ip_address

from zmpsl.errors import JobError

__all__ = ["check_address", "leaves_host"]

_ADDRESS = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\[\]\s]+):(?P<port>\*|[0-9]{1,5})")


def check_address(address: str, may_leave: bool, *, bind: bool = False) -> None:
    """Checks an address before libzmq sees it, which would take port 99999 for 34463.

    Args:
        address: Such as `tcp://127.0.0.1:5600`.
        may_leave: Let addresses pass that other hosts can reach: there are keys, or somebody wants none.
        bind: The address is to be bound; then `*` and `0` mean any free port.

    Raises:
        JobError: It is no address, or one that other hosts can reach and `may_leave` is not set.
    """
    found = _ADDRESS.fullmatch(address)
    port = found["port"] if found else ""
    any_port = bind and port in ("*", "0")
    if found is None or not (any_port or (port.isdigit() and 0 < int(port) < 65536)):
        raise JobError(f"address {address!r} must look like tcp://HOST:PORT")
    if not may_leave and not _is_loopback(found["host"].strip("[]")):
        raise JobError(
            f"{address} can be reached from other hosts, so its links need keys: make them with `zmpsl keys new NAME "
            f"--role ROLE`, let them in with `zmpsl keys add NAME.pub` on the manager's host, and say --keys FOLDER "
            f"(docs/security.md shows it); or say --security none if that network is yours alone"
        )


def leaves_host(address: str) -> bool:
    """Tells whether an address may be another host's; one that is no TCP address at all is not."""
    found = _ADDRESS.fullmatch(address)
    return found is not None and not _is_loopback(found["host"].strip("[]"))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, which may mean any host
        return False
