# Generated from spec/src by "cargo xtask headers"; do not edit.
"""The interface between a program and the driver: its structures and numbers.

It knows layouts and values, and calls nothing.
"""

from __future__ import annotations

import ctypes
import enum

#: The version of this interface.
VERSION = 2
#: The ioctl type byte of every call.
IOCTL_TYPE = 0xD6
#: The most devices, hence the nodes "/dev/hmm0" to "/dev/hmm15".
MAX_DEVICES = 16
#: The most jobs that one Submit may hold.
MAX_SUBMIT = 256
#: The most fences that one WaitAny may name.
MAX_WAIT = 256
#: The most pages that one Residency may ask about.
MAX_RESIDENCY_PAGES = 1 << 18
#: The number of arguments in a JobDescriptor.
MAX_ARGUMENTS = 14
#: The device checks every translation that it uses and poisons discarded frames.
CAPABILITY_CHECK = 1 << 0
#: The guest's CPUs can address device memory.
CAPABILITY_COHERENT = 1 << 1
#: Submit.eventfd is signalled when each job ends.
SUBMIT_EVENTFD = 1 << 0
#: Every defined bit.
SUBMIT_ALL = SUBMIT_EVENTFD
#: Place pages of zeros on the device where there are none yet. Without this flag, holes remain and
#: cost nothing.
MIGRATE_POPULATE = 1 << 0
#: Mask of the place: one of the next values.
PAGE_PLACE = 0x3
#: There is no page (yet).
PAGE_NONE = 0
#: In the guest's memory, or in another device's coherent memory.
PAGE_SYSTEM = 1
#: In this device's memory.
PAGE_DEVICE = 2
#: Somewhere that cannot be mapped on a device: an I/O page, a poisoned page or another device's
#: private memory.
PAGE_OTHER = 3
#: The process may write to it without a fault.
PAGE_WRITABLE = 1 << 2
#: Part of a huge page.
PAGE_HUGE = 1 << 3
#: Mapped on the device.
PAGE_MAPPED = 1 << 4
#: Loads.
RIGHT_READ = 1 << 0
#: Stores.
RIGHT_WRITE = 1 << 1
#: Atomic read-modify-write.
RIGHT_ATOMIC = 1 << 2
#: Every defined right.
RIGHT_ALL = RIGHT_READ | RIGHT_WRITE | RIGHT_ATOMIC


class DeviceState(enum.IntEnum):
    """Whether a device serves programs, and if not, why."""

    #: It serves programs.
    RUNNING = 0
    #: The system is suspended.
    SUSPENDED = 1
    #: It was given up, and is about to be restarted.
    RESETTING = 2
    #: It was given up too often, or has been removed.
    GONE = 3


class Destination(enum.IntEnum):
    """Where Migrate moves pages."""

    #: The guest's memory.
    SYSTEM = 0
    #: The device's memory.
    DEVICE = 1


class Element(enum.IntEnum):
    """The type of the elements that an operation works on."""

    #: Unsigned 32-bit integer.
    U32 = 1
    #: Unsigned 64-bit integer.
    U64 = 2
    #: Signed 64-bit integer.
    I64 = 3
    #: IEEE 754 single precision.
    F32 = 4
    #: IEEE 754 double precision.
    F64 = 5


class Status(enum.IntEnum):
    """How a request or a job ended.

    If several apply, to the request or to any of its entries, the lowest number that is not zero is
    reported ("Status").
    """

    #: Done.
    OK = 0
    #: The bytes are not a request: lengths, counts or reserved fields are wrong.
    MALFORMED = 1
    #: There is no such operation on this queue.
    UNSUPPORTED = 2
    #: The device has not been initialised, or with another version.
    NOT_READY = 3
    #: A limit of the configuration space is exceeded.
    LIMIT = 4
    #: There is no such space.
    NO_SPACE = 5
    #: The space or the job exists already.
    EXISTS = 6
    #: An address or a range is not aligned, not canonical, or wraps.
    BAD_ADDRESS = 7
    #: A frame lies outside device memory or outside the guest's memory.
    BAD_FRAME = 8
    #: A set of rights is empty or holds undefined bits, or an order is undefined.
    BAD_RIGHTS = 9
    #: The device has no memory left for its own tables.
    NO_MEMORY = 10
    #: The bytes could not be copied.
    COPY_FAILED = 11
    #: A job's arguments contradict each other or its operation.
    BAD_ARGUMENT = 16
    #: A job accessed an address that the driver could not make accessible.
    FAULT = 17
    #: The job was cancelled, or its space destroyed.
    CANCELLED = 18
    #: The job's own bound was reached before its end (list length, tree depth).
    BOUND = 19
    #: The job had the same fault too often without any progress.
    STORM = 20
    #: The device failed in a way that no other status describes.
    DEVICE_ERROR = 255


