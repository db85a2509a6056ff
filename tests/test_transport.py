"""Messages between sockets and arrays, in compiled code and one by one through pyzmq."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from streamlstm import transport
from streamlstm.ticks import FRAMES, Messages
from streamlstm.transport import (
    ROOM,
    WELCOME,
    Publisher,
    Receiver,
    TransportError,
    poll_items,
    wait,
)

LOCAL = "tcp://127.0.0.1:*"


@pytest.fixture(params=["compiled", "one by one"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test is of either way."""
    assert transport.compiled()
    if request.param != "compiled":
        monkeypatch.setattr(transport, "compiled", lambda: False)
    return str(request.param)


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


def feed(context: zmq.Context, receiver: Receiver, endpoint: int = 0) -> zmq.Socket:
    """A publisher that knows of the receiver's subscription."""
    socket = context.socket(zmq.XPUB)
    socket.sndhwm = 0
    socket.connect(receiver.endpoints[endpoint])
    while not socket.poll(1):
        receiver.socket.poll(1)  # a socket that binds greets those who come when it is used
    return socket


def taken(receiver: Receiver, most: int = 100) -> list[list[bytes]]:
    count = receiver.receive(most)
    assert count <= most
    return [receiver.messages.message(m) for m in range(count)]


def collect(receiver: Receiver, count: int, most: int = 100) -> list[list[bytes]]:
    messages: list[list[bytes]] = []
    while len(messages) < count and receiver.socket.poll(10_000):
        messages += taken(receiver, most)
    return messages


def test_whatever_waits_is_taken_in_order_up_to_the_limit(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL])
    assert taken(receiver) == []
    socket = feed(context, receiver)
    sent = [[b"%d" % i, b"x" * i][: 1 + i % 2] for i in range(100)]
    for message in sent:
        socket.send_multipart(message)
    assert collect(receiver, 100, most=7) == sent
    assert taken(receiver) == []


def test_no_more_than_there_is_room_for(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL], most=5)
    socket = feed(context, receiver)
    sent = [[b"%d" % i] for i in range(12)]
    for message in sent:
        socket.send_multipart(message)
    assert collect(receiver, 12) == sent
    assert taken(receiver, 0) == []


def test_frames_beyond_those_kept_and_bytes_beyond_the_limit_are_cut(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL], max_frame=100)
    socket = feed(context, receiver)
    for message in (
        [b"a"] * FRAMES,
        [b"b"] * (FRAMES + 1),
        [b"", b"", b""],
        [b"c", b"d" * 100],
        [b"e" * 101, b"f" * 102, b"g" * 1600, b"h" * 1600],
        [b"i"] * 1000,
        [b""],
        [b"the end"],
    ):
        socket.send_multipart(message)
    assert collect(receiver, 8) == [
        [b"a"] * FRAMES,
        [b"b"] * FRAMES,
        [b"", b"", b""],
        [b"c", b"d" * 100],
        [b"e" * 101, b"f" * 101, b"g" * 101],
        [b"i"] * FRAMES,
        [b""],
        [b"the end"],
    ]


def test_what_exceeds_the_room_is_left_for_the_next_time(context: zmq.Context) -> None:
    """Even where all frames are too long, and more of them than are kept."""
    receiver = Receiver(context, bind=[LOCAL], max_frame=65_536)
    assert len(receiver.messages.data) == ROOM
    socket = feed(context, receiver)
    for i in range(50):
        socket.send_multipart([b"%d" % i, *([b"x" * 70_000] * FRAMES)])
    assert receiver.socket.poll(10_000)
    rounds, seen = 0, []
    while len(seen) < 50 and receiver.socket.poll(10_000):
        batch = taken(receiver, 1000)
        rounds += 1
        assert all(len(frame) == 65_537 for _, *frames in batch for frame in frames)
        seen += [first for first, *_ in batch]
    assert seen == [b"%d" % i for i in range(50)]
    assert rounds >= 50 * 2 * 65_537 / ROOM


