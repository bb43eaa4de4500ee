/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The driver's tracepoints, which trace.rs calls. docs/tracing.md has their meaning.
 *
 * Addresses are those of the process, ends of ranges are exclusive, times are in nanoseconds.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM virtio_hmm

#if !defined(VIRTIO_HMM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VIRTIO_HMM_TRACE_H

#include <linux/mmu_notifier.h>
#include <linux/tracepoint.h>
#include <linux/types.h>

#ifndef VIRTIO_HMM_TRACE_TYPES
#define VIRTIO_HMM_TRACE_TYPES

struct virtio_hmm_trace_fault {
	u32 device;
	u32 space;
	u64 job;
	u64 address;
	u32 access;
	u32 pages;
};

struct virtio_hmm_trace_resolve {
	u32 device;
	u32 space;
	u64 address;
	u32 faults;
	int error;
	u64 pages;
	u64 retries;
	u64 nanoseconds;
};

struct virtio_hmm_trace_migrate {
	u32 device;
	int space;
	u64 start;
	u64 end;
	u64 pages;
	u64 huge;
	u32 to_device;
	u32 cause;
	u64 collect;
	u64 allocate;
	u64 copy;
	u64 commit;
	u64 finalise;
	u64 used;
};

struct virtio_hmm_trace_change {
	u32 device;
	u32 space;
	u64 start;
	u64 end;
	u32 event;
};

struct virtio_hmm_trace_invalidate {
	u32 device;
	u32 space;
	u64 start;
	u64 end;
	u64 nanoseconds;
};

struct virtio_hmm_trace_submit {
	u32 device;
	u32 space;
	u64 job;
	u32 operation;
};

struct virtio_hmm_trace_complete {
	u32 device;
	u32 space;
	u64 job;
	int status;
};

#endif /* VIRTIO_HMM_TRACE_TYPES */

/* A fault of the device has arrived. */
TRACE_EVENT(virtio_hmm_fault,
	TP_PROTO(const struct virtio_hmm_trace_fault *fault),
	TP_ARGS(fault),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, space)
		__field(u64, job)
		__field(u64, address)
		__field(u32, access)
		__field(u32, pages)
	),
	TP_fast_assign(
		__entry->device = fault->device;
		__entry->space = fault->space;
		__entry->job = fault->job;
		__entry->address = fault->address;
		__entry->access = fault->access;
		__entry->pages = fault->pages;
	),
	TP_printk("device=%u space=%u job=%llu address=0x%llx access=%u pages=%u",
		  __entry->device, __entry->space, __entry->job, __entry->address,
		  __entry->access, __entry->pages)
);

/* Pages of a region have been mapped, or could not be. */
TRACE_EVENT(virtio_hmm_resolve,
	TP_PROTO(const struct virtio_hmm_trace_resolve *resolve),
	TP_ARGS(resolve),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, space)
		__field(u64, address)
		__field(u32, faults)
		__field(int, error)
		__field(u64, pages)
		__field(u64, retries)
		__field(u64, nanoseconds)
	),
	TP_fast_assign(
		__entry->device = resolve->device;
		__entry->space = resolve->space;
		__entry->address = resolve->address;
		__entry->faults = resolve->faults;
		__entry->error = resolve->error;
		__entry->pages = resolve->pages;
		__entry->retries = resolve->retries;
		__entry->nanoseconds = resolve->nanoseconds;
	),
	TP_printk("device=%u space=%u address=0x%llx faults=%u error=%d pages=%llu retries=%llu nanoseconds=%llu",
		  __entry->device, __entry->space, __entry->address, __entry->faults,
		  __entry->error, __entry->pages, __entry->retries, __entry->nanoseconds)
);

