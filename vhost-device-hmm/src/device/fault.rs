//! Faults: jobs that wait for a page, until the driver has answered.
//!
//! ```text
//! raise → Raised ──report──→ Reported ──retry──────→ (the job runs on)
//!            │                  └───────terminate──→ (the job ends)
//!            └──── withdrawn when the job is cancelled ────┘
//! ```
//!
//! Each parked job has one fault, so that the number of jobs limits the number of faults. Records
//! can therefore wait here as long as the driver offers no buffer.

use std::collections::{HashMap, VecDeque};

use virtio_hmm_spec::wire::fault::FaultRecord;
use zerocopy::little_endian::{U32, U64};

use super::job::Job;
use super::operations::Fault;
use super::snapshot::{letters, FaultState};

/// The name of a fault; never used twice.
pub type FaultId = u64;

/// A job that waits for a page.
#[derive(Debug)]
pub struct Parked {
    /// The job.
    pub job: Box<Job>,
    /// The fault that stopped it.
    pub fault: Fault,
    /// The number of pages that it will need in the same way.
    pages: u32,
    stage: Stage,
}

/// The state of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The driver has not been told.
    Raised,
    /// The driver has been told and has not answered.
    Reported,
}

/// All faults that have not been answered.
#[derive(Debug, Default)]
pub struct Faults {
    parked: HashMap<FaultId, Parked>,
    /// The faults in [`Stage::Raised`], in order.
    waiting: VecDeque<FaultId>,
    last: FaultId,
}

impl Faults {
    /// The number of jobs that wait.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// The number of records that wait to be reported.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// All faults that have not been answered.
    pub fn snapshot(&self) -> Vec<FaultState> {
        let faults = self.parked.iter();
        faults
            .map(|(id, parked)| FaultState {
                fault: *id,
                job: parked.job.id,
                space: parked.job.space.id(),
                address: parked.fault.address,
                access: letters(parked.fault.access),
                reported: parked.stage == Stage::Reported,
            })
            .collect()
    }

    /// Parks a job. {dev-one-fault}
    pub fn raise(&mut self, job: Box<Job>, fault: Fault, pages: u32) -> FaultId {
        // {dev-fault-numbers}
        self.last += 1;
        self.parked.insert(
            self.last,
            Parked {
                job,
                fault,
                pages,
                stage: Stage::Raised,
            },
        );
        self.waiting.push_back(self.last);
        self.last
    }

    /// Moves the second waiting fault before the first.
    pub fn swap(&mut self) {
        if self.waiting.len() > 1 {
            self.waiting.swap(0, 1);
        }
    }

    /// Takes up to `most` records that have not been reported. {dev-fault-once}
    pub fn report(&mut self, most: usize) -> Vec<FaultRecord> {
        let count = most.min(self.waiting.len());
        self.waiting
            .drain(..count)
            .filter_map(|id| {
                let parked = self.parked.get_mut(&id)?;
                parked.stage = Stage::Reported;
                Some(parked.record(id))
            })
            .collect()
    }

    /// Takes a reported fault, because it is answered.
    pub fn answer(&mut self, id: FaultId) -> Option<Parked> {
        // Names are easy to guess: an answer to a fault that was not reported yet is ignored.
        if self.parked.get(&id)?.stage != Stage::Reported {
            return None;
        }
        self.parked.remove(&id)
    }

    /// Withdraws a fault, because its job ends otherwise.
    pub fn withdraw(&mut self, id: FaultId) -> Option<Parked> {
        let parked = self.parked.remove(&id)?;
        if parked.stage == Stage::Raised {
            self.waiting.retain(|waiting| *waiting != id);
        }
        Some(parked)
    }

    /// Withdraws all faults of some jobs.
    pub fn withdraw_where(&mut self, concerns: impl Fn(&Job) -> bool) -> Vec<Box<Job>> {
        let ids: Vec<FaultId> = self
            .parked
            .iter()
            .filter(|(_, parked)| concerns(&parked.job))
            .map(|(id, _)| *id)
            .collect();
        let jobs = ids
            .iter()
            .filter_map(|id| self.parked.remove(id))
            .map(|parked| parked.job)
            .collect();
        self.waiting.retain(|id| self.parked.contains_key(id));
        jobs
    }
}

impl Parked {
    // {dev-reserved}
    fn record(&self, id: FaultId) -> FaultRecord {
        FaultRecord {
            fault: U64::new(id),
            address: U64::new(self.fault.address),
            job: U64::new(self.job.id),
            space: U32::new(self.job.space.id()),
            access: U32::new(self.fault.access),
            pages: U32::new(self.pages),
            reserved: U32::ZERO,
        }
    }
}