class Reason(enum.IntEnum):
    """Why a page cannot be provided."""

    #: Nothing is mapped there in the process.
    UNMAPPED = 1
    #: The process itself may not access it in this way.
    DENIED = 2
    #: The memory is poisoned.
    POISONED = 3
    #: The system has no memory for it.
    NO_MEMORY = 4
    #: The process kept changing its mappings for too long.
    BUSY = 5
    #: The process is gone.
    GONE = 6
    #: The driver is shutting down.
    SHUTDOWN = 7


class Operation(enum.IntEnum):
    """What a job does."""

    #: Writes a pattern of eight bytes (little-endian) over and over.
    FILL = 1
    #: Copies bytes; the ranges may overlap (as "memmove").
    COPY = 2
    #: Compares two ranges. Result 0: the offset of the first difference, or "bytes".
    COMPARE = 3
    #: CRC-32C (Castagnoli) of a range. Result 0: the checksum.
    CHECKSUM = 4
    #: Adds up elements. Result 0: the sum; integers of 32 bits add up in 64 bits, floating point in
    #: double precision, whose bits are the result.
    SUM = 5
    #: Finds the smallest element; NaN is ignored. Result 0: the element's bits, zero-extended.
    #: Result 1: its index, the first one if several are equal; "count" if there is none.
    MIN = 6
    #: Finds the largest element; results as for the smallest.
    MAX = 7
    #: The dot product of two vectors of Element.F32 or Element.F64, summed in double precision.
    #: Result 0: the bits of the sum (Element.F64).
    DOT = 8
    #: "y[i] = alpha * x[i] + y[i]" for vectors of Element.F32 or Element.F64, with one rounding
    #: after the product and one after the sum.
    AXPY = 9
    #: "C = alpha * A * B + beta * C" for row-major matrices of Element.F32. With "beta" zero, C is
    #: not read. C must not overlap A or B.
    GEMM = 10
    #: Sorts Element.U64 elements in ascending order. Both ranges are left in an unspecified state
    #: if the job does not end well.
    SORT = 11
    #: Adds the number of times each byte value occurs to 256 counters of Element.U64.
    HISTOGRAM = 12
    #: "destination[i] = table[index[i]]". An index outside the table ends the job with
    #: Status.BAD_ARGUMENT; result 0 is then "i".
    GATHER = 13
    #: "table[index[i]] = source[i]", in ascending order of "i". An index outside the table ends the
    #: job as for gather.
    SCATTER = 14
    #: Walks a list from node to node until a null pointer. Result 0: nodes visited. Result 1: the
    #: sum of their Element.U64 values. Result 2: the address of the first node whose value is
    #: "key", or zero. More than "limit" nodes end the job with Status.BOUND.
    LIST_WALK = 15
    #: Searches a binary tree ordered by Element.U64 keys (smaller to the left). Result 0: the
    #: address of the node, or zero. Result 1: nodes visited.
    TREE_SEARCH = 16
    #: Visits every node of a binary tree. Result 0: nodes visited. Result 1: the sum of their
    #: Element.U64 values. A tree with more than "limit" nodes, or deeper than 65,536, ends the job
    #: with Status.BOUND.
    TREE_SUM = 17
    #: Breadth-first search of a graph in compressed sparse rows. The job writes each vertex'
    #: distance from "start" to "levels" (Element.U32), UINT32_MAX where there is no path. Result 0:
    #: vertices reached. Result 1: the greatest distance. An edge to a vertex that does not exist,
    #: or offsets that decrease or exceed "edge_count", end the job with Status.BAD_ARGUMENT.
    BFS = 18
    #: Atomically adds to a Element.U32 or Element.U64, "repeat" times. Result 0: the value before
    #: the last addition.
    ATOMIC_ADD = 19
    #: Atomically replaces a Element.U32 or Element.U64. Result 0: the old value.
    ATOMIC_EXCHANGE = 20
    #: Atomically replaces a Element.U32 or Element.U64 if it equals "expected". Result 0: the old
    #: value. Result 1: one if it was replaced, otherwise zero.
    ATOMIC_COMPARE_EXCHANGE = 21


