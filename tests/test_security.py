"""CURVE between real sockets: who is let in, who is not, and that they are counted."""

import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq

from streamlstm.security import Curve, Doors, SecurityError, load_keys, make_keys
from streamlstm.transport import WELCOME, Publisher, Receiver
from tests.test_transport import Context

LOCAL = "tcp://127.0.0.1:*"


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def keys(tmp_path: Path) -> SimpleNamespace:
    """Of a server, of a client that it knows, and of a stranger; ``x`` secret, ``x_public``."""
    (tmp_path / "clients").mkdir()
    made = {}
    for name in ("server", "client", "stranger"):
        folder = tmp_path / "clients" if name == "client" else tmp_path
        made[f"{name}_public"], made[name] = make_keys(folder / name)
    return SimpleNamespace(**made, clients=tmp_path / "clients")


class Served:
    """A receiver and a publisher with keys, and those who watch their doors."""

    def __init__(self, curve: Curve, *, clients: Path | None = None) -> None:
        self.context, self.curve = zmq.Context(), curve
        if clients:
            curve.admit(self.context, clients)
        self.receiver = Receiver(self.context, curve=curve)
        self.publisher = Publisher(self.context, curve=curve)
        self.doors = Doors(self.context, (self.receiver.socket, self.publisher.socket))
        self.receiver.open([LOCAL])
        self.publisher.open([LOCAL])

    def taken(self) -> list[list[bytes]]:
        self.publisher.forget_subscriptions()
        self.doors.look(1000)
        count = self.receiver.receive(100)
        return [self.receiver.messages.message(m) for m in range(count)]

    def close(self) -> None:
        self.doors.close()
        self.curve.close()
        self.context.destroy(linger=0)


class Peer:
    """One that sends to it, and subscribes to it."""

    def __init__(self, served: Served, curve: Curve | None) -> None:
        self.context, self.served = zmq.Context(), served
        self.feed = self.context.socket(zmq.XPUB)
        self.sink = self.context.socket(zmq.SUB)
        self.sink.subscribe(b"")
        for socket, end in ((self.feed, served.receiver), (self.sink, served.publisher)):
            if curve:
                curve.before_connect(socket, end.endpoints[0])
            socket.connect(end.endpoints[0])

    def is_heard(self) -> bool:
        """Whether it comes to speak and to hear."""
        until(lambda: bool(self.feed.poll(1) and self.sink.poll(1)), self.served)
        assert self.sink.recv() == WELCOME
        self.feed.send(b"tick")
        return until(lambda: bool(self.served.receiver.socket.poll(1))) and self.served.taken() == [
            [b"tick"]
        ]

    def is_refused(self, least: int = 2) -> bool:
        """Whether it gets no further than the doors, where it is counted."""
        before = self.served.doors.refused
        until(lambda: self.served.doors.refused >= before + least, self.served)
        return not self.feed.poll(1) and not self.sink.poll(1)

    def close(self) -> None:
        self.context.destroy(linger=0)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def until(holds: Callable[[], bool], served: Served | None = None) -> bool:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        if served:
            assert served.taken() == []
    return True


@pytest.fixture
def open_to_who_knows(keys: SimpleNamespace) -> Iterator[Served]:
    served = Served(Curve(keys=keys.server))
    yield served
    served.close()


@pytest.fixture
def open_to_some(keys: SimpleNamespace) -> Iterator[Served]:
    served = Served(Curve(keys=keys.server), clients=keys.clients)
    yield served
    served.close()


def knowing(served: Served, server: Path, keys: Path | None = None) -> Curve:
    ends = served.receiver.endpoints + served.publisher.endpoints
    return Curve(keys=keys, servers=dict.fromkeys(ends, server))


def test_who_knows_the_servers_key_is_let_in(
    open_to_who_knows: Served, keys: SimpleNamespace
) -> None:
    for own in (None, keys.stranger):
        with Peer(open_to_who_knows, knowing(open_to_who_knows, keys.server_public, own)) as peer:
            assert peer.is_heard()
    assert open_to_who_knows.doors.refused == 0


