//! What is possible when a mapping changes while jobs use it.
//!
//! It does not know how a mapping is changed and how jobs run.

use fastrand::Rng;
use hmm::spec::wire::rights;
use hmm::{JobFailure, PageRange, Reason, Status};

use super::words::WordCounts;

/// The change of the memory while jobs use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Other memory is mapped in its place. If jobs only read, it is filled at once.
    Replace,
    Unmap,
    /// `PROT_NONE`.
    Close,
    /// `PROT_READ`.
    WriteProtect,
    Discard,
    /// Moved to the other slot; a hole remains.
    Move,
    /// Moved to the other slot; zeros remain.
    MoveLeaving,
    Fork,
    ToDevice,
    ToSystem,
    /// Read by the CPU.
    Touch,
}

/// What the jobs of a round do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Each job adds up all words.
    Read,
    /// Each job writes the new generation's tag to a part of the words.
    Write,
}

/// The possible results of a change under jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Effect {
    /// The reason why a job may fail, if it may.
    fault: Option<Reason>,
    /// Whether a job that succeeds may have met the zeros of fresh memory.
    zeros: bool,
    /// Whether a job that reads may have met words of the new generation.
    new: bool,
}

impl Effect {
    const NONE: Self = Self {
        fault: None,
        zeros: false,
        new: false,
    };

    const ZEROS: Self = Self {
        zeros: true,
        ..Self::NONE
    };

    const ZEROS_AND_NEW: Self = Self {
        new: true,
        ..Self::ZEROS
    };

    const fn fault(reason: Reason) -> Self {
        Self {
            fault: Some(reason),
            ..Self::NONE
        }
    }
}

/// Each change, what jobs that read meanwhile may see, and what jobs that write meanwhile may leave
/// behind. Some changes are never made under jobs that write: a hole could be filled with other
/// memory, which these jobs would overwrite, and closed memory could not be checked.
#[rustfmt::skip] // A table.
const EFFECTS: [(Change, Effect, Option<Effect>); 11] = [
    (Change::Replace,      Effect::ZEROS_AND_NEW,            Some(Effect::ZEROS)),
    (Change::Unmap,        Effect::fault(Reason::Unmapped),  None),
    (Change::Close,        Effect::fault(Reason::Denied),    None),
    (Change::WriteProtect, Effect::NONE,                     Some(Effect::fault(Reason::Denied))),
    (Change::Discard,      Effect::ZEROS,                    Some(Effect::ZEROS)),
    (Change::Move,         Effect::fault(Reason::Unmapped),  None),
    (Change::MoveLeaving,  Effect::ZEROS,                    Some(Effect::ZEROS)),
    (Change::Fork,         Effect::NONE,                     Some(Effect::NONE)),
    (Change::ToDevice,     Effect::NONE,                     Some(Effect::NONE)),
    (Change::ToSystem,     Effect::NONE,                     Some(Effect::NONE)),
    (Change::Touch,        Effect::NONE,                     Some(Effect::NONE)),
];

/// A change under jobs of one kind, and its possible results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Model {
    /// The change.
    pub(super) change: Change,
    /// What the jobs do.
    pub(super) kind: Kind,
    effect: Effect,
}

impl Model {
    /// Every change that may be made under jobs of this kind.
    fn all(kind: Kind) -> impl Iterator<Item = Self> {
        EFFECTS
            .into_iter()
            .filter_map(move |(change, read, write)| {
                let effect = match kind {
                    Kind::Read => Some(read),
                    Kind::Write => write,
                };
                effect.map(|effect| Self {
                    change,
                    kind,
                    effect,
                })
            })
    }

    /// Chooses one of them.
    pub(super) fn choose(kind: Kind, random: &mut Rng) -> Self {
        let index = random.usize(..Self::all(kind).count());
        let chosen = Self::all(kind).nth(index);
        chosen.expect("the index is less than the count")
    }

    /// Whether a job that reads may have found this.
    pub(super) fn permits_reading(&self, found: WordCounts) -> bool {
        found.strange == 0
            && (self.effect.new || found.new == 0)
            && (self.effect.zeros || found.zero == 0)
    }

    /// Whether jobs that write may have left this behind. `all_succeeded` says that all of them
    /// succeeded, and so have written every word at least once.
    pub(super) fn permits_leaving(&self, found: WordCounts, all_succeeded: bool) -> bool {
        found.strange == 0
            && (!all_succeeded || found.old == 0)
            && (self.effect.zeros || found.zero == 0)
    }