#: The arguments of each operation in order: name and type.
ARGUMENTS: dict[Operation, tuple[tuple[str, str], ...]] = {
    Operation.FILL: (
        ("destination", "u64"),
        ("bytes", "u64"),
        ("pattern", "u64"),
    ),
    Operation.COPY: (
        ("source", "u64"),
        ("destination", "u64"),
        ("bytes", "u64"),
    ),
    Operation.COMPARE: (
        ("left", "u64"),
        ("right", "u64"),
        ("bytes", "u64"),
    ),
    Operation.CHECKSUM: (
        ("source", "u64"),
        ("bytes", "u64"),
    ),
    Operation.SUM: (
        ("source", "u64"),
        ("count", "u64"),
        ("element", "Element"),
    ),
    Operation.MIN: (
        ("source", "u64"),
        ("count", "u64"),
        ("element", "Element"),
    ),
    Operation.MAX: (
        ("source", "u64"),
        ("count", "u64"),
        ("element", "Element"),
    ),
    Operation.DOT: (
        ("x", "u64"),
        ("y", "u64"),
        ("count", "u64"),
        ("element", "Element"),
    ),
    Operation.AXPY: (
        ("x", "u64"),
        ("y", "u64"),
        ("count", "u64"),
        ("element", "Element"),
        ("alpha", "f64"),
    ),
    Operation.GEMM: (
        ("a", "u64"),
        ("b", "u64"),
        ("c", "u64"),
        ("m", "u64"),
        ("n", "u64"),
        ("k", "u64"),
        ("a_stride", "u64"),
        ("b_stride", "u64"),
        ("c_stride", "u64"),
        ("alpha", "f32"),
        ("beta", "f32"),
    ),
    Operation.SORT: (
        ("data", "u64"),
        ("count", "u64"),
        ("temporary", "u64"),
    ),
    Operation.HISTOGRAM: (
        ("source", "u64"),
        ("bytes", "u64"),
        ("counters", "u64"),
    ),
    Operation.GATHER: (
        ("table", "u64"),
        ("table_count", "u64"),
        ("index", "u64"),
        ("destination", "u64"),
        ("count", "u64"),
        ("element", "Element"),
    ),
    Operation.SCATTER: (
        ("source", "u64"),
        ("index", "u64"),
        ("table", "u64"),
        ("table_count", "u64"),
        ("count", "u64"),
        ("element", "Element"),
    ),
    Operation.LIST_WALK: (
        ("head", "u64"),
        ("next_offset", "u64"),
        ("value_offset", "u64"),
        ("key", "u64"),
        ("limit", "u64"),
    ),
    Operation.TREE_SEARCH: (
        ("root", "u64"),
        ("left_offset", "u64"),
        ("right_offset", "u64"),
        ("key_offset", "u64"),
        ("key", "u64"),
        ("limit", "u64"),
    ),
    Operation.TREE_SUM: (
        ("root", "u64"),
        ("left_offset", "u64"),
        ("right_offset", "u64"),
        ("value_offset", "u64"),
        ("limit", "u64"),
    ),
    Operation.BFS: (
        ("offsets", "u64"),
        ("edges", "u64"),
        ("vertex_count", "u64"),
        ("edge_count", "u64"),
        ("start", "u64"),
        ("levels", "u64"),
        ("queue", "u64"),
    ),
    Operation.ATOMIC_ADD: (
        ("address", "u64"),
        ("element", "Element"),
        ("operand", "u64"),
        ("repeat", "u64"),
    ),
    Operation.ATOMIC_EXCHANGE: (
        ("address", "u64"),
        ("element", "Element"),
        ("operand", "u64"),
    ),
    Operation.ATOMIC_COMPARE_EXCHANGE: (
        ("address", "u64"),
        ("element", "Element"),
        ("expected", "u64"),
        ("operand", "u64"),
    ),
}


