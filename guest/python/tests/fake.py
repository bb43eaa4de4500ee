"""A libhmm without a device: jobs end when a test says so."""

from __future__ import annotations

import errno
import threading

from hmm._uapi import ARGUMENTS, JobReply, Operation, Status


class FakeLibrary:
    """Has the functions of libhmm that tests need, with the same results."""

    def __init__(self) -> None:
        self.closed = 0
        self.bound = 0
        self.submitted: dict[int, tuple[Operation, list[int]]] = {}
        self.cancelled: list[int] = []
        self.moves: list[tuple[int, int, int, int]] = []
        #: What the next waits return before anything else, such as -EINTR.
        self.interruptions: list[int] = []
        #: Released by each wait that begins.
        self.waits = threading.Semaphore(0)
        self._ended: dict[int, JobReply] = {}
        self._fetched: set[int] = set()
        self._changed = threading.Condition()

    def end(self, fence: int, status: Status = Status.OK, **fields: int) -> None:
        """Lets a job end."""
        reply = JobReply()
        reply.status = status
        for index, value in enumerate(fields.pop("values", ())):
            reply.values[index] = value
        for name, value in fields.items():
            setattr(reply, name, value)
        with self._changed:
            self._ended[fence] = reply
            self._changed.notify_all()

    def hmm_open(self, path, device):
        if path != b"/dev/hmm0":
            return -errno.ENOENT
        device._obj.value = 1
        return 0

    def hmm_close(self, device):
        self.closed += 1

    def hmm_fd(self, device):
        return 0

    def hmm_bind(self, device):
        self.bound += 1
        return 0 if self.bound == 1 else -errno.EBUSY

    def hmm_job_init(self, job, operation, arguments, count):
        if count != len(ARGUMENTS[Operation(operation)]):
            return -errno.EINVAL
        job._obj.operation = operation
        for index in range(count):
            job._obj.arguments[index] = arguments[index]
        return 0

    def hmm_submit(self, device, job, count, eventfd, fence):
        if len(self.submitted) >= 3:
            return -errno.EAGAIN
        fence._obj.value = len(self.submitted) + 1
        operation = Operation(job._obj.operation)
        arguments = list(job._obj.arguments)[: len(ARGUMENTS[operation])]
        self.submitted[fence._obj.value] = operation, arguments
        return 1

    def hmm_wait(self, device, fence, timeout, reply):
        if self.interruptions:
            return self.interruptions.pop()
        limit = None if timeout < 0 else timeout / 1e9
        over = lambda: fence in self._ended or fence in self._fetched
        self.waits.release()
        with self._changed:
            if not self._changed.wait_for(over, limit):
                return -errno.ETIME
            return self._fetch(fence, reply)

    def hmm_wait_any(self, device, fences, count, timeout, fence, reply):
        limit = None if timeout < 0 else timeout / 1e9
        wanted = list(fences)[:count]
        with self._changed:
            ready = lambda: next((one for one in wanted if one in self._ended), None)
            if not self._changed.wait_for(lambda: ready() is not None, limit):
                return -errno.ETIME
            fence._obj.value = ready()
            return self._fetch(fence._obj.value, reply)

    def _fetch(self, fence, reply):
        if fence in self._fetched:
            return -errno.ENOENT
        self._fetched.add(fence)
        copy(self._ended.pop(fence), reply._obj)
        return 0

    def hmm_cancel(self, device, fence):
        self.cancelled.append(fence)
        if fence not in self._ended and fence not in self._fetched:
            self.end(fence, Status.CANCELLED)
        return 0

    def hmm_migrate(self, device, start, length, destination, flags, migration):
        self.moves.append((start, length, destination, flags))
        migration._obj.moved = 2
        return 0

    def hmm_residency(self, device, pid, start, length, states, room):
        if room >= 2:
            states[0], states[1] = 0b10010, 0b00101
        return 2

    def hmm_error_text(self, error, text, room):
        text.value = f"error {-error}".encode()
        return len(text.value)

    def hmm_job_text(self, reply, text, room):
        text.value = b"the job did not succeed"
        return len(text.value)


def copy(source: JobReply, destination: JobReply) -> None:
    """Writes a reply to where the caller wants it."""
    for name, _ in JobReply._fields_:
        setattr(destination, name, getattr(source, name))
