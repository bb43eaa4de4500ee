"""An open node, and the calls that need no binding."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _library
from ._uapi import MAX_DEVICES, PAGE_DEVICE, PAGE_HUGE, PAGE_MAPPED, PAGE_NONE, PAGE_PLACE
from ._uapi import PAGE_SYSTEM, PAGE_WRITABLE, Counters, Info
from .errors import CallError

if TYPE_CHECKING:
    from .space import Space


class Place(enum.Enum):
    """Where a page is."""

    #: Nowhere yet.
    NONE = "none"
    #: In the guest's memory.
    SYSTEM = "system"
    #: In the memory of this device.
    DEVICE = "device"
    #: Where no device can reach it.
    OTHER = "other"


_PLACES = {PAGE_NONE: Place.NONE, PAGE_SYSTEM: Place.SYSTEM, PAGE_DEVICE: Place.DEVICE}


@dataclass(frozen=True)
class PageState:
    """The state of a page at one moment."""

    #: A combination of VIRTIO_HMM_PAGE_* bits.
    raw: int

    @property
    def place(self) -> Place:
        """The place of its contents."""
        return _PLACES.get(self.raw & PAGE_PLACE, Place.OTHER)

    @property
    def is_writable(self) -> bool:
        """Whether the process may write to it without a fault."""
        return bool(self.raw & PAGE_WRITABLE)

    @property
    def is_huge(self) -> bool:
        """Whether it is part of a huge page."""
        return bool(self.raw & PAGE_HUGE)

    @property
    def is_mapped(self) -> bool:
        """Whether the device has it mapped."""
        return bool(self.raw & PAGE_MAPPED)


#: Named here, because Device.list hides the other list.
PageStates = list[PageState]


@dataclass(frozen=True)
class Migration:
    """The result of moving pages, in pages."""

    #: Moved to the destination.
    moved: int
    #: Stayed: there already, not mapped, or not able to move.
    skipped: int
    #: Stayed because the destination has no memory for them; part of skipped.
    no_memory: int


class Handle:
    """libhmm's device: it is closed once, and never while a call uses it."""

    def __init__(self, library: Any, path: str) -> None:
        self.library = library
        self._pointer = ctypes.c_void_p()
        self._idle = threading.Condition()
        self._users = 0
        self._is_closed = False
        result = library.hmm_open(os.fsencode(path), ctypes.byref(self._pointer))
        if result < 0:
            self._is_closed = True
            raise self.error(result, f"opening {path}")

    def error(self, result: int, action: str) -> CallError:
        """The error that a function of libhmm returned."""
        text = _library.text(self.library.hmm_error_text, result)
        return CallError(-result, f"{action}: {text}")

    def check(self, result: int, action: str) -> int:
        """The result of a function of libhmm, if it is no error."""
        if result < 0:
            raise self.error(result, action)
        return result

    @contextlib.contextmanager
    def use(self) -> Iterator[ctypes.c_void_p]:
        """The pointer for a call. Raises ValueError if the device has been closed."""
        with self._idle:
            if self._is_closed:
                raise ValueError("the device is closed")
            self._users += 1
        try:
            yield self._pointer
        finally:
            with self._idle:
                self._users -= 1
                if self._users == 0:
                    self._idle.notify_all()

    def close(self) -> None:
        """Lets no further call begin, waits for those that run, and closes the device."""
        with self._idle:
            if self._is_closed:
                return
            self._is_closed = True
            while self._users > 0:
                self._idle.wait()
        self.library.hmm_close(self._pointer)

    def residency(self, pid: int, address: int, length: int) -> list[PageState]:
        """Where the pages are that hold some bytes."""
        action = "asking where pages are"
        with self.use() as pointer:
            ask = self.library.hmm_residency
            count = self.check(ask(pointer, pid, address, length, None, 0), action)
            states = (ctypes.c_uint8 * max(count, 1))()
            self.check(ask(pointer, pid, address, length, states, count), action)
        return [PageState(state) for state in states[:count]]


class Device:
    """An open /dev/hmmN. A context manager: it is closed at the end of the block."""

    def __init__(self, path: str | os.PathLike[str] = "/dev/hmm0", *, library: Any = None) -> None:
        """Opens a device.

        Raises CallError, with the errno of open(2), when there is none or it may not be used; and
        OSError when there is no libhmm. library is for tests.
        """
        self._handle = Handle(library or _library.default(), os.fspath(path))

    @staticmethod
    def list() -> list[str]:
        """The paths of all devices, in ascending order."""
        paths = (f"/dev/hmm{number}" for number in range(MAX_DEVICES))
        return [path for path in paths if os.path.exists(path)]

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the device. A second call does nothing."""
        self._handle.close()

    def fileno(self) -> int:
        """The file, for select and the like; readable when a job has ended whose result has not
        been fetched."""
        with self._handle.use() as pointer:
            return self._handle.check(self._handle.library.hmm_fd(pointer), "asking for the file")

    def info(self) -> Info:
        """The device's kind, sizes and state."""
        info = Info()
        with self._handle.use() as pointer:
            result = self._handle.library.hmm_info(pointer, ctypes.byref(info))
        self._handle.check(result, "asking the device")
        return info

    def counters(self) -> Counters:
        """The counters of driver and device."""
        counters = Counters()
        with self._handle.use() as pointer:
            result = self._handle.library.hmm_counters(pointer, ctypes.byref(counters))
        self._handle.check(result, "reading the counters")
        return counters

    def residency_of(self, pid: int, address: int, length: int) -> PageStates:
        """Where the pages of another process are, which must be bound to this device.

        Raises CallError with ESRCH when no such process is bound, and with EACCES when the caller
        may not look at it.
        """
        return self._handle.residency(pid, address, length)

    def bind(self) -> Space:
        """Binds the device to this process, whose addresses the device uses from now on.

        The result is the device, too: closing it closes this one.

        Raises CallError with ENOSPC when as many processes are bound as the device takes, and with
        EPROTO when the driver has another version.
        """
        from .space import Space

        with self._handle.use() as pointer:
            result = self._handle.library.hmm_bind(pointer)
        self._handle.check(result, "binding this process to the device")
        return Space(self)
