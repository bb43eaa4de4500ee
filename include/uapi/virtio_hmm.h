/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Generated from spec/src by "cargo xtask headers"; do not edit. */
#ifndef _UAPI_VIRTIO_HMM_H
#define _UAPI_VIRTIO_HMM_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: virtio-hmm, an accelerator that follows the pointers of a process
 *
 * The interface between a program in the guest and the driver: the ioctls of
 * ``/dev/hmmN``.
 *
 * Integers are native; addresses and pointers are __u64. Every field named
 * ``reserved`` or ``flags`` must be zero unless bits are defined for it,
 * otherwise the call fails with %EINVAL. The size of a structure is part of its
 * ioctl number, so a caller built for another layout gets %ENOTTY.
 *
 * A call that fails sets errno:
 *
 * %ENOTTY
 *     no such ioctl, or a structure of another size
 *
 * %EFAULT
 *     an argument's own memory cannot be read or written
 *
 * %EINVAL
 *     a field is out of range, not aligned, or should be zero; addresses that
 *     no process has
 *
 * %EBADF
 *     &virtio_hmm_submit.eventfd, &virtio_hmm_bind_process.pidfd or
 *     &virtio_hmm_bind_process.memory is not open, or not of that kind
 *
 * %EPROTO
 *     &virtio_hmm_bind.version is not %VIRTIO_HMM_VERSION
 *
 * %EBUSY
 *     the file is bound already
 *
 * %EPERM
 *     the file is not bound, or by another process than the caller
 *
 * %ENOSPC
 *     the device has no space left to bind to
 *
 * %EAGAIN
 *     as many jobs as the device or the file takes have been submitted; of
 *     &struct virtio_hmm_bind: the device is about to be started anew, call
 *     again
 *
 * %ENOENT
 *     no such fence, or its result has been fetched already
 *
 * %ETIME
 *     no such job has ended in time
 *
 * %EINTR
 *     a signal arrived whose handler does not restart calls; call again
 *
 * %ESRCH
 *     no space on this device belongs to that process; or the process that the
 *     file is bound to has ended or executed another program
 *
 * %EACCES
 *     the caller may not look at that process, or not write its memory
 *
 * %ENOMEM
 *     the guest is out of memory
 *
 * %ENODEV
 *     the device has been removed
 *
 * %EIO
 *     the device broke the protocol or stopped answering, and what it held is
 *     lost: see &virtio_hmm_info.state; or it answered the request of this call
 *     alone with an error of its own, and nothing is lost
 */

/* The version of this interface. */
#define VIRTIO_HMM_VERSION		2U

/* The ioctl type byte of every call. */
#define VIRTIO_HMM_IOCTL_TYPE		0xD6

/* The most devices, hence the nodes /dev/hmm0 to /dev/hmm15. */
#define VIRTIO_HMM_MAX_DEVICES		16U

/* The most jobs that one struct virtio_hmm_submit may hold. */
#define VIRTIO_HMM_MAX_SUBMIT		256U

/* The most fences that one struct virtio_hmm_wait_any may name. */
#define VIRTIO_HMM_MAX_WAIT		256U

/* The most pages that one struct virtio_hmm_residency may ask about. */
#define VIRTIO_HMM_MAX_RESIDENCY_PAGES	(1ULL << 18)

/* The number of arguments in a struct virtio_hmm_job_descriptor. */
#define VIRTIO_HMM_MAX_ARGUMENTS	14

/* Bits of virtio_hmm_info.capabilities. */

/*
 * The device checks every translation that it uses and poisons discarded
 * frames.
 */
#define VIRTIO_HMM_CAPABILITY_CHECK	(1ULL << 0)

/* The guest's CPUs can address device memory. */
#define VIRTIO_HMM_CAPABILITY_COHERENT	(1ULL << 1)

/* What virtio_hmm_submit.flags may hold. */

/* virtio_hmm_submit.eventfd is signalled when each job ends. */
#define VIRTIO_HMM_SUBMIT_EVENTFD	(1U << 0)

/* Every defined bit. */
#define VIRTIO_HMM_SUBMIT_ALL		VIRTIO_HMM_SUBMIT_EVENTFD

/* Options of struct virtio_hmm_migrate. */

/*
 * Place pages of zeros on the device where there are none yet. Without this
 * flag, holes remain and cost nothing.
 */
#define VIRTIO_HMM_MIGRATE_POPULATE	(1U << 0)

/* The bits that struct virtio_hmm_residency reports of a page. */

/* Mask of the place: one of the next values. */
#define VIRTIO_HMM_PAGE_PLACE		0x3

/* There is no page (yet). */
#define VIRTIO_HMM_PAGE_NONE		0

/* In the guest's memory, or in another device's coherent memory. */
#define VIRTIO_HMM_PAGE_SYSTEM		1

/* In this device's memory. */
#define VIRTIO_HMM_PAGE_DEVICE		2

/*
 * Somewhere that cannot be mapped on a device: an I/O page, a poisoned page or
 * another device's private memory.
 */
#define VIRTIO_HMM_PAGE_OTHER		3

/* The process may write to it without a fault. */
#define VIRTIO_HMM_PAGE_WRITABLE	(1 << 2)

/* Part of a huge page. */
#define VIRTIO_HMM_PAGE_HUGE		(1 << 3)

/* Mapped on the device. */
#define VIRTIO_HMM_PAGE_MAPPED		(1 << 4)

/* What an engine may do through a mapping, as a set of bits ("Rights"). */

/* Loads. */
#define VIRTIO_HMM_RIGHT_READ		(1U << 0)

/* Stores. */
#define VIRTIO_HMM_RIGHT_WRITE		(1U << 1)

