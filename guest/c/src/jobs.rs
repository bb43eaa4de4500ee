//! Jobs, which the caller knows by their fences.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use hmm::{calls, Error, Operation};
use virtio_hmm_spec::wire::job::{JobDescriptor, JobReply, MAX_ARGUMENTS};
use virtio_hmm_spec::wire::operation::DecodeError;
use zerocopy::FromZeros;

use crate::{negative, plain, store, HmmDevice};

/// hmm_job_init() - Fills in a job and checks it.
///
/// @job: receives the job
/// @operation: an &enum virtio_hmm_operation
/// @arguments: the operation's arguments in order, in the program's byte order;
///     pointers as integers, and floating point as its bits
/// @count: how many arguments; exactly as many as the operation has
///
/// A program may also fill in the structure itself, in little-endian byte
/// order.
///
/// Return: zero; -EOPNOTSUPP when there is no such operation, -EINVAL when it
/// has another number of arguments or one is not a value of its type.
#[no_mangle]
pub unsafe extern "C" fn hmm_job_init(
    job: *mut JobDescriptor,
    operation: u32,
    arguments: *const u64,
    count: usize,
) -> c_int {
    if job.is_null() || (arguments.is_null() && count > 0) {
        return -libc::EFAULT;
    }
    if count > MAX_ARGUMENTS {
        return -libc::EINVAL;
    }
    let mut descriptor = JobDescriptor::new_zeroed();
    descriptor.operation = operation.into();
    for (index, slot) in descriptor.arguments.iter_mut().take(count).enumerate() {
        // SAFETY: the header asks for `count` arguments.
        let argument = unsafe { arguments.add(index) };
        // SAFETY: as above.
        *slot = unsafe { argument.read() }.into();
    }
    match Operation::decode(&descriptor) {
        Err(DecodeError::Unsupported) => return -libc::EOPNOTSUPP,
        Err(DecodeError::Malformed) => return -libc::EINVAL,
        Ok(_) => {}
    }
    let mut all = Operation::DESCRIPTIONS.iter();
    if !all.any(|it| it.code == operation && it.arguments.len() == count) {
        return -libc::EINVAL;
    }
    // SAFETY: it is not null, and the header asks for a place to write to.
    unsafe { job.write(descriptor) };
    0
}

/// hmm_submit() - Submits jobs and returns at once. They run in any order, and
///     at the same time.
///
/// @device: the device, bound to this process
/// @jobs: the jobs, which may be freed after the call
/// @count: how many; of more than %VIRTIO_HMM_MAX_SUBMIT, only the first ones
///     are submitted
/// @eventfd: an eventfd that is incremented for each of these jobs when it ends
///     in whatever way, or -1; it may be closed after the call
/// @first_fence: receives the fence of the first job, by which it is named from
///     now on; each further job has the next number
///
/// Memory that a job writes must stay valid, and must not be used by anything
/// else, until the job has ended: until hmm_wait(), hmm_wait_any() or
/// hmm_close() has said so. Memory that a job only reads may change or go away;
/// the job then reads what it finds, or ends with a fault.
///
/// Return: how many jobs were submitted, at least one and fewer than @count if
/// the device has no room for more; -EAGAIN when it has no room at all,
/// -EINVAL when @count is zero or @eventfd is no eventfd, -EBADF when it is not
/// open, -EPERM when the device is not bound to this process, -ENODEV or -EIO
/// when it is removed or broken.
#[no_mangle]
pub unsafe extern "C" fn hmm_submit(
    device: *const HmmDevice,
    jobs: *const JobDescriptor,
    count: u32,
    eventfd: c_int,
    first_fence: *mut u64,
) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    let Some(device) = (unsafe { device.as_ref() }) else {
        return -libc::EFAULT;
    };
    if jobs.is_null() || first_fence.is_null() {
        return -libc::EFAULT;
    }
    let Ok(count) = usize::try_from(count) else {
        return -libc::EINVAL;
    };
    // SAFETY: it is not null, and the header asks for `count` jobs; those of any bytes are valid.
    let jobs = unsafe { std::slice::from_raw_parts(jobs, count) };
    let eventfd = match eventfd {
        -1 => None,
        other if other < 0 => return -libc::EBADF,
        // SAFETY: it is not -1, and it is used during this call alone, in which the header asks the
        // caller to leave it open. The driver checks that it is open.
        file => Some(unsafe { BorrowedFd::borrow_raw(file) }),
    };
    // SAFETY: the header asks for what this asks for.
    match unsafe { calls::submit(&device.0, jobs, eventfd) } {
        Err(error) => negative(&error),
        Ok(fences) => {
            // SAFETY: it is not null, and the header asks for a place to write to.
            unsafe { first_fence.write(fences.start) };
            // At most as many as one call submits.
            c_int::try_from(fences.count()).unwrap_or(c_int::MAX)
        }
    }
}

