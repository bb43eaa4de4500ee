"""Typed jobs on buffers: a function for each operation of the device.

A Work keeps what it works on until it is gone; a job keeps its Work until it has ended. Buffers
are given as they are, and their elements' type is that of the buffer. It does not know how work is
submitted.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ._buffers import Buffer, Memory
from ._uapi import ARGUMENTS, Element, Operation

T = TypeVar("T")
Values = tuple[int, ...]

_UNLIMITED = (1 << 64) - 1


@dataclass(frozen=True)
class Work(Generic[T]):
    """A job that can be run: an operation, its arguments, and what they are addresses of."""

    #: What it does.
    operation: Operation
    #: The operation's arguments in order.
    arguments: tuple[int, ...]
    #: What must not go away before the job has ended.
    keep: tuple[Any, ...]
    #: Makes the result of the four numbers with which the operation ends.
    decode: Callable[[Values], T]


@dataclass(frozen=True)
class Extreme:
    """The smallest or largest element."""

    value: int | float
    #: Where it is; the first one of several.
    index: int


@dataclass(frozen=True)
class ListSummary:
    """The result of a walk along a list."""

    #: Nodes visited.
    nodes: int
    #: The wrapping sum of their values.
    sum: int
    #: The address of the first node that has the key.
    found: int | None


@dataclass(frozen=True)
class TreeHit:
    """The result of a search in a tree."""

    #: The address of the node that has the key.
    found: int | None
    #: Nodes visited.
    visited: int


@dataclass(frozen=True)
class TreeSummary:
    """The nodes of a tree."""

    nodes: int
    #: The wrapping sum of their values.
    sum: int


@dataclass(frozen=True)
class Reach:
    """The result of a breadth-first search."""

    #: Vertices reached, the start included.
    vertices: int
    #: The greatest distance.
    depth: int


def _nothing(_: Values) -> None:
    return None


def _first(values: Values) -> int:
    return values[0]


def _double(values: Values) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", values[0]))[0])


def _number(element: Element, bits: int) -> int | float:
    if element == Element.I64:
        return int(struct.unpack("<q", struct.pack("<Q", bits))[0])
    if element == Element.F32:
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])
    if element == Element.F64:
        return float(struct.unpack("<d", struct.pack("<Q", bits))[0])
    return bits


def _bits(kind: str, value: int | float) -> int:
    """An argument as the device takes it."""
    if kind == "f32":
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    if kind == "f64":
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    value = int(value)
    if not 0 <= value <= _UNLIMITED:
        raise ValueError(f"{value} is no unsigned integer of 64 bits")
    return value


def _make(
    operation: Operation,
    decode: Callable[[Values], T],
    keep: tuple[Any, ...] = (),
    /,
    **arguments: Any,
) -> Work[T]:
    """A work, whose arguments are put into the operation's order by their names."""
    wanted = ARGUMENTS[operation]
    if set(arguments) != {name for name, _ in wanted}:
        raise TypeError(f"{operation.name} has the arguments {[name for name, _ in wanted]}")
    raw: list[int] = []
    for name, kind in wanted:
        value = arguments[name]
        if isinstance(value, Memory):
            keep += (value,)
            value = value.address
        raw.append(_bits(kind, value))
    return Work(operation, tuple(raw), keep, decode)


def _read(buffer: Buffer) -> Memory:
    return Memory(buffer, writable=False)


def _write(buffer: Buffer) -> Memory:
    return Memory(buffer, writable=True)


def _same(what: str, *counts: int) -> int:
    if len(set(counts)) != 1:
        raise ValueError(f"{what} have different lengths: {', '.join(map(str, counts))}")
    return counts[0]


def _elements(memory: Memory, *allowed: Element) -> Element:
    element = memory.element
    if allowed and element not in allowed:
        names = " or ".join(each.name for each in allowed)
        raise TypeError(f"the elements are {element.name}, and must be {names}")
    return element


def _alike(first: Memory, *others: Memory) -> Element:
    element = first.element
    for other in others:
        _elements(other, element)
    return element


def fill(destination: Buffer, pattern: int) -> Work[None]:
    """Writes a pattern of eight bytes (little-endian) over and over."""
    memory = _write(destination)
    return _make(
        Operation.FILL, _nothing, destination=memory, bytes=memory.bytes, pattern=pattern
    )


def copy(source: Buffer, destination: Buffer) -> Work[None]:
    """Copies all bytes of a buffer to another one of the same size."""
    read, write = _read(source), _write(destination)
    _same("source and destination", read.bytes, write.bytes)
    return _make(Operation.COPY, _nothing, source=read, destination=write, bytes=read.bytes)


def compare(left: Buffer, right: Buffer) -> Work[int | None]:
    """The offset of the first byte in which two buffers differ; None if they are equal."""
    one, other = _read(left), _read(right)
    length = _same("both sides", one.bytes, other.bytes)

    def decode(values: Values) -> int | None:
        return None if values[0] == length else values[0]

    return _make(Operation.COMPARE, decode, left=one, right=other, bytes=length)