/* Atomic read-modify-write. */
#define VIRTIO_HMM_RIGHT_ATOMIC		(1U << 2)

/* Every defined right. */
#define VIRTIO_HMM_RIGHT_ALL \
	(VIRTIO_HMM_RIGHT_READ | \
	 VIRTIO_HMM_RIGHT_WRITE | \
	 VIRTIO_HMM_RIGHT_ATOMIC)

/**
 * enum virtio_hmm_device_state - Whether a device serves programs, and if not,
 *     why
 * @VIRTIO_HMM_DEVICE_STATE_RUNNING: It serves programs.
 * @VIRTIO_HMM_DEVICE_STATE_SUSPENDED: The system is suspended.
 * @VIRTIO_HMM_DEVICE_STATE_RESETTING: It was given up, and is about to be
 *     restarted.
 * @VIRTIO_HMM_DEVICE_STATE_GONE: It was given up too often, or has been
 *     removed.
 */
enum virtio_hmm_device_state {
	VIRTIO_HMM_DEVICE_STATE_RUNNING = 0,
	VIRTIO_HMM_DEVICE_STATE_SUSPENDED = 1,
	VIRTIO_HMM_DEVICE_STATE_RESETTING = 2,
	VIRTIO_HMM_DEVICE_STATE_GONE = 3,
};

/**
 * enum virtio_hmm_destination - Where &struct virtio_hmm_migrate moves pages
 * @VIRTIO_HMM_DESTINATION_SYSTEM: The guest's memory.
 * @VIRTIO_HMM_DESTINATION_DEVICE: The device's memory.
 */
enum virtio_hmm_destination {
	VIRTIO_HMM_DESTINATION_SYSTEM = 0,
	VIRTIO_HMM_DESTINATION_DEVICE = 1,
};

/**
 * enum virtio_hmm_element - The type of the elements that an operation works on
 * @VIRTIO_HMM_ELEMENT_U32: Unsigned 32-bit integer.
 * @VIRTIO_HMM_ELEMENT_U64: Unsigned 64-bit integer.
 * @VIRTIO_HMM_ELEMENT_I64: Signed 64-bit integer.
 * @VIRTIO_HMM_ELEMENT_F32: IEEE 754 single precision.
 * @VIRTIO_HMM_ELEMENT_F64: IEEE 754 double precision.
 */
enum virtio_hmm_element {
	VIRTIO_HMM_ELEMENT_U32 = 1,
	VIRTIO_HMM_ELEMENT_U64 = 2,
	VIRTIO_HMM_ELEMENT_I64 = 3,
	VIRTIO_HMM_ELEMENT_F32 = 4,
	VIRTIO_HMM_ELEMENT_F64 = 5,
};

/**
 * enum virtio_hmm_status - How a request or a job ended
 * @VIRTIO_HMM_STATUS_OK: Done.
 * @VIRTIO_HMM_STATUS_MALFORMED: The bytes are not a request: lengths, counts or
 *     reserved fields are wrong.
 * @VIRTIO_HMM_STATUS_UNSUPPORTED: There is no such operation on this queue.
 * @VIRTIO_HMM_STATUS_NOT_READY: The device has not been initialised, or with
 *     another version.
 * @VIRTIO_HMM_STATUS_LIMIT: A limit of the configuration space is exceeded.
 * @VIRTIO_HMM_STATUS_NO_SPACE: There is no such space.
 * @VIRTIO_HMM_STATUS_EXISTS: The space or the job exists already.
 * @VIRTIO_HMM_STATUS_BAD_ADDRESS: An address or a range is not aligned, not
 *     canonical, or wraps.
 * @VIRTIO_HMM_STATUS_BAD_FRAME: A frame lies outside device memory or outside
 *     the guest's memory.
 * @VIRTIO_HMM_STATUS_BAD_RIGHTS: A set of rights is empty or holds undefined
 *     bits, or an order is undefined.
 * @VIRTIO_HMM_STATUS_NO_MEMORY: The device has no memory left for its own
 *     tables.
 * @VIRTIO_HMM_STATUS_COPY_FAILED: The bytes could not be copied.
 * @VIRTIO_HMM_STATUS_BAD_ARGUMENT: A job's arguments contradict each other or
 *     its operation.
 * @VIRTIO_HMM_STATUS_FAULT: A job accessed an address that the driver could not
 *     make accessible.
 * @VIRTIO_HMM_STATUS_CANCELLED: The job was cancelled, or its space destroyed.
 * @VIRTIO_HMM_STATUS_BOUND: The job's own bound was reached before its end
 *     (list length, tree depth).
 * @VIRTIO_HMM_STATUS_STORM: The job had the same fault too often without any
 *     progress.
 * @VIRTIO_HMM_STATUS_DEVICE_ERROR: The device failed in a way that no other
 *     status describes.
 *
 * If several apply, to the request or to any of its entries, the lowest number
 * that is not zero is reported ("Status").
 */
enum virtio_hmm_status {
	VIRTIO_HMM_STATUS_OK = 0,
	VIRTIO_HMM_STATUS_MALFORMED = 1,
	VIRTIO_HMM_STATUS_UNSUPPORTED = 2,
	VIRTIO_HMM_STATUS_NOT_READY = 3,
	VIRTIO_HMM_STATUS_LIMIT = 4,
	VIRTIO_HMM_STATUS_NO_SPACE = 5,
	VIRTIO_HMM_STATUS_EXISTS = 6,
	VIRTIO_HMM_STATUS_BAD_ADDRESS = 7,
	VIRTIO_HMM_STATUS_BAD_FRAME = 8,
	VIRTIO_HMM_STATUS_BAD_RIGHTS = 9,
	VIRTIO_HMM_STATUS_NO_MEMORY = 10,
	VIRTIO_HMM_STATUS_COPY_FAILED = 11,
	VIRTIO_HMM_STATUS_BAD_ARGUMENT = 16,
	VIRTIO_HMM_STATUS_FAULT = 17,
	VIRTIO_HMM_STATUS_CANCELLED = 18,
	VIRTIO_HMM_STATUS_BOUND = 19,
	VIRTIO_HMM_STATUS_STORM = 20,
	VIRTIO_HMM_STATUS_DEVICE_ERROR = 255,
};

