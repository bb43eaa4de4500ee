//! Changes of mappings: requested and done.

use super::entry::Leaf;
use super::range::PageRange;

/// A run of pages that is to be mapped to a run of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The pages. If `large`, the run is a multiple of a large leaf and aligned to it.
    pub range: PageRange,
    /// The leaf of the first page.
    pub leaf: Leaf,
    /// Whether to use large leaves.
    pub large: bool,
}

impl Run {
    pub(super) fn is_large(&self) -> bool {
        self.large
    }

    /// The leaf of a page of the run.
    pub(super) fn leaf_at(&self, page: u64) -> Leaf {
        self.leaf.at(page - self.range.start())
    }
}

/// A leaf, or a part of one, that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The leaf before.
    pub old: Option<Leaf>,
    /// The leaf now.
    pub new: Option<Leaf>,
    /// The number of pages.
    pub pages: u64,
}

impl Change {
    /// Whether a right that the old leaf gave is gone.
    pub fn takes_back(&self) -> bool {
        self.old
            .is_some_and(|old| !self.new.is_some_and(|new| new.covers(&old)))
    }
}