def test_room_for_a_message_is_made_however_long_its_frames_may_be(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL], max_frame=1 << 20)
    socket = feed(context, receiver)
    longest = [bytes([65 + k]) * (1 << 20) for k in range(FRAMES)]
    for _ in range(3):
        socket.send_multipart(longest)
    assert collect(receiver, 3) == [longest] * 3


def test_signals_lose_nothing(context: zmq.Context) -> None:
    """A storm of them while messages are received and waited for, and sent."""
    receiver = Receiver(context, bind=[LOCAL], hwm=0)
    socket = feed(context, receiver)
    count, hit = 30_000, []

    def send() -> None:
        for i in range(count):
            socket.send_multipart([b"%d" % i, b"x"])

    items = poll_items(receiver.socket)
    sender = threading.Thread(target=send)
    before = signal.signal(signal.SIGALRM, lambda *_: hit.append(None))
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 2e-4)
    try:
        sender.start()
        at = 0
        while at < count:
            assert wait(items, 10_000) >= 0  # 0: a signal
            for m in range(receiver.receive(100)):
                assert receiver.messages.message(m) == [b"%d" % at, b"x"]
                at += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sender.join()
    assert len(hit) > 10
    assert receiver.receive(100) == 0


def test_a_signal_ends_the_wait_for_it(context: zmq.Context) -> None:
    receiver = Receiver(context, bind=[LOCAL])
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        assert wait(poll_items(receiver.socket), 60_000) == 0
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_context_that_ends_is_an_error(context: zmq.Context) -> None:
    ours = Context()
    receiver, publisher = Receiver(ours, bind=[LOCAL]), Publisher(ours, bind=[LOCAL])
    items = poll_items(receiver.socket)
    ender = threading.Thread(target=ours.term)  # it waits for the sockets to be closed
    ender.start()
    for each in (items, poll_items(publisher.socket)):  # to send is to look only now and then
        while wait(each, 10_000) >= 0:
            pass
    with pytest.raises(zmq.ZMQError) as error:
        receiver.receive(10)
    assert error.value.errno == zmq.ETERM
    with pytest.raises(zmq.ZMQError) as error:
        publisher.send(Messages.of([[b"a", b"b"]]), 1)
    assert error.value.errno == zmq.ETERM
    assert wait(items, 10_000) == -zmq.ETERM
    receiver.close()
    publisher.close()
    ender.join(30)
    assert not ender.is_alive()


def test_every_publisher_gets_its_share(context: zmq.Context) -> None:
    """One that floods an endpoint keeps nobody waiting, neither there nor at another one."""
    receiver = Receiver(context, bind=["inproc://one", "inproc://two"])
    flood, beside, other = (feed(context, receiver, endpoint) for endpoint in (0, 0, 1))
    for i in range(5000):
        flood.send(b"flood %d" % i)
    for i in range(100):
        beside.send(b"beside %d" % i)
        other.send(b"other %d" % i)
    counts = {b"flood": 0, b"beside": 0, b"other": 0}
    while counts[b"beside"] < 100 or counts[b"other"] < 100:
        assert receiver.socket.poll(10_000)
        for (message,) in taken(receiver):
            name, number = message.split()
            assert int(number) == counts[name]  # of each publisher, in order
            counts[name] += 1
    assert counts[b"flood"] < 1000


def test_pull_makes_a_publisher_wait_and_loses_nothing(context: zmq.Context) -> None:
    receiver = Receiver(context, kind="pull", bind=[LOCAL], hwm=10)
    socket = context.socket(zmq.PUSH)
    socket.sndhwm, socket.sndbuf = 10, 4096
    socket.connect(receiver.endpoints[0])
    sent = 0
    with contextlib.suppress(zmq.Again):
        socket.sndtimeo = 200
        while sent < 10_000:
            socket.send(b"%d " % sent + b"x" * 1000)
            sent += 1
    assert 20 <= sent < 10_000
    socket.sndtimeo = 10_000
    found = taken(receiver)
    while len(found) < sent and receiver.socket.poll(10_000):
        found += taken(receiver)
    socket.send(b"last")
    found += collect(receiver, 1)
    numbers = [int(message.split()[0]) for (message,) in found[:-1]]
    assert numbers == list(range(sent))
    assert found[-1] == [b"last"]


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
    assert collect(receiver, 1) == [[b"y" * 1001]]
    friend.send(b"still here")
    assert collect(receiver, 1) == [[b"still here"]]


