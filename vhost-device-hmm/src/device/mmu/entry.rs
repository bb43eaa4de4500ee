//! One leaf of a page table, packed into 64 bits.
//!
//! ```text
//!  63    12 11   7     6        5        4        3..1      0
//! |  frame | zero | DEVICE | DIRTY | ACCESSED | rights | PRESENT |
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use virtio_hmm_spec::wire::{rights, PAGE_SHIFT};

const PRESENT: u64 = 1 << 0;
const RIGHTS_SHIFT: u32 = 1;
const ACCESSED: u64 = 1 << 4;
const DIRTY: u64 = 1 << 5;
const DEVICE: u64 = 1 << 6;

/// The memory to which a mapping's frames belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The guest's physical memory.
    System,
    /// Device memory.
    Device,
}

/// The contents of one leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The (first) frame, below 2^52.
    pub frame: u64,
    /// The memory to which the frame belongs.
    pub place: Place,
    /// A set of [`rights`], never empty.
    pub rights: u32,
    /// An engine has read or written through it.
    pub accessed: bool,
    /// An engine has written through it.
    pub dirty: bool,
}

impl Leaf {
    /// A leaf that no engine has used.
    pub fn new(place: Place, frame: u64, rights: u32) -> Self {
        Self {
            frame,
            place,
            rights,
            accessed: false,
            dirty: false,
        }
    }

    /// The leaf of the page that is `pages` pages further on.
    pub fn at(self, pages: u64) -> Self {
        Self {
            frame: self.frame + pages,
            ..self
        }
    }

    /// Whether this leaf allows all that `other` allowed, on the same frame.
    pub fn covers(&self, other: &Self) -> bool {
        self.frame == other.frame
            && self.place == other.place
            && self.rights & other.rights == other.rights
    }

    /// This leaf, with the marks of a leaf that it replaces, if that led to the same frame.
    pub(super) fn inherit(self, old: Option<Self>) -> Self {
        match old {
            Some(old) if old.frame == self.frame && old.place == self.place => Self {
                accessed: self.accessed | old.accessed,
                dirty: self.dirty | old.dirty,
                ..self
            },
            _ => self,
        }
    }

    /// This leaf with only the right to read, if it has that right.
    pub fn read_only(self) -> Option<Self> {
        (self.rights & rights::READ != 0).then_some(Self {
            rights: rights::READ,
            ..self
        })
    }

    /// Whether only reading is allowed.
    pub fn is_read_only(&self) -> bool {
        self.rights & !rights::READ == 0
    }

    fn pack(self) -> u64 {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        PRESENT
            | u64::from(self.rights & rights::ALL) << RIGHTS_SHIFT
            | flag(self.accessed, ACCESSED)
            | flag(self.dirty, DIRTY)
            | flag(self.place == Place::Device, DEVICE)
            | self.frame << PAGE_SHIFT
    }

    fn unpack(raw: u64) -> Option<Self> {
        (raw & PRESENT != 0).then_some(Self {
            frame: raw >> PAGE_SHIFT,
            place: if raw & DEVICE != 0 {
                Place::Device
            } else {
                Place::System
            },
            // Three bits: the cast loses nothing.
            #[expect(clippy::cast_possible_truncation)]
            rights: (raw >> RIGHTS_SHIFT) as u32 & rights::ALL,
            accessed: raw & ACCESSED != 0,
            dirty: raw & DIRTY != 0,
        })
    }
}

/// A slot in a table for one leaf.
///
/// Several engines may read it and set its bits at the same time; all other changes need exclusive
/// access.
#[derive(Debug, Default)]
pub(super) struct Entry(AtomicU64);

impl Entry {
    pub(super) fn new(leaf: Option<Leaf>) -> Self {
        Self(AtomicU64::new(leaf.map_or(0, Leaf::pack)))
    }

    pub(super) fn leaf(&self) -> Option<Leaf> {
        Leaf::unpack(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&mut self, leaf: Option<Leaf>) {
        *self.0.get_mut() = leaf.map_or(0, Leaf::pack);
    }

    /// Records that an engine has used the leaf.
    pub(super) fn mark(&self, dirty: bool) {
        let bits = if dirty { ACCESSED | DIRTY } else { ACCESSED };
        if self.0.load(Ordering::Relaxed) & bits != bits {
            self.0.fetch_or(bits, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_comes_out_as_it_went_in() {
        for place in [Place::System, Place::Device] {
            for rights in 1..=rights::ALL {
                for (accessed, dirty) in [(false, false), (true, false), (true, true)] {
                    let leaf = Leaf {
                        frame: (1 << 52) - 1,
                        place,
                        rights,
                        accessed,
                        dirty,
                    };
                    assert_eq!(Entry::new(Some(leaf)).leaf(), Some(leaf));
                }
            }
        }
        assert_eq!(Entry::default().leaf(), None);
    }

    #[test]
    fn marking_changes_nothing_else() {
        let leaf = Leaf::new(Place::Device, 77, rights::READ | rights::WRITE);
        let entry = Entry::new(Some(leaf));
        entry.mark(false);
        assert_eq!(
            entry.leaf(),
            Some(Leaf {
                accessed: true,
                ..leaf
            })
        );
        entry.mark(true);
        assert_eq!(
            entry.leaf(),
            Some(Leaf {
                accessed: true,
                dirty: true,
                ..leaf
            })
        );
    }
}
