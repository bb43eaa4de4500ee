/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */

#ifndef HMM_H
#define HMM_H

/* Generated from guest/c/src by "cargo xtask headers"; do not edit. */

#include <stddef.h>
#include <stdint.h>

#include <virtio_hmm.h>

/**
 * DOC: libhmm, for programs that use a virtio-hmm accelerator
 *
 * The accelerator works on the program's own addresses: any pointer that is
 * valid in the process is valid on the device. Nothing is registered, pinned or
 * copied beforehand.
 *
 * A function that can fail returns a negative errno, and leaves the variable
 * errno alone. Each function's documentation has the values that it returns;
 * any of them returns -EFAULT for a pointer that must not be NULL. Functions
 * may be called from any thread. A signal interrupts hmm_wait() and
 * hmm_wait_any() alone, with -EINTR.
 *
 * Structures that are called virtio_hmm_* are those of the driver, in
 * virtio_hmm.h. Those of jobs and their replies are little-endian.
 */

/**
 * struct hmm_device - An open device
 *
 * Made by hmm_open(), and freed by hmm_close().
 */
struct hmm_device;

/**
 * struct hmm_migration - The result of moving pages
 */
struct hmm_migration {
        /**
         * @moved: pages that were moved to the destination
         */
        uint64_t moved;
        /**
         * @skipped: other pages of the range: they were there already, cannot
         * move, or are not mapped
         */
        uint64_t skipped;
        /**
         * @no_memory: those of @skipped for which the destination had no memory
         */
        uint64_t no_memory;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * hmm_open() - Opens a device, such as "/dev/hmm0".
 *
 * @path: the device's node
 * @device: receives the device, which belongs to the caller until hmm_close()
 *
 * Return: zero, or a negative errno of open(2), such as -ENOENT without such
 * a device and -EACCES without the right to use it. @device is then
 * unchanged.
 */
int hmm_open(const char *path, struct hmm_device **device);

/**
 * hmm_close() - Closes a device. Its jobs end, and its pages return to system
 *     memory.
 *
 * @device: the device, or NULL, with which nothing happens
 *
 * No other function may use the device at the same time or later. Memory that
 * its jobs write may be used after this, unless a forked child still has the
 * file open: a program that forks waits for its jobs before.
 */
void hmm_close(struct hmm_device *device);

/**
 * hmm_fd() - The device's file, for poll(2) and the like.
 *
 * @device: the device
 *
 * It is readable when a job has ended whose reply has not been fetched. It
 * belongs to the device: the caller must not close it.
 *
 * Return: the descriptor, or -EFAULT when @device is NULL.
 */
int hmm_fd(const struct hmm_device *device);

/**
 * hmm_bind() - Binds a device to the calling process: its addresses become the
 *     device's.
 *
 * @device: the device
 *
 * Jobs, migrations and residency need it. A forked child cannot use its
 * parent's device. If the device failed and was started anew, a further call
 * binds again; what the device held is lost.
 *
 * Return: zero; -EBUSY when it is bound already, -ENOSPC when as many processes
 * are bound as the device or the user may have, -EAGAIN while the device is
 * about to be started anew, -EPROTO when the driver has another version,
 * -ENODEV when the device has been removed, -EIO when it is broken.
 */
int hmm_bind(const struct hmm_device *device);

/**
 * hmm_info() - Describes a device: its kind, its sizes and its state.
 *
 * @device: the device, which need not be bound
 * @info: receives the description
 *
 * Return: zero; -ENODEV when the device has been removed, -EIO when it stopped
 * answering, -ENOTTY when the file is no such device or its driver is older
 * than this library.
 */
int hmm_info(const struct hmm_device *device, struct virtio_hmm_info *info);

/**
 * hmm_counters() - Reads the counters of driver and device.
 *
 * @device: the device, which need not be bound
 * @counters: receives the counters
 *
 * Return: as hmm_info().
 */
int hmm_counters(const struct hmm_device *device,
                 struct virtio_hmm_counters *counters);

/**
 * hmm_job_init() - Fills in a job and checks it.
 *
 * @job: receives the job
 * @operation: an &enum virtio_hmm_operation
 * @arguments: the operation's arguments in order, in the program's byte order;
 *     pointers as integers, and floating point as its bits
 * @count: how many arguments; exactly as many as the operation has
 *
 * A program may also fill in the structure itself, in little-endian byte
 * order.
 *
 * Return: zero; -EOPNOTSUPP when there is no such operation, -EINVAL when it
 * has another number of arguments or one is not a value of its type.
 */
int hmm_job_init(struct virtio_hmm_job_descriptor *job,
                 uint32_t operation,
                 const uint64_t *arguments,
                 size_t count);

/**
 * hmm_submit() - Submits jobs and returns at once. They run in any order, and
 *     at the same time.
 *
 * @device: the device, bound to this process
 * @jobs: the jobs, which may be freed after the call
 * @count: how many; of more than %VIRTIO_HMM_MAX_SUBMIT, only the first ones
 *     are submitted
 * @eventfd: an eventfd that is incremented for each of these jobs when it ends
 *     in whatever way, or -1; it may be closed after the call
 * @first_fence: receives the fence of the first job, by which it is named from
 *     now on; each further job has the next number
 *
 * Memory that a job writes must stay valid, and must not be used by anything
 * else, until the job has ended: until hmm_wait(), hmm_wait_any() or
 * hmm_close() has said so. Memory that a job only reads may change or go away;
 * the job then reads what it finds, or ends with a fault.
 *
 * Return: how many jobs were submitted, at least one and fewer than @count if
 * the device has no room for more; -EAGAIN when it has no room at all,
 * -EINVAL when @count is zero or @eventfd is no eventfd, -EBADF when it is not
 * open, -EPERM when the device is not bound to this process, -ENODEV or -EIO
 * when it is removed or broken.
 */
int hmm_submit(const struct hmm_device *device,
               const struct virtio_hmm_job_descriptor *jobs,
               uint32_t count,
               int eventfd,
               uint64_t *first_fence);

/**
 * hmm_wait() - Waits until a job has ended, and fetches its reply, once.
 *
 * @device: the device
 * @fence: the job's fence
 * @timeout: how long to wait, in nanoseconds; zero does not wait, and a negative
 *     number waits for ever
 * @reply: receives how the job ended: see &virtio_hmm_job_reply.status, and
 *     hmm_job_text() for words
 *
 * Return: zero when the job has ended, well or not. -ETIME when it has not
 * ended in time, and -EINTR when a signal arrived whose handler was installed
 * without SA_RESTART: the job may still run. -ENOENT when there is no such job
 * or its reply has been fetched. -ENODEV or -EIO when the device was removed or
 * broke: the job has ended then, too. -EPERM when the device is not bound to
 * this process.
 */
int hmm_wait(const struct hmm_device *device,
             uint64_t fence,
             int64_t timeout,
             struct virtio_hmm_job_reply *reply);

/**
 * hmm_wait_any() - Waits until one of several jobs has ended, and fetches its
 *     reply, once.
 *
 * @device: the device
 * @fences: the fences of the jobs; if several have ended, the first one in this
 *     list is chosen
 * @count: how many, up to %VIRTIO_HMM_MAX_WAIT; zero means all jobs of this
 *     device whose replies have not been fetched
 * @timeout: as in hmm_wait()
 * @fence: receives the fence of the job that has ended
 * @reply: receives how it ended
 *
 * Return: as hmm_wait(); -EINVAL when there are too many fences, -ENOENT when
 * one of them names no job, or @count is zero and there are no jobs.
 */
int hmm_wait_any(const struct hmm_device *device,
                 const uint64_t *fences,
                 uint32_t count,
                 int64_t timeout,
                 uint64_t *fence,
                 struct virtio_hmm_job_reply *reply);

/**
 * hmm_cancel() - Asks a job to end early. It is no error if it has ended.
 *
 * @device: the device
 * @fence: the job's fence
 *
 * This does not wait for the end: the job uses its memory until hmm_wait() or
 * hmm_wait_any() has returned its reply. Its status is then
 * %VIRTIO_HMM_STATUS_CANCELLED, unless it ended otherwise before.
 *
 * Return: zero; -ENOMEM when the guest is out of memory, -EPERM when the device
 * is not bound to this process, -ENODEV or -EIO when it is removed or broken:
 * the job has ended then.
 */
int hmm_cancel(const struct hmm_device *device, uint64_t fence);

/**
 * hmm_run() - Runs a job, and returns when it has ended, however often signals
 *     arrive.
 *
 * @device: the device, bound to this process
 * @job: the job
 * @reply: receives how the job ended
 *
 * Return: zero when the job has ended, well or not; otherwise as hmm_submit().
 * When this returns, no job uses the memory any more. If the driver cannot
 * confirm that, the process is ended, because the device could go on writing.
 */
int hmm_run(const struct hmm_device *device,
            const struct virtio_hmm_job_descriptor *job,
            struct virtio_hmm_job_reply *reply);

/**
 * hmm_migrate() - Moves the pages that hold some bytes to the device or back.
 *
 * @device: the device, bound to this process
 * @start: the first byte
 * @bytes: how many bytes
 * @destination: an &enum virtio_hmm_destination
 * @flags: a set of VIRTIO_HMM_MIGRATE_*; %VIRTIO_HMM_MIGRATE_POPULATE is for
 *     moves to the device
 * @migration: receives how many pages moved; may be NULL
 *
 * Whole pages move, which may hold other data too; that changes no contents.
 * Pages that cannot move stay and are counted, which is no error. A page on
 * the device returns by itself when a CPU touches it.
 *
 * Return: zero; -EINVAL for an unknown destination or flag, or a range beyond
 * the end of all addresses; -EPERM when the device is not bound to this
 * process, -ENOMEM when the guest is out of memory, -ENODEV or -EIO when the
 * device is removed or broken.
 */
int hmm_migrate(const struct hmm_device *device,
                const void *start,
                size_t bytes,
                uint32_t destination,
                uint32_t flags,
                struct hmm_migration *migration);

/**
 * hmm_residency() - Reports where the pages are that hold some bytes, without
 *     touching them.
 *
 * @device: the device
 * @pid: zero for this process, else the id of another one that is bound to the
 *     device, which needs CAP_SYS_PTRACE
 * @start: the first byte
 * @bytes: how many bytes
 * @states: receives one byte for each page: %VIRTIO_HMM_PAGE_PLACE of it is the
 *     place, and VIRTIO_HMM_PAGE_* has the other bits
 * @room: how many bytes @states has room for
 *
 * Return: the number of pages. It is more than @room if there is not enough
 * room, and nothing is written then; so @room zero asks for the number alone.
 * -EINVAL for a range beyond the end of all addresses, -ESRCH when no such
 * process is bound to the device, -EACCES when the caller may not look at it,
 * -EPERM when the device is not bound to this process, -ENODEV when the device
 * is removed.
 */
int64_t hmm_residency(const struct hmm_device *device,
                      int32_t pid,
                      const void *start,
                      size_t bytes,
                      uint8_t *states,
                      size_t room);

/**
 * hmm_error_text() - Puts into words what an error of this library means.
 *
 * @error: what a function returned, a negative errno
 * @text: receives the text, which a zero byte ends; a text that is too long is
 *     cut off; may be NULL if @room is zero
 * @room: how many bytes @text has room for, the zero byte included
 *
 * Return: the length of the whole text in bytes, without the zero byte, as
 * snprintf(3) does.
 */
size_t hmm_error_text(int error, char *text, size_t room);

/**
 * hmm_job_text() - Puts into words how a job ended.
 *
 * @reply: how it ended
 * @text: as in hmm_error_text()
 * @room: as in hmm_error_text()
 *
 * Return: as hmm_error_text().
 */
size_t hmm_job_text(const struct virtio_hmm_job_reply *reply,
                    char *text,
                    size_t room);

/**
 * hmm_version() - The version of this library, such as "0.1.0".
 *
 * Return: a string that is never freed.
 */
const char *hmm_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HMM_H */
