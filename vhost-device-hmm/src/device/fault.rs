//! Faults: jobs that wait for a page, until the driver has answered.
//!
//! ```text
//! raise → Raised ──report──→ Reported ──retry──────→ (the job runs on)
//!            │                  └───────terminate──→ (the job ends)
//!            └──── withdrawn when the job is cancelled ────┘
//! ```
//!
//! There is one fault for each parked job, so their number is bounded by the number of
//! jobs; that is why records can wait here for as long as the driver offers no buffer.

use std::collections::{HashMap, VecDeque};

use virtio_hmm_spec::wire::fault::FaultRecord;
use zerocopy::little_endian::{U32, U64};

use super::job::Job;
use super::operations::Fault;

/// Names a fault; never used twice.
pub type FaultId = u64;

/// A job that waits for a page.
#[derive(Debug)]
pub struct Parked {
    /// The job.
    pub job: Box<Job>,
    /// What it stopped at.
    pub fault: Fault,
    /// How many pages it will want in the same way.
    pages: u32,
    stage: Stage,
}

/// How far a fault has come.
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
    /// Those in [`Stage::Raised`], in order.
    waiting: VecDeque<FaultId>,
    last: FaultId,
}

impl Faults {
    /// How many jobs wait.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// How many records wait to be reported.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Parks a job.
    pub fn raise(&mut self, job: Box<Job>, fault: Fault, pages: u32) -> FaultId {
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

    /// Takes up to so many records that have not been reported.
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

    /// Takes a fault that has been reported, because it is answered.
    pub fn answer(&mut self, id: FaultId) -> Option<Parked> {
        // The names are easy to guess: one that was not told yet is no answer.
        if self.parked.get(&id)?.stage != Stage::Reported {
            return None;
        }
        self.parked.remove(&id)
    }

    /// Takes a fault back, because its job ends otherwise.
    pub fn withdraw(&mut self, id: FaultId) -> Option<Parked> {
        let parked = self.parked.remove(&id)?;
        if parked.stage == Stage::Raised {
            self.waiting.retain(|waiting| *waiting != id);
        }
        Some(parked)
    }

    /// Takes back all faults of some jobs.
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