def test_a_handshake_that_is_not_finished_ends(
    context: zmq.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE", 0.2)
    receiver = Receiver(context, bind=[LOCAL])
    address = "127.0.0.1", int(receiver.endpoints[0].rpartition(":")[2])
    with socket.create_connection(address, timeout=10) as half:
        half.sendall(b"\xff\0\0\0\0\0\0\0\1\x7f\3")
        while half.recv(100):  # its greeting, then the end
            pass


def subscriber(context: zmq.Context, publisher: Publisher, topic: bytes) -> zmq.Socket:
    socket = context.socket(zmq.SUB)
    socket.subscribe(topic)
    socket.subscribe(WELCOME)
    socket.connect(publisher.endpoints[0])
    while not socket.poll(1):
        publisher.forget_subscriptions()
    assert socket.recv() == WELCOME
    return socket


def send(publisher: Publisher, *messages: list[bytes]) -> None:
    publisher.send(Messages.of(messages), len(messages))


def test_a_subscriber_is_welcomed_and_gets_its_topics(context: zmq.Context) -> None:
    publisher = Publisher(context, bind=[LOCAL])
    one = subscriber(context, publisher, b"p.a")
    two = subscriber(context, publisher, b"")
    publisher.forget_subscriptions()
    send(publisher, [b"p.a", b"1"], [b"p.b", b"2", b""], [b"p.ab"])
    assert [one.recv_multipart() for _ in range(2)] == [[b"p.a", b"1"], [b"p.ab"]]
    assert [two.recv_multipart() for _ in range(3)] == [
        [b"p.a", b"1"], [b"p.b", b"2", b""], [b"p.ab"]
    ]  # fmt: skip
    publisher.send(Messages.of([[b"p.a"], [b"not this"]]), 1)
    send(publisher, [b"p.z"])
    assert [two.recv_multipart() for _ in range(2)] == [[b"p.a"], [b"p.z"]]


def test_a_subscriber_that_stops_reading_slows_nobody(context: zmq.Context) -> None:
    """It gets what waited for it, nothing of what came then, and all again once it has read."""
    hwm = 100
    publisher = Publisher(context, bind=[LOCAL], hwm=hwm)
    stuck = context.socket(zmq.SUB)
    stuck.rcvhwm = 1
    stuck.rcvbuf = 4096
    stuck.subscribe(b"")
    stuck.connect(publisher.endpoints[0])
    while not stuck.poll(1):
        publisher.forget_subscriptions()
    reader = subscriber(context, publisher, b"")
    body = np.random.default_rng(0).bytes(20_000)
    sent = 1000  # 20 MB: far more than the buffers on the way and 100 messages
    for i in range(sent):
        send(publisher, [b"%d" % i, body, b"end"])
        assert reader.recv_multipart() == [b"%d" % i, body, b"end"]
    overflows = publisher.overflows
    assert stuck.recv() == WELCOME
    found = [-1]
    while found[-1] < sent:
        if not stuck.poll(50):
            publisher.forget_subscriptions()
            send(publisher, [b"%d" % sent, body, b"end"])
            continue
        first, *others = stuck.recv_multipart()
        assert others == [body, b"end"]  # whole or not at all
        found.append(int(first))
    steps = np.diff(found)
    assert hwm < len(found) < sent
    assert (steps >= 1).all()
    assert (steps > 1).sum() == overflows  # each of which began a gap


def test_a_message_of_many_frames_is_whole_or_not_at_all_when_the_queue_is_full(
    context: zmq.Context,
) -> None:
    """Over inproc, where nothing but the queue lies between: its every place is known."""
    publisher = Publisher(context, hwm=2)
    publisher.socket.bind("inproc://full")
    full = context.socket(zmq.SUB)
    full.rcvhwm = 2
    full.subscribe(b"")
    full.connect("inproc://full")
    publisher.forget_subscriptions()
    full.rcvtimeo = 10_000
    assert full.recv() == WELCOME
    for i in range(20):
        send(publisher, [b"%d" % i, b"middle", b"end"])
    found = []
    while full.poll(0):
        found.append(full.recv_multipart())
    assert found == [[b"%d" % i, b"middle", b"end"] for i in range(len(found))]
    assert 2 <= len(found) <= 5
    assert publisher.overflows >= 1
    publisher.forget_subscriptions()  # and heed that there is room again
    send(publisher, [b"again"])
    assert full.recv_multipart() == [b"again"]


def test_nobody_needs_to_be_there(context: zmq.Context) -> None:
    publisher = Publisher(context, bind=[LOCAL], hwm=1)
    send(publisher, *([b"a", b"b"] for _ in range(10_000)))
    assert publisher.overflows == 0


def test_closing_gives_subscribers_what_they_are_owed(context: zmq.Context) -> None:
    ours = Context()
    publisher = Publisher(ours, bind=[LOCAL], hwm=2000)  # none is lost to a full queue
    reader = subscriber(context, publisher, b"")
    reader.rcvtimeo = 10_000
    publisher.forget_subscriptions()
    send(publisher, *([b"%d" % i, b"x" * 1000] for i in range(1000)))
    publisher.close(linger=30)
    ours.term()
    assert [reader.recv_multipart()[0] for _ in range(1000)] == [b"%d" % i for i in range(1000)]


def test_waiting_says_what_is_ready(context: zmq.Context) -> None:
    receiver, publisher = Receiver(context, bind=[LOCAL]), Publisher(context, bind=[LOCAL])
    near, far = socket.socketpair()
    with near, far:
        items = poll_items(receiver.socket, publisher.socket, near.fileno())
        began = time.monotonic()
        assert wait(items, 0) == 0
        assert wait(items, 20) == 0
        assert time.monotonic() - began >= 0.02
        far.send(b"x")
        assert wait(items, 60_000) == 4
        assert wait(items, -1) == 4
        sender = feed(context, receiver)
        sender.send(b"tick")
        assert receiver.socket.poll(10_000)
        assert wait(items, 60_000) == 4 | 1
        near.recv(1)
        assert wait(items, 60_000) == 1
        receiver.receive(1)
        assert wait(items, 0) == 0
        one = context.socket(zmq.SUB)
        one.subscribe(b"a")
        one.connect(publisher.endpoints[0])
        assert wait(items, 60_000) == 2
        publisher.forget_subscriptions()
        assert wait(items, 0) == 0


def test_warming_up_touches_no_socket() -> None:
    transport.warm_up()


@pytest.mark.parametrize("kind", [Receiver, Publisher])
@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("tcp://127.0.0.1:x", "an endpoint is tcp://address:port or ipc://path"),
        ("nonsense", "an endpoint is tcp://address:port or ipc://path"),
        ("", "nothing: an endpoint is"),
        ("tcp://*", "with a port of 1 to 65535"),
        ("tcp://127.0.0.1:99999", "with a port of 1 to 65535"),
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


def test_an_ipc_socket_in_use_is_not_taken_away(context: zmq.Context, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/in"
    first = Receiver(context, bind=[endpoint])
    with pytest.raises(TransportError, match="in use; stop what listens there, or choose another"):
        Receiver(context, bind=[endpoint])
    feed(context, first).close()
    first.close()
    (tmp_path / "left").touch()  # by a crash
    Receiver(context, bind=[f"ipc://{tmp_path}/left"]).close()


def test_a_port_in_use(context: zmq.Context) -> None:
    endpoint = Publisher(context, bind=[LOCAL]).endpoints[0]
    with pytest.raises(TransportError, match="in use; stop what listens there, or choose another"):
        Receiver(context, bind=[endpoint])