/**
 * enum virtio_hmm_reason - Why a page cannot be provided
 * @VIRTIO_HMM_REASON_UNMAPPED: Nothing is mapped there in the process.
 * @VIRTIO_HMM_REASON_DENIED: The process itself may not access it in this way.
 * @VIRTIO_HMM_REASON_POISONED: The memory is poisoned.
 * @VIRTIO_HMM_REASON_NO_MEMORY: The system has no memory for it.
 * @VIRTIO_HMM_REASON_BUSY: The process kept changing its mappings for too long.
 * @VIRTIO_HMM_REASON_GONE: The process is gone.
 * @VIRTIO_HMM_REASON_SHUTDOWN: The driver is shutting down.
 */
enum virtio_hmm_reason {
	VIRTIO_HMM_REASON_UNMAPPED = 1,
	VIRTIO_HMM_REASON_DENIED = 2,
	VIRTIO_HMM_REASON_POISONED = 3,
	VIRTIO_HMM_REASON_NO_MEMORY = 4,
	VIRTIO_HMM_REASON_BUSY = 5,
	VIRTIO_HMM_REASON_GONE = 6,
	VIRTIO_HMM_REASON_SHUTDOWN = 7,
};

/**
 * enum virtio_hmm_operation - What a job does:
 *     &virtio_hmm_job_descriptor.operation, with its arguments in order
 *
 * Addresses are those of the job's space and need no alignment unless stated.
 * Integers wrap. An operation whose inputs and outputs overlap in a way that
 * its documentation does not name has unspecified results.
 */
enum virtio_hmm_operation {
	/**
	 * @VIRTIO_HMM_OPERATION_FILL: Writes a pattern of eight bytes
	 * (little-endian) over and over.
	 *
	 * 0. ``destination``: First byte to write.
	 * 1. ``bytes``: How many bytes; a last partial pattern is cut short.
	 * 2. ``pattern``: The pattern.
	 */
	VIRTIO_HMM_OPERATION_FILL = 1,

	/**
	 * @VIRTIO_HMM_OPERATION_COPY: Copies bytes; the ranges may overlap (as
	 * ``memmove``).
	 *
	 * 0. ``source``: First byte to read.
	 * 1. ``destination``: First byte to write.
	 * 2. ``bytes``: How many bytes.
	 */
	VIRTIO_HMM_OPERATION_COPY = 2,

	/**
	 * @VIRTIO_HMM_OPERATION_COMPARE: Compares two ranges. Result 0: the
	 * offset of the first difference, or ``bytes``.
	 *
	 * 0. ``left``: First byte of one range.
	 * 1. ``right``: First byte of the other.
	 * 2. ``bytes``: How many bytes.
	 */
	VIRTIO_HMM_OPERATION_COMPARE = 3,

	/**
	 * @VIRTIO_HMM_OPERATION_CHECKSUM: CRC-32C (Castagnoli) of a range.
	 * Result 0: the checksum.
	 *
	 * 0. ``source``: First byte.
	 * 1. ``bytes``: How many bytes.
	 */
	VIRTIO_HMM_OPERATION_CHECKSUM = 4,

	/**
	 * @VIRTIO_HMM_OPERATION_SUM: Adds up elements. Result 0: the sum;
	 * integers of 32 bits add up in 64 bits, floating point in double
	 * precision, whose bits are the result.
	 *
	 * 0. ``source``: First element.
	 * 1. ``count``: How many.
	 * 2. ``element`` (&enum virtio_hmm_element): Their type.
	 */
	VIRTIO_HMM_OPERATION_SUM = 5,

	/**
	 * @VIRTIO_HMM_OPERATION_MIN: Finds the smallest element; NaN is
	 * ignored. Result 0: the element's bits, zero-extended. Result 1: its
	 * index, the first one if several are equal; ``count`` if there is
	 * none.
	 *
	 * 0. ``source``: First element.
	 * 1. ``count``: How many.
	 * 2. ``element`` (&enum virtio_hmm_element): Their type.
	 */
	VIRTIO_HMM_OPERATION_MIN = 6,

	/**
	 * @VIRTIO_HMM_OPERATION_MAX: Finds the largest element; results as for
	 * the smallest.
	 *
	 * 0. ``source``: First element.
	 * 1. ``count``: How many.
	 * 2. ``element`` (&enum virtio_hmm_element): Their type.
	 */
	VIRTIO_HMM_OPERATION_MAX = 7,

	/**
	 * @VIRTIO_HMM_OPERATION_DOT: The dot product of two vectors of
	 * %VIRTIO_HMM_ELEMENT_F32 or %VIRTIO_HMM_ELEMENT_F64, summed in double
	 * precision. Result 0: the bits of the sum (%VIRTIO_HMM_ELEMENT_F64).
	 *
	 * 0. ``x``: First element of one vector.
	 * 1. ``y``: First element of the other.
	 * 2. ``count``: Elements in each.
	 * 3. ``element`` (&enum virtio_hmm_element): %VIRTIO_HMM_ELEMENT_F32 or
	 *    %VIRTIO_HMM_ELEMENT_F64.
	 */
	VIRTIO_HMM_OPERATION_DOT = 8,

