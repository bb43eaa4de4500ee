//! Jobs by their fences, and pages by their addresses: for bindings to other languages, whose
//! lifetimes this library cannot see.
//!
//! [`Space`](crate::Space) and [`Job`](crate::Job) do the same, and know for how long memory lives.
//! Here the caller answers for that. Replies are returned as the driver gives them.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use virtio_hmm_spec::uapi::{Destination, MAX_SUBMIT};
use virtio_hmm_spec::wire::job::{JobDescriptor, JobReply};

use crate::device::Device;
use crate::error::{self, Error, Result};
use crate::job;
use crate::memory::{page_size, Migration, PageRange};
use crate::outcome::Decode;
use crate::sys;

/// Binds a device to the calling process, or binds it again after it was given up and restarted.
///
/// # Errors
///
/// Those of [`Device::bind`] and [`Space::bind_again`](crate::Space::bind_again).
pub fn bind(device: &Device) -> Result<()> {
    sys::bind(device.as_fd())
        .map_err(|errno| device.error("binding this process to the device", errno))
}

/// Submits jobs and returns their fences, which are consecutive numbers.
///
/// Only the first jobs are submitted if there are more than [`MAX_SUBMIT`], or more than the device
/// has room for. The eventfd, if there is one, is incremented at the end of each of them.
///
/// # Safety
///
/// As [`Space::submit`](crate::Space::submit), for each job. A job ends when its reply has been
/// returned by [`wait`] or [`wait_any`].
///
/// # Errors
///
/// Those of [`Space::submit`](crate::Space::submit); `EINVAL` when there are no jobs.
pub unsafe fn submit(
    device: &Device,
    jobs: &[JobDescriptor],
    eventfd: Option<BorrowedFd<'_>>,
) -> Result<Range<u64>> {
    let most = usize::try_from(MAX_SUBMIT).unwrap_or(usize::MAX);
    let jobs = &jobs[..jobs.len().min(most)];
    // SAFETY: the caller promises what `sys::submit` asks for.
    let submitted = unsafe { sys::submit(device.as_fd(), jobs, eventfd) }
        .map_err(|errno| device.error("submitting jobs", errno))?;
    let first = submitted.first_fence;
    Ok(first..first + u64::from(submitted.count))
}

/// Waits until a job has ended, for at most `timeout` if there is one, and fetches its reply.
///
/// # Errors
///
/// `ETIME` when the job has not ended in time, and `EINTR` when a signal arrived whose handler does
/// not restart calls: then the job may still run. `ENOENT` when there is no such job or its reply
/// has been fetched. `ENODEV` or `EIO` when the device was removed or broke: the job has ended then.
pub fn wait(device: &Device, fence: u64, timeout: Option<Duration>) -> Result<JobReply> {
    sys::wait_once(device.as_fd(), fence, deadline(timeout))
        .map_err(|errno| device.error("waiting for a job", errno))
}

/// Waits until one of several jobs has ended, and fetches its reply; of those that have ended, the
/// first one in the list. Returns its fence, too. No fences mean all jobs of this file.
///
/// # Errors
///
/// Those of [`wait`]; `EINVAL` when there are more than [`MAX_WAIT`](crate::spec::uapi::MAX_WAIT)
/// fences.
pub fn wait_any(
    device: &Device,
    fences: &[u64],
    timeout: Option<Duration>,
) -> Result<(u64, JobReply)> {
    sys::wait_any_once(device.as_fd(), fences, deadline(timeout))
        .map_err(|errno| device.error("waiting for one of several jobs", errno))
}

/// Asks a job to end early, as [`Job::cancel`](crate::Job::cancel).
///
/// # Errors
///
/// Those of [`Job::cancel`](crate::Job::cancel).
pub fn cancel(device: &Device, fence: u64) -> Result<()> {
    sys::cancel(device.as_fd(), fence).map_err(|errno| device.error("cancelling a job", errno))
}

