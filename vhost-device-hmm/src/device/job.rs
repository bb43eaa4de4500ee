//! A job: an operation on its way through a space.
//!
//! A job has exactly one owner at a time: the run queue, an engine, or a fault. This module knows
//! none of them.

use std::sync::Arc;
use std::time::Duration;

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::{Reason, STORM_RETRIES};
use virtio_hmm_spec::wire::operation::Operation;

use super::operations::{Fault, Work};
use super::space::Space;
use super::statistics::Tally;

/// The most faults in a row without a completed step. One step may need thousands of pages, each of
/// which may fault. {dev-long-storm}
const STALLED_LIMIT: u32 = 64 << 10;

/// The caller's name for a job: it is returned with the job's end.
pub type Ticket = u64;

/// A job as it is submitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Submission {
    /// The driver's name for it.
    pub job: u64,
    /// The space whose addresses it uses.
    pub space: u32,
    /// What it does.
    pub operation: Operation,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ran to its end, with this status and these results.
    Finished(Status, [u64; 4]),
    /// The driver could not provide a page.
    Faulted(Fault, Reason),
    /// It had the same fault again and again.
    Stormed(Fault),
    /// It was cancelled.
    Cancelled,
    /// It was refused.
    Refused(Status),
    /// A bug of the device.
    Broken,
}

impl End {
    /// A word for it in a trace: the specification's name of a status, where it has one.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Finished(status, _) | Self::Refused(status) => status.name(),
            Self::Faulted(..) => Status::Fault.name(),
            Self::Stormed(_) => Status::Storm.name(),
            Self::Cancelled => Status::Cancelled.name(),
            Self::Broken => "Broken",
        }
    }
}

/// A job that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The ticket of its submission.
    pub ticket: Ticket,
    /// How it ended.
    pub end: End,
    /// The number of faults that it had.
    pub faults: u32,
    /// How long engines have worked on it.
    pub engine_time: Duration,
    /// The memory that it accessed.
    pub tally: Tally,
}

impl Ended {
    /// A job that was refused.
    pub fn refused(ticket: Ticket, status: Status) -> Self {
        Self {
            ticket,
            end: End::Refused(status),
            faults: 0,
            engine_time: Duration::ZERO,
            tally: Tally::default(),
        }
    }
}

/// A job that has not ended.
#[derive(Debug)]
pub struct Job {
    /// The driver's name for it.
    pub id: u64,
    /// The space whose addresses it uses.
    pub space: Arc<Space>,
    /// Its progress.
    pub work: Work,
    /// How long engines have worked on it.
    pub engine_time: Duration,
    /// The memory that it has accessed.
    pub tally: Tally,
    ticket: Ticket,
    faults: u32,
    stalled: Option<Stall>,
}

/// Faults since the last completed step.
#[derive(Clone, Copy, Debug)]
struct Stall {
    address: u64,
    at_address: u32,
    in_all: u32,
}

impl Job {
    /// A job that has not begun.
    pub fn new(id: u64, space: Arc<Space>, work: Work, ticket: Ticket) -> Self {
        Self {
            id,
            space,
            work,
            engine_time: Duration::ZERO,
            tally: Tally::default(),
            ticket,
            faults: 0,
            stalled: None,
        }
    }

    /// A step was completed.
    pub fn progressed(&mut self) {
        self.stalled = None;
    }

    /// A step ended with a fault. Returns whether this has happened too often.
    pub fn faulted(&mut self, fault: &Fault) -> bool {
        self.faults = self.faults.saturating_add(1);
        let stall = match self.stalled {
            Some(stall) if stall.address == fault.address => Stall {
                at_address: stall.at_address + 1,
                in_all: stall.in_all + 1,
                ..stall
            },
            Some(stall) => Stall {
                address: fault.address,
                at_address: 1,
                in_all: stall.in_all + 1,
            },
            None => Stall {
                address: fault.address,
                at_address: 1,
                in_all: 1,
            },
        };
        self.stalled = Some(stall);
        // {dev-storm}
        stall.at_address > STORM_RETRIES || stall.in_all > STALLED_LIMIT
    }

    /// The report on a job that has ended.
    pub fn end(&self, end: End) -> Ended {
        Ended {
            ticket: self.ticket,
            end,
            faults: self.faults,
            engine_time: self.engine_time,
            tally: self.tally,
        }
    }
}

#[cfg(test)]
mod tests {
    use virtio_hmm_spec::wire::operation::Fill;
    use virtio_hmm_spec::wire::{rights, PAGE_BYTES};

    use super::*;
    use crate::device::mmu::Budget;
    use crate::device::space::Epochs;

    // {dev-long-storm}
    #[test]
    fn faults_at_many_addresses_are_no_storm_for_long() {
        let space = Space::new(1, &Budget::new(1 << 20), &Epochs::new()).unwrap();
        let fill = Fill {
            destination: 0,
            bytes: 8,
            pattern: 0,
        };
        let work = Work::new(fill.into()).unwrap();
        let mut job = Job::new(1, Arc::new(space), work, 1);
        let mut fault = |page: u32| {
            job.faulted(&Fault {
                address: u64::from(page) * PAGE_BYTES,
                access: rights::WRITE,
            })
        };
        let is_calm = (0..65_536).all(|page| !fault(page));
        assert!(is_calm, "so many a job may have");
        assert!(fault(65_536), "and no more");
    }
}