def test_who_has_no_key_or_a_wrong_one_gets_nothing_and_does_no_harm(
    open_to_who_knows: Served, keys: SimpleNamespace
) -> None:
    wrong = knowing(open_to_who_knows, keys.stranger_public)
    with Peer(open_to_who_knows, None) as plain, Peer(open_to_who_knows, wrong) as stranger:
        assert plain.is_refused()
        assert stranger.is_refused()
        with Peer(open_to_who_knows, knowing(open_to_who_knows, keys.server_public)) as friend:
            assert friend.is_heard()


def test_where_clients_are_named_nobody_else_is_let_in(
    open_to_some: Served, keys: SimpleNamespace
) -> None:
    for own in (None, keys.stranger):
        with Peer(open_to_some, knowing(open_to_some, keys.server_public, own)) as peer:
            assert peer.is_refused()
    with Peer(open_to_some, knowing(open_to_some, keys.server_public, keys.client)) as friend:
        assert friend.is_heard()


def test_the_folder_of_clients_is_looked_at_again(
    open_to_some: Served, keys: SimpleNamespace
) -> None:
    stranger = knowing(open_to_some, keys.server_public, keys.stranger)
    client = knowing(open_to_some, keys.server_public, keys.client)
    with Peer(open_to_some, client) as old:
        assert old.is_heard()
        (keys.clients / "stranger.key").write_bytes(keys.stranger_public.read_bytes())
        keys.client_public.unlink()
        open_to_some.curve.refresh()
        with Peer(open_to_some, stranger) as peer:
            assert peer.is_heard()
        with Peer(open_to_some, client) as peer:
            assert peer.is_refused()
        old.feed.send(b"still here")
        assert until(lambda: open_to_some.taken() == [[b"still here"]])


