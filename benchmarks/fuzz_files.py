"""What is fuzzed of the configuration, of files, and of what is asked of the snapshot service.

Whatever bytes a file has, there is the error that its reader documents, in one line, or none. With
sound lengths and checksums, which anyone can compute, damage gets to what lies behind them.
"""

import contextlib
import json
import shutil
import sqlite3
import struct
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks.fuzz_mutate import Message
from benchmarks.fuzz_wire import NOW, Finding
from streamlstm import checkpoint, config, segments
from streamlstm.appending import append
from streamlstm.engine import Engine
from streamlstm.hashing import checksum, siphash
from streamlstm.journal import Journal
from streamlstm.model import ModelError
from streamlstm.model_file import load_model, save_model
from streamlstm.parking import Parking, _sum
from streamlstm.snapshot import Snapshots
from streamlstm.state_schema import Schema, schema_of
from streamlstm.ticks import Arrivals, Keys, Messages, Ticks
from streamlstm.wire.codec import Encoder
from streamlstm.wire.format import LONGEST_TOKEN, REFUSED, SNAPSHOT, Shape
from tests.models import HOUR, random_model
from tests.test_journal import NONE

_TEMPORARY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class _Files:
    """A reader of files, given one after the other.

    Attributes:
        refusal: what it may raise.
        path: where a file is laid.
    """

    refusal: type[Exception]

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(dir=_TEMPORARY)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / "x"

    def check(self, messages: Messages, number: int) -> Iterator[Finding]:
        """Take inputs, and say which of them raise what."""
        for m in range(len(messages.first) - 1):
            try:
                self.take(messages.message(m))
            except self.refusal as error:
                said = str(error).replace(str(self.path), "FILE")
                if len(said.splitlines()) != 1:
                    yield m, f"not one line: {said}"
            except Exception as error:
                yield m, repr(error)

    def take(self, message: Message) -> None:
        """Read one input, in as many frames as :meth:`seeds` have."""
        raise NotImplementedError


class Config(_Files):
    """TOML, and a variable of the environment as a second frame."""

    refusal = config.ConfigError

    def seeds(self) -> list[Message]:
        """As README and deploy have them, and what is odd in TOML."""
        made: list[Message] = [[text] for text in _TOML]
        for name, info in config.options():
            table, _, option = name.rpartition(".")
            value = info.get_default(call_default_factory=True, validated_data={})
            told = str(value) if isinstance(value, Path | None) else value
            try:
                text = json.dumps(told)
            except TypeError:
                continue
            made.append([f"[{table}]\n{option} = {text}\n".encode() if table else b""])
            variable = f"{name.upper().replace('.', '__')}={text}".encode()
            made.append([b"", variable])
        deep = b"INPUT__BIND=" + b"[" * 6000, b"METRICS__USERS=" + b'{"a":' * 1200
        return [*made, *([b"", variable] for variable in deep)]

    tokens: Sequence[bytes] = [
        b"[input]\n", b"[[input]]\n", b'"a\\nb" = 1\n', b"bind = ", b"= 1\n", b"inf", b"nan", b"-1",
        b"1e400", b"9" * 30, b"9" * 4400, b"1979-05-27T07:32:00Z", b"[", b"{a = ", b"]", b"}",
        b'"""', b"'''", b"\\u0000", b"\\uD800", b"\r\n", b"true", b"tcp://*:1", b"input.bind", b".",
        b"json", b"arrow", b'[""]', b"__", b"=", b"INPUT__", b"[[", b'{"a": "b"}', b"#",
    ]  # fmt: skip

    def take(self, message: Message) -> None:
        """As :meth:`_Files.take`."""
        text, *variables = message or [b""]
        self.path.write_bytes(text)
        environ = {}
        for each in variables:
            name, _, value = each.decode("utf-8", "surrogateescape").partition("=")
            environ[config.PREFIX + name] = value
        list(config.exposures(config.load_config(self.path, environ=environ)))


