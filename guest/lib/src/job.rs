//! A job in flight, and how it ended.
//!
//! A [`Job`] makes sure that its end is awaited before it is gone. It knows fences and
//! replies, not what operations there are.

use std::fmt;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::job::JobReply;

use crate::error::{Error, JobFailure, Result};
use crate::space::Space;
use crate::sys;

/// The results of an operation, untyped.
pub type Values = [u64; 4];

/// What a job cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many times the job waited for a page.
    pub faults: u32,
    /// Time on an engine, waiting for pages not included.
    pub time: Duration,
    /// Bytes of the guest's memory that the job read or wrote.
    pub system_bytes: u64,
    /// Bytes of device memory that the job read or wrote.
    pub device_bytes: u64,
}

/// What a job that ended well leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<T> {
    /// The operation's result.
    pub value: T,
    /// What it cost.
    pub usage: Usage,
}

/// What a wait with a time limit came to.
#[derive(Debug)]
pub enum Progress<T, J> {
    /// The job has ended well.
    Ended(Outcome<T>),
    /// The job still runs: here it is back.
    Running(J),
}

/// How an operation's results become a value.
pub(crate) struct Decode<T> {
    pub(crate) function: fn(Values, usize) -> T,
    /// Elements of the input, which some results are told apart by.
    pub(crate) count: usize,
}

impl Decode<Values> {
    pub(crate) const RAW: Self = Self {
        function: |values, _| values,
        count: 0,
    };
}

impl<T> Decode<T> {
    pub(crate) fn outcome(&self, reply: &JobReply) -> Result<Outcome<T>> {
        let usage = Usage {
            faults: reply.faults.get(),
            time: Duration::from_nanos(reply.nanoseconds.get()),
            system_bytes: reply.system_bytes.get(),
            device_bytes: reply.device_bytes.get(),
        };
        let values = reply.values.map(u64::from);
        let raw = reply.status.get();
        let status = Status::from_raw(raw).ok_or(Error::Unknown {
            what: "job status",
            value: raw,
        })?;
        if status == Status::Ok {
            return Ok(Outcome {
                value: (self.function)(values, self.count),
                usage,
            });
        }
        Err(Error::Job(JobFailure {
            status,
            reason: Reason::from_raw(reply.reason.get()),
            address: reply.address.get(),
            access: reply.access.get(),
            values,
            usage,
        }))
    }
}

/// A submitted job whose result has not been fetched.
///
/// Dropping it waits until the job has ended and throws the result away.
#[must_use = "dropping a job waits for its end"]
pub struct Job<'space, T = Values> {
    space: &'space Space,
    fence: u64,
    decode: Decode<T>,
    fetched: bool,
}

impl<'space, T> Job<'space, T> {
    pub(crate) fn new(space: &'space Space, fence: u64, decode: Decode<T>) -> Self {
        Self {
            space,
            fence,
            decode,
            fetched: false,
        }
    }

    /// The job's fence, by which `Wait` knows it.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Waits until the job has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Job`] when it did not end well. `ENODEV` or `EIO` when the device went
    /// away or broke: the job has ended then too.
    pub fn wait(mut self) -> Result<Outcome<T>> {
        let reply = self.fetch(None)?;
        self.decode.outcome(&reply)
    }

    /// Waits until the job has ended or `timeout` has passed. Zero only looks.
    ///
    /// # Errors
    ///
    /// Those of [`Job::wait`]; running out of time is none.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Progress<T, Self>> {
        match self.fetch(Instant::now().checked_add(timeout)) {
            Err(Error::System(error)) if error.errno() == Errno::TIME.raw_os_error() => {
                Ok(Progress::Running(self))
            }
            reply => self.decode.outcome(&reply?).map(Progress::Ended),
        }
    }

    fn fetch(&mut self, deadline: Option<Instant>) -> Result<JobReply> {
        let answer = sys::wait(self.space.device().as_fd(), self.fence, deadline);
        self.fetched = !matches!(answer, Err(errno) if may_still_run(errno));
        answer.map_err(|errno| Error::system("waiting for a job", errno))
    }
}

impl<T> Drop for Job<'_, T> {
    fn drop(&mut self) {
        if !self.fetched {
            end(self.space, self.fence);
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

/// Whether a wait that failed so leaves a job that may use this process's memory.
pub(crate) fn may_still_run(errno: Errno) -> bool {
    match errno {
        // The driver ends every job before it says these.
        Errno::NODEV | Errno::IO => false,
        // The result has been fetched, so the job has ended.
        Errno::NOENT => false,
        // This is a fork of the process that the job belongs to: its memory is not ours.
        Errno::PERM => false,
        _ => true,
    }
}

/// Waits until a job has ended, whatever its result.
///
/// Returning early would let the caller free or reuse memory that the device still
/// writes. If the driver cannot be made to say that the job has ended, ending the
/// process is the only way to stop it.
pub(crate) fn end(space: &Space, fence: u64) {
    match sys::wait(space.device().as_fd(), fence, None) {
        Err(errno) if may_still_run(errno) => {
            eprintln!("hmm: a job cannot be waited for ({errno}); ending the process");
            std::process::abort();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_hmm_spec::wire::rights;
    use zerocopy::FromZeros;

    fn reply(status: u32) -> JobReply {
        let mut reply = JobReply::new_zeroed();
        reply.status = status.into();
        reply.faults = 3.into();
        reply.nanoseconds = 5.into();
        reply.system_bytes = 7.into();
        reply.device_bytes = 11.into();
        reply.values = [1, 2, 3, 4].map(u64::into);
        reply
    }

    #[test]
    fn a_job_that_ended_well_has_its_value_and_its_costs() {
        let outcome = Decode::RAW.outcome(&reply(Status::Ok.raw())).unwrap();
        assert_eq!(outcome.value, [1, 2, 3, 4]);
        let usage = Usage {
            faults: 3,
            time: Duration::from_nanos(5),
            system_bytes: 7,
            device_bytes: 11,
        };
        assert_eq!(outcome.usage, usage);
    }

    #[test]
    fn a_fault_has_its_reason_and_address_and_is_no_value() {
        let mut reply = reply(Status::Fault.raw());
        reply.reason = Reason::Unmapped.raw().into();
        reply.address = 0x1000.into();
        reply.access = rights::READ.into();
        let error = Decode::RAW.outcome(&reply).unwrap_err();
        let failure = error.job().unwrap();
        assert_eq!(failure.reason, Some(Reason::Unmapped));
        assert_eq!((failure.address, failure.access), (0x1000, rights::READ));
        assert_eq!(failure.usage.faults, 3);
    }

    #[test]
    fn a_status_outside_the_ladder_is_an_error_of_its_own() {
        let error = Decode::RAW.outcome(&reply(77)).unwrap_err();
        assert_eq!(
            error,
            Error::Unknown {
                what: "job status",
                value: 77
            }
        );
    }
}