def test_a_file_that_is_not_yet_whole_bars_nobody_but_its_own(
    open_to_some: Served, keys: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    curve, late = open_to_some.curve, keys.clients / "stranger.key"
    late.write_text("")
    assert not curve.refresh()
    assert not curve.refresh()
    assert caplog.text.count("stranger.key: not a key file") == 1
    with Peer(open_to_some, knowing(open_to_some, keys.server_public, keys.client)) as peer:
        assert peer.is_heard()
    late.write_bytes(keys.stranger_public.read_bytes())  # which does not change the folder
    assert until(lambda: not curve.refresh() and len(curve._admitted.keys) == 2)
    with Peer(open_to_some, knowing(open_to_some, keys.server_public, keys.stranger)) as peer:
        assert peer.is_heard()
    late.write_bytes(keys.server_public.read_bytes())  # nor does a key in the place of another
    assert until(curve.refresh)
    (keys.clients / "junk.key").symlink_to("nowhere")
    keys.client_public.unlink()
    assert until(curve.refresh)
    with Peer(open_to_some, knowing(open_to_some, keys.server_public, keys.client)) as peer:
        assert peer.is_refused()


def test_nobody_is_let_in_where_nobody_is_left_to_ask(
    open_to_some: Served, keys: SimpleNamespace
) -> None:
    open_to_some.curve.close()
    with Peer(open_to_some, knowing(open_to_some, keys.server_public, keys.client)) as peer:
        assert peer.is_refused(1)


def test_one_socket_serves_with_its_key_and_connects_with_that_of_others(
    context: zmq.Context, keys: SimpleNamespace, tmp_path: Path
) -> None:
    """A server's, another server's, and none: each endpoint has its own."""
    _, other = make_keys(tmp_path / "other")
    far, plain = context.socket(zmq.XPUB), context.socket(zmq.XPUB)
    Curve(keys=other).before_bind(far)
    ends = []
    for socket in (far, plain):
        socket.bind(LOCAL)
        ends.append(socket.get_string(zmq.LAST_ENDPOINT))
    curve = Curve(keys=keys.server, servers={ends[0]: tmp_path / "other.key"})
    receiver = Receiver(context, bind=[LOCAL], connect=ends, curve=curve)
    near = context.socket(zmq.XPUB)
    Curve(servers={receiver.endpoints[0]: keys.server_public}).before_connect(
        near, receiver.endpoints[0]
    )
    near.connect(receiver.endpoints[0])
    for socket in (near, far, plain):
        assert until(lambda socket=socket: bool(socket.poll(1) or receiver.socket.poll(1)))
        socket.send(b"tick")
        assert receiver.socket.poll(10_000)
        assert receiver.receive(10) == 1


def test_a_server_that_is_not_the_one_expected_gets_nothing(
    context: zmq.Context, keys: SimpleNamespace
) -> None:
    impostor = context.socket(zmq.XPUB)
    Curve(keys=keys.stranger).before_bind(impostor)
    impostor.bind(LOCAL)
    end = impostor.get_string(zmq.LAST_ENDPOINT)
    receiver = Receiver(context, curve=Curve(servers={end: keys.server_public}))
    doors = Doors(context, [receiver.socket])
    receiver.open(connect=[end])
    assert not impostor.poll(200)
    doors.close()


def test_keys_are_for_nobody_elses_eyes_and_are_not_overwritten(tmp_path: Path) -> None:
    public, secret = make_keys(tmp_path / "mine")
    assert [stat.S_IMODE(file.stat().st_mode) for file in (public, secret)] == [0o644, 0o600]
    assert sorted(tmp_path.iterdir()) == [public, secret]
    before = [file.read_bytes() for file in (public, secret)]
    assert load_keys(secret, secret=True).public == load_keys(public, secret=False).public
    assert load_keys(secret, secret=True).secret not in before[0]
    with pytest.raises(SecurityError, match="is there already"):
        make_keys(tmp_path / "mine")
    public.unlink()
    with pytest.raises(SecurityError, match="is there already"):
        make_keys(tmp_path / "mine")
    assert secret.read_bytes() == before[1]
    assert sorted(tmp_path.iterdir()) == [secret]


@pytest.mark.parametrize("path", ["/no/such/folder/name", "/", "/proc/name"])
def test_keys_that_cannot_be_made(path: str) -> None:
    with pytest.raises(SecurityError, match=r"choose a folder|name the keys") as error:
        make_keys(Path(path))
    assert "\n" not in str(error.value)


def test_a_secret_key_that_others_may_read_is_warned_of(
    keys: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    load_keys(keys.server, secret=True)
    assert not caplog.text
    keys.server.chmod(0o640)
    load_keys(keys.server, secret=True)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", 'public-key = "short"', f'public-key = "{"x" * 40}"\nsecret-key = "short"',
     f'public-key = "{"x" * 40}"\nsecret-key = "{"y" * 40}"', "\0" * 100],
)  # fmt: skip
def test_what_is_no_key_file_is_one_line_with_the_mend(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.key_secret"
    file.write_text(text)
    with pytest.raises(SecurityError, match=r"streamlstm keys|NAME\.key_secret") as error:
        load_keys(file, secret=True)
    assert "\n" not in str(error.value)


def test_files_and_folders_that_are_not_there(
    context: zmq.Context, keys: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(SecurityError, match="streamlstm keys"):
        Curve(keys=tmp_path / "missing.key_secret")
    with pytest.raises(SecurityError, match=r"NAME\.key_secret"):
        Curve(keys=keys.server_public)
    with pytest.raises(SecurityError, match="make it, and put"):
        Curve(keys=keys.server).admit(context, tmp_path / "missing")
    (keys.clients / "bad.key").write_text("")
    with pytest.raises(SecurityError, match=r"bad\.key"):
        Curve(keys=keys.server).admit(context, keys.clients)


def test_a_folder_without_clients_is_warned_of(
    context: zmq.Context,
    keys: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "nobody").mkdir()
    curve = Curve(keys=keys.server)
    curve.admit(context, tmp_path / "nobody")
    assert "none may connect" in caplog.text
    curve.close()
