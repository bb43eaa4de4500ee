//! How a job ended, read from its reply.

use std::time::Duration;

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::job::JobReply;

use crate::error::{Error, Result};
use crate::failure::{JobFailure, Usage, Values};

/// The result of a job that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<T> {
    /// The operation's result.
    pub value: T,
    /// What it cost.
    pub usage: Usage,
}

/// The result of a wait with a time limit.
#[derive(Debug)]
pub enum Progress<T, J> {
    /// The job has succeeded.
    Ended(Outcome<T>),
    /// The job still runs, and is returned.
    Running(J),
}

/// One of several jobs that has ended.
#[derive(Debug)]
pub struct Ended<T> {
    /// Its [`fence`](crate::Job::fence), which distinguishes it from the others.
    pub fence: u64,
    /// How it ended.
    pub result: Result<Outcome<T>>,
}

/// How the results of an operation become a value.
pub(crate) struct Decode<T> {
    pub(crate) function: fn(Values, usize) -> T,
    /// The number of elements in the input, which some results need.
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
