//! Another process's address space on a device.
//!
//! Its memory is not this process's: jobs name its addresses as numbers. It knows neither the
//! operations nor how calls are made.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::process::{getpid, pidfd_open, PidfdFlags};
use virtio_hmm_spec::uapi::{Destination, SpaceCounters};
use virtio_hmm_spec::wire::operation::Operation;

use crate::calls;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::failure::Values;
use crate::job::Job;
use crate::memory::{Migration, PageRange};
use crate::outcome::{Decode, Outcome, Progress};
use crate::submit;
use crate::sys;

/// A device bound to another process, which need not know of it.
///
/// Dropping it closes it, and ends the jobs that are in flight.
#[derive(Debug)]
pub struct Process {
    device: Device,
}

impl Device {
    /// Binds the device to another process, whose addresses the device uses from now on.
    ///
    /// `pidfd` names the process, and `memory` is its file `/proc/PID/mem`, open for reading and
    /// writing: a process that may open it may write the process's memory, as jobs do.
    ///
    /// # Errors
    ///
    /// `EACCES` when this process may not trace the other one or has no `CAP_SYS_NICE`; `ESRCH` when
    /// the process has ended, or has executed another program since `memory` was opened; `EINVAL`
    /// when it is this process, which [`Device::bind`] is for; and those of [`Device::bind`].
    pub fn bind_process(self, pidfd: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Result<Process> {
        const ACTION: &str = "binding another process to the device";
        if is_this_process(pidfd).map_err(|errno| Error::system(ACTION, errno))? {
            return Err(Error::system(ACTION, Errno::INVAL));
        }
        sys::bind_process(self.as_fd(), pidfd, memory)
            .map_err(|errno| self.error(ACTION, errno))?;
        Ok(Process { device: self })
    }
}

/// Whether a pidfd is this process's. Each process has an inode of its own.
fn is_this_process(pidfd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mine = fstat(pidfd_open(getpid(), PidfdFlags::empty())?)?;
    let other = fstat(pidfd)?;
    Ok((mine.st_dev, mine.st_ino) == (other.st_dev, other.st_ino))
}

impl Process {
    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a job on the process's addresses, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Job`] when it did not succeed; `ESRCH` when the process has ended or executed another
    /// program, `EAGAIN` when as many jobs are in flight as the device takes, `ENODEV` or `EIO` when
    /// it is removed or broken.
    pub fn run(&self, operation: impl Into<Operation>) -> Result<Outcome<Values>> {
        // SAFETY: the memory that the job reads and writes is another process's, which
        // `bind_process` has made sure of.
        let fence = unsafe { submit::one(&self.device, operation.into(), None) }?;
        Job::new(&self.device, fence, Decode::RAW).wait()
    }

    /// The same, but cancels a job that has not ended after `limit`, as one that waits for a page
    /// that never comes.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run). A job that was cancelled is one that did not succeed.
    pub fn run_within(
        &self,
        operation: impl Into<Operation>,
        limit: Duration,
    ) -> Result<Outcome<Values>> {
        // SAFETY: as in `run`.
        let fence = unsafe { submit::one(&self.device, operation.into(), None) }?;
        match Job::new(&self.device, fence, Decode::RAW).wait_timeout(limit)? {
            Progress::Ended(outcome) => Ok(outcome),
            Progress::Running(job) => {
                job.cancel()?;
                job.wait()
            }
        }
    }

    /// Moves the pages of a range of the process to the device or back, as
    /// [`Space::migrate`](crate::Space::migrate).
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process has ended or executed another program; those of
    /// [`Space::migrate`](crate::Space::migrate).
    pub fn migrate(&self, range: PageRange, destination: Destination) -> Result<Migration> {
        calls::migrate(&self.device, range, destination, 0)
    }

    /// What has happened to the process's space, through all files that are bound to it.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the device is removed.
    pub fn counters(&self) -> Result<SpaceCounters> {
        sys::space_counters(self.device.as_fd()).map_err(|errno| {
            self.device
                .error("reading the counters of a process", errno)
        })
    }

    /// Whether the process has ended or executed another program, which ends the binding. It can be
    /// polled for, as `POLLHUP`.
    pub fn is_over(&self) -> bool {
        sys::is_over(self.device.as_fd())
    }
}

/// The file for polling.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn this_process_is_not_another_one() {
        let null = || Device::open("/dev/null").unwrap();
        let me = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let memory = File::open("/proc/self/mem").unwrap();
        let refused = null().bind_process(me.as_fd(), memory.as_fd()).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::INVAL.raw_os_error()));
        // Any other file is for the driver to judge.
        let refused = null()
            .bind_process(memory.as_fd(), memory.as_fd())
            .unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::NOTTY.raw_os_error()));
    }
}
