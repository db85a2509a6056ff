from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from streamlstm.transport import WELCOME, Publisher, Receiver, TransportError

LOCAL = "tcp://127.0.0.1:*"


class Context(zmq.Context):
    """Keeps its sockets until it is destroyed."""

    def socket(self, *args: Any, **kwargs: Any) -> zmq.Socket:
        socket = super().socket(*args, **kwargs)
        self.__dict__.setdefault("kept", []).append(socket)
        return socket


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = Context()
    yield context
    context.destroy(linger=0)


def feed(context: zmq.Context, receiver: Receiver) -> zmq.Socket:
    """A publisher that knows of the receiver's subscription."""
    socket = context.socket(zmq.XPUB)
    socket.connect(receiver.endpoints[0])
    while not socket.poll(1):
        receiver.socket.poll(1)  # a socket that binds greets those who come when it is used
    return socket


def collect(receiver: Receiver, count: int, most: int = 100) -> list[list[bytes]]:
    messages: list[list[bytes]] = []
    while len(messages) < count and receiver.socket.poll(10_000):
        batch = receiver.receive(most)
        assert len(batch) <= most
        messages += batch
    return messages


def test_whatever_waits_is_taken_in_order_up_to_the_limit(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL])
    assert receiver.receive(10) == []
    socket = feed(context, receiver)
    sent = [[b"%d" % i, b"x" * i][: 1 + i % 2] for i in range(100)]
    for message in sent:
        socket.send_multipart(message)
    assert collect(receiver, 100, most=7) == sent
    assert receiver.receive(7) == []


def test_several_endpoints_bound_and_connected(context: zmq.Context) -> None:
    far = context.socket(zmq.XPUB)
    far.bind(LOCAL)
    receiver = Receiver(context, bind=[LOCAL, LOCAL], connect=[far.get_string(zmq.LAST_ENDPOINT)])
    assert len(set(receiver.endpoints)) == 3
    near = feed(context, receiver)
    assert far.poll(10_000)
    near.send(b"near")
    far.send(b"far")
    assert sorted(collect(receiver, 2)) == [[b"far"], [b"near"]]


def test_only_the_topics_asked_for(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL], topics=["a", "b/"])
    socket = feed(context, receiver)
    assert socket.recv() in (b"\1a", b"\1b/")
    assert socket.poll(10_000)
    for topic in (b"a1", b"c", b"b/x", b"b", b"a"):
        socket.send(topic)
    assert collect(receiver, 3) == [[b"a1"], [b"b/x"], [b"a"]]


def test_a_sender_of_huge_frames_is_cut_off_and_nobody_else(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL], max_frame=1000)
    friend, enemy = feed(context, receiver), feed(context, receiver)
    enemy.send(b"x" * 16_001)
    enemy.send(b"lost with it")
    friend.send(b"y" * 16_000)
    assert collect(receiver, 1) == [[b"y" * 16_000]]
    friend.send(b"still here")
    assert collect(receiver, 1) == [[b"still here"]]


def subscriber(context: zmq.Context, publisher: Publisher, topic: bytes) -> zmq.Socket:
    socket = context.socket(zmq.SUB)
    socket.subscribe(topic)
    socket.subscribe(WELCOME)
    socket.connect(publisher.endpoints[0])
    while not socket.poll(1):
        publisher.forget_subscriptions()
    assert socket.recv() == WELCOME
    return socket


def test_a_subscriber_is_welcomed_and_gets_its_topics(context: zmq.Context) -> None:
    publisher = Publisher(context, bind=[LOCAL])
    one = subscriber(context, publisher, b"p.a")
    two = subscriber(context, publisher, b"")
    publisher.forget_subscriptions()
    publisher.send([[b"p.a", b"1"], [b"p.b", b"2"], [b"p.ab"]])
    assert [one.recv_multipart() for _ in range(2)] == [[b"p.a", b"1"], [b"p.ab"]]
    assert [two.recv_multipart() for _ in range(3)] == [[b"p.a", b"1"], [b"p.b", b"2"], [b"p.ab"]]


def test_a_subscriber_that_stops_reading_slows_nobody(context: zmq.Context) -> None:
    publisher = Publisher(context, bind=[LOCAL], hwm=500)
    stuck = context.socket(zmq.SUB)
    stuck.rcvhwm = 1
    stuck.rcvbuf = 4096
    stuck.subscribe(b"")
    stuck.connect(publisher.endpoints[0])
    while not stuck.poll(1):
        publisher.forget_subscriptions()
    reader = subscriber(context, publisher, b"")
    big = b"x" * 20_000
    for i in range(2000):  # 40 MB: far more than the buffers on the way and 500 messages
        publisher.send([[b"%d" % i, big]])
        assert reader.recv_multipart()[0] == b"%d" % i


def test_closing_gives_subscribers_what_they_are_owed(context: zmq.Context) -> None:
    ours = Context()
    publisher = Publisher(ours, bind=[LOCAL])
    reader = subscriber(context, publisher, b"")
    publisher.forget_subscriptions()
    publisher.send([b"%d" % i, b"x" * 1000] for i in range(1000))
    publisher.close(linger=30)
    ours.term()
    assert [reader.recv_multipart()[0] for _ in range(1000)] == [b"%d" % i for i in range(1000)]


@pytest.mark.parametrize("kind", [Receiver, Publisher])
@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("tcp://127.0.0.1:x", "an endpoint is tcp://address:port or ipc://path"),
        ("nonsense", "an endpoint is tcp://address:port or ipc://path"),
        ("", "an empty endpoint: "),
        ("udp9://x:1", "an endpoint is tcp://address:port or ipc://path"),
        ("tcp://192.0.2.1:5555", "bind to an address of this machine, or connect instead"),
        ("ipc:///no/such/folder/socket", "make its folder first"),
    ],
)
def test_a_bad_endpoint_is_one_line_with_the_mend(
    context: zmq.Context, kind: type[Receiver] | type[Publisher], endpoint: str, said: str
) -> None:
    with pytest.raises(TransportError) as error:
        kind(context, bind=[endpoint])
    assert endpoint in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_port_in_use(context: zmq.Context) -> None:
    endpoint = Publisher(context, bind=[LOCAL]).endpoints[0]
    with pytest.raises(TransportError, match="in use; stop what listens there, or choose another"):
        Receiver(context, bind=[endpoint])
