//! The errors: a call failed, or a job did.
//!
//! It knows the documented meaning of each errno, and not how calls are made.

use rustix::io::Errno;

use crate::failure::JobFailure;

/// The result of this library's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The driver refused a call, or there is no driver.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The job ran and did not succeed.
    #[error(transparent)]
    Job(#[from] JobFailure),
    /// The driver answered with a number that this library does not know.
    #[error("the driver answered with unknown {what} {value}: library and driver do not match")]
    Unknown {
        /// What the number stands for.
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

    /// How the job ended, if it did not succeed.
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

/// The meaning of an errno that this interface returns.
fn meaning(errno: Errno) -> String {
    match errno {
        Errno::NOTTY => "the driver does not know this call; is it older than the program?",
        Errno::INVAL => "an argument is out of range or not aligned",
        Errno::PROTO => "the driver speaks another version of the interface",
        Errno::BUSY => "the file is bound already",
        Errno::PERM => "the file is not bound, or to another process than this one",
        Errno::NOSPC => "the device has no space left to bind to, or none for this user",
        Errno::AGAIN => {
            "as many jobs as the device takes, or this process may have, are in flight, wait for one; or it is about to be \
             started anew"
        }
        Errno::BADF => "the eventfd is not open",
        Errno::TIME => "no such job ended in time",
        Errno::SRCH => "no process with that id is bound to this device",
        Errno::ACCESS => "you may not look at that process or open that device",
        Errno::NOMEM => "the guest is out of memory",
        Errno::NODEV => "the device has been removed",
        Errno::IO => {
            "the device broke the protocol or stopped answering, and what it held is lost; bind anew"
        }
        // These two mean one thing for a job or an argument of the caller's, and another one for a
        // path. The system's own text fits both.
        other => return std::io::Error::from(other).to_string(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

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