	/**
	 * @VIRTIO_HMM_OPERATION_AXPY: ``y[i] = alpha * x[i] + y[i]`` for
	 * vectors of %VIRTIO_HMM_ELEMENT_F32 or %VIRTIO_HMM_ELEMENT_F64, with
	 * one rounding after the product and one after the sum.
	 *
	 * 0. ``x``: First element read.
	 * 1. ``y``: First element changed.
	 * 2. ``count``: Elements in each.
	 * 3. ``element`` (&enum virtio_hmm_element): %VIRTIO_HMM_ELEMENT_F32 or
	 *    %VIRTIO_HMM_ELEMENT_F64.
	 * 4. ``alpha`` (the bits of a double): The factor, as double precision;
	 *    rounded to the element's type.
	 */
	VIRTIO_HMM_OPERATION_AXPY = 9,

	/**
	 * @VIRTIO_HMM_OPERATION_GEMM: ``C = alpha * A * B + beta * C`` for
	 * row-major matrices of %VIRTIO_HMM_ELEMENT_F32. With ``beta`` zero, C
	 * is not read. C must not overlap A or B.
	 *
	 * 0. ``a``: A: ``m`` rows of ``k``.
	 * 1. ``b``: B: ``k`` rows of ``n``.
	 * 2. ``c``: C: ``m`` rows of ``n``.
	 * 3. ``m``: Rows of A and C.
	 * 4. ``n``: Columns of B and C.
	 * 5. ``k``: Columns of A, rows of B.
	 * 6. ``a_stride``: Elements from one row of A to the next; at least
	 *    ``k``.
	 * 7. ``b_stride``: Elements from one row of B to the next; at least
	 *    ``n``.
	 * 8. ``c_stride``: Elements from one row of C to the next; at least
	 *    ``n``.
	 * 9. ``alpha`` (the bits of a float): The factor of the product.
	 * 10. ``beta`` (the bits of a float): The factor of the old value of C.
	 */
	VIRTIO_HMM_OPERATION_GEMM = 10,

	/**
	 * @VIRTIO_HMM_OPERATION_SORT: Sorts %VIRTIO_HMM_ELEMENT_U64 elements in
	 * ascending order. Both ranges are left in an unspecified state if the
	 * job does not end well.
	 *
	 * 0. ``data``: First element.
	 * 1. ``count``: How many.
	 * 2. ``temporary``: Room for as many elements, which the job may
	 *    overwrite; must not overlap.
	 */
	VIRTIO_HMM_OPERATION_SORT = 11,

	/**
	 * @VIRTIO_HMM_OPERATION_HISTOGRAM: Adds the number of times each byte
	 * value occurs to 256 counters of %VIRTIO_HMM_ELEMENT_U64.
	 *
	 * 0. ``source``: First byte.
	 * 1. ``bytes``: How many bytes.
	 * 2. ``counters``: The counters; must not overlap the source.
	 */
	VIRTIO_HMM_OPERATION_HISTOGRAM = 12,

	/**
	 * @VIRTIO_HMM_OPERATION_GATHER: ``destination[i] = table[index[i]]``.
	 * An index outside the table ends the job with
	 * %VIRTIO_HMM_STATUS_BAD_ARGUMENT; result 0 is then ``i``.
	 *
	 * 0. ``table``: First element of the table.
	 * 1. ``table_count``: Elements in the table.
	 * 2. ``index``: First index (%VIRTIO_HMM_ELEMENT_U64).
	 * 3. ``destination``: First element written.
	 * 4. ``count``: Indices.
	 * 5. ``element`` (&enum virtio_hmm_element): The type of the elements.
	 */
	VIRTIO_HMM_OPERATION_GATHER = 13,

	/**
	 * @VIRTIO_HMM_OPERATION_SCATTER: ``table[index[i]] = source[i]``, in
	 * ascending order of ``i``. An index outside the table ends the job as
	 * for gather.
	 *
	 * 0. ``source``: First element read.
	 * 1. ``index``: First index (%VIRTIO_HMM_ELEMENT_U64).
	 * 2. ``table``: First element of the table.
	 * 3. ``table_count``: Elements in the table.
	 * 4. ``count``: Indices.
	 * 5. ``element`` (&enum virtio_hmm_element): The type of the elements.
	 */
	VIRTIO_HMM_OPERATION_SCATTER = 14,

	/**
	 * @VIRTIO_HMM_OPERATION_LIST_WALK: Walks a list from node to node until
	 * a null pointer. Result 0: nodes visited. Result 1: the sum of their
	 * %VIRTIO_HMM_ELEMENT_U64 values. Result 2: the address of the first
	 * node whose value is ``key``, or zero. More than ``limit`` nodes end
	 * the job with %VIRTIO_HMM_STATUS_BOUND.
	 *
	 * 0. ``head``: Address of the first node, or zero.
	 * 1. ``next_offset``: Offset of the pointer to the next node, in bytes.
	 * 2. ``value_offset``: Offset of the value, in bytes.
	 * 3. ``key``: Value to look for.
	 * 4. ``limit``: The most nodes to visit.
	 */
	VIRTIO_HMM_OPERATION_LIST_WALK = 15,

