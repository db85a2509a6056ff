"""What damaged bytes do, on the wire, in the configuration and in files: nothing but a refusal.

    python -m benchmarks.fuzz all --inputs 10000000 --seed 0 [--json FILE]
    python -m benchmarks.fuzz TARGET --replay FILE

Sound inputs, and those of ``--corpus``, are damaged by the hundred thousand: bits, splices, cuts,
lengths, extreme integers, repetitions, nesting, halves of characters. Files get sound checksums and
lengths for half of them, so that what lies behind is reached. A finding is whatever raises what it
should not, reads or writes outside of its memory, is read otherwise by a second reader (msgspec,
struct, pyarrow), ends the process, takes longer than ``PATIENCE``, or makes it grow. It is kept in
``--findings`` as a file for ``--replay``, and the exit code is 1.

It runs compiled; ``NUMBA_BOUNDSCHECK=1`` (with a ``NUMBA_CACHE_DIR`` of its own, as code compiled
without does not know of it) checks indices too. ``python -m benchmarks.fuzz_cover`` runs what is
compiled as Python, and looks for inputs that reach what no other did.
"""

import argparse
import json
import logging
import os
import re
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from streamlstm import compiled

compiled.choose_folder()  # before anything imports numba

from benchmarks import fuzz_files, fuzz_wire  # noqa: E402
from benchmarks.fuzz_mutate import Message, Mutator  # noqa: E402
from streamlstm.ticks import Messages  # noqa: E402

PATIENCE = 60.0
"""Seconds that a batch may take."""
START = 900.0
"""Seconds until the first batch is done: all is compiled in them, if need be."""
GROWTH = 64 << 20
"""Bytes by which a process may grow once a fifth of its inputs are done."""
MEMORY = 4 << 30
"""Bytes that a process may ask for beyond what it begins with."""
ENOUGH = 20
"""Findings of a target after which no more are looked for."""
CORPUS = Path(__file__).parent.parent / "tests" / "corpus"


class Target(Protocol):
    """What is fuzzed."""

    tokens: Sequence[bytes]
    """what may be put in anywhere"""

    def seeds(self) -> list[Message]:
        """Inputs to begin from."""

    def check(self, messages: Messages, number: int) -> Iterator[fuzz_wire.Finding]:
        """Take inputs, batch ``number``: which is a finding (-1: not known), and why."""


class Kind(NamedTuple):
    """How a target is fuzzed."""

    share: float
    """of the inputs of ``all``"""
    batch: int
    """inputs at once"""
    make: Callable[[], Target]


_WIRE, _ARROW = 2048, 256
TARGETS = {
    "binary": Kind(0.31, _WIRE, lambda: fuzz_wire.Binary("binary", _WIRE)),
    "json": Kind(0.31, _WIRE, lambda: fuzz_wire.Maps("json", _WIRE)),
    "msgpack": Kind(0.31, _WIRE, lambda: fuzz_wire.Maps("msgpack", _WIRE)),
    "arrow": Kind(0.03, _ARROW, lambda: fuzz_wire.Arrow("arrow", _ARROW)),
    "predictions": Kind(0.01, 1024, fuzz_wire.Predictions),
    "config": Kind(0.01, 256, fuzz_files.Config),
    "model": Kind(0.01, 256, fuzz_files.ModelFile),
    "checkpoint": Kind(0.005, 256, fuzz_files.Checkpoint),
    "journal": Kind(0.005, 256, fuzz_files.Segments),
    "parked": Kind(0.002, 64, fuzz_files.Parked),
    "snapshot": Kind(0.003, 1024, fuzz_files.SnapshotRequests),
}


def main() -> int:
    """Fuzz one target or all, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.fuzz",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=CORPUS, metavar="FOLDER")
    parser.add_argument("--findings", type=Path, default=Path("findings"), metavar="FOLDER")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # parking says what begins anew
    if options.replay:
        found = list(replay(TARGETS[options.target].make(), load(options.replay)))
        print(*found, sep="\n")
        return int(bool(found))
    if options.worker:
        _work(options.target, options)
        return 0
    shares = {name: kind.share for name, kind in TARGETS.items()}
    if options.target != "all":
        shares = {options.target: 1.0}
    rows = []
    for name, share in shares.items():
        rows.append(fuzz(name, max(1, int(options.inputs * share)), options))
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))
    total = sum(row["inputs"] for row in rows)
    findings = sum(len(row["findings"]) for row in rows)
    print(f"{total:,} inputs, {findings} findings")
    return int(findings > 0)


def load(path: Path) -> list[Message]:
    """Inputs from a file; none where there is no file."""
    if not path.exists():
        return []
    return msgspec.msgpack.decode(path.read_bytes(), type=list[list[bytes]])


def save(path: Path, inputs: Sequence[Message]) -> None:
    """Write inputs to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.msgpack.encode(inputs))


def replay(target: Target, inputs: list[Message]) -> Iterator[fuzz_wire.Finding]:
    """Take inputs as batch 0 and as batch 1."""
    for number in range(2):
        yield from _checked(target, Messages.of(inputs), number)


