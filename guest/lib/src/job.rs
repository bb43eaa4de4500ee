//! A job in flight, and how it ended.
//!
//! A [`Job`] is not gone before its end has been awaited. It knows fences and replies, not the
//! operations.

use std::fmt;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use virtio_hmm_spec::uapi::MAX_WAIT;
use virtio_hmm_spec::wire::job::JobReply;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::failure::Values;
use crate::outcome::{Decode, Ended, Outcome, Progress};
use crate::sys;

/// A submitted job whose result has not been fetched.
///
/// Dropping it waits until the job has ended and discards the result.
#[must_use = "dropping a job waits for its end"]
pub struct Job<'space, T = Values> {
    device: &'space Device,
    fence: u64,
    decode: Decode<T>,
    fetched: bool,
}

impl<'space, T> Job<'space, T> {
    pub(crate) fn new(device: &'space Device, fence: u64, decode: Decode<T>) -> Self {
        Self {
            device,
            fence,
            decode,
            fetched: false,
        }
    }

    /// The job's fence, which names it in `Wait`.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Asks the job to end early. It then ends with
    /// [`Status::Cancelled`](crate::Status::Cancelled), unless it ends otherwise before.
    ///
    /// This does not wait for the end: the job uses its memory until [`Job::wait`] has returned. A
    /// job that waits for a page that never comes ends too. A second call is no error.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the guest is out of memory, `ENODEV` or `EIO` when the device is removed or
    /// broken: then the job has ended.
    pub fn cancel(&self) -> Result<()> {
        sys::cancel(self.device.as_fd(), self.fence)
            .map_err(|errno| self.device.error("cancelling a job", errno))
    }

    /// Waits until the job has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Job`] when it did not succeed. `ENODEV` or `EIO` when the device was removed or
    /// broke: the job has ended then, too.
    pub fn wait(mut self) -> Result<Outcome<T>> {
        let reply = self.fetch(None)?;
        self.decode.outcome(&reply)
    }

    /// Waits until the job has ended or `timeout` has passed. Zero returns at once.
    ///
    /// # Errors
    ///
    /// Those of [`Job::wait`]. A timeout is no error.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Progress<T, Self>> {
        match self.fetch(Instant::now().checked_add(timeout)) {
            Err(Error::System(error)) if error.errno() == Errno::TIME.raw_os_error() => {
                Ok(Progress::Running(self))
            }
            reply => self.decode.outcome(&reply?).map(Progress::Ended),
        }
    }

    /// Whether it was submitted through this file.
    pub(crate) fn is_of(&self, device: &Device) -> bool {
        std::ptr::eq(self.device, device)
    }

    /// The result, once its reply has been fetched.
    pub(crate) fn fetched(mut self, reply: &JobReply) -> Result<Outcome<T>> {
        self.fetched = true;
        self.decode.outcome(reply)
    }

    fn fetch(&mut self, deadline: Option<Instant>) -> Result<JobReply> {
        let answer = sys::wait(self.device.as_fd(), self.fence, deadline);
        self.fetched = !matches!(answer, Err(errno) if may_still_run(errno));
        answer.map_err(|errno| self.device.error("waiting for a job", errno))
    }
}

impl<T> Drop for Job<'_, T> {
    fn drop(&mut self) {
        if !self.fetched {
            end(self.device, self.fence);
        }
    }
}

impl<T> fmt::Debug for Job<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// Waits until one of these jobs has ended, removes it from the list, and has `finish` turn its
/// reply into a result. `None` if there are no jobs, or none has ended by the deadline.
pub(crate) fn any<J, T>(
    device: &Device,
    jobs: &mut Vec<J>,
    fence: impl Fn(&J) -> u64,
    deadline: Option<Instant>,
    finish: impl FnOnce(J, JobReply) -> Result<Outcome<T>>,
) -> Result<Option<Ended<T>>> {
    // One call asks about at most as many jobs as the device has at a time.
    let most = usize::try_from(MAX_WAIT).unwrap_or(usize::MAX);
    let fences: Vec<u64> = jobs.iter().take(most).map(fence).collect();
    if fences.is_empty() {
        // The driver takes an empty list to mean all jobs.
        return Ok(None);
    }
    match sys::wait_any(device.as_fd(), &fences, deadline) {
        Ok((fence, reply)) => {
            let place = fences.iter().position(|other| *other == fence);
            let place = place.ok_or(Error::Unknown {
                what: "fence",
                value: u32::try_from(fence).unwrap_or(u32::MAX),
            })?;
            let result = finish(jobs.remove(place), reply);
            Ok(Some(Ended { fence, result }))
        }
        Err(Errno::TIME) => Ok(None),
        Err(errno) => Err(device.error("waiting for one of several jobs", errno)),
    }
}

/// Whether a job may still use this process's memory after a wait failed with this errno.
pub(crate) fn may_still_run(errno: Errno) -> bool {
    match errno {
        // The driver ends every job before it returns these.
        Errno::NODEV | Errno::IO => false,
        // The result has been fetched, so the job has ended.
        Errno::NOENT => false,
        // This process was forked from the job's: the job's memory is not ours.
        Errno::PERM => false,
        _ => true,
    }
}

/// Waits until a job has ended, whatever its result.
///
/// Returning early would let the caller free or reuse memory that the device still writes. If the
/// driver does not confirm that the job has ended, ending the process is the only way to stop it.
pub(crate) fn end(device: &Device, fence: u64) {
    if let Err(errno) = sys::wait(device.as_fd(), fence, None) {
        must_have_ended(fence, errno);
    }
}

/// Ensures that a job has ended after a wait without a limit failed, as [`end`] does.
pub(crate) fn must_have_ended(fence: u64, errno: Errno) {
    if may_still_run(errno) {
        // Whether or not it can be told, the process must end.
        let _ = writeln!(
            std::io::stderr(),
            "hmm: job {fence} cannot be waited for ({errno}); ending the process"
        );
        std::process::abort();
    }
}