	/**
	 * @VIRTIO_HMM_OPERATION_TREE_SEARCH: Searches a binary tree ordered by
	 * %VIRTIO_HMM_ELEMENT_U64 keys (smaller to the left). Result 0: the
	 * address of the node, or zero. Result 1: nodes visited.
	 *
	 * 0. ``root``: Address of the root, or zero.
	 * 1. ``left_offset``: Offset of the pointer to the left child, in
	 *    bytes.
	 * 2. ``right_offset``: Offset of the pointer to the right child, in
	 *    bytes.
	 * 3. ``key_offset``: Offset of the key, in bytes.
	 * 4. ``key``: Key to look for.
	 * 5. ``limit``: The most nodes to visit.
	 */
	VIRTIO_HMM_OPERATION_TREE_SEARCH = 16,

	/**
	 * @VIRTIO_HMM_OPERATION_TREE_SUM: Visits every node of a binary tree.
	 * Result 0: nodes visited. Result 1: the sum of their
	 * %VIRTIO_HMM_ELEMENT_U64 values. A tree with more than ``limit``
	 * nodes, or deeper than 65,536, ends the job with
	 * %VIRTIO_HMM_STATUS_BOUND.
	 *
	 * 0. ``root``: Address of the root, or zero.
	 * 1. ``left_offset``: Offset of the pointer to the left child, in
	 *    bytes.
	 * 2. ``right_offset``: Offset of the pointer to the right child, in
	 *    bytes.
	 * 3. ``value_offset``: Offset of the value, in bytes.
	 * 4. ``limit``: The most nodes to visit.
	 */
	VIRTIO_HMM_OPERATION_TREE_SUM = 17,

	/**
	 * @VIRTIO_HMM_OPERATION_BFS: Breadth-first search of a graph in
	 * compressed sparse rows. The job writes each vertex' distance from
	 * ``start`` to ``levels`` (%VIRTIO_HMM_ELEMENT_U32), %UINT32_MAX where
	 * there is no path. Result 0: vertices reached. Result 1: the greatest
	 * distance. An edge to a vertex that does not exist, or offsets that
	 * decrease or exceed ``edge_count``, end the job with
	 * %VIRTIO_HMM_STATUS_BAD_ARGUMENT.
	 *
	 * 0. ``offsets``: First of ``vertex_count + 1`` offsets
	 *    (%VIRTIO_HMM_ELEMENT_U64) into the edges.
	 * 1. ``edges``: First edge: the number (%VIRTIO_HMM_ELEMENT_U32) of the
	 *    vertex it leads to.
	 * 2. ``vertex_count``: Vertices; less than 2^32 - 1.
	 * 3. ``edge_count``: Edges.
	 * 4. ``start``: The vertex to start from.
	 * 5. ``levels``: First of ``vertex_count`` levels
	 *    (%VIRTIO_HMM_ELEMENT_U32).
	 * 6. ``queue``: Room for ``vertex_count`` vertex numbers
	 *    (%VIRTIO_HMM_ELEMENT_U32), which the job may overwrite.
	 */
	VIRTIO_HMM_OPERATION_BFS = 18,

	/**
	 * @VIRTIO_HMM_OPERATION_ATOMIC_ADD: Atomically adds to a
	 * %VIRTIO_HMM_ELEMENT_U32 or %VIRTIO_HMM_ELEMENT_U64, ``repeat`` times.
	 * Result 0: the value before the last addition.
	 *
	 * 0. ``address``: Address, a multiple of the element's size.
	 * 1. ``element`` (&enum virtio_hmm_element): %VIRTIO_HMM_ELEMENT_U32 or
	 *    %VIRTIO_HMM_ELEMENT_U64.
	 * 2. ``operand``: What to add.
	 * 3. ``repeat``: How many times.
	 */
	VIRTIO_HMM_OPERATION_ATOMIC_ADD = 19,

	/**
	 * @VIRTIO_HMM_OPERATION_ATOMIC_EXCHANGE: Atomically replaces a
	 * %VIRTIO_HMM_ELEMENT_U32 or %VIRTIO_HMM_ELEMENT_U64. Result 0: the old
	 * value.
	 *
	 * 0. ``address``: Address, a multiple of the element's size.
	 * 1. ``element`` (&enum virtio_hmm_element): %VIRTIO_HMM_ELEMENT_U32 or
	 *    %VIRTIO_HMM_ELEMENT_U64.
	 * 2. ``operand``: The new value.
	 */
	VIRTIO_HMM_OPERATION_ATOMIC_EXCHANGE = 20,

	/**
	 * @VIRTIO_HMM_OPERATION_ATOMIC_COMPARE_EXCHANGE: Atomically replaces a
	 * %VIRTIO_HMM_ELEMENT_U32 or %VIRTIO_HMM_ELEMENT_U64 if it equals
	 * ``expected``. Result 0: the old value. Result 1: one if it was
	 * replaced, otherwise zero.
	 *
	 * 0. ``address``: Address, a multiple of the element's size.
	 * 1. ``element`` (&enum virtio_hmm_element): %VIRTIO_HMM_ELEMENT_U32 or
	 *    %VIRTIO_HMM_ELEMENT_U64.
	 * 2. ``expected``: The value to be replaced.
	 * 3. ``operand``: The new value.
	 */
	VIRTIO_HMM_OPERATION_ATOMIC_COMPARE_EXCHANGE = 21,
};

/**
 * struct virtio_hmm_job_descriptor - A job as a program submits it; the driver
 *     passes it on without reading it
 * @operation: An operation's code.
 * @reserved: Zero.
 * @arguments: The operation's arguments in order; the others are zero.
 *
 * &enum virtio_hmm_operation has the operations with their arguments.
 */
struct virtio_hmm_job_descriptor {
	__le32 operation;
	__le32 reserved;
	__le64 arguments[VIRTIO_HMM_MAX_ARGUMENTS];
};