def fuzz(name: str, inputs: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row: so many inputs of one target, in a process of its own."""
    batch = TARGETS[name].batch
    batches, at, began = -(-inputs // batch), 0, time.monotonic()
    findings: list[str] = []
    sizes: dict[int, int] = {}
    grown, ready = 0, began
    while at < batches and len(findings) < ENOUGH:
        command = [*_command(name, options), "--worker", str(at), str(batches)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            done, why = at - 1, ""
            for line in _lines(process):
                said = json.loads(line)
                if "finding" in said:
                    findings.append(said["finding"])
                    print(f"{name}: {said['finding']}", flush=True)
                    continue
                done = said["batch"]
                sizes[done] = said["bytes"]
                if done == 1:  # the first batch compiles
                    ready = time.monotonic()
                if len(findings) >= ENOUGH:
                    process.kill()
                    break
            else:
                why = "" if process.poll() is not None else f"longer than {PATIENCE:g} s"
                process.kill()
        grown = max(grown, _growth(sizes))
        sizes.clear()
        if (done := max(done, at)) < batches and len(findings) < ENOUGH:
            why = why or f"ended by {process.returncode}"
            findings.append(_blame(name, options, done, why))
            print(f"{name}: {findings[-1]}", flush=True)
        at = done + 1
    if grown > GROWTH:
        findings.append(f"grew by {grown >> 20} MiB")
    seconds = time.monotonic() - ready
    row = {
        "target": name,
        "inputs": min(at, batches) * batch,
        "seconds": round(seconds, 1),
        "grown_bytes": grown,
        "findings": findings,
    }
    rate = row["inputs"] / seconds
    print(
        f"{name:12} {row['inputs']:11,} inputs {seconds:8.1f} s {rate:9,.0f}/s"
        f"  grown by {grown / 2**20:.1f} MiB  {len(findings)} findings",
        flush=True,
    )
    return row


def _command(name: str, options: argparse.Namespace) -> list[str]:
    given = ("--seed", str(options.seed), "--corpus", str(options.corpus))
    rest = ("--findings", str(options.findings))
    return [sys.executable, "-X", "faulthandler", "-m", "benchmarks.fuzz", name, *given, *rest]


def _lines(process: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    """What a process says, until it ends or says nothing for too long."""
    assert process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        rest, batches = b"", 0
        while selector.select(START if batches < 2 else PATIENCE):
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                process.wait()
                return
            *lines, rest = (rest + read).split(b"\n")
            batches += sum(b'"batch"' in line for line in lines)
            yield from lines


def _growth(sizes: dict[int, int]) -> int:
    """Bytes from a fifth of the way to the end."""
    if len(sizes) < 10:
        return 0
    kept = list(sizes.values())
    return kept[-1] - max(kept[: len(kept) // 5])


def _blame(name: str, options: argparse.Namespace, batch: int, why: str) -> str:
    """Keep the input that ended the process, or the whole batch where it is no single one."""
    target = TARGETS[name].make()
    inputs = _mutator(target, name, options).messages(batch, TARGETS[name].batch)
    whole = inputs
    while len(inputs) > 1:
        half = inputs[: len(inputs) // 2]
        for part in (half, inputs[len(half) :]):
            if _dies(name, options, part):
                inputs = part
                break
        else:
            break
    return _keep(options.findings, name, inputs if len(inputs) == 1 else whole, why)


def _dies(name: str, options: argparse.Namespace, inputs: list[Message]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "x", inputs)
        command = [*_command(name, options), "--replay", f"{folder}/x"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=START)
        except subprocess.TimeoutExpired:
            return True
        return done.returncode < 0


def _keep(folder: Path, name: str, inputs: list[Message], why: str) -> str:
    data = msgspec.msgpack.encode(inputs)
    path = folder / f"{name}-{zlib.crc32(data):08x}.msgpack"
    save(path, inputs)
    return f"{path}: {why}"


# --- the process that takes the inputs ------------------------------------------------------------


def _mutator(target: Target, name: str, options: argparse.Namespace) -> Mutator:
    seeds = target.seeds() + load(options.corpus / f"{name}.msgpack")
    return Mutator(seeds, target.tokens, options.seed)


def _work(name: str, options: argparse.Namespace) -> None:
    """Take batches; say before each which it is, and what was found."""
    target = TARGETS[name].make()
    mutator = _mutator(target, name, options)
    limit = _pages(0) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    begin, end = options.worker
    known: set[str] = set()
    for number in range(begin, end):
        _say({"batch": number, "bytes": _pages(1)})
        messages = mutator.batch(number, TARGETS[name].batch)
        for which, why in _checked(target, messages, number):
            if (kind := re.sub("[0-9]+", "0", why)[:60]) not in known:  # one of each
                known.add(kind)
                _say({"finding": _reduced(target, name, messages, number, which, why, options)})
    _say({"batch": end, "bytes": _pages(1)})


def _checked(target: Target, messages: Messages, number: int) -> Iterator[fuzz_wire.Finding]:
    try:
        for which, why in target.check(messages, number):
            yield which, ascii(why)[:400]
    except Exception:
        yield -1, ascii(traceback.format_exc())[-400:]


def _reduced(
    target: Target,
    name: str,
    messages: Messages,
    number: int,
    which: int,
    why: str,
    options: argparse.Namespace,
) -> str:
    """Keep an input that alone leads to a finding, or else its batch."""
    inputs = [messages.message(m) for m in range(len(messages.first) - 1)]
    for each in [inputs[which]] if which >= 0 else inputs:
        if list(_checked(target, Messages.of([each]), number)):
            return _keep(options.findings, name, [each], why)
    return _keep(options.findings, name, inputs, f"batch {number}: {why}")


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def _pages(which: int) -> int:
    """Bytes of memory that this process has asked for (0), or has (1)."""
    return int(Path("/proc/self/statm").read_text().split()[which]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    sys.exit(main())
