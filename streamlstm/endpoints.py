"""The names of places that sockets listen at and connect to, such as ``tcp://127.0.0.1:5555``."""

import ipaddress

TRANSPORTS = ("tcp", "ipc", "inproc")
SUCH = "an endpoint is tcp://address:port or ipc://path"
_MOST = 65535
"""libzmq takes a larger port for what is left of it in 16 bits."""


def check(endpoint: str) -> str:
    """The endpoint itself, whether or not there is such a place.

    Raises:
        ValueError: it cannot be one.
    """
    transport, _, address = endpoint.partition("://")
    if transport not in TRANSPORTS or not address:
        raise ValueError(f"{endpoint or 'nothing'}: {SUCH}")
    if transport == "tcp":
        host, _, port = address.rpartition(":")
        number = port.isascii() and port.isdecimal() and int(port) <= _MOST
        if not host or not (number or port == "*"):
            raise ValueError(f"{endpoint}: {SUCH}, with a port of 1 to {_MOST}")
    return endpoint


def reaches_beyond(endpoint: str) -> bool:
    """Whether it may be reached from, or lead to, another machine."""
    transport, _, address = endpoint.partition("://")
    host = address.rpartition(";")[2].rpartition(":")[0].strip("[]")
    return transport not in ("ipc", "inproc") and not is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether this is a name or address of the machine itself, for itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")