/**
 * struct virtio_hmm_job_reply - How a job ended
 * @status: A &enum virtio_hmm_status.
 * @reason: With %VIRTIO_HMM_STATUS_FAULT: a &enum virtio_hmm_reason. Otherwise
 *     zero.
 * @address: With %VIRTIO_HMM_STATUS_FAULT and %VIRTIO_HMM_STATUS_STORM: the
 *     address. Otherwise zero.
 * @access: The rights that the job needed there. Otherwise zero.
 * @faults: The number of times that the job waited for a page.
 * @values: The operation's results in order.
 * @nanoseconds: Time on an engine in nanoseconds, waiting for pages not
 *     included.
 * @system_bytes: Bytes of the guest's memory that the job read or wrote.
 * @device_bytes: Bytes of device memory that the job read or wrote.
 */
struct virtio_hmm_job_reply {
	__le32 status;
	__le32 reason;
	__le64 address;
	__le32 access;
	__le32 faults;
	__le64 values[4];
	__le64 nanoseconds;
	__le64 system_bytes;
	__le64 device_bytes;
};

/**
 * struct virtio_hmm_statistics - The device's counters since the last reset,
 *     and its current state
 * @spaces: Spaces that exist.
 * @jobs: Jobs that have not ended.
 * @parked_jobs: Jobs among them that wait for a page.
 * @mapped_pages: Pages that are mapped, in all spaces, in units of 4 KiB.
 * @large_leaves: Large leaves among the mappings.
 * @table_bytes: Memory that page tables take, in bytes.
 * @live_frames: Frames of device memory that have been written and not
 *     discarded.
 * @jobs_ended: Jobs that have ended.
 * @jobs_ok: Jobs among them that ended well.
 * @engine_nanoseconds: Nanoseconds that engines have spent on jobs.
 * @system_bytes: Bytes of the guest's memory that jobs have read or written.
 * @device_bytes: Bytes of device memory that jobs have read or written.
 * @tlb_hits: Translations found in an engine's TLB.
 * @tlb_misses: Translations that needed a walk of the page table.
 * @faults: Faults raised.
 * @fault_buffers: Fault buffers filled.
 * @faults_retried: Faults answered with retry.
 * @faults_terminated: Faults answered with terminate.
 * @answers_late: Answers to faults that were no longer waiting.
 * @control_requests: Control requests carried out.
 * @map_entries: Map entries carried out.
 * @invalidations: Ranges unmapped or protected.
 * @invalidated_pages: Pages whose rights these removed or restricted.
 * @invalidation_wait_nanoseconds: Nanoseconds that invalidations waited for
 *     engines.
 * @dma_requests: DMA requests carried out.
 * @copy_nanoseconds: Nanoseconds spent on carrying out their lists.
 * @bytes_to_device: Bytes copied to device memory.
 * @bytes_to_system: Bytes copied to the guest's memory.
 * @bytes_on_device: Bytes copied within device memory.
 * @bytes_cleared: Bytes cleared.
 * @frames_discarded: Frames discarded.
 * @items_failed: Items that failed.
 * @requests_refused: Requests refused with a status.
 * @chains_dropped: Chains that could not be answered.
 * @stale_accesses: With %VIRTIO_HMM_CAPABILITY_CHECK: accesses through a stale
 *     translation.
 * @freed_frame_uses: With %VIRTIO_HMM_CAPABILITY_CHECK: uses of a frame that is
 *     free.
 *
 * The first group is the current state; all others only grow until reset.
 */
struct virtio_hmm_statistics {
	__le64 spaces;
	__le64 jobs;
	__le64 parked_jobs;
	__le64 mapped_pages;
	__le64 large_leaves;
	__le64 table_bytes;
	__le64 live_frames;
	__le64 jobs_ended;
	__le64 jobs_ok;
	__le64 engine_nanoseconds;
	__le64 system_bytes;
	__le64 device_bytes;
	__le64 tlb_hits;
	__le64 tlb_misses;
	__le64 faults;
	__le64 fault_buffers;
	__le64 faults_retried;
	__le64 faults_terminated;
	__le64 answers_late;
	__le64 control_requests;
	__le64 map_entries;
	__le64 invalidations;
	__le64 invalidated_pages;
	__le64 invalidation_wait_nanoseconds;
	__le64 dma_requests;
	__le64 copy_nanoseconds;
	__le64 bytes_to_device;
	__le64 bytes_to_system;
	__le64 bytes_on_device;
	__le64 bytes_cleared;
	__le64 frames_discarded;
	__le64 items_failed;
	__le64 requests_refused;
	__le64 chains_dropped;
	__le64 stale_accesses;
	__le64 freed_frame_uses;
};

/**
 * struct virtio_hmm_info - Describes the device; allowed on a file that is not
 *     bound
 * @version: Out: %VIRTIO_HMM_VERSION.
 * @engines: Out: engines.
 * @device_memory: Out: device memory in bytes.
 * @free_memory: Out: device memory that is free now, in bytes.
 * @capabilities: Out: VIRTIO_HMM_CAPABILITY_* bits, without bits that the
 *     driver cannot use.
 * @max_jobs: Out: jobs that may be in flight on the device.
 * @max_spaces: Out: processes that may be bound at a time.
 * @device_version: Out: version of the device's interface.
 * @address_bits: Out: width of a virtual address in bits.
 * @state: Out: a &enum virtio_hmm_device_state.
 * @resets: Out: how often the device has been restarted after it was given up.
 */
struct virtio_hmm_info {
	__u32 version;
	__u32 engines;
	__u64 device_memory;
	__u64 free_memory;
	__u64 capabilities;
	__u32 max_jobs;
	__u32 max_spaces;
	__u32 device_version;
	__u32 address_bits;
	__u32 state;
	__u32 resets;
};