class ModelFile(_Files):
    """A file; its header and data; what we say in the header, the rest of it, and data."""

    refusal = ModelError

    def seeds(self) -> list[Message]:
        """Small models of all kinds."""
        made = []
        for kind in _MODELS:
            save_model(random_model(**{"hidden": 2, "horizon": 2} | kind), self.path)
            whole = self.path.read_bytes()
            (length,) = struct.unpack_from("<Q", whole)
            header, data = whole[8 : 8 + length], whole[8 + length :]
            tensors = json.loads(header)
            said = tensors.pop("__metadata__")["streamlstm"]
            rest = json.dumps(tensors, separators=(",", ":"))
            made += [[whole], [header, data], [said.encode(), rest.encode(), data]]
            made += [[said.encode(), rest.encode(), data]] * 2
        deep = said[:-1] + ', "x": ' + "[" * 4000
        return [*made, [deep.encode(), rest.encode(), data]]

    tokens: Sequence[bytes] = [
        b'"F64"', b'"F32"', b'"I64"', b'"BOOL"', b'"BF16"', b'"F8_E4M3"', b'"shape":[', b"[0,0]",
        b'"data_offsets":[0,0]', b"18446744073709551615", b"4294967296", b"0", b"-1", b"1e999",
        b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}", b"[", b"{", b'"lstm.weight_ih_l0"',
        b'"gru"', b'"rnn"', b'"cell": ', b'"layers": 16', b'"hidden": 4096', b'"window": 100000',
        b'"horizon": ', b'"inputs": ', b'"targets": ', b'"season": ', b'"lags": [',
        b'"calendar": ["hour"', b'"blend": ', b'"timezone": "', b"../../etc/passwd", b"\\u0000",
        b"\\n", b'"scaling": {"kind": "fixed"', b'"format": ', b'"provenance": ', b"9" * 4400,
        b'"errors.levels"', b'"golden.inputs"',
    ]  # fmt: skip

    def take(self, message: Message) -> None:
        """As :meth:`_Files.take`."""
        if len(message) == 1:
            (whole,) = message
        else:
            *said, header, data = message
            if said:
                text = json.dumps(said[0].decode("utf-8", "replace")).encode()
                header = b'{"__metadata__":{"streamlstm":%s},%s' % (text, header[1:])
            whole = struct.pack("<Q", len(header)) + header + data
        self.path.write_bytes(whole)
        model = load_model(self.path)
        assert len(model.id) == 12
        assert model.spec.history >= 0


class _Kept(_Files):
    """A file that an engine reads, which has some series."""

    def __init__(self) -> None:
        super().__init__()
        model = random_model(hidden=2, horizon=2)
        self.engine = Engine(model, max_series=8, max_key=16, keep_latest=True, ordered=True)
        slots = self.engine.series.lookup(Keys.of([b"a", b"boiler", "é".encode()]))
        for hour in range(3):
            moments, values = np.full(3, (1 + hour) * HOUR), np.arange(3.0)[:, None]
            self.engine.step(Ticks(slots, moments, values, np.zeros(3, np.uint8)), NOW)
        self.engine.close()


class Checkpoint(_Kept):
    """A file; its header and one piece, with sound checksums."""

    refusal = checkpoint.CheckpointError

    def seeds(self) -> list[Message]:
        """One checkpoint, both ways."""
        checkpoint.save(self.engine, self.path)
        whole = self.path.read_bytes()
        length = struct.unpack_from("<I", whole, 12)[0]
        header, piece = whole[24 : 24 + length], whole[24 + length :]
        return [[whole], [header.rstrip(), piece], [header.rstrip(), piece]]

    tokens: Sequence[bytes] = [
        b"STREAMLC", b'"model": ', b'"series": ', b'"slots": ', b'"fields": [', b'"journal": ',
        b"-1", b"9223372036854775807", b"1e999", b"NaN", b"null", b"[]", b"{}", b"[", b'"|O"',
        b'"<U4"', b'"<f4"', b'"V99999999"', b'"record"', b'"state"', b'"slot"', b'"name"', b"[0]",
        b"[-1]", b"[2147483647]", b"9" * 4400, b"\0" * 8, b"\\u0000", b'"length"', b"0",
        b'"<M8[ns]"', b'"i4,O"',
    ]  # fmt: skip

    def take(self, message: Message) -> None:
        """As :meth:`_Files.take`."""
        whole = message[0]
        if len(message) > 1:
            header, *pieces = message
            header += b" " * (-len(header) % 8)
            start = b"STREAMLC" + struct.pack("<II", checkpoint.FORMAT, len(header))
            whole = start + struct.pack("<Q", checksum(header)) + header
            for piece in pieces:
                whole += struct.pack("<Q", checksum(piece[8:])) + piece[8:]
        self.path.write_bytes(whole)
        checkpoint.journalled(self.path)
        checkpoint.load(self.engine, self.path)


class Segments(_Files):
    """A segment of the journal; its header, and entries, with sound checksums and lengths."""

    refusal = segments.JournalError

    def __init__(self) -> None:
        super().__init__()
        self._journal = self.path.with_name("journal")
        self._journal.mkdir()
        self.path = self._journal / f"{1:020}.seg"

    def seeds(self) -> list[Message]:
        """Of one and of two inputs."""
        made: list[Message] = []
        for inputs in (1, 2):
            self.path.unlink(missing_ok=True)
            log = Journal(
                self._journal, inputs=inputs, max_batch=4, max_key=8, model="abcdef012345",
                durability="strict", segment_bytes=1 << 13, first=1,
            )  # fmt: skip
            for n in (3, 1):
                room = Ticks.room(n, inputs)
                append(log.log, room, NONE, NOW)
            log.close()
            whole = self.path.read_bytes()
            head, rest, entries = whole[:512], whole[4096:], []
            while len(rest) >= segments.HEAD:
                (length,) = struct.unpack_from("<I", rest, 8)
                entries.append(rest[:length])
                rest = rest[length:]
            made += [[whole], [head, entries[0]], [head, *entries[:2]]]
            told = struct.pack("<IIHB", 5, 2, 1, 1) + b"\0" + b"kst"
            entry = entries[1][:16] + struct.pack("<Q", 1) + entries[1][24:40]
            entry += struct.pack("<IIII", 1, 1, 2, 0) + entries[1][56 : 56 + 12 + 8 * inputs]
            made.append([head, entry + told])
        self.path.unlink()
        return made

    tokens: Sequence[bytes] = [
        b"STREAMLJ", b"\x04\x03\x02\x01", b"\0" * 8, b"\xff" * 8, b"\0\0\0\x80",
        b"\xff\xff\xff\x1f", b"\0\0\0\x20", b"\1\0\0\0\0\0\0\0", b"abcdef012345",
    ]  # fmt: skip

    def take(self, message: Message) -> None:
        """As :meth:`_Files.take`."""
        whole = message[0]
        if len(message) > 1:
            head = np.zeros(1, segments.HEAD_OF_SEGMENT)
            given = message[0][: head.nbytes]
            head.view(np.uint8)[: len(given)] = np.frombuffer(given, np.uint8)
            head["checksum"] = segments.checksum(head[0])
            seed, inputs = head["seed"][0], int(head["inputs"][0])
            whole = head.tobytes().ljust(segments.HEADER, b"\0")
            whole += b"".join(_sealed(entry, seed, inputs) for entry in message[1:])
        self.path.write_bytes(whole)
        for _ in segments.read(self._journal, 0):
            pass
        segments.models(self._journal)
        segments.first_of(self.path)
        segments.end_of(self.path)


def _sealed(entry: bytes, seed: Any, inputs: int) -> bytes:
    """An entry of the length that its numbers say, if it can be, with its checksum."""
    made = bytearray(entry.ljust(segments.HEAD, b"\0"))
    ticks, count, *said = (struct.unpack_from("<I", made, at)[0] for at in (12, 40, 44, 48))
    size = (segments.HEAD + ticks * (13 + 8 * inputs) + count * 11 + sum(said) + 7 & ~7) % 2**64
    if size <= 1 << 16:
        made = made[:size].ljust(size, b"\0")
    made += b"\0" * (-len(made) % 8)
    struct.pack_into("<I", made, 8, len(made))
    array = np.frombuffer(made, np.uint8)
    total = siphash(seed[0], seed[1], array.ctypes.data + 8, len(array) - 8)
    return struct.pack("<Q", int(total)) + made[8:]


class Parked(_Kept):
    """A row of a parked series: its state, of its own schema or of one in a second frame.

    Sealed, or with a checksum as a third frame; or the whole file.
    """

    refusal = OSError
    tokens: Sequence[bytes] = (b"\0" * 8, b"\xff" * 8, b"SQLite format 3\0", b'"<i8", [], 16')

    def seeds(self) -> list[Message]:
        """One series, all ways."""
        parking = Parking(self.path, self.engine)
        parking.park(self.engine.series.lookup(Keys.of([b"a"])))
        parking.close()
        self.whole = self.path.read_bytes()
        with sqlite3.connect(self.path) as file:
            _, self.of, state, total = file.execute("SELECT * FROM parked").fetchone()
        file.close()
        own = schema_of(self.engine)
        other = own._replace(made={}).to_text(), own._replace(shape=[]).to_text()
        return [
            [state, b""],
            *([state, text.encode()] for text in other),
            [state, b"", total],
            [self.whole],
        ]

    def take(self, message: Message) -> None:
        """As :meth:`_Files.take`."""
        if not hasattr(self, "whole"):
            self.seeds()
        for each in self.path.parent.iterdir():
            each.unlink()
        if len(message) == 1:
            self.path.write_bytes(message[0] + self.whole[len(message[0]) :])
        else:
            self.path.write_bytes(self.whole)
            state, text, of = message[0], message[1].decode(errors="replace"), self.of
            with sqlite3.connect(self.path) as file:
                if text:
                    with contextlib.suppress(ValueError):  # its own words for it, or none
                        of = Schema.from_text(text).id.to_bytes(8, "little")
                    file.execute("REPLACE INTO schemas VALUES (?, ?)", (of, text))
                total = message[2] if len(message) > 2 else _sum(b"a", of, state)
                told = "UPDATE parked SET of = ?, state = ?, checksum = ?"
                file.execute(told, (of, state, total))
            file.close()
        parking = Parking(self.path, self.engine)
        self.engine.series.release(self.engine.series.slots)
        moments, flags = np.full(2, NOW), np.zeros(2, np.uint8)
        arrivals = Arrivals(Keys.of([b"a", b"none"]), moments, np.zeros((2, 1)), flags)
        parking.make_way(arrivals, 1, 1)
        parking.close()


class SnapshotRequests(_Kept):
    """Requests of a ROUTER socket, without the socket: each has one end, and its count is right."""

    tokens: Sequence[bytes] = (b"a", b"boiler", "é".encode(), b"t" * LONGEST_TOKEN, SNAPSHOT)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder("json", Shape("0123456789ab", 7, 2, 1, 16, 128))

    def seeds(self) -> list[Message]:
        """With a token and without."""
        return [[b""], [b"a"], [b"boil", b"token"], ["é".encode(), b"t" * 64], [b"none"]]

    def check(self, messages: Messages, number: int) -> Iterator[Finding]:
        """As :meth:`_Files.check`."""
        socket = _Socket([messages.message(m) for m in range(len(messages.first) - 1)])
        stub: Any = socket
        service = Snapshots(stub, self.engine, self.encoder, stub)
        while socket.asked or service._requests:
            service.serve()
        for sender, answers in enumerate(socket.answers):
            *rest, last = answers or [[b""]]
            if last[0] != REFUSED and last != [SNAPSHOT, b"%d" % len(rest)]:
                yield sender, f"answered by {answers}"


class _Socket:
    """What a Snapshots needs of a Responder, its socket, and a Publisher."""

    def __init__(self, asked: list[Message]) -> None:
        self.socket, self.asked = self, deque(enumerate(asked))
        self.answers: list[list[Message]] = [[] for _ in asked]

    def recv_multipart(self, flags: int) -> Message:
        """The next request."""
        if not self.asked:
            raise zmq.Again
        sender, frames = self.asked.popleft()
        return [b"%d" % sender, *frames]

    def send_multipart(self, message: Message, flags: int) -> None:
        """An answer."""
        self.answers[int(message[0])].append(message[1:])

    def send(self, messages: Messages, count: int) -> None:
        """To all subscribers."""


_TOML = [
    b'model = "m"\n[input]\nbind = ["tcp://*:5555"]\ntopics = ["a", "b"]\nformat = "json"\n',
    b'model = "m"\n[output]\nconnect = ["tcp://10.0.0.1:5556"]\nhwm = 10\n[engine]\nthreads = 5\n',
    b'model = "m"\n[security]\nsecret_key = "k"\nserver_keys = {"tcp://10.0.0.1:5556" = "s.key"}\n',
    b'model = "m"\n[metrics]\nhost = "0.0.0.0"\nport = 0\nusers = {"prometheus" = "scrypt"}\n',
    b'model = "m"\n[ticks]\nlate = "drop"\nmax_gap = 1e3\n[journal]\ndurability = "off"\n',
    b'model = "m"\ninput.bind = "a,b"\noutput = {format = "arrow", batch = true}\n',
    b'x = [[1, 2], ["a", 1979-05-27T07:32:00Z], {a.b = 07:32:00}]\n[[t]]\n"a\\u00e9" = "x"\n',
    b'n = 0xDEAD_BEEF\nf = -1.5e+300\ni = -inf\nd = 1979-05-27\ns = """a\\\n  b"""\nb = true\n',
    b"[a.b.c]\n[a]\nb.d = 1\n",
    b"x = " + b"[" * 3000,
    b"x = " + b"{a = " * 1000,
]
_MODELS: list[dict[str, Any]] = [
    {},
    {"cell": "gru", "inputs": 2, "scaling": {"kind": "fixed", "loc": (0, 1), "scale": (1, 2)}},
    {"cell": "gru", "reset_after": False, "window": 3, "lags": (1, 2)},
    {"cell": "rnn", "layers": 2, "calendar": ("hour", "week"), "timezone": "Europe/Paris"},
    {"season": 3, "base": "seasonal", "calibrated": False},
    {"base": "blend", "blend": {"short": 2, "long": 4, "weights": [(0.1, 0.2, 0.3)] * 2}},
    {
        "base": "blend",
        "blend": {
            "short": 2, "long": 4, "weights": [(0.1, 0.2, 0.3, 0.4)] * 2,
            "smoothing": {"season": 4, "level": 0.1, "profile": 0.2},
        },
    },
]  # fmt: skip
