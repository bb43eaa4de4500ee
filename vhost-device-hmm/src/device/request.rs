//! The requests to the accelerator, and its answers.
//!
//! A request is well formed: its lengths and its reserved fields are right and its operation
//! exists. The accelerator decides by a status whether the objects that it names exist and may be
//! used.

use virtio_hmm_spec::wire::command::{FetchEntry, MapEntry, QueryResult, RangeEntry, Status};
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult};
use virtio_hmm_spec::wire::fault::Reason;
use virtio_hmm_spec::wire::statistics::Statistics;

/// A control request.
#[derive(Clone, Debug)]
pub enum Command<'a> {
    /// Forget everything and start anew.
    Init {
        /// The version that the driver speaks.
        version: u32,
    },
    /// Create a space.
    SpaceCreate {
        /// The driver's name for it.
        space: u32,
    },
    /// End a space's jobs and forget it.
    SpaceDestroy {
        /// Its name.
        space: u32,
    },
    /// Install mappings.
    Map {
        /// The space.
        space: u32,
        /// The mappings.
        entries: &'a [MapEntry],
    },
    /// Remove mappings.
    Unmap {
        /// The space.
        space: u32,
        /// The pages.
        ranges: &'a [RangeEntry],
    },
    /// Leave only the right to read.
    Protect {
        /// The space.
        space: u32,
        /// The pages.
        ranges: &'a [RangeEntry],
    },
    /// Remove mappings, then copy to the guest's memory.
    Fetch(Fetch<'a>),
    /// Answer faults.
    Answer(Vec<Answer>),
    /// End jobs early.
    Cancel(Vec<u64>),
    /// Look up translations.
    Query {
        /// The space.
        space: u32,
        /// The pages.
        range: RangeEntry,
    },
    /// Read the counters.
    Statistics,
}

/// The driver's answer to one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The page is mapped as well as it can be.
    Retry {
        /// The fault.
        fault: u64,
    },
    /// The page cannot be provided.
    Terminate {
        /// The fault.
        fault: u64,
        /// The reason.
        reason: Reason,
    },
}

/// Mappings to remove, whose contents are copied to the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Fetch<'a> {
    /// The space.
    pub space: u32,
    /// The pages, and what to copy.
    pub entries: &'a [FetchEntry],
}

/// A DMA request.
#[derive(Clone, Copy, Debug)]
pub enum Transfer<'a> {
    /// A list of copies.
    Copy {
        /// The copies, in order.
        items: &'a [DmaItem],
    },
    /// Remove mappings, then copy to the guest's memory.
    Fetch(Fetch<'a>),
}

/// A request that is refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub status: Status,
    /// The index of the entry at fault, or zero.
    pub entry: u32,
}

impl Refusal {
    /// A refusal because of an entry.
    pub fn at(status: Status, entry: usize) -> Self {
        Self {
            status,
            entry: u32::try_from(entry).unwrap_or(u32::MAX),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at entry {}", self.status.name(), self.entry)
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, entry: 0 }
    }
}

/// The result of a control request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was refused.
    Refused(Refusal),
    /// The result of each entry's copy.
    Copied(Vec<ItemResult>),
    /// The translations of pages.
    Translations(Vec<QueryResult>),
    /// The counters.
    Statistics(Box<Statistics>),
}

/// The first of several refusals in the order of the status ladder ("Status ladder"). {dev-ladder}
pub(super) fn first_refusal(
    checks: impl Iterator<Item = Result<(), Status>>,
) -> Result<(), Refusal> {
    let mut first: Option<Refusal> = None;
    for (index, check) in checks.enumerate() {
        if let Err(status) = check {
            if first.is_none_or(|refusal| status.raw() < refusal.status.raw()) {
                first = Some(Refusal::at(status, index));
            }
        }
    }
    first.map_or(Ok(()), Err)
}