/**
 * struct virtio_hmm_bind - Binds the file to the calling process: its addresses
 *     become the device's
 * @version: In: %VIRTIO_HMM_VERSION.
 * @flags: In: zero.
 *
 * The space lives until the file is closed or the process ends.
 */
struct virtio_hmm_bind {
	__u32 version;
	__u32 flags;
};

/**
 * struct virtio_hmm_bind_process - Binds the file to another process, whose
 *     memory the caller may write: its addresses become the device's, and the
 *     caller makes the calls
 * @version: In: %VIRTIO_HMM_VERSION.
 * @flags: In: zero.
 * @pidfd: In: a pidfd of the process.
 * @memory: In: a descriptor of the ``mem`` file of the same process in
 *     ``/proc``, open for reading and writing.
 *
 * The space lives until the file is closed, or until the process ends or
 * executes another program.
 */
struct virtio_hmm_bind_process {
	__u32 version;
	__u32 flags;
	__s32 pidfd;
	__s32 memory;
};

/**
 * struct virtio_hmm_space_counters - Reads what has happened to the space that
 *     the file is bound to
 * @flags: In: zero.
 * @reserved: In: zero.
 * @jobs: Out: jobs submitted.
 * @faults: Out: fault records received.
 * @fault_pages: Out: pages mapped on behalf of faults.
 * @invalidations: Out: notifier callbacks.
 * @invalidations_sent: Out: notifier callbacks that concerned pages mapped on
 *     the device.
 * @pages_to_device: Out: pages moved to the device.
 * @pages_to_system: Out: pages moved back by request.
 * @cpu_fault_pages: Out: pages moved back because of CPU faults.
 */
struct virtio_hmm_space_counters {
	__u32 flags;
	__u32 reserved;
	__u64 jobs;
	__u64 faults;
	__u64 fault_pages;
	__u64 invalidations;
	__u64 invalidations_sent;
	__u64 pages_to_device;
	__u64 pages_to_system;
	__u64 cpu_fault_pages;
};

/**
 * struct virtio_hmm_submit - Submits jobs, which may run in any order and at
 *     the same time
 * @jobs: In: address of @count jobs, each a &struct virtio_hmm_job_descriptor.
 * @count: In: how many, 1 to %VIRTIO_HMM_MAX_SUBMIT.
 * @flags: In: a set of VIRTIO_HMM_SUBMIT_*.
 * @first_fence: Out: fence of the first job; each further job has the next
 *     number.
 * @submitted: Out: how many were submitted; fewer than asked if no more fit.
 * @eventfd: In: with %VIRTIO_HMM_SUBMIT_EVENTFD a descriptor of an eventfd,
 *     which is incremented for each of these jobs when it ends; otherwise zero.
 */
struct virtio_hmm_submit {
	__u64 jobs;
	__u32 count;
	__u32 flags;
	__u64 first_fence;
	__u32 submitted;
	__s32 eventfd;
};

/**
 * struct virtio_hmm_wait - Waits until a job has ended and fetches its result,
 *     once
 * @fence: In: the job's fence.
 * @deadline: In: until when to wait, in nanoseconds of %CLOCK_MONOTONIC; zero
 *     does not wait, a negative value waits for ever.
 * @result: Out: how the job ended.
 */
struct virtio_hmm_wait {
	__u64 fence;
	__s64 deadline;
	struct virtio_hmm_job_reply result;
};

/**
 * struct virtio_hmm_cancel - Asks a job of this file to end early. It is no
 *     error if it has ended
 * @fence: In: the job's fence.
 * @flags: In: zero.
 * @reserved: In: zero.
 */
struct virtio_hmm_cancel {
	__u64 fence;
	__u32 flags;
	__u32 reserved;
};

/**
 * struct virtio_hmm_wait_any - Waits until one of several jobs has ended and
 *     fetches its result
 * @fences: In: address of @count fences, each a __u64; ignored if @count is
 *     zero.
 * @count: In: how many, up to %VIRTIO_HMM_MAX_WAIT; zero means all jobs of the
 *     file whose results have not been fetched.
 * @flags: In: zero.
 * @deadline: In: until when to wait, as &virtio_hmm_wait.deadline.
 * @fence: Out: the fence of the job that has ended.
 * @result: Out: how it ended.
 */
struct virtio_hmm_wait_any {
	__u64 fences;
	__u32 count;
	__u32 flags;
	__s64 deadline;
	__u64 fence;
	struct virtio_hmm_job_reply result;
};

/**
 * struct virtio_hmm_migrate - Moves the private anonymous pages of a range of
 *     the caller's addresses
 * @address: In: first byte, aligned to a page.
 * @bytes: In: how many bytes, a multiple of the page size.
 * @destination: In: a &enum virtio_hmm_destination.
 * @flags: In: VIRTIO_HMM_MIGRATE_*.
 * @moved: Out: pages that this call has moved to the destination.
 * @skipped: Out: other pages of the range: they were there already, cannot
 *     move, or are not mapped.
 * @no_memory: Out: skipped pages for which there was no memory at the
 *     destination. Once the device is full, the call no longer tries further
 *     pages.
 * @reached: Out: where the call ended: at the end of the range, or before it
 *     for a signal.
 *
 * Pages that cannot move are left and counted; that is no error. A signal ends
 * the call with what has been done.
 */
struct virtio_hmm_migrate {
	__u64 address;
	__u64 bytes;
	__u32 destination;
	__u32 flags;
	__u64 moved;
	__u64 skipped;
	__u64 no_memory;
	__u64 reached;
};

