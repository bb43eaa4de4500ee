"""This process's address space on a device, and the jobs in it.

It decides how long memory must live. It does not know the operations.
"""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from . import _library
from ._buffers import Buffer, Memory
from ._uapi import MAX_WAIT, MIGRATE_POPULATE, Counters, Destination, Info, JobDescriptor
from ._uapi import JobReply, Status
from .device import Device, Handle, Migration, PageState
from .errors import JobError, Usage
from .work import Work

T = TypeVar("T")

#: After a wait failed with these, the job has ended: the driver has ended it, or its result has
#: been fetched, or it is another process's.
_ENDED = frozenset((errno.ENODEV, errno.EIO, errno.ENOENT, errno.EPERM))

#: No job has this fence.
_NO_FENCE = (1 << 64) - 1


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """The result of a job that succeeded."""

    #: The operation's result.
    value: T
    #: What it cost.
    usage: Usage


class Job(Generic[T]):
    """A job in flight. Its memory is kept until it has ended, whatever becomes of this object."""

    def __init__(self, space: Space, fence: int, work: Work[T]) -> None:
        #: The job's name at the driver.
        self.fence = fence
        self._space = space
        self._work = work
        self._lock = threading.Lock()
        self._reply: JobReply | None = None

    def wait(self, timeout: float | None = None) -> Outcome[T]:
        """Waits until the job has ended, or for timeout seconds; zero does not wait.

        A further call returns the same again. Signals are handled while it waits, so that a
        KeyboardInterrupt ends the wait, but not the job.

        Raises JobError when the job did not succeed, TimeoutError when it has not ended in time,
        and CallError with ENODEV or EIO when the device was removed or broke.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            raise TimeoutError("the job has not ended in time")
        try:
            if self._reply is None:
                self._reply = self._space._wait(self.fence, deadline)
            return self._outcome(self._reply)
        finally:
            self._lock.release()

    def cancel(self) -> None:
        """Asks the job to end early, which it does with Status.CANCELLED, unless it ends otherwise
        before. This does not wait for the end."""
        if self._reply is None:
            self._space._cancel(self.fence)

    def _outcome(self, reply: JobReply) -> Outcome[T]:
        if reply.status == Status.OK:
            return Outcome(self._work.decode(tuple(reply.values)), Usage.of(reply))
        library = self._space._handle.library
        text = _library.text(library.hmm_job_text, ctypes.byref(reply))
        raise JobError(text, reply)

    def __repr__(self) -> str:
        state = "in flight" if self._reply is None else "ended"
        return f"<hmm.Job {self.fence}: {self._work.operation.name}, {state}>"


class Space:
    """A device bound to this process; made by Device.bind().

    A context manager: at the end of the block it ends the jobs in flight, and closes the device,
    whose pages return to system memory. A forked child cannot use its parent's space.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._handle: Handle = device._handle
        self._lock = threading.Lock()
        #: What each job works on, by its fence, until it has ended.
        self._running: dict[int, Work[Any]] = {}
        #: The same of jobs that are being submitted, whose fences the library writes. If the
        #: handler of a signal raises at that moment, they stay here.
        self._starting: list[tuple[ctypes.c_uint64, Work[Any]]] = []

    def __enter__(self) -> Space:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the jobs in flight, and closes the device. A second call does nothing."""
        while True:
            with self._lock:
                starting = [fence.value for fence, _ in self._starting]
                fences = [*self._running, *(each for each in starting if each != _NO_FENCE)]
            if not fences:
                break
            # All of them, before the wait for the first one.
            for fence in fences:
                self._end_early(fence)
            for fence in fences:
                self._forget_ended(fence)
        self._handle.close()

    @property
    def device(self) -> Device:
        """The device."""
        return self._device

    def fileno(self) -> int:
        """As Device.fileno()."""
        return self._device.fileno()

    def info(self) -> Info:
        """As Device.info()."""
        return self._device.info()

    def counters(self) -> Counters:
        """As Device.counters()."""
        return self._device.counters()

    def bind_again(self) -> None:
        """Binds again after the device was given up and started anew; what it held is lost.

        Raises CallError with EAGAIN while it has not been started, with EIO when it will not be,
        and with EBUSY when nothing was lost.
        """
        with self._handle.use() as pointer:
            result = self._handle.library.hmm_bind(pointer)
        self._handle.check(result, "binding this process to the device again")

    def run(self, work: Work[T]) -> Outcome[T]:
        """Runs a job, and returns when it has ended.

        Raises JobError when it did not succeed, and CallError as submit() does. If a signal's
        handler raises, such as KeyboardInterrupt, the job is cancelled.
        """
        job = self.submit(work)
        try:
            return job.wait()
        except BaseException:
            if job._reply is None:
                self._end_early(job.fence)
                self._forget_ended(job.fence)
            raise

    def submit(self, work: Work[T]) -> Job[T]:
        """Submits a job, and returns at once.

        Until the job has ended, nothing else may use the memory that it writes.

        Raises CallError with EAGAIN when as many jobs are in flight as the device takes, and with
        ENODEV or EIO when it is removed or broken.
        """
        library = self._handle.library
        arguments = (ctypes.c_uint64 * len(work.arguments))(*work.arguments)
        descriptor = JobDescriptor()
        made = library.hmm_job_init(
            ctypes.byref(descriptor), work.operation, arguments, len(arguments)
        )
        self._handle.check(made, "making a job")
        fence = ctypes.c_uint64(_NO_FENCE)
        starting = (fence, work)
        # With the lock, so that close() knows each job that runs.
        with self._lock, self._handle.use() as pointer:
            self._starting.append(starting)
            result = library.hmm_submit(
                pointer, ctypes.byref(descriptor), 1, -1, ctypes.byref(fence)
            )
            if result > 0:
                self._running[fence.value] = work
            self._starting.remove(starting)
        self._handle.check(result, "submitting a job")
        return Job(self, fence.value, work)

    def wait_any(
        self, jobs: Iterable[Job[Any]], timeout: float | None = None
    ) -> Job[Any] | None:
        """Waits until one of these jobs has ended, and returns it; its wait() then has the result.

        None when there are no jobs, or none has ended within timeout seconds. If several have
        ended, it is the first one. Only the first 256 jobs are considered. No other thread may
        wait for one of the jobs meanwhile.

        Raises CallError with ENODEV or EIO when the device was removed or broke.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs = list(jobs)[:MAX_WAIT]
        for job in jobs:
            if job._reply is not None:
                return job
        if not jobs:
            return None
        by_fence = {job.fence: job for job in jobs}
        fences = (ctypes.c_uint64 * len(jobs))(*(job.fence for job in jobs))
        fence, reply = ctypes.c_uint64(), JobReply()
        while True:
            with self._handle.use() as pointer:
                result = self._handle.library.hmm_wait_any(
                    pointer,
                    fences,
                    len(fences),
                    _left(deadline),
                    ctypes.byref(fence),
                    ctypes.byref(reply),
                )
            if result == -errno.ETIME:
                return None
            if result != -errno.EINTR:
                break
        self._handle.check(result, "waiting for one of several jobs")
        ended = by_fence[fence.value]
        ended._reply = reply
        self._forget(ended.fence)
        return ended

    def migrate(
        self,
        buffer: Buffer,
        destination: Destination = Destination.DEVICE,
        *,
        populate: bool = False,
    ) -> Migration:
        """Moves the pages of a buffer to the device or back.

        Pages that cannot move stay where they are and are counted. Their contents do not change,
        and every access continues to work: a page on the device returns by itself when the CPU
        touches it. With populate, pages of zeros are made on the device where there are none yet.

        Raises CallError with ENOMEM when the guest is out of memory, and with ENODEV or EIO when
        the device is removed or broken.
        """
        memory = Memory(buffer, writable=False)
        moved = _library.CMigration()
        flags = MIGRATE_POPULATE if populate else 0
        with self._handle.use() as pointer:
            result = self._handle.library.hmm_migrate(
                pointer, memory.address, memory.bytes, destination, flags, ctypes.byref(moved)
            )
        self._handle.check(result, "moving pages")
        return Migration(moved.moved, moved.skipped, moved.no_memory)

    def residency(self, buffer: Buffer) -> list[PageState]:
        """Where the pages of a buffer are now; in the next moment it may be different."""
        memory = Memory(buffer, writable=False)
        return self._handle.residency(0, memory.address, memory.bytes)

    def _wait(self, fence: int, deadline: float | None) -> JobReply:
        reply = JobReply()
        while True:
            with self._handle.use() as pointer:
                result = self._handle.library.hmm_wait(
                    pointer, fence, _left(deadline), ctypes.byref(reply)
                )
            # Python has run the handlers of signals by now; they may have raised.
            if result != -errno.EINTR:
                break
        if result == -errno.ETIME:
            raise TimeoutError("the job has not ended in time")
        if result == 0 or -result in _ENDED:
            self._forget(fence)
        self._handle.check(result, "waiting for a job")
        return reply

    def _cancel(self, fence: int) -> None:
        with self._handle.use() as pointer:
            result = self._handle.library.hmm_cancel(pointer, fence)
        self._handle.check(result, "cancelling a job")

    def _end_early(self, fence: int) -> None:
        """Cancels a job. If that fails, it has ended or will end by itself."""
        try:
            self._cancel(fence)
        except OSError:
            pass

    def _forget_ended(self, fence: int) -> None:
        """Waits for a job whose result is of no interest."""
        try:
            self._wait(fence, None)
        except OSError:
            self._forget(fence)

    def _forget(self, fence: int) -> None:
        with self._lock:
            self._running.pop(fence, None)
            self._starting = [each for each in self._starting if each[0].value != fence]


def _left(deadline: float | None) -> int:
    """The nanoseconds that are left until a deadline; negative without one."""
    if deadline is None:
        return -1
    return max(int((deadline - time.monotonic()) * 1e9), 0)