def checksum(source: Buffer) -> Work[int]:
    """The CRC-32C (Castagnoli) of all bytes."""
    memory = _read(source)
    return _make(Operation.CHECKSUM, _first, source=memory, bytes=memory.bytes)


def sum(source: Buffer) -> Work[int | float]:
    """Adds up elements. Integers wrap at 64 bits; floating point adds up in double precision."""
    memory = _read(source)
    element = memory.element

    def decode(values: Values) -> int | float:
        if element in (Element.F32, Element.F64):
            return _double(values)
        return _number(element, values[0])

    return _make(Operation.SUM, decode, source=memory, count=memory.count, element=element)


def min(source: Buffer) -> Work[Extreme | None]:
    """The smallest element; None if there is none, or all are NaN."""
    return _extreme(Operation.MIN, source)


def max(source: Buffer) -> Work[Extreme | None]:
    """The largest element; None if there is none, or all are NaN."""
    return _extreme(Operation.MAX, source)


def _extreme(operation: Operation, source: Buffer) -> Work[Extreme | None]:
    memory = _read(source)
    element, count = memory.element, memory.count

    def decode(values: Values) -> Extreme | None:
        if values[1] == count:
            return None
        return Extreme(_number(element, values[0]), values[1])

    return _make(operation, decode, source=memory, count=count, element=element)


def dot(x: Buffer, y: Buffer) -> Work[float]:
    """The dot product of two vectors of floating point, summed in double precision."""
    one, other = _read(x), _read(y)
    count = _same("the vectors", one.count, other.count)
    _elements(one, Element.F32, Element.F64)
    return _make(
        Operation.DOT, _double, x=one, y=other, count=count, element=_alike(one, other)
    )


def axpy(alpha: float, x: Buffer, y: Buffer) -> Work[None]:
    """y[i] = alpha * x[i] + y[i] for vectors of floating point."""
    one, other = _read(x), _write(y)
    count = _same("the vectors", one.count, other.count)
    _elements(one, Element.F32, Element.F64)
    return _make(
        Operation.AXPY,
        _nothing,
        x=one,
        y=other,
        count=count,
        element=_alike(one, other),
        alpha=alpha,
    )


def gemm(a: Buffer, b: Buffer, c: Buffer, *, alpha: float = 1.0, beta: float = 0.0) -> Work[None]:
    """C = alpha * A * B + beta * C for matrices of F32 with two dimensions, rows first.

    Rows may lie apart, as in a part of a larger matrix. C must not overlap A or B.
    """
    matrices = [
        Memory(each, writable=each is c, rows=True) for each in (a, b, c)
    ]
    shapes = []
    for name, memory in zip("ABC", matrices):
        _elements(memory, Element.F32)
        if memory.view.ndim != 2 or memory.view.shape is None or memory.view.strides is None:
            raise ValueError(f"{name} must have two dimensions")
        stride = memory.view.strides[0] // memory.view.itemsize
        shapes.append((*memory.view.shape, stride))
    (m, k, a_stride), (k_of_b, n, b_stride), (m_of_c, n_of_c, c_stride) = shapes
    _same("columns of A and rows of B", k, k_of_b)
    _same("rows of A and C", m, m_of_c)
    _same("columns of B and C", n, n_of_c)
    return _make(
        Operation.GEMM,
        _nothing,
        a=matrices[0],
        b=matrices[1],
        c=matrices[2],
        m=m,
        n=n,
        k=k,
        a_stride=a_stride,
        b_stride=b_stride,
        c_stride=c_stride,
        alpha=alpha,
        beta=beta,
    )


def sort(data: Buffer, scratch: Buffer) -> Work[None]:
    """Sorts U64 elements in ascending order. scratch has room for as many, and must not overlap.

    Both are in an unspecified state if the job does not end well.
    """
    memory, temporary = _write(data), _write(scratch)
    _elements(memory, Element.U64)
    if temporary.bytes < memory.bytes:
        raise ValueError("the scratch room is smaller than the data")
    return _make(
        Operation.SORT, _nothing, data=memory, count=memory.count, temporary=temporary
    )


def histogram(source: Buffer, counters: Buffer) -> Work[None]:
    """Adds the number of times each byte value occurs to 256 counters of U64."""
    read, write = _read(source), _write(counters)
    _elements(write, Element.U64)
    _same("the counters and the values of a byte", write.count, 256)
    return _make(
        Operation.HISTOGRAM, _nothing, source=read, bytes=read.bytes, counters=write
    )


def gather(table: Buffer, index: Buffer, destination: Buffer) -> Work[None]:
    """destination[i] = table[index[i]]. An index (U64) outside the table ends the job."""
    read, indices, write = _read(table), _read(index), _write(destination)
    _elements(indices, Element.U64)
    return _make(
        Operation.GATHER,
        _nothing,
        table=read,
        table_count=read.count,
        index=indices,
        destination=write,
        count=_same("index and destination", indices.count, write.count),
        element=_alike(read, write),
    )