/* Pages of a range have moved, or none of them could. The space is -1 if it is not known. */
TRACE_EVENT(virtio_hmm_migrate,
	TP_PROTO(const struct virtio_hmm_trace_migrate *migrate),
	TP_ARGS(migrate),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(int, space)
		__field(u64, start)
		__field(u64, end)
		__field(u64, pages)
		__field(u64, huge)
		__field(u32, to_device)
		__field(u32, cause)
		__field(u64, collect)
		__field(u64, allocate)
		__field(u64, copy)
		__field(u64, commit)
		__field(u64, finalise)
		__field(u64, used)
	),
	TP_fast_assign(
		__entry->device = migrate->device;
		__entry->space = migrate->space;
		__entry->start = migrate->start;
		__entry->end = migrate->end;
		__entry->pages = migrate->pages;
		__entry->huge = migrate->huge;
		__entry->to_device = migrate->to_device;
		__entry->cause = migrate->cause;
		__entry->collect = migrate->collect;
		__entry->allocate = migrate->allocate;
		__entry->copy = migrate->copy;
		__entry->commit = migrate->commit;
		__entry->finalise = migrate->finalise;
		__entry->used = migrate->used;
	),
	TP_printk("device=%u space=%d start=0x%llx end=0x%llx pages=%llu huge=%llu to=%s cause=%s collect=%llu allocate=%llu copy=%llu commit=%llu finalise=%llu used=%llu",
		  __entry->device, __entry->space, __entry->start, __entry->end,
		  __entry->pages, __entry->huge, __entry->to_device ? "device" : "system",
		  __print_symbolic(__entry->cause,
				   { 0, "REQUEST" }, { 1, "PAGEFAULT_GPU" }, { 2, "PAGEFAULT_CPU" },
				   { 3, "EXIT" }, { 4, "REMOVAL" }, { 5, "SUSPEND" }, { 6, "RESET" }),
		  __entry->collect, __entry->allocate, __entry->copy, __entry->commit,
		  __entry->finalise, __entry->used)
);

/* A process of a space is about to change its address space. */
TRACE_EVENT(virtio_hmm_change,
	TP_PROTO(const struct virtio_hmm_trace_change *change),
	TP_ARGS(change),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, space)
		__field(u64, start)
		__field(u64, end)
		__field(u32, event)
	),
	TP_fast_assign(
		__entry->device = change->device;
		__entry->space = change->space;
		__entry->start = change->start;
		__entry->end = change->end;
		__entry->event = change->event;
	),
	TP_printk("device=%u space=%u start=0x%llx end=0x%llx event=%s",
		  __entry->device, __entry->space, __entry->start, __entry->end,
		  __print_symbolic(__entry->event,
				   { MMU_NOTIFY_UNMAP, "UNMAP" }, { MMU_NOTIFY_CLEAR, "CLEAR" },
				   { MMU_NOTIFY_PROTECTION_VMA, "PROTECTION_VMA" },
				   { MMU_NOTIFY_PROTECTION_PAGE, "PROTECTION_PAGE" },
				   { MMU_NOTIFY_SOFT_DIRTY, "SOFT_DIRTY" },
				   { MMU_NOTIFY_RELEASE, "RELEASE" },
				   { MMU_NOTIFY_MIGRATE, "MIGRATE" },
				   { MMU_NOTIFY_EXCLUSIVE, "EXCLUSIVE" }))
);

/* The device has acknowledged the Unmap of a range, which a change waited for. */
TRACE_EVENT(virtio_hmm_invalidate,
	TP_PROTO(const struct virtio_hmm_trace_invalidate *invalidate),
	TP_ARGS(invalidate),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, space)
		__field(u64, start)
		__field(u64, end)
		__field(u64, nanoseconds)
	),
	TP_fast_assign(
		__entry->device = invalidate->device;
		__entry->space = invalidate->space;
		__entry->start = invalidate->start;
		__entry->end = invalidate->end;
		__entry->nanoseconds = invalidate->nanoseconds;
	),
	TP_printk("device=%u space=%u start=0x%llx end=0x%llx nanoseconds=%llu",
		  __entry->device, __entry->space, __entry->start, __entry->end,
		  __entry->nanoseconds)
);

/* A job has been put into the submit queue. */
TRACE_EVENT(virtio_hmm_submit,
	TP_PROTO(const struct virtio_hmm_trace_submit *submit),
	TP_ARGS(submit),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, space)
		__field(u64, job)
		__field(u32, operation)
	),
	TP_fast_assign(
		__entry->device = submit->device;
		__entry->space = submit->space;
		__entry->job = submit->job;
		__entry->operation = submit->operation;
	),
	TP_printk("device=%u space=%u job=%llu operation=%u",
		  __entry->device, __entry->space, __entry->job, __entry->operation)
);

/* The device has returned a job. The status is -1 if the device was reset instead. */
TRACE_EVENT(virtio_hmm_complete,
	TP_PROTO(const struct virtio_hmm_trace_complete *complete),
	TP_ARGS(complete),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, space)
		__field(u64, job)
		__field(int, status)
	),
	TP_fast_assign(
		__entry->device = complete->device;
		__entry->space = complete->space;
		__entry->job = complete->job;
		__entry->status = complete->status;
	),
	TP_printk("device=%u space=%u job=%llu status=%d",
		  __entry->device, __entry->space, __entry->job, __entry->status)
);

#endif /* VIRTIO_HMM_TRACE_H */

/* This part is read once for each thing that the kernel makes of it. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
