"""Memory of Python objects: where it is, and that it stays there.

It knows the buffer protocol, and nothing of devices.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

from ._uapi import Element

if TYPE_CHECKING and sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    Buffer = Any

_UNSIGNED = frozenset("BHILQN")
_SIGNED = frozenset("bhilqn")
_FLOATING = frozenset("fd")

#: PyBUF_FULL_RO: any layout, read-only or not.
_FULL_RO = 0x011C


class _PyBuffer(ctypes.Structure):
    """Py_buffer of Python's stable interface."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


# Of their own, so that no other user of ctypes changes their types.
_python = ctypes.PyDLL(None)
_python.PyObject_GetBuffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_python.PyObject_GetBuffer.restype = ctypes.c_int
_python.PyBuffer_Release.argtypes = [ctypes.POINTER(_PyBuffer)]
_python.PyBuffer_Release.restype = None


class Memory:
    """The memory of an object with a buffer.

    As long as this exists, the object cannot free or move it: a bytearray, for example, refuses
    to be resized with BufferError.
    """

    def __init__(self, buffer: Buffer, *, writable: bool, rows: bool = False) -> None:
        """Takes hold of an object's memory.

        With rows, the object may have two dimensions, whose rows lie apart.

        Raises TypeError for an object without a buffer, and ValueError for one that is read-only
        where it is written, or whose elements are not one after the other.
        """
        view = memoryview(buffer)
        if writable and view.readonly:
            raise ValueError("the job writes to this buffer, which is read-only")
        if not view.c_contiguous and not (rows and _is_rows(view)):
            raise ValueError("the elements of this buffer are not one after the other in memory")
        self.view = view
        self.address = _address(view)
        self.bytes: int = view.nbytes

    @property
    def count(self) -> int:
        """The number of elements."""
        return self.bytes // self.view.itemsize

    @property
    def element(self) -> Element:
        """The type of the elements. Raises TypeError for one that no operation knows."""
        code = self.view.format.lstrip("@=<")
        size = self.view.itemsize
        if len(code) == 1:
            if code in _UNSIGNED and size in (4, 8):
                return Element.U32 if size == 4 else Element.U64
            if code in _SIGNED and size == 8:
                return Element.I64
            if code in _FLOATING:
                return Element.F32 if size == 4 else Element.F64
        raise TypeError(
            f"elements of format {self.view.format!r} with {size} bytes are not for the device: "
            "it knows unsigned integers of 4 and 8 bytes, signed ones of 8, and floating point"
        )


def _is_rows(view: memoryview) -> bool:
    if view.ndim != 2 or view.strides is None or view.shape is None:
        return False
    (_, columns), (row, column) = view.shape, view.strides
    return column == view.itemsize and row >= columns * view.itemsize and row % view.itemsize == 0


def _address(view: memoryview) -> int:
    """Where the first element is. The view keeps it there."""
    buffer = _PyBuffer()
    if _python.PyObject_GetBuffer(view, ctypes.byref(buffer), _FULL_RO) != 0:
        raise BufferError("the buffer has no address")
    try:
        return buffer.buf or 0
    finally:
        _python.PyBuffer_Release(ctypes.byref(buffer))