/**
 * struct virtio_hmm_residency - Reports where the pages of a range are, without
 *     touching them
 * @pid: In: zero for the file's own process, else the id of a process that is
 *     bound to this device; that needs %CAP_SYS_PTRACE unless it is the caller.
 * @flags: In: zero.
 * @address: In: first byte, aligned to a page.
 * @pages: In: how many pages, 1 to %VIRTIO_HMM_MAX_RESIDENCY_PAGES.
 * @states: In: address of @pages bytes, each set to a combination of
 *     VIRTIO_HMM_PAGE_*.
 */
struct virtio_hmm_residency {
	__s32 pid;
	__u32 flags;
	__u64 address;
	__u64 pages;
	__u64 states;
};

/**
 * struct virtio_hmm_driver_statistics - The driver's counters since it was
 *     bound to the device
 * @spaces: Processes that are bound now.
 * @used_frames: Frames of device memory that hold a page now.
 * @total_frames: Frames of device memory that the driver manages.
 * @faults: Fault records received.
 * @fault_batches: Batches in which they arrived.
 * @fault_pages: Pages mapped on behalf of faults.
 * @fault_retries: Range faults that had to be repeated because the process
 *     changed its mappings meanwhile.
 * @faults_terminated: Faults answered with terminate.
 * @invalidations: Notifier callbacks.
 * @invalidations_sent: Notifier callbacks that concerned pages mapped on the
 *     device.
 * @pages_to_device: Pages moved to the device.
 * @huge_to_device: Huge pages among these moves, counted once each.
 * @pages_to_system: Pages moved back by request.
 * @cpu_fault_pages: Pages moved back because of CPU faults.
 * @pages_evicted: Pages moved back because the device was closed or removed.
 * @huge_to_system: Huge pages among all moves back, counted once each.
 * @pages_refused: Pages that could not be moved to the device.
 * @pages_lost: Pages lost because the device failed to copy them back.
 * @collect_nanoseconds: Nanoseconds that migrations took to collect pages from
 *     their processes.
 * @allocate_nanoseconds: Nanoseconds that migrations took to allocate memory
 *     for these pages at the destination, and to send the copy lists.
 * @copy_nanoseconds: Nanoseconds that they waited for copies after that.
 * @commit_nanoseconds: Nanoseconds that migrations took to exchange the memory.
 * @finalise_nanoseconds: Nanoseconds that they took to return the pages to
 *     their processes.
 * @invalidate_nanoseconds: Nanoseconds that notifier callbacks waited for the
 *     device's promise.
 * @control_requests: Requests sent on the control queue.
 * @dma_requests: Requests sent on the dma queue.
 * @interrupts: Queue interrupts handled.
 * @kicks: Kicks: notifications that were sent to the device.
 * @changes_hurried: Changes of a process's memory that waited for huge pages in
 *     migration until the driver's limit for such waits, and then continued.
 */
struct virtio_hmm_driver_statistics {
	__u64 spaces;
	__u64 used_frames;
	__u64 total_frames;
	__u64 faults;
	__u64 fault_batches;
	__u64 fault_pages;
	__u64 fault_retries;
	__u64 faults_terminated;
	__u64 invalidations;
	__u64 invalidations_sent;
	__u64 pages_to_device;
	__u64 huge_to_device;
	__u64 pages_to_system;
	__u64 cpu_fault_pages;
	__u64 pages_evicted;
	__u64 huge_to_system;
	__u64 pages_refused;
	__u64 pages_lost;
	__u64 collect_nanoseconds;
	__u64 allocate_nanoseconds;
	__u64 copy_nanoseconds;
	__u64 commit_nanoseconds;
	__u64 finalise_nanoseconds;
	__u64 invalidate_nanoseconds;
	__u64 control_requests;
	__u64 dma_requests;
	__u64 interrupts;
	__u64 kicks;
	__u64 changes_hurried;
};

/**
 * struct virtio_hmm_counters - Reads the counters of the driver and of the
 *     device
 * @driver: Out: the driver's.
 * @device: Out: the device's.
 */
struct virtio_hmm_counters {
	struct virtio_hmm_driver_statistics driver;
	struct virtio_hmm_statistics device;
};

/* The calls. Each passes its structure both ways. */
#define VIRTIO_HMM_IOC_INFO		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 0, struct virtio_hmm_info)
#define VIRTIO_HMM_IOC_BIND		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 1, struct virtio_hmm_bind)
#define VIRTIO_HMM_IOC_SUBMIT		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 2, struct virtio_hmm_submit)
#define VIRTIO_HMM_IOC_WAIT		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 3, struct virtio_hmm_wait)
#define VIRTIO_HMM_IOC_MIGRATE		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 4, struct virtio_hmm_migrate)
#define VIRTIO_HMM_IOC_RESIDENCY	_IOWR(VIRTIO_HMM_IOCTL_TYPE, 5, struct virtio_hmm_residency)
#define VIRTIO_HMM_IOC_COUNTERS		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 6, struct virtio_hmm_counters)
#define VIRTIO_HMM_IOC_CANCEL		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 7, struct virtio_hmm_cancel)
#define VIRTIO_HMM_IOC_WAIT_ANY		_IOWR(VIRTIO_HMM_IOCTL_TYPE, 8, struct virtio_hmm_wait_any)
#define VIRTIO_HMM_IOC_BIND_PROCESS	_IOWR(VIRTIO_HMM_IOCTL_TYPE, 9, struct virtio_hmm_bind_process)
#define VIRTIO_HMM_IOC_SPACE_COUNTERS	_IOWR(VIRTIO_HMM_IOCTL_TYPE, 10, struct virtio_hmm_space_counters)

#endif /* _UAPI_VIRTIO_HMM_H */
