"""What an operator may name as a place to listen at or to connect to."""

from collections.abc import Iterator

import pytest
import zmq

from streamlstm.endpoints import check


@pytest.fixture
def socket() -> Iterator[zmq.Socket]:
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        yield socket


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:5555", "tcp://*:*", "tcp://[::1]:65535", "tcp://lo:0", "ipc:///run/x",
     "ipc://@abstract", "inproc://x", "tcp://10.0.0.1:0;feed.example:5555"],
)  # fmt: skip
def test_what_libzmq_takes_is_taken(endpoint: str) -> None:
    assert check(endpoint) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["", "nonsense", "tcp://", "tcp://127.0.0.1", "tcp://:5555", "tcp://a:-1", "tcp://a:x",
     "tcp://a:²", "http://a:1", "udp9://x:1", "ipc://", "127.0.0.1:5555"],
)  # fmt: skip
def test_what_libzmq_refuses_is_refused(socket: zmq.Socket, endpoint: str) -> None:
    with pytest.raises(ValueError, match="an endpoint is tcp://address:port or ipc://path"):
        check(endpoint)
    with pytest.raises(zmq.ZMQError):
        socket.bind(endpoint)


def test_a_port_that_libzmq_would_take_for_another(socket: zmq.Socket) -> None:
    with pytest.raises(ValueError, match="a port of 1 to 65535"):
        check("tcp://127.0.0.1:99999")
    socket.bind("tcp://127.0.0.1:99999")
    assert not socket.get_string(zmq.LAST_ENDPOINT).endswith(":99999")
