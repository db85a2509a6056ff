"""A few threads that share the rows of one job, for compiled code.

Numba's own parallel loops end in a barrier: each thread of the team must be given a core before the
caller goes on, which costs milliseconds where other processes want the cores too. Here the caller
works through the job itself and whoever else is awake helps: it waits only for rows that another
thread has begun. A job costs a fraction of a microsecond to offer.

Each worker, the caller first, has rows of its own and takes them from their front, so that it knows
what comes next, and who gets the same rows of the next job finds them in its core's cache. Who is
done with its own takes from the back of another's: of one that is slow, or asleep.

The pool is a block of int64, a cache line a part:

    line 0        number of the job
    line 1        rows done
    line 2        the job's words, as `offer` was given them; 8 of them
    line 3        stop flag; whether the helpers were started; the caller's core; steps until the
                  worse way is tried; of how many; what a row costs alone, and with the helpers
    line 4        room for a time
    line 5 + 4w   worker w: rows not yet taken, begin << 32 | end
    next          worker w: word 0 is 1 while it sleeps; a semaphore from word 1 on
    next two      the cores that it may use, a bit each

Rows are taken in one atomic step, and a job stays open until they are done: who has taken some may
read its words.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import weakref
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from streamlstm.jit import emitted, njit
from streamlstm.kernels.simd import INDEX, set_word, word

LINE = 8  # words of a cache line
JOB, DONE, WORDS, STOP, TIME, WORKERS = 0, LINE, 2 * LINE, 3 * LINE, 4 * LINE, 5 * LINE
STARTED, CORE, UNTIL, OF, COST = (STOP + k for k in range(1, 6))
WORKER, ASLEEP, CORES, CORE_WORDS = 4 * LINE, LINE, 2 * LINE, 2 * LINE  # of a worker's part
BYTES = 8
END = (1 << 32) - 1  # mask of the end in a worker's rows
SPINS = 1000  # looks for a new job before a helper goes to sleep: some 20 us
ALONE, TOGETHER = 0, 1  # the ways in which a step can be done
TRIES, RARELY, LEAST, MOST = 4, 200, 16, 16384  # steps: of a try, and from one to the next
LONG = 1_000_000  # nanoseconds: a step of as many is a try of its own

# callable in compiled code alone
semaphore_init: Any = types.ExternalFunction(
    "sem_init", types.int32(types.intp, types.int32, types.uint32)
)
semaphore_post: Any = types.ExternalFunction("sem_post", types.int32(types.intp))
semaphore_wait: Any = types.ExternalFunction("sem_wait", types.int32(types.intp))
this_core: Any = types.ExternalFunction("sched_getcpu", types.int32())
set_cores: Any = types.ExternalFunction(
    "sched_setaffinity", types.int32(types.int32, types.intp, types.intp)
)
yield_core: Any = types.ExternalFunction("sched_yield", types.int32())
clock: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))


# --- atomic words ---------------------------------------------------------------------------------


def _word_pointer(builder: Any, address: Any, at: Any) -> Any:
    return builder.gep(builder.inttoptr(address, INDEX.as_pointer()), [at])


@emitted(types.int64, types.intp, types.intp)
def read(builder: Any, address: Any, at: Any) -> Any:
    """read(address, at) -> word, and all that was written before it."""
    return builder.load_atomic(_word_pointer(builder, address, at), "seq_cst", 8)


@emitted(types.void, types.intp, types.intp, types.int64)
def write(builder: Any, address: Any, at: Any, value: Any) -> None:
    """write(address, at, value): what was written before is seen by who reads the word."""
    builder.store_atomic(value, _word_pointer(builder, address, at), "seq_cst", 8)


@emitted(types.int64, types.intp, types.intp, types.int64)
def add(builder: Any, address: Any, at: Any, value: Any) -> Any:
    """add(address, at, value) in one step."""
    return builder.atomic_rmw("add", _word_pointer(builder, address, at), value, "seq_cst")


@emitted(types.int64, types.intp, types.intp, types.int64)
def exchange(builder: Any, address: Any, at: Any, value: Any) -> Any:
    """exchange(address, at, value) -> the word before."""
    return builder.atomic_rmw("xchg", _word_pointer(builder, address, at), value, "seq_cst")


@emitted(types.boolean, types.intp, types.intp, types.int64, types.int64)
def replace(builder: Any, address: Any, at: Any, old: Any, new: Any) -> Any:
    """replace(address, at, old, new) -> whether the word was `old` and is `new` now."""
    pair = builder.cmpxchg(_word_pointer(builder, address, at), old, new, "seq_cst", "seq_cst")
    return builder.extract_value(pair, 1)


@emitted(types.void)
def pause(builder: Any) -> None:
    """pause(): tell the core that this is a waiting loop."""
    machine = platform.machine().lower()
    module, void, number = builder.module, ir.VoidType(), ir.IntType(32)
    if machine in ("x86_64", "amd64"):
        kind = ir.FunctionType(void, [])
        builder.call(cgutils.get_or_insert_function(module, kind, "llvm.x86.sse2.pause"), [])
    elif machine in ("aarch64", "arm64"):  # hint 1 is `yield`
        kind = ir.FunctionType(void, [number])
        hint = cgutils.get_or_insert_function(module, kind, "llvm.aarch64.hint")
        builder.call(hint, [ir.Constant(number, 1)])


# --- the pool -------------------------------------------------------------------------------------


@njit(cache=True)
def take(pool: int, threads: int, worker: int, step: int, most: int) -> Any:
    """(begin, end) of rows that are now yours, and the end of what else is; end 0: none are left.

    They are two thirds of what is left, a multiple of `step`, at most `most`: few in the end, so
    that all workers end together.
    """
    own = WORKERS + worker * WORKER
    while True:
        rows = read(pool, own)
        begin, end = rows >> 32, rows & END
        if begin >= end:
            break
        some = _some(end - begin, step, most)
        if replace(pool, own, rows, begin + some << 32 | end):
            return begin, begin + some, end
    for other in range(1, threads):
        at = WORKERS + (worker + other) % threads * WORKER
        while True:
            rows = read(pool, at)
            begin, end = rows >> 32, rows & END
            if begin >= end:
                break
            some = _some(end - begin, step, most)
            if replace(pool, at, rows, begin << 32 | end - some):
                return end - some, end, end
    return 0, 0, 0


@njit(cache=True)
def _some(left: int, step: int, most: int) -> int:
    if left <= step + step // 3:
        return left
    return min(max(left * 2 // 3 // step * step, step), most)


@njit(cache=True)
def offer(pool: int, threads: int, start: int, stop: int, step: int, words: Any) -> None:
    """Open a job of the rows start:stop to the helpers that are awake."""
    for k in range(len(words)):
        set_word(pool, WORDS + k, words[k])
    write(pool, DONE, 0)
    set_word(pool, CORE, this_core())
    begin = start
    for worker in range(threads):
        share = (stop - begin) // (threads - worker)
        end = min(begin + -(-share // step) * step, stop)
        write(pool, WORKERS + worker * WORKER, begin << 32 | end)
        begin = end
    write(pool, JOB, read(pool, JOB) + 1)


@njit(cache=True)
def now(pool: int) -> int:
    """Nanoseconds of the monotonic clock."""
    clock(time.CLOCK_MONOTONIC, pool + TIME * BYTES)
    return word(pool, TIME) * 1_000_000_000 + word(pool, TIME + 1)


@njit(cache=True)
def wake(pool: int, threads: int) -> None:
    """Wake the helpers that sleep."""
    for worker in range(1, threads):
        at = WORKERS + worker * WORKER + ASLEEP
        if word(pool, at) == 1 and exchange(pool, at, 0) == 1:
            semaphore_post(pool + (at + 1) * BYTES)


@njit(cache=True)
def way(pool: int) -> int:
    """Whether the next step is to be done ``TOGETHER`` with the helpers, or ``ALONE``.

    Helpers may cost more than they give: the caller waits for one that has lost its core to another
    process, and what a core's cache holds of a series has to come to the other core. So it goes by
    what rows took of late, and the worse way is tried now and then: the worse it was, the less, so
    that tries cost about one part in ``RARELY``.
    """
    return _better(pool) ^ (word(pool, UNTIL) < 0)


@njit(cache=True)
def learn(pool: int, way: int, rows: int, began: int) -> None:
    """Take in how long the rows of a step took, which was done in this way."""
    until, took = word(pool, UNTIL), now(pool) - began
    cost = 1024 * took // rows
    before = word(pool, COST + way)
    if before == 0 or until == -1:  # what it was before this try is long ago
        before = cost
    young = until < 0 or word(pool, COST + ALONE) == 0
    slowly, chosen = 2 if young else 8, _better(pool)
    most = 2 * before  # a step that stood still, or began with cold caches, counts as two
    set_word(pool, COST + way, before + (min(cost, most) - before) // slowly)
    if until > LEAST and _better(pool) != chosen:  # one late step may have done that
        until = LEAST
        set_word(pool, OF, 0)
    if until <= -TRIES or (until < 0 and took > LONG):
        alone, together = word(pool, COST + ALONE), word(pool, COST + TOGETHER)
        best = max(min(alone, together), 1)
        until = TRIES * RARELY * abs(together - alone) // best
        until = min(max(until, LEAST), 2 * word(pool, OF) + LEAST, MOST)
        set_word(pool, OF, until)
    set_word(pool, UNTIL, until - 1)


@njit(cache=True)
def _better(pool: int) -> int:
    """The way that took less of late, and clearly less if it takes more cores."""
    alone, together = word(pool, COST + ALONE), word(pool, COST + TOGETHER)
    return TOGETHER if alone == 0 or 8 * together < 7 * alone else ALONE


@njit(cache=True)
def finish(pool: int, rows: int) -> None:
    """Wait for rows that a helper has begun."""
    looks = 0
    while read(pool, DONE) != rows:
        looks += 1
        if looks > SPINS:
            yield_core()
        pause()


@njit(cache=True)
def wait(pool: int, worker: int, job: int) -> int:
    """Return when the job of this number is over and another is there: its number, -1 to stop."""
    at = WORKERS + worker * WORKER + ASLEEP
    while True:
        for _ in range(SPINS):
            if read(pool, JOB) != job:
                return read(pool, JOB)
            pause()
        write(pool, at, 1)
        if read(pool, STOP):
            return -1
        if read(pool, JOB) != job:
            exchange(pool, at, 0)
            return read(pool, JOB)
        semaphore_wait(pool + (at + 1) * BYTES)
        if this_core() == word(pool, CORE):
            _leave(pool, worker, word(pool, CORE))


@njit(cache=True)
def _leave(pool: int, worker: int, core: int) -> None:
    """Move from the caller's core to any other: there a helper would only hold the caller up."""
    cores = WORKERS + worker * WORKER + CORES
    at, bit = cores + core // 64, 1 << core % 64
    allowed = word(pool, at)
    set_word(pool, at, allowed & ~bit)
    set_cores(0, CORE_WORDS * BYTES, pool + cores * BYTES)  # refused where no other is left
    set_word(pool, at, allowed)