def scatter(source: Buffer, index: Buffer, table: Buffer) -> Work[None]:
    """table[index[i]] = source[i], in ascending order of i. An index (U64) outside ends the job."""
    read, indices, write = _read(source), _read(index), _write(table)
    _elements(indices, Element.U64)
    return _make(
        Operation.SCATTER,
        _nothing,
        source=read,
        index=indices,
        table=write,
        table_count=write.count,
        count=_same("source and index", read.count, indices.count),
        element=_alike(read, write),
    )


def _node(node: Any) -> int:
    """The address of a node: a number, or a structure of ctypes."""
    return node if isinstance(node, int) else ctypes.addressof(node)


def _found(address: int) -> int | None:
    return address or None


def list_walk(
    head: Any,
    *,
    next_offset: int,
    value_offset: int,
    key: int = 0,
    limit: int = _UNLIMITED,
    keep: Any = None,
) -> Work[ListSummary]:
    """Walks a list from head on, adds up the values (U64), and searches for key.

    head is an address, or a structure of ctypes; zero is an empty list. Offsets are in bytes.
    keep is what must not go away before the job has ended: the nodes. More than limit nodes end
    the job with Status.BOUND, so a circular list ends too.
    """
    return _make(
        Operation.LIST_WALK,
        lambda values: ListSummary(values[0], values[1], _found(values[2])),
        (head, keep),
        head=_node(head),
        next_offset=next_offset,
        value_offset=value_offset,
        key=key,
        limit=limit,
    )


def tree_search(
    root: Any,
    *,
    left_offset: int,
    right_offset: int,
    key_offset: int,
    key: int,
    limit: int = _UNLIMITED,
    keep: Any = None,
) -> Work[TreeHit]:
    """Searches a tree that is ordered by its keys (U64), the smaller ones to the left.

    Nodes, keep and limit are as in list_walk().
    """
    return _make(
        Operation.TREE_SEARCH,
        lambda values: TreeHit(_found(values[0]), values[1]),
        (root, keep),
        root=_node(root),
        left_offset=left_offset,
        right_offset=right_offset,
        key_offset=key_offset,
        key=key,
        limit=limit,
    )


def tree_sum(
    root: Any,
    *,
    left_offset: int,
    right_offset: int,
    value_offset: int,
    limit: int = _UNLIMITED,
    keep: Any = None,
) -> Work[TreeSummary]:
    """Visits every node of a tree, and adds up the values (U64).

    Nodes, keep and limit are as in list_walk(); more than 65,536 levels end the job, too.
    """
    return _make(
        Operation.TREE_SUM,
        lambda values: TreeSummary(values[0], values[1]),
        (root, keep),
        root=_node(root),
        left_offset=left_offset,
        right_offset=right_offset,
        value_offset=value_offset,
        limit=limit,
    )


def bfs(offsets: Buffer, edges: Buffer, start: int, levels: Buffer, queue: Buffer) -> Work[Reach]:
    """Breadth-first search of a graph in compressed sparse rows.

    The edges (U32) of vertex v are edges[offsets[v]:offsets[v + 1]], with offsets of U64. Writes
    each vertex' distance from start to levels (U32), and 2**32 - 1 where there is no path. queue
    has room for every vertex (U32).
    """
    rows, numbers = _read(offsets), _read(edges)
    distances, room = _write(levels), _write(queue)
    _elements(rows, Element.U64)
    _elements(numbers, Element.U32)
    _elements(distances, Element.U32)
    _elements(room, Element.U32)
    _same("offsets, and levels and one", rows.count, distances.count + 1)
    if room.count < distances.count:
        raise ValueError("the queue needs room for every vertex")
    return _make(
        Operation.BFS,
        lambda values: Reach(values[0], values[1]),
        offsets=rows,
        edges=numbers,
        vertex_count=distances.count,
        edge_count=numbers.count,
        start=start,
        levels=distances,
        queue=room,
    )


def _atomic(target: Buffer) -> tuple[Memory, Element]:
    memory = _write(target)
    _same("the target and one", memory.count, 1)
    return memory, _elements(memory, Element.U32, Element.U64)


def atomic_add(target: Buffer, operand: int, repeat: int = 1) -> Work[int]:
    """Adds operand to the one element of target, repeat times, one atomic addition each. The
    result is the value before the last one."""
    memory, element = _atomic(target)
    return _make(
        Operation.ATOMIC_ADD,
        _first,
        address=memory,
        element=element,
        operand=operand,
        repeat=repeat,
    )


def atomic_exchange(target: Buffer, value: int) -> Work[int]:
    """Replaces the one element of target. The result is the value before."""
    memory, element = _atomic(target)
    return _make(
        Operation.ATOMIC_EXCHANGE, _first, address=memory, element=element, operand=value
    )


def atomic_compare_exchange(target: Buffer, expected: int, value: int) -> Work[tuple[int, bool]]:
    """Replaces the one element of target if it is expected. The result is the value before, and
    whether it was replaced."""
    memory, element = _atomic(target)
    return _make(
        Operation.ATOMIC_COMPARE_EXCHANGE,
        lambda values: (values[0], values[1] == 1),
        address=memory,
        element=element,
        expected=expected,
        operand=value,
    )
