//! A job: an operation on its way through a space.
//!
//! A job belongs to exactly one holder at a time: the run queue, an engine, or a
//! fault. It knows nothing of any of them.

use std::sync::Arc;
use std::time::Duration;

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::{Reason, STORM_RETRIES};
use virtio_hmm_spec::wire::operation::Operation;

use super::operations::{Fault, Work};
use super::space::Space;
use super::statistics::Tally;

/// How many faults in a row a job may have without completing a step. One step may need
/// thousands of pages, each of which may fault by itself.
const STALLED_LIMIT: u32 = 64 << 10;

/// What the outside knows a job by: it comes back with the job's end.
pub type Ticket = u64;

/// A job as it is handed in.
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
    /// A page could not be had.
    Faulted(Fault, Reason),
    /// It got the same fault again and again.
    Stormed(Fault),
    /// It was cancelled.
    Cancelled,
    /// It was never begun.
    Refused(Status),
    /// Our own mistake.
    Broken,
}

/// A job that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// What it was handed in with.
    pub ticket: Ticket,
    /// How it ended.
    pub end: End,
    /// How many times it waited for a page.
    pub faults: u32,
    /// How long engines worked on it.
    pub engine_time: Duration,
    /// What it touched.
    pub tally: Tally,
}

impl Ended {
    /// A job that was not even begun.
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
    /// How far it has come.
    pub work: Work,
    /// How long engines have worked on it.
    pub engine_time: Duration,
    /// What it has touched.
    pub tally: Tally,
    ticket: Ticket,
    faults: u32,
    stalled: Option<Stall>,
}

/// Faults since the last step that was completed.
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

    /// A step ended with a fault. Returns whether that has now happened too often.
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
        stall.at_address > STORM_RETRIES || stall.in_all > STALLED_LIMIT
    }

    /// What remains of the job when it has ended.
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
