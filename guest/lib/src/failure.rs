//! A job that did not succeed: how it ended, where, and what it cost.
//!
//! It knows the documented meaning of each status.

use std::fmt;
use std::time::Duration;

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::rights;

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

/// A job that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// How it ended; never [`Status::Ok`].
    pub status: Status,
    /// With [`Status::Fault`]: why the page was not available.
    pub reason: Option<Reason>,
    /// With [`Status::Fault`] and [`Status::Storm`]: the address.
    pub address: u64,
    /// The [`rights`] that the job needed there.
    pub access: u32,
    /// The operation's results, as far as it defines them for a failure.
    pub values: Values,
    /// What it used until it failed.
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
}
