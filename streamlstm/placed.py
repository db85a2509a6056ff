"""Named tuples that compiled code takes by address.

Handed over as it is, a tuple of many arrays is taken apart into every number that says where one
lies, at each call and at each use, and compiling that takes longer than all else. One that is
:func:`placed` is written down in memory once; compiled code is given the address, and loads what it
asks for, where it asks. In Python it is what it was before.

What is written down changes between two calls at most (:func:`rewrite`); the arrays' elements do.
"""

from collections.abc import Iterator
from typing import Any, TypeVar, cast
from zlib import crc32

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
    unbox,
)
from numpy.typing import NDArray

T = TypeVar("T")

_BYTE = ir.IntType(8)


class Placed:
    """A named tuple, and where it lies in memory for compiled code."""

    def __init__(self, value: Any) -> None:
        """Write ``value`` down; it is kept alive as long as this is."""
        self._value = value
        vars(self).update(value._asdict())  # found sooner than by asking `value`
        self._memory = np.zeros((), _layout(value))
        _write(self._memory, value)
        self.address = self._memory.ctypes.data
        self._numba_type_ = At(_kind(value))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._value, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._value)


def placed(value: T) -> T:
    """The same named tuple for Python; compiled functions take it by address.

    It is of arrays, numbers, further named tuples, and such that are placed themselves.
    """
    return cast(T, Placed(value))


def address_of_placed(value: Any) -> int:
    """Where a named tuple lies that is :func:`placed`."""
    return cast(Placed, value).address


def rewrite(value: Any, **fields: Any) -> None:
    """Put others in the place of some members; only while no compiled code is at work on it."""
    at = cast(Placed, value)
    for name, member in fields.items():
        _write(at._memory[f"{at._value._fields.index(name)}"], member)
    at._value = at._value._replace(**fields)
    vars(at).update(fields)


def _kind(value: Any) -> Any:
    """What a value is to compiled code: the same whatever the lengths.

    Numpy calls a field of records contiguous where it has no elements, or no other field lies
    beside it. It would be of another type to Numba then, and all that looks at it compiled again.
    """
    match value:
        case np.ndarray() if _is_field(value):
            return typeof(value).copy(layout="A")
        case tuple():
            return types.BaseTuple.from_types([_kind(each) for each in value], type(value))
    return typeof(value)


def _is_field(array: NDArray[Any]) -> bool:
    """Whether it is a field of records, rather than the bytes of them or an array of its own."""
    fields = getattr(array.base, "dtype", array.dtype).fields or {}
    like = array.dtype, array.shape[1:]
    return any((kind.base, kind.shape) == like for kind, *_ in fields.values())


def _layout(value: Any) -> np.dtype[Any]:
    """How LLVM lays out what a value is to compiled code."""
    match value:
        case Placed():
            return np.dtype(np.int64)
        case np.ndarray():
            return np.dtype((np.int64, 5 + 2 * value.ndim))
        case tuple():
            return np.dtype([(f"{k}", _layout(each)) for k, each in enumerate(value)], align=True)
    return np.asarray(value).dtype


def _write(to: Any, value: Any) -> None:
    match value:
        case Placed():
            to[...] = value.address
        case np.ndarray():  # nothing that counts references owns it
            place = 0, 0, value.size, value.itemsize, value.ctypes.data
            to[...] = *place, *value.shape, *value.strides
        case tuple():
            for k, each in enumerate(value):
                _write(to[f"{k}"], each)
        case _:
            to[...] = value


# --- to Numba -------------------------------------------------------------------------------------


class At(types.Type):  # type: ignore[misc]
    """The address of a named tuple of a type."""

    def __init__(self, of: Any) -> None:
        """``of`` is a type of named tuples."""
        self.of = of
        super().__init__(f"At({of.instance_class.__name__}, {crc32(str(of).encode()):08x})")

    @property
    def key(self) -> Any:
        """What makes it another type."""
        return self.of


class _Model(models.OpaqueModel):  # type: ignore[misc]
    """A pointer."""


register_model(At)(_Model)


@unbox(At)
def _unbox(kind: Any, given: Any, c: Any) -> Any:
    address = c.pyapi.object_getattr_string(given, "address")
    pointer = c.pyapi.long_as_voidptr(address)
    c.pyapi.decref(address)
    return NativeValue(pointer)


@infer_getattr
class _Members(AttributeTemplate):  # type: ignore[misc]
    key = At

    def generic_resolve(self, at: Any, name: str) -> Any:
        if name in at.of.fields:
            kind = at.of.types[at.of.fields.index(name)]
            return At(kind) if isinstance(kind, types.BaseNamedTuple) else kind
        return None


@lower_getattr_generic(At)
def _member(context: Any, builder: Any, at: Any, pointer: Any, name: str) -> Any:
    k = at.of.fields.index(name)
    native = context.get_value_type(at.of).as_pointer()
    member = cgutils.gep_inbounds(builder, builder.bitcast(pointer, native), 0, k)
    if isinstance(at.of.types[k], types.BaseNamedTuple):
        return builder.bitcast(member, _BYTE.as_pointer())
    return _load(builder, member)


def _load(builder: Any, pointer: Any) -> Any:
    """Load what lies at a pointer number by number: what nobody asks for is never loaded."""
    kind = pointer.type.pointee
    if not isinstance(kind, ir.LiteralStructType | ir.ArrayType):
        found = builder.load(pointer)
        found.set_metadata("invariant.load", builder.module.add_metadata([]))
        return found
    whole = ir.Constant(kind, ir.Undefined)
    for k in range(len(kind)):
        part = _load(builder, cgutils.gep_inbounds(builder, pointer, 0, k))
        whole = builder.insert_value(whole, part, k)
    return whole


@intrinsic
def whole(typing: Any, value: Any) -> Any:
    """whole(value) -> the named tuple that lies at an address."""
    kind = value.of

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        native = context.get_value_type(kind).as_pointer()
        return _load(builder, builder.bitcast(args[0], native))

    return kind(value), generate


@intrinsic
def replace(typing: Any, address: Any, value: Any) -> Any:
    """replace(address, value): write a tuple of the same type over another.

    Only by who is sure that none of those who load of it are at work.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        native = context.get_value_type(value)
        _store(builder, builder.inttoptr(args[0], native.as_pointer()), args[1])
        return context.get_dummy_value()

    return types.void(types.intp, value), generate


def _store(builder: Any, pointer: Any, value: Any) -> None:
    kind = value.type
    if not isinstance(kind, ir.LiteralStructType | ir.ArrayType):
        builder.store(value, pointer)
        return
    for k in range(len(kind)):
        part = cgutils.gep_inbounds(builder, pointer, 0, k)
        _store(builder, part, builder.extract_value(value, k))
