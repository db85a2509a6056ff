"""Inputs that reach what no other did, found with the JIT off; the smallest of them are the corpus.

    python -m benchmarks.fuzz_cover TARGET|all --seconds 60 [--json FILE]

A coverage-guided fuzzer sees nothing inside of compiled code, so all of it runs as Python here
(``NUMBA_DISABLE_JIT=1``), under Atheris (libFuzzer; ``pip install atheris``, which has wheels for
few platforms and is in no extra). What only compiled code can do, bytes at an address above all,
has twins here. Of what was found the smallest inputs go to the corpus that take steps, from line to
line, that none there takes.

Not so of arrow: what is read like an earlier message needs records as Numba has them, and is fuzzed
compiled alone; here each message is one for pyarrow. Findings are as in ``benchmarks.fuzz``.
"""

import argparse
import ctypes
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgspec
import numpy as np

Message = list[bytes]
Step = tuple[CodeType, int, int]
"""From one line of a function to another."""

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "corpus"
TARGETS = ("binary", "json", "msgpack", "arrow", "config", "model", "journal")
LONGEST = {"arrow": 2048, "model": 4096, "journal": 6144}
"""Bytes of an input at most; 512 of the others."""
KEPT_BYTES = 12_000
"""Of the corpus of a target."""


def main() -> int:
    """Fuzz one target or all, each in a process of its own, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.fuzz_cover",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=CORPUS, metavar="FOLDER")
    parser.add_argument("--findings", type=Path, default=Path("findings"), metavar="FOLDER")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        (_keep if options.keep else _fuzz)(options.target, options)
        return 0
    names = TARGETS if options.target == "all" else [options.target]
    rows = [_run(name, options) for name in names]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return int(any(row["findings"] for row in rows))


def _run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row: what Atheris does with a target."""
    began = time.monotonic()
    options.findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        given = ["--seconds", str(options.seconds), "--seed", str(options.seed), "--within", folder]
        given += ["--corpus", str(options.corpus), "--findings", str(options.findings)]
        command = [sys.executable, "-m", "benchmarks.fuzz_cover", name, *given]
        environ = os.environ | {"NUMBA_DISABLE_JIT": "1"}
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace"
        )
        said = done.stderr
        executed = re.search(r"number_of_executed_units: (\d+)", said)
        findings = re.findall(r"Test unit written to (\S+)", said)
        if findings or not executed:
            print(said[-3000:], file=sys.stderr)
        kept = subprocess.run([*command, "--keep"], env=environ, capture_output=True, text=True)
        print(kept.stderr, end="", file=sys.stderr)
    row = {
        "target": name,
        "inputs": int(executed[1]) if executed else 0,
        "seconds": round(time.monotonic() - began, 1),
        "findings": findings,
        "kept": kept.stdout.strip(),
    }
    print(f"{name:8} {row['inputs']:9,} inputs {row['seconds']:7.1f} s  {row['kept']}  {findings}")
    return row


# --- without the JIT ------------------------------------------------------------------------------


class Bytes(np.ndarray):
    """An array whose elements are integers, as they are to Numba, and only those that it has."""

    def __getitem__(self, key: Any) -> Any:
        """As an array's."""
        if isinstance(key, int | np.integer) and not 0 <= key < len(self):
            raise IndexError(f"byte {key} of {len(self)}")
        found = super().__getitem__(key)
        return int(found) if isinstance(found, np.generic) else found


def prepare() -> None:
    """Put twins in the place of what only compiled code can do, before anything imports it."""
    from streamlstm import memory

    def load(kind: Any, order: str = "<") -> Callable[[int], Any]:
        size = struct.calcsize(kind)

        def twin(address: int) -> Any:
            return struct.unpack(order + kind, ctypes.string_at(int(address), size))[0]

        return twin

    numbers = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f64": "d"}
    for name, kind in numbers.items():
        twin, made = load(kind), np.dtype(kind).type
        setattr(memory, f"load_{name}", lambda at, twin=twin, made=made: made(twin(at)))
        if name != "i64":
            setattr(
                memory,
                f"store_{name}",
                lambda at, value, kind=kind: ctypes.memmove(
                    int(at), struct.pack("<" + kind, value), struct.calcsize(kind)
                ),
            )
    memory.copy = lambda to, source, count: ctypes.memmove(int(to), int(source), int(count))

    from streamlstm.wire import big_endian

    more = {"i8": "b", "i16": "h", "i32": "i", "f32": "f"}
    for name, kind in (numbers | more).items():
        setattr(big_endian, f"load_{name}", load(kind, ">"))

    from streamlstm import decimals

    def product(factor: Any, high: Any, low: Any) -> tuple[Any, Any]:
        words = int(factor) * (int(high) << 64 | int(low)) >> 64
        return np.uint64(words >> 64 & 2**64 - 1), np.uint64(words & 2**64 - 1)

    def put(data: Any, at: int, word: Any) -> None:
        data[at : at + 8] = np.frombuffer(struct.pack("<Q", int(word)), np.uint8)

    twins: dict[str, Callable[..., Any]] = {
        "_load": lambda data, at: np.uint64(struct.unpack("<Q", data[at : at + 8].tobytes())[0]),
        "_store": put,
        "_leading_zeros": lambda word: 64 - int(word).bit_length(),
        "_trailing_zeros": lambda word: (int(word) & -int(word)).bit_length() - 1 if word else 64,
        "_signed": lambda word: np.uint64(word).astype(np.int64),
        "_bits": lambda value: np.float64(value).view(np.uint64),
        "_double": lambda bits: np.uint64(bits).view(np.float64),
        "_product": product,
    }
    for name, twin in twins.items():
        setattr(decimals, name, twin)

    from streamlstm import appending

    appending._pwrite = lambda file, begin, size, at: os.pwrite(
        file, ctypes.string_at(int(begin), int(size)), int(at)
    )

    from streamlstm.wire import codec

    codec.ARRIVAL, codec.NUMBERED = np.uint8(codec.ARRIVAL), np.uint8(codec.NUMBERED)
    np.seterr(all="ignore")

    from benchmarks.fuzz_memory import Arena

    Arena.kind = Bytes


