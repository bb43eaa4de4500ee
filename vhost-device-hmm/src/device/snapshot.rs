//! The device's state at a moment, for people.
//!
//! Each part is read on its own and as briefly as possible, so that the parts may be of different
//! moments.

use serde::{Serialize, Serializer};
use virtio_hmm_spec::wire::{rights, PAGE_SHIFT};

use super::mmu::{Leaf, Place};

/// A space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpaceState {
    /// The driver's name for it.
    pub space: u32,
    /// Pages that are mapped.
    pub mapped_pages: u64,
    /// Large leaves among their mappings.
    pub large_leaves: u64,
    /// The epoch that valid TLB entries have.
    pub epoch: u64,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobPlace {
    /// It waits for an engine.
    Runnable,
    /// An engine runs it.
    Running,
    /// It waits for a page.
    Parked,
    /// Its fault was answered, and a rule delays it.
    Retried,
}

/// A job that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobState {
    /// The driver's name for it.
    pub job: u64,
    /// Its space.
    pub space: u32,
    /// Where it is.
    pub place: JobPlace,
}

/// A fault that has not been answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultState {
    /// Its number.
    pub fault: u64,
    /// The job that waits.
    pub job: u64,
    /// Its space.
    pub space: u32,
    /// The address that it accessed.
    #[serde(serialize_with = "hexadecimal")]
    pub address: u64,
    /// The rights that it needs there.
    pub access: String,
    /// The driver has been told.
    pub reported: bool,
}

/// Contiguous pages that are mapped in the same way to contiguous frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MappingState {
    /// The address of the first page.
    #[serde(serialize_with = "hexadecimal")]
    pub address: u64,
    /// The number of pages.
    pub pages: u64,
    /// log2 of the pages in a leaf.
    pub order: u32,
    /// The memory of the frames: `system` or `device`.
    pub memory: &'static str,
    /// The first frame.
    #[serde(serialize_with = "hexadecimal")]
    pub frame: u64,
    /// The rights.
    pub rights: String,
    /// An engine has used each of the leaves.
    pub accessed: bool,
    /// An engine has written through each of them.
    pub dirty: bool,
}

/// Writes a number in hexadecimal, because people compare it with addresses elsewhere. Also, not
/// every JSON reader supports 64-bit numbers.
fn hexadecimal<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:#x}"))
}

/// The state of the device.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// `Init` has succeeded.
    pub ready: bool,
    /// Engines run no jobs, because the control socket has paused them.
    pub engines_paused: bool,
    /// All spaces, by their numbers.
    pub spaces: Vec<SpaceState>,
    /// All jobs, by their names.
    pub jobs: Vec<JobState>,
    /// All faults, by their numbers.
    pub faults: Vec<FaultState>,
}

impl MappingState {
    /// A leaf, and the first page that it maps.
    pub(super) fn new(page: u64, leaf: Leaf, order: u32) -> Self {
        Self {
            address: page << PAGE_SHIFT,
            pages: 1 << order,
            order,
            memory: match leaf.place {
                Place::System => "system",
                Place::Device => "device",
            },
            frame: leaf.frame,
            rights: letters(leaf.rights),
            accessed: leaf.accessed,
            dirty: leaf.dirty,
        }
    }

    /// Whether `next` could be a part of it.
    pub(super) fn is_followed_by(&self, next: &Self) -> bool {
        let follower = Self {
            address: self.address + (self.pages << PAGE_SHIFT),
            frame: self.frame + self.pages,
            pages: next.pages,
            ..self.clone()
        };
        follower == *next
    }
}

/// Rights as letters: `rwa`.
pub fn letters(set: u32) -> String {
    let letters = [
        (rights::READ, 'r'),
        (rights::WRITE, 'w'),
        (rights::ATOMIC, 'a'),
    ];
    let present = letters.iter().filter(|(right, _)| set & right != 0);
    present.map(|(_, letter)| *letter).collect()
}
