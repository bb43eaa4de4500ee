//! Snapshots of the device's state, for people.

use virtio_hmm_spec::wire::PAGE_SHIFT;

use super::Accelerator;
use crate::device::snapshot::{MappingState, Snapshot, SpaceState};

/// The number of leaves that are read before the lock is released for a waiting change of mappings.
const LEAVES_AT_ONCE: usize = 512;

impl Accelerator {
    /// The state of the device.
    pub fn snapshot(&self) -> Snapshot {
        let (jobs, faults, engines_paused) = self.schedule().snapshot();
        let mut spaces: Vec<SpaceState> = self
            .spaces()
            .into_iter()
            .map(|space| {
                let mappings = space.read();
                SpaceState {
                    space: space.id(),
                    mapped_pages: mappings.table.mapped_pages(),
                    large_leaves: mappings.table.large_leaves(),
                    epoch: mappings.epoch,
                }
            })
            .collect();
        spaces.sort_by_key(|space| space.space);
        Snapshot {
            ready: self.is_ready(),
            engines_paused,
            spaces,
            jobs,
            faults,
        }
    }

    /// Up to `most` runs of a space's mappings, from an address on; `None` if there is no such
    /// space.
    pub fn mappings(&self, space: u32, from: u64, most: usize) -> Option<Vec<MappingState>> {
        let mut spaces = self.spaces().into_iter();
        let space = spaces.find(|other| other.id() == space)?;
        let mut runs: Vec<MappingState> = Vec::new();
        let mut page = from >> PAGE_SHIFT;
        loop {
            let mappings = space.read();
            for _ in 0..LEAVES_AT_ONCE {
                let Some((first, leaf, order)) = mappings.table.next(page) else {
                    return Some(runs);
                };
                page = first + (1 << order);
                let next = MappingState::new(first, leaf, order);
                if let Some(last) = runs.last_mut().filter(|last| last.is_followed_by(&next)) {
                    last.pages += next.pages;
                } else if runs.len() == most {
                    return Some(runs);
                } else {
                    runs.push(next);
                }
            }
        }
    }
}
