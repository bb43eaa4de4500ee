//! What can go wrong, told apart: the call, or the job.
//!
//! It knows what the interface documents about each errno and status, and nothing of
//! how calls are made.

use std::fmt;

use rustix::io::Errno;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::rights;

use crate::job::{Usage, Values};

/// What this library's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The driver refused a call, or there is no driver.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The job ran and did not end well.
    #[error(transparent)]
    Job(#[from] JobFailure),
    /// The driver answered with something that this library has no word for.
    #[error("the driver answered with unknown {what} {value}: library and driver do not match")]
    Unknown {
        /// What was answered.
        what: &'static str,
        /// The number.
        value: u32,
    },
}

impl Error {
    /// The errno, if a call failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System(error) => Some(error.errno()),
            _ => None,
        }
    }

    /// How the job ended, if one did not end well.
    pub fn job(&self) -> Option<&JobFailure> {
        match self {
            Self::Job(failure) => Some(failure),
            _ => None,
        }
    }

    pub(crate) fn system(action: &'static str, errno: Errno) -> Self {
        SystemError {
            action: action.into(),
            errno,
        }
        .into()
    }
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {}", meaning(*errno))]
pub struct SystemError {
    pub(crate) action: std::borrow::Cow<'static, str>,
    errno: Errno,
}

impl SystemError {
    pub(crate) fn opening(path: &std::path::Path, errno: Errno) -> Self {
        Self {
            action: format!("opening {}", path.display()).into(),
            errno,
        }
    }

    /// The error number, as `errno(3)` names it.
    pub fn errno(&self) -> i32 {
        self.errno.raw_os_error()
    }
}

/// What an errno means where this interface returns it.
fn meaning(errno: Errno) -> String {
    match errno {
        Errno::NOTTY => "the driver does not know this call; is it older than the program?",
        Errno::INVAL => "an argument is out of range, not aligned, or wraps",
        Errno::PROTO => "the driver speaks another version of the interface",
        Errno::BUSY => "the file is bound already",
        Errno::PERM => "the file is not bound, or to another process than this one",
        Errno::NOSPC => "the device has no space left to bind to",
        Errno::AGAIN => "as many jobs as the device takes are in flight; wait for one",
        Errno::TIME => "the job did not end in time",
        Errno::SRCH => "no process with that id is bound to this device",
        Errno::ACCESS => "you may not look at that process or open that device",
        Errno::NOMEM => "the guest is out of memory",
        Errno::NODEV => "the device has been removed",
        Errno::IO => "the device broke the protocol or stopped answering",
        // The two have a meaning for a job or an argument of the caller's, and
        // another one for a path: the system's own words fit both.
        other => return std::io::Error::from(other).to_string(),
    }
    .into()
}

/// A job that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// How it ended; never [`Status::Ok`].
    pub status: Status,
    /// With [`Status::Fault`]: why the page could not be had.
    pub reason: Option<Reason>,
    /// With [`Status::Fault`] and [`Status::Storm`]: the address.
    pub address: u64,
    /// The [`rights`] that were wanted there.
    pub access: u32,
    /// The operation's results as far as it defines them for a failure.
    pub values: Values,
    /// What it used until then.
    pub usage: Usage,
}

impl std::error::Error for JobFailure {}

impl fmt::Display for JobFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |f: &mut fmt::Formatter<'_>| {
            let wanted = rights::VALUES
                .iter()
                .filter(|(_, bit)| self.access & bit != 0);
            let wanted: Vec<_> = wanted.map(|(name, _)| name.to_lowercase()).collect();
            write!(f, " at {:#x} ({})", self.address, wanted.join(", "))
        };
        match self.status {
            Status::Fault => {
                f.write_str("the job touched memory that it cannot have")?;
                at(f)?;
                let reason = match self.reason {
                    Some(Reason::Unmapped) => "nothing is mapped there",
                    Some(Reason::Denied) => "the process itself may not access it so",
                    Some(Reason::Poisoned) => "the memory is poisoned",
                    Some(Reason::NoMemory) => "the system has no memory for it",
                    Some(Reason::Busy) => "the process kept changing its mappings",
                    Some(Reason::Gone) => "the process is gone",
                    Some(Reason::Shutdown) => "the driver is shutting down",
                    None => return Ok(()),
                };
                write!(f, ": {reason}")
            }
            Status::Storm => {
                f.write_str("the job met the same fault again and again")?;
                at(f)
            }
            Status::BadArgument => f.write_str("the job's arguments make no sense"),
            Status::Malformed => f.write_str("the job's arguments are malformed"),
            Status::Unsupported => f.write_str("the device has no such operation"),
            Status::Bound => f.write_str("the job reached its own bound before its end"),
            Status::Cancelled => f.write_str("the job was cancelled"),
            Status::BadAddress => {
                f.write_str("the job's range is not canonical, wraps or is not aligned")
            }
            other => write!(f, "the job ended with status {}", other.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_tells_where_how_and_why() {
        let failure = JobFailure {
            status: Status::Fault,
            reason: Some(Reason::Denied),
            address: 0x7000,
            access: rights::READ | rights::WRITE,
            values: [0; 4],
            usage: Usage::default(),
        };
        assert_eq!(
            failure.to_string(),
            "the job touched memory that it cannot have at 0x7000 (read, write): \
             the process itself may not access it so"
        );
    }

    #[test]
    fn a_refused_call_tells_what_it_was_and_what_the_number_means() {
        let error = Error::system("submitting a job", Errno::PERM);
        assert_eq!(
            error.to_string(),
            "submitting a job: the file is not bound, or to another process than this one"
        );
        assert_eq!(error.errno(), Some(1));
        assert_eq!(error.job(), None);
    }
}
