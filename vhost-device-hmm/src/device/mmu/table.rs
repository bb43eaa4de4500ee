//! A whole page table: map, unmap, protect, look up.

use super::budget::{Budget, NoMemory, Units};
use super::change::{Change, Run};
use super::entry::{Entry, Leaf};
use super::level::{Branches, Context, Level, Rule, Upper};
use super::range::PageRange;
use std::sync::Arc;
use virtio_hmm_spec::wire::{LARGE_ORDER, PAGE_BYTES};

/// The translation of a page.
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

    /// Records in the table that an engine reads, or also writes, through the leaf.
    pub fn mark(&self, dirty: bool) {
        self.entry.mark(dirty);
    }
}

type Root = Upper<Upper<Upper<Branches>>>;

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

    /// The number of mapped pages.
    pub fn mapped_pages(&self) -> u64 {
        self.mapped_pages
    }

    /// The number of large leaves.
    pub fn large_leaves(&self) -> u64 {
        self.spares.count()
    }

    /// The part of its budget that is reserved for splitting large leaves, in bytes.
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

    /// The first leaf that maps a page or a later one: its first page, the leaf, and log2 of the
    /// pages that it maps.
    pub fn next(&self, from: u64) -> Option<(u64, Leaf, u32)> {
        if !PageRange::ALL.contains(from) {
            return None;
        }
        self.root.next(0, from)
    }

    /// Maps all runs, in order, or none of them. `observe` is called for each page, even if it was
    /// mapped in the same way before.
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
                self.change_all(&run.range, Rule::Prune, |_| ());
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

    /// Removes all mappings in a range. `observe` is called for each of them.
    pub fn unmap(&mut self, range: &PageRange, observe: impl FnMut(Change)) {
        self.change_all(range, Rule::Unmap, observe);
    }

    /// Leaves only the right to read in a range. `observe` is called for each mapping that had
    /// other rights; a mapping that could not be read is removed.
    pub fn protect(&mut self, range: &PageRange, observe: impl FnMut(Change)) {
        self.change_all(range, Rule::Protect, observe);
    }

    fn change_all(&mut self, range: &PageRange, rule: Rule, observe: impl FnMut(Change)) {
        let mut visits = u64::MAX;
        self.change(range, rule, &mut visits, observe);
    }

    /// Applies a rule to a range until about `visits` slots of the table have been visited, and
    /// subtracts them. Returns the rest of the range. Skips subtrees without mappings, or without
    /// mappings that the rule changes, as a whole.
    pub fn change(
        &mut self,
        range: &PageRange,
        rule: Rule,
        visits: &mut u64,
        mut observe: impl FnMut(Change),
    ) -> Option<PageRange> {
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
        let rest = self.root.change(0, range, rule, visits, &mut context);
        self.mapped_pages = mapped_pages;
        rest.and_then(|page| range.from(page))
    }
}
