"""The errors: a call failed, or a job did."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeVar

from ._uapi import RIGHT_ATOMIC, RIGHT_READ, RIGHT_WRITE, JobReply, Reason, Status

_Kind = TypeVar("_Kind", bound=enum.IntEnum)

_RIGHTS = {RIGHT_READ: "read", RIGHT_WRITE: "write", RIGHT_ATOMIC: "atomic"}


@dataclass(frozen=True)
class Usage:
    """What a job cost."""

    #: How many times the job waited for a page.
    faults: int
    #: Time on an engine in seconds, waiting for pages not included.
    time: float
    #: Bytes of the guest's memory that the job read or wrote.
    system_bytes: int
    #: Bytes of device memory that the job read or wrote.
    device_bytes: int

    @classmethod
    def of(cls, reply: JobReply) -> Usage:
        """What a reply tells."""
        return cls(reply.faults, reply.nanoseconds / 1e9, reply.system_bytes, reply.device_bytes)


class Error(Exception):
    """Every error of this package."""


class CallError(Error, OSError):
    """The driver refused a call, or there is no driver: see errno."""


class JobError(Error):
    """A job ran and did not succeed."""

    def __init__(self, text: str, reply: JobReply) -> None:
        super().__init__(text)
        #: How it ended, never Status.OK; an int if this package does not know it.
        self.status: Status | int = _known(Status, reply.status)
        #: With Status.FAULT: why the page was not available.
        self.reason: Reason | int | None = _known(Reason, reply.reason) if reply.reason else None
        #: With Status.FAULT and Status.STORM: the address.
        self.address: int = reply.address
        #: What the job wanted to do there: a set of "read", "write" and "atomic".
        self.access: frozenset[str] = frozenset(
            name for bit, name in _RIGHTS.items() if reply.access & bit
        )
        #: The operation's results, as far as it defines them for a failure.
        self.values: tuple[int, ...] = tuple(reply.values)
        #: What it used until it failed.
        self.usage: Usage = Usage.of(reply)


def _known(kind: type[_Kind], number: int) -> _Kind | int:
    """The value with a number, or the number if this package does not know it."""
    try:
        return kind(number)
    except ValueError:
        return number