/// hmm_wait() - Waits until a job has ended, and fetches its reply, once.
///
/// @device: the device
/// @fence: the job's fence
/// @timeout: how long to wait, in nanoseconds; zero does not wait, and a negative
///     number waits for ever
/// @reply: receives how the job ended: see &virtio_hmm_job_reply.status, and
///     hmm_job_text() for words
///
/// Return: zero when the job has ended, well or not. -ETIME when it has not
/// ended in time, and -EINTR when a signal arrived whose handler was installed
/// without SA_RESTART: the job may still run. -ENOENT when there is no such job
/// or its reply has been fetched. -ENODEV or -EIO when the device was removed or
/// broke: the job has ended then, too. -EPERM when the device is not bound to
/// this process.
#[no_mangle]
pub unsafe extern "C" fn hmm_wait(
    device: *const HmmDevice,
    fence: u64,
    timeout: i64,
    reply: *mut JobReply,
) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    let Some(device) = (unsafe { device.as_ref() }) else {
        return -libc::EFAULT;
    };
    if reply.is_null() {
        // Before the reply is fetched, which would be lost.
        return -libc::EFAULT;
    }
    // SAFETY: the header asks for a place to write to.
    unsafe { store(reply, calls::wait(&device.0, fence, limit(timeout))) }
}

/// hmm_wait_any() - Waits until one of several jobs has ended, and fetches its
///     reply, once.
///
/// @device: the device
/// @fences: the fences of the jobs; if several have ended, the first one in this
///     list is chosen
/// @count: how many, up to %VIRTIO_HMM_MAX_WAIT; zero means all jobs of this
///     device whose replies have not been fetched
/// @timeout: as in hmm_wait()
/// @fence: receives the fence of the job that has ended
/// @reply: receives how it ended
///
/// Return: as hmm_wait(); -EINVAL when there are too many fences, -ENOENT when
/// one of them names no job, or @count is zero and there are no jobs.
#[no_mangle]
pub unsafe extern "C" fn hmm_wait_any(
    device: *const HmmDevice,
    fences: *const u64,
    count: u32,
    timeout: i64,
    fence: *mut u64,
    reply: *mut JobReply,
) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    let Some(device) = (unsafe { device.as_ref() }) else {
        return -libc::EFAULT;
    };
    if fence.is_null() || reply.is_null() || (fences.is_null() && count > 0) {
        return -libc::EFAULT;
    }
    let fences: &[u64] = match usize::try_from(count) {
        Err(_) => return -libc::EINVAL,
        Ok(0) => &[],
        // SAFETY: it is not null, and the header asks for `count` fences.
        Ok(count) => unsafe { std::slice::from_raw_parts(fences, count) },
    };
    match calls::wait_any(&device.0, fences, limit(timeout)) {
        Err(error) => negative(&error),
        Ok((ended, its_reply)) => {
            // SAFETY: it is not null, and the header asks for a place to write to.
            unsafe { fence.write(ended) };
            // SAFETY: as above.
            unsafe { store(reply, Ok::<_, Error>(its_reply)) }
        }
    }
}

/// hmm_cancel() - Asks a job to end early. It is no error if it has ended.
///
/// @device: the device
/// @fence: the job's fence
///
/// This does not wait for the end: the job uses its memory until hmm_wait() or
/// hmm_wait_any() has returned its reply. Its status is then
/// %VIRTIO_HMM_STATUS_CANCELLED, unless it ended otherwise before.
///
/// Return: zero; -ENOMEM when the guest is out of memory, -EPERM when the device
/// is not bound to this process, -ENODEV or -EIO when it is removed or broken:
/// the job has ended then.
#[no_mangle]
pub unsafe extern "C" fn hmm_cancel(device: *const HmmDevice, fence: u64) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    match unsafe { device.as_ref() } {
        None => -libc::EFAULT,
        Some(device) => plain(calls::cancel(&device.0, fence)),
    }
}

/// hmm_run() - Runs a job, and returns when it has ended, however often signals
///     arrive.
///
/// @device: the device, bound to this process
/// @job: the job
/// @reply: receives how the job ended
///
/// Return: zero when the job has ended, well or not; otherwise as hmm_submit().
/// When this returns, no job uses the memory any more. If the driver cannot
/// confirm that, the process is ended, because the device could go on writing.
#[no_mangle]
pub unsafe extern "C" fn hmm_run(
    device: *const HmmDevice,
    job: *const JobDescriptor,
    reply: *mut JobReply,
) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    let device = unsafe { device.as_ref() };
    // SAFETY: the header asks for a job, or null.
    let job = unsafe { job.as_ref() };
    let (Some(device), Some(job), false) = (device, job, reply.is_null()) else {
        return -libc::EFAULT;
    };
    // SAFETY: the header asks for what this asks for.
    let ended = unsafe { calls::run(&device.0, job) };
    // SAFETY: the header asks for a place to write to.
    unsafe { store(reply, ended) }
}

/// Nanoseconds, of which a negative number means for ever.
fn limit(timeout: i64) -> Option<Duration> {
    u64::try_from(timeout).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_timeout_is_none_and_zero_is_one() {
        assert_eq!(limit(-1), None);
        assert_eq!(limit(i64::MIN), None);
        assert_eq!(limit(0), Some(Duration::ZERO));
        assert_eq!(limit(5), Some(Duration::from_nanos(5)));
    }
}
