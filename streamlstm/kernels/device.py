"""Memory and arithmetic of a lane, on a GPU or in Numba's simulator of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, cuda, types
from numba.extending import register_jitable

from streamlstm.jit import njit
from streamlstm.kernels import simd

if not config.ENABLE_CUDASIM:
    from numba.cuda.extending import intrinsic

SIMULATED = bool(config.ENABLE_CUDASIM)

Device = Callable[..., Any]


def on_device(function: Device) -> Any:
    """A device function, inlined into its callers."""
    return cuda.jit(device=True, **({} if SIMULATED else {"forceinline": True}))(function)


def in_lane(function: Device) -> Any:
    """The same for what asks nothing of the GPU, which the simulator can run compiled."""
    return njit(cache=True)(function) if SIMULATED else on_device(function)


@njit(cache=True)
def fma(a: Any, b: Any, c: Any) -> Any:
    """fma(a, b, c); the simulator can call this, and not the intrinsic."""
    return simd.fma(a, b, c)


if SIMULATED:

    @register_jitable
    def load(array: Any, at: Any) -> Any:
        """Element `at`."""
        return array[at]

    @register_jitable
    def load4(array: Any, at: Any) -> Any:
        """Four float32 from element `at` on, a multiple of four."""
        return array[at], array[at + 1], array[at + 2], array[at + 3]

    @register_jitable
    def store(array: Any, at: Any, value: Any) -> None:
        """Set element `at`."""
        array[at] = value

    @register_jitable
    def store4(array: Any, at: Any, a: Any, b: Any, c: Any, d: Any) -> None:
        """Set four float32 from element `at` on, a multiple of four."""
        array[at], array[at + 1], array[at + 2], array[at + 3] = a, b, c, d

else:
    # The same without a look at the sign of the index, and four by one instruction.
    FOUR = ir.VectorType(ir.FloatType(), 4)

    def _start(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
        return builder.gep(context.make_array(kind)(context, builder, array).data, [at])

    def _start4(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
        start = _start(context, builder, kind, array, at)
        return builder.bitcast(start, FOUR.as_pointer(start.type.addrspace))

    @intrinsic
    def load(typing: Any, array: Any, at: Any) -> Any:
        """Element `at`."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.load(_start(context, builder, array, *args))

        return array.dtype(array, types.int64), generate

    @intrinsic
    def load4(typing: Any, array: Any, at: Any) -> Any:
        """Four float32 from element `at` on, a multiple of four."""
        kind = types.UniTuple(types.float32, 4)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            four = builder.load(_start4(context, builder, array, *args), align=16)
            lanes = (ir.Constant(ir.IntType(32), lane) for lane in range(4))
            values = [builder.extract_element(four, lane) for lane in lanes]
            return context.make_tuple(builder, kind, values)

        return kind(array, types.int64), generate

    @intrinsic
    def store(typing: Any, array: Any, at: Any, value: Any) -> Any:
        """Set element `at`."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(args[2], _start(context, builder, array, *args[:2]))
            return context.get_dummy_value()

        return types.void(array, types.int64, array.dtype), generate

    @intrinsic
    def store4(typing: Any, array: Any, at: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """Set four float32 from element `at` on, a multiple of four."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            four = ir.Constant(FOUR, ir.Undefined)
            for lane in range(4):
                place = ir.Constant(ir.IntType(32), lane)
                four = builder.insert_element(four, args[2 + lane], place)
            builder.store(four, _start4(context, builder, array, *args[:2]), align=16)
            return context.get_dummy_value()

        return types.void(array, types.int64, *[types.float32] * 4), generate