@njit(cache=True)
def _prepare(pool: int, threads: int) -> None:
    for worker in range(1, threads):
        semaphore_init(pool + (WORKERS + worker * WORKER + ASLEEP + 1) * BYTES, 0, 0)


@njit(cache=True)
def _stop(pool: int, threads: int) -> None:
    write(pool, STOP, 1)
    wake(pool, threads)


def block(threads: int) -> NDArray[np.int64]:
    """Memory for a pool of `threads`, the caller's included; its helpers are not there yet."""
    words = np.zeros(WORKERS + threads * WORKER + LINE, np.int64)
    memory = words[-words.ctypes.data % (LINE * BYTES) // BYTES :]
    memory[UNTIL] = 2 * TRIES  # the first steps find their caches cold
    return memory


def start(
    owner: object,
    memory: NDArray[np.int64],
    threads: int,
    help_: Callable[[int, int], None],
    argument: int,
) -> None:
    """Start the helpers, once; each runs `help_(argument, worker)`, compiled and without the GIL.

    They stop when `owner` is collected or the interpreter ends.
    """
    if memory[STARTED]:
        return
    memory[STARTED] = 1
    for worker, core in product(range(1, threads), os.sched_getaffinity(0)):
        if core < CORE_WORDS * 64:
            at = WORKERS + worker * WORKER + CORES + core // 64
            memory[at : at + 1].view(np.uint64)[0] |= np.uint64(1 << core % 64)
    _prepare(memory.ctypes.data, threads)
    _stop.compile((types.int64, types.int64))  # now, not in the midst of other work
    helpers = [
        threading.Thread(target=help_, args=(argument, n), name=f"step-{n}", daemon=True)
        for n in range(1, threads)
    ]
    for thread in helpers:
        thread.start()
    weakref.finalize(owner, _end, memory, threads, helpers)


def _end(memory: NDArray[np.int64], threads: int, helpers: list[threading.Thread]) -> None:
    _stop(memory.ctypes.data, threads)
    for helper in helpers:
        helper.join()