    /// Whether a job may have failed in this way. Giving up on a mapping that keeps changing is
    /// always permitted: it is defined, and it is counted.
    pub(super) fn permits_failure(&self, failure: &JobFailure, range: PageRange) -> bool {
        let inside =
            failure.address >= range.address() && failure.address < range.address() + range.bytes();
        let right = match self.kind {
            Kind::Read => rights::READ,
            Kind::Write => rights::WRITE,
        };
        let here = inside && failure.access & right != 0;
        match failure.status {
            Status::Fault if failure.reason == Some(Reason::Busy) => here,
            Status::Fault => {
                here && failure.reason.is_some() && failure.reason == self.effect.fault
            }
            Status::Storm => here,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm::Usage;

    fn failure(status: Status, reason: Option<Reason>, address: u64) -> JobFailure {
        JobFailure {
            status,
            reason,
            address,
            access: rights::READ,
            values: [0; 4],
            usage: Usage::default(),
        }
    }

    /// The model of a change under jobs of a kind.
    fn under(kind: Kind, change: Change) -> Model {
        let mut models = Model::all(kind);
        models.find(|model| model.change == change).unwrap()
    }

    #[test]
    fn a_job_sees_fresh_memory_only_where_there_is_some() {
        let zeros = WordCounts {
            old: 5,
            zero: 5,
            ..WordCounts::default()
        };
        let new = WordCounts {
            old: 5,
            new: 5,
            ..WordCounts::default()
        };
        let model = |change| under(Kind::Read, change);
        assert!(model(Change::Discard).permits_reading(zeros));
        assert!(!model(Change::Discard).permits_reading(new));
        assert!(model(Change::Replace).permits_reading(new));
        assert!(!model(Change::Unmap).permits_reading(zeros));
        assert!(!model(Change::Fork).permits_reading(zeros));
        let strange = WordCounts {
            strange: 1,
            ..WordCounts::default()
        };
        assert!(!model(Change::Replace).permits_reading(strange));
    }

    #[test]
    fn jobs_that_ended_well_leave_no_word_unwritten() {
        let half = WordCounts {
            old: 5,
            new: 5,
            ..WordCounts::default()
        };
        let model = under(Kind::Write, Change::WriteProtect);
        assert!(model.permits_leaving(half, false));
        assert!(!model.permits_leaving(half, true));
    }

    #[test]
    fn a_fault_is_permitted_only_inside_the_memory_and_for_the_reason_of_the_change() {
        let range = PageRange::around(4096..8192);
        let fault = |reason, address| failure(Status::Fault, Some(reason), address);
        let permits = |change, failure: JobFailure| {
            under(Kind::Read, change).permits_failure(&failure, range)
        };
        assert!(permits(Change::Unmap, fault(Reason::Unmapped, 4096)));
        assert!(!permits(Change::Unmap, fault(Reason::Unmapped, 8192)));
        assert!(!permits(Change::Unmap, fault(Reason::Denied, 4096)));
        assert!(permits(Change::Close, fault(Reason::Denied, 8191)));
        assert!(!permits(Change::Fork, fault(Reason::Unmapped, 4096)));
        assert!(permits(Change::Fork, fault(Reason::Busy, 4096)));
        assert!(!permits(Change::Unmap, failure(Status::Cancelled, None, 0)));
        assert!(!permits(Change::Fork, failure(Status::Fault, None, 4096)));
    }

    #[test]
    fn no_change_under_jobs_that_write_makes_a_hole() {
        for model in Model::all(Kind::Write) {
            assert!(
                !matches!(model.change, Change::Unmap | Change::Move),
                "{model:?}"
            );
        }
    }

    #[test]
    fn each_change_that_is_possible_is_chosen() {
        for (kind, count) in [(Kind::Read, 11), (Kind::Write, 8)] {
            let mut random = Rng::with_seed(1);
            let chosen: Vec<_> = (0..1000)
                .map(|_| Model::choose(kind, &mut random))
                .collect();
            assert_eq!(Model::all(kind).count(), count);
            for model in Model::all(kind) {
                assert!(chosen.contains(&model), "{model:?}");
            }
        }
    }
}