/// Runs a job, and returns when it has ended, however often signals arrive.
///
/// # Safety
///
/// As [`Space::submit`](crate::Space::submit), until this returns.
///
/// # Errors
///
/// Those of [`Space::run`](crate::Space::run), but for a job that did not succeed.
pub unsafe fn run(device: &Device, job: &JobDescriptor) -> Result<JobReply> {
    // SAFETY: the caller promises what `submit` asks for.
    let mut fences = unsafe { submit(device, std::slice::from_ref(job), None) }?;
    let fence = fences
        .next()
        .ok_or_else(|| Error::system("submitting a job", Errno::AGAIN))?;
    sys::wait(device.as_fd(), fence, None).map_err(|errno| {
        job::must_have_ended(fence, errno);
        device.error("waiting for a job", errno)
    })
}

/// Moves the pages of a range; `flags` are those of
/// [`migrate_flags`](crate::spec::uapi::migrate_flags). It continues where signals end a call.
///
/// # Errors
///
/// Those of [`Space::migrate`](crate::Space::migrate).
pub fn migrate(
    device: &Device,
    range: PageRange,
    destination: Destination,
    flags: u32,
) -> Result<Migration> {
    let mut all = Migration::default();
    let end = range.address() + range.bytes();
    let mut address = range.address();
    while address < end {
        let bytes = end - address;
        let call = sys::migrate(device.as_fd(), address, bytes, destination, flags)
            .map_err(|errno| device.error("moving pages", errno))?;
        all.moved += call.moved;
        all.no_memory += call.no_memory;
        // A call always makes progress, however many signals arrive.
        address = call.reached.max(address + page_size() as u64);
    }
    // Between two calls, a CPU may have taken pages back, which then moved again.
    all.moved = all.moved.min(range.pages() as u64);
    all.skipped = range.pages() as u64 - all.moved;
    Ok(all)
}

/// What an errno of these calls means.
#[must_use]
pub fn meaning(errno: i32) -> String {
    error::meaning(Errno::from_raw_os_error(errno), None)
}

/// How a job ended, in words.
#[must_use]
pub fn ending(reply: &JobReply) -> String {
    match Decode::RAW.outcome(reply) {
        Ok(_) => "the job ended well".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    // A time too far away for an instant is for ever.
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_hmm_spec::wire::command::Status;
    use zerocopy::FromZeros;

    fn null() -> Device {
        Device::open("/dev/null").unwrap()
    }

    fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
        Errno::from_raw_os_error(result.unwrap_err().errno().unwrap())
    }

    #[test]
    fn a_file_that_is_no_device_refuses_every_call() {
        let device = null();
        assert_eq!(errno(bind(&device)), Errno::NOTTY);
        assert_eq!(errno(wait(&device, 1, None)), Errno::NOTTY);
        assert_eq!(
            errno(wait_any(&device, &[1], Some(Duration::ZERO))),
            Errno::NOTTY
        );
        assert_eq!(errno(cancel(&device, 1)), Errno::NOTTY);
        let job = JobDescriptor::new_zeroed();
        // SAFETY: no device runs the job.
        let submitted = unsafe { submit(&device, &[job], None) };
        assert_eq!(errno(submitted), Errno::NOTTY);
        // SAFETY: as above.
        let ended = unsafe { run(&device, &job) };
        assert_eq!(errno(ended), Errno::NOTTY);
        let page = PageRange::around(page_size()..2 * page_size());
        let moved = migrate(&device, page, Destination::Device, 0);
        assert_eq!(errno(moved), Errno::NOTTY);
        let nothing = migrate(&device, PageRange::around(0..0), Destination::Device, 0);
        assert_eq!(
            nothing,
            Ok(Migration::default()),
            "an empty range needs no call"
        );
    }

    #[test]
    fn errors_and_endings_have_words() {
        assert!(meaning(Errno::PERM.raw_os_error()).contains("not bound"));
        let mut reply = JobReply::new_zeroed();
        assert_eq!(ending(&reply), "the job ended well");
        reply.status = Status::Cancelled.raw().into();
        assert_eq!(ending(&reply), "the job was cancelled");
    }
}
