//! Why a guest did not do what it was asked to.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::running::MAX_OUTPUT;
use crate::klog::Complaint;

/// Why the guest did not do what it was asked to.
#[derive(thiserror::Error)]
pub enum Error {
    /// It is not there any more.
    #[error("the guest is gone while {doing}{why}; its console shows\n{console}\nlogs: {}", logs.display())]
    Gone {
        /// The request.
        doing: String,
        /// How the connection to it failed, if it did, in brackets.
        why: String,
        /// The end of the console's log.
        console: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// It took too long.
    #[error("{doing} took more than {limit:?}{seen}; logs: {}", logs.display())]
    TimedOut {
        /// The request.
        doing: String,
        /// The limit.
        limit: Duration,
        /// What a program had printed by then.
        seen: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// Its kernel broke meanwhile.
    #[error("the guest's kernel broke while {doing}: {complaint}; logs: {}", logs.display())]
    Broken {
        /// The request.
        doing: String,
        /// What the kernel said.
        complaint: Complaint,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// It refused.
    #[error("{doing}: {reason}")]
    Refused {
        /// The request.
        doing: String,
        /// The kernel's error number, when the kernel refused.
        errno: Option<i32>,
        /// The reason.
        reason: String,
    },
    /// A program printed more than can be kept.
    #[error("{doing}: it printed more than {MAX_OUTPUT} bytes")]
    TooMuchOutput {
        /// The request.
        doing: String,
    },
}

/// A result of something that the guest does.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Debug for Error {
    /// For a person: a test that fails prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
