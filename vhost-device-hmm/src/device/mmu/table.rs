//! A whole page table: map, unmap, protect, look up.

use super::budget::{Budget, NoMemory, Units};
use super::entry::{Entry, Leaf};
use super::level::{Branches, Context, Directory, Level, Rule};
use super::range::PageRange;
use std::sync::Arc;
use virtio_hmm_spec::wire::{LARGE_ORDER, PAGE_BYTES};

/// A run of pages that is to be mapped to a run of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The pages; a multiple of a large leaf's, and aligned to it, if it is large.
    pub range: PageRange,
    /// What the first page is to be mapped to.
    pub leaf: Leaf,
    /// Whether to use large leaves.
    pub large: bool,
}

impl Run {
    pub(super) fn is_large(&self) -> bool {
        self.large
    }

    /// What a page of the run is to be mapped to.
    pub(super) fn leaf_at(&self, page: u64) -> Leaf {
        self.leaf.at(page - self.range.start())
    }
}

/// A leaf, or a part of one, that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was there.
    pub old: Option<Leaf>,
    /// What is there now.
    pub new: Option<Leaf>,
    /// How many pages this is about.
    pub pages: u64,
}

impl Change {
    /// Whether something that was allowed is so no more.
    pub fn takes_back(&self) -> bool {
        self.old
            .is_some_and(|old| !self.new.is_some_and(|new| new.covers(&old)))
    }
}

/// Where a page leads.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a> {
    /// The leaf that maps the page.
    pub leaf: Leaf,
    /// log2 of the pages that the leaf maps.
    pub order: u32,
    /// The first of these pages.
    pub first: u64,
    entry: &'a Entry,
}

impl Translation<'_> {
    /// The frame of a page that the leaf maps.
    pub fn frame_of(&self, page: u64) -> u64 {
        self.leaf.frame + (page - self.first)
    }

    /// Notes in the table that an engine reads, or also writes, through the leaf.
    pub fn mark(&self, dirty: bool) {
        self.entry.mark(dirty);
    }
}

type Root = Directory<Directory<Directory<Branches>>>;

/// The mappings of one space.
#[derive(Debug)]
pub struct PageTable {
    root: Box<Root>,
    /// One unit for each large leaf (see [`super::level`]).
    spares: Units,
    mapped_pages: u64,
}

impl PageTable {
    /// A table without mappings.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when the budget is used up.
    pub fn new(budget: &Arc<Budget>) -> Result<Self, NoMemory> {
        Ok(Self {
            root: Root::new(budget)?,
            spares: budget.take(0)?,
            mapped_pages: 0,
        })
    }

    /// How many pages are mapped.
    pub fn mapped_pages(&self) -> u64 {
        self.mapped_pages
    }

    /// How many large leaves there are.
    pub fn large_leaves(&self) -> u64 {
        self.spares.count()
    }

    /// What it takes of its budget only so that large leaves can be split, in bytes.
    pub fn spare_bytes(&self) -> u64 {
        self.spares.count() * PAGE_BYTES
    }

    /// Looks up a page.
    pub fn find(&self, page: u64) -> Option<Translation<'_>> {
        if !PageRange::ALL.contains(page) {
            return None;
        }
        let (entry, order) = self.root.find(page)?;
        let leaf = entry.leaf()?;
        Some(Translation {
            leaf,
            order,
            first: page >> order << order,
            entry,
        })
    }

    /// Maps all runs, in order, or none of them. `observe` is told of each page, also
    /// when it was mapped in the same way before.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when the budget does not allow it; nothing has then changed.
    pub fn map(&mut self, runs: &[Run], mut observe: impl FnMut(Change)) -> Result<(), NoMemory> {
        let budget = Arc::clone(self.spares.budget());
        let mut reserve = budget.take(0)?;
        let prepared = runs
            .iter()
            .try_for_each(|run| self.root.prepare(0, run, &budget, &mut reserve));
        if let Err(error) = prepared {
            for run in runs {
                self.change(&run.range, Some, |_| ());
            }
            return Err(error);
        }
        let mut mapped_pages = self.mapped_pages;
        let mut context = Context {
            budget: &budget,
            spares: &mut self.spares,
            observe: &mut |change: Change| {
                if change.old.is_none() {
                    mapped_pages += change.pages;
                }
                observe(change);
            },
        };
        for run in runs {
            debug_assert!(!run.large || run.range.pages() % (1 << LARGE_ORDER) == 0);
            self.root.install(0, run, &mut reserve, &mut context)?;
        }
        self.mapped_pages = mapped_pages;
        Ok(())
    }

    /// Removes all mappings in a range. `observe` is told of each one that there was.
    pub fn unmap(&mut self, range: &PageRange, observe: impl FnMut(Change)) {
        self.change(range, |_| None, observe);
    }

    /// Leaves only the right to read in a range. `observe` is told of each mapping that
    /// had others; one that could not be read is removed.
    pub fn protect(&mut self, range: &PageRange, observe: impl FnMut(Change)) {
        self.change(range, Leaf::read_only, observe);
    }

    fn change(&mut self, range: &PageRange, rule: Rule, mut observe: impl FnMut(Change)) {
        let budget = Arc::clone(self.spares.budget());
        let mut mapped_pages = self.mapped_pages;
        let mut context = Context {
            budget: &budget,
            spares: &mut self.spares,
            observe: &mut |change: Change| {
                if change.new.is_none() {
                    mapped_pages -= change.pages;
                }
                observe(change);
            },
        };
        self.root.change(0, range, rule, &mut context);
        self.mapped_pages = mapped_pages;
    }
}
