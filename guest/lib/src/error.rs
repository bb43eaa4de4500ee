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

    /// Whether the device was given up, so that what it held is lost: its pages, and its jobs. A
    /// program can bind to it anew, unless it stays [`Gone`](crate::spec::uapi::DeviceState::Gone).
    pub fn is_loss(&self) -> bool {
        match self {
            Self::System(error) => error.is_loss(),
            _ => false,
        }
    }

    /// A call that failed for a reason that has nothing to do with the device's life.
    pub(crate) fn system(action: &'static str, errno: Errno) -> Self {
        Self::of_device(action, errno, Life::GoesOn)
    }

    /// A call that failed on a device in that state of its life.
    pub(crate) fn of_device(action: &'static str, errno: Errno, life: Life) -> Self {
        SystemError {
            action: action.into(),
            errno,
            life,
        }
        .into()
    }
}

/// Whether a device goes on after a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It does; at most, it answered the call with an error.
    GoesOn,
    /// It was given up, and is restarted: programs bind anew.
    GivenUp,
    /// It was given up too often, and is not restarted.
    Over,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {}", meaning(*errno, Some(*life)))]
pub struct SystemError {
    pub(crate) action: std::borrow::Cow<'static, str>,
    errno: Errno,
    life: Life,
}

impl SystemError {
    pub(crate) fn opening(path: &std::path::Path, errno: Errno) -> Self {
        Self {
            action: format!("opening {}", path.display()).into(),
            errno,
            life: Life::GoesOn,
        }
    }

    /// See [`Error::is_loss`].
    pub fn is_loss(&self) -> bool {
        self.life != Life::GoesOn
    }

    /// The error number, as `errno(3)` names it.
    pub fn errno(&self) -> i32 {
        self.errno.raw_os_error()
    }
}

/// The meaning of an errno that this interface returns, of a device in that state of its life.
pub(crate) fn meaning(errno: Errno, life: Option<Life>) -> String {
    match errno {
        Errno::NOTTY => "the driver does not know this call; is it older than the program?",
        Errno::INVAL => "an argument is out of range or not aligned",
        Errno::PROTO => "the driver speaks another version of the interface",
        Errno::BUSY => "the file is bound already",
        Errno::PERM => "the file is not bound, or by another process than this one",
        Errno::NOSPC => "the device has no space left to bind to, or none for this user",
        Errno::AGAIN => {
            "as many jobs as the device takes, or this process may have, are in flight, wait for \
             one; or it is about to be started anew"
        }
        Errno::BADF => "a descriptor that the call names is not open, or not of the right kind",
        Errno::TIME => "no such job ended in time",
        Errno::SRCH => {
            "no process with that id is bound to this device, or the process has ended or executed \
             another program"
        },
        Errno::ACCESS => {
            "you may not look at that process, or write its memory, or open that device"
        },
        Errno::NOMEM => "the guest is out of memory",
        Errno::NODEV => "the device has been removed",
        Errno::IO => match life {
            None => {
                "the device answered this call with an error of its own; or it was given up, and what \
                 it held is lost: its state tells which"
            }
            Some(Life::GoesOn) => {
                "the device answered this call with an error of its own; nothing is lost, and it \
                 goes on"
            }
            Some(Life::GivenUp) => {
                "the device broke the protocol or stopped answering, and was given up: what it held \
                 is lost; bind anew"
            }
            Some(Life::Over) => {
                "the device was given up too often, and is not restarted; bind the device to its \
                 driver again"
            }
        },
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
            "submitting a job: the file is not bound, or by another process than this one"
        );
        assert_eq!(error.errno(), Some(1));
        assert_eq!(error.job(), None);
        assert!(!error.is_loss());
    }

    #[test]
    fn an_error_of_a_device_that_goes_on_is_no_loss() {
        let said = |life| {
            let error = Error::of_device("moving pages", Errno::IO, life);
            (error.is_loss(), error.to_string())
        };
        let (is_loss, text) = said(Life::GoesOn);
        assert!(!is_loss && text.contains("nothing is lost"), "{text}");
        let (is_loss, text) = said(Life::GivenUp);
        assert!(is_loss && text.contains("is lost; bind anew"), "{text}");
        let (is_loss, text) = said(Life::Over);
        assert!(is_loss && text.contains("is not restarted"), "{text}");
        assert!(!text.contains("bind anew"), "{text}");
    }
}