def _target(name: str) -> Any:
    """What ``benchmarks.fuzz`` has, made to run as Python; an input at once."""
    prepare()
    from benchmarks import fuzz_wire

    if name == "arrow":
        from streamlstm.wire import arrow

        arrow.read_one, arrow.remember = (lambda *_: -1), (lambda *_: False)
        arrow.read = fuzz_wire.nothing_known
        return fuzz_wire.Arrow("arrow", 1)
    if name == "binary":
        return fuzz_wire.Binary("binary", 1)
    if name == "json" or name == "msgpack":
        return fuzz_wire.Maps(name, 1)
    from benchmarks import fuzz_files

    kinds = {"config": "Config", "model": "ModelFile", "journal": "Segments"}
    return getattr(fuzz_files, kinds[name])()


def _taker(target: Any) -> Callable[[bytes], None]:
    from streamlstm.ticks import Messages

    def take(data: bytes) -> None:
        message = unpacked(data)
        for which, why in target.check(Messages.of([message]), data[0] >> 2 & 1 if data else 0):
            raise AssertionError(f"{which}: {why}")

    return take


def packed(message: Message, number: int = 0) -> bytes:
    """A message as one text: how many frames, the lengths of all but the last, the frames."""
    lengths = b"".join(struct.pack("<H", len(frame)) for frame in message[:-1])
    return bytes([len(message) - 1 | number << 2]) + lengths + b"".join(message)


def unpacked(data: bytes) -> Message:
    """What :func:`packed` made, or what any text can be taken for."""
    count = (data[0] & 3) % 3 if data else 0
    frames, at = [], 1 + 2 * count
    for k in range(count):
        length = int.from_bytes(data[1 + 2 * k : 3 + 2 * k], "little")
        frames.append(data[at : at + length])
        at += length
    return [*frames, data[at:]]


def _fuzz(name: str, options: argparse.Namespace) -> None:
    """Let Atheris fuzz a target; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["streamlstm"]):
        target = _target(name)
    seeds = [*target.seeds(), *_load(options.corpus / f"{name}.msgpack")]
    for k, seed in enumerate(seeds):
        for number in range(2):
            (options.within / f"{k}-{number}").write_bytes(packed(seed, number))
    tokens = ("".join(f"\\x{byte:02x}" for byte in token[:60]) for token in target.tokens)
    words = options.within.parent / f"{options.within.name}.words"
    words.write_text("".join(f'"{token}"\n' for token in tokens))
    flags = [
        f"-max_total_time={options.seconds}", f"-seed={options.seed}", f"-dict={words}",
        f"-max_len={LONGEST.get(name, 512)}", "-timeout=20", "-rss_limit_mb=4096",
        "-print_final_stats=1", f"-artifact_prefix={options.findings}/{name}-cover-",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(options.within)], _taker(target))
    atheris.Fuzz()


def _keep(name: str, options: argparse.Namespace) -> None:
    """Add to the corpus: the smallest inputs first, each that takes a step that no other did."""
    target = _target(name)
    take = _taker(target)
    kept = _load(options.corpus / f"{name}.msgpack")
    old = [packed(message, number) for message in target.seeds() + kept for number in range(2)]
    seen: set[Step] = set()
    for data in old:
        seen |= steps(take, data)
    found = {path.read_bytes() for path in options.within.iterdir()} - set(old)
    size, before = sum(len(frame) for message in kept for frame in message), len(kept)
    for data in sorted(found, key=lambda data: (len(data), data)):
        if (new := steps(take, data)) - seen and size + len(data) <= KEPT_BYTES:
            seen |= new
            size += len(data)
            kept.append(unpacked(data))
    options.corpus.mkdir(exist_ok=True)
    (options.corpus / f"{name}.msgpack").write_bytes(msgspec.msgpack.encode(kept))
    more = len(kept) - before
    print(f"{more} kept of {len(found)}, corpus {size:,} bytes, {len(seen):,} steps")


def steps(take: Callable[[bytes], None], data: bytes) -> set[Step]:
    """From which line to which our code went, for an input."""
    seen: set[Step] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if "streamlstm/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            seen.add((frame.f_code, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        take(data)
    except Exception as error:
        print(f"{data!r}: {error!r}", file=sys.stderr)
    finally:
        sys.settrace(None)
    return seen


def _load(path: Path) -> list[Message]:
    data = path.read_bytes() if path.exists() else msgspec.msgpack.encode([])
    return msgspec.msgpack.decode(data, type=list[list[bytes]])


if __name__ == "__main__":
    sys.exit(main())