class JobDescriptor(ctypes.LittleEndianStructure):
    """A job as a program submits it; the driver passes it on without reading it.

    Operation has the operations with their arguments.
    """

    #: An operation's code.
    operation: int
    #: Zero.
    reserved: int
    #: The operation's arguments in order; the others are zero.
    arguments: ctypes.Array[ctypes.c_uint64]
    _fields_ = [
        ("operation", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("arguments", ctypes.c_uint64 * MAX_ARGUMENTS),
    ]


class JobReply(ctypes.LittleEndianStructure):
    """How a job ended."""

    #: A Status.
    status: int
    #: With Status.FAULT: a Reason. Otherwise zero.
    reason: int
    #: With Status.FAULT and Status.STORM: the address. Otherwise zero.
    address: int
    #: The rights that the job needed there. Otherwise zero.
    access: int
    #: The number of times that the job waited for a page.
    faults: int
    #: The operation's results in order.
    values: ctypes.Array[ctypes.c_uint64]
    #: Time on an engine in nanoseconds, waiting for pages not included.
    nanoseconds: int
    #: Bytes of the guest's memory that the job read or wrote.
    system_bytes: int
    #: Bytes of device memory that the job read or wrote.
    device_bytes: int
    _fields_ = [
        ("status", ctypes.c_uint32),
        ("reason", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("access", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        ("values", ctypes.c_uint64 * 4),
        ("nanoseconds", ctypes.c_uint64),
        ("system_bytes", ctypes.c_uint64),
        ("device_bytes", ctypes.c_uint64),
    ]


class Statistics(ctypes.LittleEndianStructure):
    """The device's counters since the last reset, and its current state.

    The first group is the current state; all others only grow until reset.
    """

    #: Spaces that exist.
    spaces: int
    #: Jobs that have not ended.
    jobs: int
    #: Jobs among them that wait for a page.
    parked_jobs: int
    #: Pages that are mapped, in all spaces, in units of 4 KiB.
    mapped_pages: int
    #: Large leaves among the mappings.
    large_leaves: int
    #: Memory that page tables take, in bytes.
    table_bytes: int
    #: Frames of device memory that have been written and not discarded.
    live_frames: int
    #: Jobs that have ended.
    jobs_ended: int
    #: Jobs among them that ended well.
    jobs_ok: int
    #: Nanoseconds that engines have spent on jobs.
    engine_nanoseconds: int
    #: Bytes of the guest's memory that jobs have read or written.
    system_bytes: int
    #: Bytes of device memory that jobs have read or written.
    device_bytes: int
    #: Translations found in an engine's TLB.
    tlb_hits: int
    #: Translations that needed a walk of the page table.
    tlb_misses: int
    #: Faults raised.
    faults: int
    #: Fault buffers filled.
    fault_buffers: int
    #: Faults answered with retry.
    faults_retried: int
    #: Faults answered with terminate.
    faults_terminated: int
    #: Answers to faults that were no longer waiting.
    answers_late: int
    #: Control requests carried out.
    control_requests: int
    #: Map entries carried out.
    map_entries: int
    #: Ranges unmapped or protected.
    invalidations: int
    #: Pages whose rights these removed or restricted.
    invalidated_pages: int
    #: Nanoseconds that invalidations waited for engines.
    invalidation_wait_nanoseconds: int
    #: DMA requests carried out.
    dma_requests: int
    #: Nanoseconds spent on carrying out their lists.
    copy_nanoseconds: int
    #: Bytes copied to device memory.
    bytes_to_device: int
    #: Bytes copied to the guest's memory.
    bytes_to_system: int
    #: Bytes copied within device memory.
    bytes_on_device: int
    #: Bytes cleared.
    bytes_cleared: int
    #: Frames discarded.
    frames_discarded: int
    #: Items that failed.
    items_failed: int
    #: Requests refused with a status.
    requests_refused: int
    #: Chains that could not be answered.
    chains_dropped: int
    #: With CAPABILITY_CHECK: accesses through a stale translation.
    stale_accesses: int
    #: With CAPABILITY_CHECK: uses of a frame that is free.
    freed_frame_uses: int
    _fields_ = [
        ("spaces", ctypes.c_uint64),
        ("jobs", ctypes.c_uint64),
        ("parked_jobs", ctypes.c_uint64),
        ("mapped_pages", ctypes.c_uint64),
        ("large_leaves", ctypes.c_uint64),
        ("table_bytes", ctypes.c_uint64),
        ("live_frames", ctypes.c_uint64),
        ("jobs_ended", ctypes.c_uint64),
        ("jobs_ok", ctypes.c_uint64),
        ("engine_nanoseconds", ctypes.c_uint64),
        ("system_bytes", ctypes.c_uint64),
        ("device_bytes", ctypes.c_uint64),
        ("tlb_hits", ctypes.c_uint64),
        ("tlb_misses", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
        ("fault_buffers", ctypes.c_uint64),
        ("faults_retried", ctypes.c_uint64),
        ("faults_terminated", ctypes.c_uint64),
        ("answers_late", ctypes.c_uint64),
        ("control_requests", ctypes.c_uint64),
        ("map_entries", ctypes.c_uint64),
        ("invalidations", ctypes.c_uint64),
        ("invalidated_pages", ctypes.c_uint64),
        ("invalidation_wait_nanoseconds", ctypes.c_uint64),
        ("dma_requests", ctypes.c_uint64),
        ("copy_nanoseconds", ctypes.c_uint64),
        ("bytes_to_device", ctypes.c_uint64),
        ("bytes_to_system", ctypes.c_uint64),
        ("bytes_on_device", ctypes.c_uint64),
        ("bytes_cleared", ctypes.c_uint64),
        ("frames_discarded", ctypes.c_uint64),
        ("items_failed", ctypes.c_uint64),
        ("requests_refused", ctypes.c_uint64),
        ("chains_dropped", ctypes.c_uint64),
        ("stale_accesses", ctypes.c_uint64),
        ("freed_frame_uses", ctypes.c_uint64),
    ]


class Info(ctypes.Structure):
    """Describes the device; allowed on a file that is not bound."""

    #: Out: VERSION.
    version: int
    #: Out: engines.
    engines: int
    #: Out: device memory in bytes.
    device_memory: int
    #: Out: device memory that is free now, in bytes.
    free_memory: int
    #: Out: CAPABILITY_* bits, without bits that the driver cannot use.
    capabilities: int
    #: Out: jobs that may be in flight on the device.
    max_jobs: int
    #: Out: processes that may be bound at a time.
    max_spaces: int
    #: Out: version of the device's interface.
    device_version: int
    #: Out: width of a virtual address in bits.
    address_bits: int
    #: Out: a DeviceState.
    state: int
    #: Out: how often the device has been restarted after it was given up.
    resets: int
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("engines", ctypes.c_uint32),
        ("device_memory", ctypes.c_uint64),
        ("free_memory", ctypes.c_uint64),
        ("capabilities", ctypes.c_uint64),
        ("max_jobs", ctypes.c_uint32),
        ("max_spaces", ctypes.c_uint32),
        ("device_version", ctypes.c_uint32),
        ("address_bits", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("resets", ctypes.c_uint32),
    ]


class Bind(ctypes.Structure):
    """Binds the file to the calling process: its addresses become the device's.

    The space lives until the file is closed or the process ends.
    """

    #: In: VERSION.
    version: int
    #: In: zero.
    flags: int
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


class BindProcess(ctypes.Structure):
    """Binds the file to another process, whose memory the caller may write: its addresses become
    the device's, and the caller makes the calls.

    The space lives until the file is closed, or until the process ends or executes another program.
    """

    #: In: VERSION.
    version: int
    #: In: zero.
    flags: int
    #: In: a pidfd of the process.
    pidfd: int
    #: In: a descriptor of the "mem" file of the same process in "/proc", open for reading and
    #: writing.
    memory: int
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pidfd", ctypes.c_int32),
        ("memory", ctypes.c_int32),
    ]


class SpaceCounters(ctypes.Structure):
    """Reads what has happened to the space that the file is bound to."""

    #: In: zero.
    flags: int
    #: In: zero.
    reserved: int
    #: Out: jobs submitted.
    jobs: int
    #: Out: fault records received.
    faults: int
    #: Out: pages mapped on behalf of faults.
    fault_pages: int
    #: Out: notifier callbacks.
    invalidations: int
    #: Out: notifier callbacks that concerned pages mapped on the device.
    invalidations_sent: int
    #: Out: pages moved to the device.
    pages_to_device: int
    #: Out: pages moved back by request.
    pages_to_system: int
    #: Out: pages moved back because of CPU faults.
    cpu_fault_pages: int
    _fields_ = [
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("jobs", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
        ("fault_pages", ctypes.c_uint64),
        ("invalidations", ctypes.c_uint64),
        ("invalidations_sent", ctypes.c_uint64),
        ("pages_to_device", ctypes.c_uint64),
        ("pages_to_system", ctypes.c_uint64),
        ("cpu_fault_pages", ctypes.c_uint64),
    ]


class Submit(ctypes.Structure):
    """Submits jobs, which may run in any order and at the same time."""

    #: In: address of "count" jobs, each a JobDescriptor.
    jobs: int
    #: In: how many, 1 to MAX_SUBMIT.
    count: int
    #: In: a set of SUBMIT_*.
    flags: int
    #: Out: fence of the first job; each further job has the next number.
    first_fence: int
    #: Out: how many were submitted; fewer than asked if no more fit.
    submitted: int
    #: In: with SUBMIT_EVENTFD a descriptor of an eventfd, which is incremented for each of these
    #: jobs when it ends; otherwise zero.
    eventfd: int
    _fields_ = [
        ("jobs", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("first_fence", ctypes.c_uint64),
        ("submitted", ctypes.c_uint32),
        ("eventfd", ctypes.c_int32),
    ]


class Wait(ctypes.Structure):
    """Waits until a job has ended and fetches its result, once."""

    #: In: the job's fence.
    fence: int
    #: In: until when to wait, in nanoseconds of CLOCK_MONOTONIC; zero does not wait, a negative
    #: value waits for ever.
    deadline: int
    #: Out: how the job ended.
    result: JobReply
    _fields_ = [
        ("fence", ctypes.c_uint64),
        ("deadline", ctypes.c_int64),
        ("result", JobReply),
    ]


class Cancel(ctypes.Structure):
    """Asks a job of this file to end early. It is no error if it has ended."""

    #: In: the job's fence.
    fence: int
    #: In: zero.
    flags: int
    #: In: zero.
    reserved: int
    _fields_ = [
        ("fence", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class WaitAny(ctypes.Structure):
    """Waits until one of several jobs has ended and fetches its result."""

    #: In: address of "count" fences, each a __u64; ignored if "count" is zero.
    fences: int
    #: In: how many, up to MAX_WAIT; zero means all jobs of the file whose results have not been
    #: fetched.
    count: int
    #: In: zero.
    flags: int
    #: In: until when to wait, as Wait.deadline.
    deadline: int
    #: Out: the fence of the job that has ended.
    fence: int
    #: Out: how it ended.
    result: JobReply
    _fields_ = [
        ("fences", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("deadline", ctypes.c_int64),
        ("fence", ctypes.c_uint64),
        ("result", JobReply),
    ]


class Migrate(ctypes.Structure):
    """Moves the private anonymous pages of a range of the caller's addresses.

    Pages that cannot move are left and counted; that is no error. A signal ends the call with what
    has been done.
    """

    #: In: first byte, aligned to a page.
    address: int
    #: In: how many bytes, a multiple of the page size.
    bytes: int
    #: In: a Destination.
    destination: int
    #: In: MIGRATE_*.
    flags: int
    #: Out: pages that this call has moved to the destination.
    moved: int
    #: Out: other pages of the range: they were there already, cannot move, or are not mapped.
    skipped: int
    #: Out: skipped pages for which there was no memory at the destination. Once the device is full,
    #: the call no longer tries further pages.
    no_memory: int
    #: Out: where the call ended: at the end of the range, or before it for a signal.
    reached: int
    _fields_ = [
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("destination", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("moved", ctypes.c_uint64),
        ("skipped", ctypes.c_uint64),
        ("no_memory", ctypes.c_uint64),
        ("reached", ctypes.c_uint64),
    ]


class Residency(ctypes.Structure):
    """Reports where the pages of a range are, without touching them."""

    #: In: zero for the file's own process, else the id of a process that is bound to this device;
    #: that needs CAP_SYS_PTRACE unless it is the caller.
    pid: int
    #: In: zero.
    flags: int
    #: In: first byte, aligned to a page.
    address: int
    #: In: how many pages, 1 to MAX_RESIDENCY_PAGES.
    pages: int
    #: In: address of "pages" bytes, each set to a combination of PAGE_*.
    states: int
    _fields_ = [
        ("pid", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
        ("states", ctypes.c_uint64),
    ]


class DriverStatistics(ctypes.Structure):
    """The driver's counters since it was bound to the device."""

    #: Processes that are bound now.
    spaces: int
    #: Frames of device memory that hold a page now.
    used_frames: int
    #: Frames of device memory that the driver manages.
    total_frames: int
    #: Fault records received.
    faults: int
    #: Batches in which they arrived.
    fault_batches: int
    #: Pages mapped on behalf of faults.
    fault_pages: int
    #: Range faults that had to be repeated because the process changed its mappings meanwhile.
    fault_retries: int
    #: Faults answered with terminate.
    faults_terminated: int
    #: Notifier callbacks.
    invalidations: int
    #: Notifier callbacks that concerned pages mapped on the device.
    invalidations_sent: int
    #: Pages moved to the device.
    pages_to_device: int
    #: Huge pages among these moves, counted once each.
    huge_to_device: int
    #: Pages moved back by request.
    pages_to_system: int
    #: Pages moved back because of CPU faults.
    cpu_fault_pages: int
    #: Pages moved back because the device was closed or removed.
    pages_evicted: int
    #: Huge pages among all moves back, counted once each.
    huge_to_system: int
    #: Pages that could not be moved to the device.
    pages_refused: int
    #: Pages lost because the device failed to copy them back.
    pages_lost: int
    #: Nanoseconds that migrations took to collect pages from their processes.
    collect_nanoseconds: int
    #: Nanoseconds that migrations took to allocate memory for these pages at the destination, and
    #: to send the copy lists.
    allocate_nanoseconds: int
    #: Nanoseconds that they waited for copies after that.
    copy_nanoseconds: int
    #: Nanoseconds that migrations took to exchange the memory.
    commit_nanoseconds: int
    #: Nanoseconds that they took to return the pages to their processes.
    finalise_nanoseconds: int
    #: Nanoseconds that notifier callbacks waited for the device's promise.
    invalidate_nanoseconds: int
    #: Requests sent on the control queue.
    control_requests: int
    #: Requests sent on the dma queue.
    dma_requests: int
    #: Queue interrupts handled.
    interrupts: int
    #: Kicks: notifications that were sent to the device.
    kicks: int
    #: Changes of a process's memory that waited for huge pages in migration until the driver's
    #: limit for such waits, and then continued.
    changes_hurried: int
    _fields_ = [
        ("spaces", ctypes.c_uint64),
        ("used_frames", ctypes.c_uint64),
        ("total_frames", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
        ("fault_batches", ctypes.c_uint64),
        ("fault_pages", ctypes.c_uint64),
        ("fault_retries", ctypes.c_uint64),
        ("faults_terminated", ctypes.c_uint64),
        ("invalidations", ctypes.c_uint64),
        ("invalidations_sent", ctypes.c_uint64),
        ("pages_to_device", ctypes.c_uint64),
        ("huge_to_device", ctypes.c_uint64),
        ("pages_to_system", ctypes.c_uint64),
        ("cpu_fault_pages", ctypes.c_uint64),
        ("pages_evicted", ctypes.c_uint64),
        ("huge_to_system", ctypes.c_uint64),
        ("pages_refused", ctypes.c_uint64),
        ("pages_lost", ctypes.c_uint64),
        ("collect_nanoseconds", ctypes.c_uint64),
        ("allocate_nanoseconds", ctypes.c_uint64),
        ("copy_nanoseconds", ctypes.c_uint64),
        ("commit_nanoseconds", ctypes.c_uint64),
        ("finalise_nanoseconds", ctypes.c_uint64),
        ("invalidate_nanoseconds", ctypes.c_uint64),
        ("control_requests", ctypes.c_uint64),
        ("dma_requests", ctypes.c_uint64),
        ("interrupts", ctypes.c_uint64),
        ("kicks", ctypes.c_uint64),
        ("changes_hurried", ctypes.c_uint64),
    ]


class Counters(ctypes.Structure):
    """Reads the counters of the driver and of the device."""

    #: Out: the driver's.
    driver: DriverStatistics
    #: Out: the device's.
    device: Statistics
    _fields_ = [
        ("driver", DriverStatistics),
        ("device", Statistics),
    ]
