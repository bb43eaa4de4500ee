//! The nodes of a page table, one type for each kind of level.
//!
//! ```text
//! Directory<Directory<Directory<Branches>>>   three upper levels
//!                               Branches      a large leaf, or a table of small ones
//!                               Leaves        512 small leaves
//! ```
//!
//! Each node knows its children and how many of its slots are in use, nothing else.
//! A node that has become empty is freed by its parent.
//!
//! Invariant: for each large leaf there is one unit among the spares of the table, so
//! that splitting the leaf, which an invalidation may have to do, cannot fail for want
//! of memory.

use super::budget::{Budget, NoMemory, Units};
use super::entry::{Entry, Leaf};
use super::range::PageRange;
use super::table::{Change, Run};
use std::sync::Arc;
use virtio_hmm_spec::wire::LARGE_ORDER;

/// log2 of the slots in a node.
const FANOUT_SHIFT: u32 = 9;

/// Slots in a node.
const FANOUT: usize = 1 << FANOUT_SHIFT;

/// What a change of a table needs at every level.
pub(super) struct Context<'a> {
    pub(super) budget: &'a Arc<Budget>,
    /// One unit for each large leaf.
    pub(super) spares: &'a mut Units,
    /// Is told of each leaf that changes.
    pub(super) observe: &'a mut dyn FnMut(Change),
}

/// What a change makes of a leaf; `None` removes it.
pub(super) type Rule = fn(Leaf) -> Option<Leaf>;

/// A node and everything below it. `base` is always the first page that it covers.
pub(super) trait Level: Sized {
    /// log2 of the pages that the node covers.
    const SHIFT: u32;

    /// An empty node.
    fn new(budget: &Arc<Budget>) -> Result<Box<Self>, NoMemory>;

    /// Whether no slot is in use.
    fn is_empty(&self) -> bool;

    /// The leaf that maps a page, and its order.
    fn find(&self, page: u64) -> Option<(&Entry, u32)>;

    /// Allocates the nodes that [`Level::install`] will need and puts a unit into
    /// `reserve` for each large leaf that it will add.
    fn prepare(
        &mut self,
        base: u64,
        run: &Run,
        budget: &Arc<Budget>,
        reserve: &mut Units,
    ) -> Result<(), NoMemory>;

    /// Installs a run; cannot fail when it was prepared.
    fn install(
        &mut self,
        base: u64,
        run: &Run,
        reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory>;

    /// Applies a rule to all leaves in a range, splitting those that lie in it partly.
    fn change(&mut self, base: u64, range: &PageRange, rule: Rule, context: &mut Context<'_>);
}

/// The slots that a range touches: the first one's index and how many.
fn touched(base: u64, range: &PageRange, child_shift: u32) -> (usize, usize) {
    // Both are below the fanout because the range lies within the node.
    let index = |page: u64| usize::try_from((page - base) >> child_shift).unwrap_or(usize::MAX);
    let first = index(range.start());
    (first, index(range.end() - 1) - first + 1)
}

/// The slot of a page.
fn slot_of(page: u64, child_shift: u32) -> usize {
    usize::try_from(page >> child_shift).unwrap_or(usize::MAX) % FANOUT
}

/// Visits the slots that a range touches, each with its first page.
fn slots<'a, T>(
    slots: &'a mut [T; FANOUT],
    base: u64,
    range: &PageRange,
    child_shift: u32,
) -> impl Iterator<Item = (u64, &'a mut T)> {
    let (first, count) = touched(base, range, child_shift);
    let start = base + ((first as u64) << child_shift);
    slots
        .iter_mut()
        .skip(first)
        .take(count)
        .zip((start..).step_by(1 << child_shift))
        .map(|(slot, base)| (base, slot))
}

/// A node of an upper level.
#[derive(Debug)]
pub(super) struct Directory<T> {
    slots: [Option<Box<T>>; FANOUT],
    used: usize,
    _units: Units,
}

impl<T: Level> Level for Directory<T> {
    const SHIFT: u32 = T::SHIFT + FANOUT_SHIFT;

    fn new(budget: &Arc<Budget>) -> Result<Box<Self>, NoMemory> {
        let units = budget.take(1)?;
        Ok(Box::new(Self {
            slots: [const { None }; FANOUT],
            used: 0,
            _units: units,
        }))
    }

    fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn find(&self, page: u64) -> Option<(&Entry, u32)> {
        self.slots
            .get(slot_of(page, T::SHIFT))?
            .as_ref()?
            .find(page)
    }

    fn prepare(
        &mut self,
        base: u64,
        run: &Run,
        budget: &Arc<Budget>,
        reserve: &mut Units,
    ) -> Result<(), NoMemory> {
        let Some(range) = run.range.within(base, Self::SHIFT) else {
            return Ok(());
        };
        for (base, slot) in slots(&mut self.slots, base, &range, T::SHIFT) {
            child(slot, &mut self.used, budget)?.prepare(base, run, budget, reserve)?;
        }
        Ok(())
    }

    fn install(
        &mut self,
        base: u64,
        run: &Run,
        reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory> {
        let Some(range) = run.range.within(base, Self::SHIFT) else {
            return Ok(());
        };
        for (base, slot) in slots(&mut self.slots, base, &range, T::SHIFT) {
            child(slot, &mut self.used, context.budget)?.install(base, run, reserve, context)?;
        }
        Ok(())
    }

    fn change(&mut self, base: u64, range: &PageRange, rule: Rule, context: &mut Context<'_>) {
        let Some(range) = range.within(base, Self::SHIFT) else {
            return;
        };
        for (base, slot) in slots(&mut self.slots, base, &range, T::SHIFT) {
            let Some(node) = slot else { continue };
            node.change(base, &range, rule, context);
            if node.is_empty() {
                *slot = None;
                self.used -= 1;
            }
        }
    }
}

/// The child in a slot, new if there was none.
fn child<'a, T: Level>(
    slot: &'a mut Option<Box<T>>,
    used: &mut usize,
    budget: &Arc<Budget>,
) -> Result<&'a mut Box<T>, NoMemory> {
    match slot {
        Some(node) => Ok(node),
        None => {
            let node = T::new(budget)?;
            *used += 1;
            Ok(slot.insert(node))
        }
    }
}

/// What a slot of the second lowest level holds.
#[derive(Debug)]
enum Branch {
    Empty,
    Large(Entry),
    Small(Box<Leaves>),
}

/// A node of the second lowest level.
#[derive(Debug)]
pub(super) struct Branches {
    slots: [Branch; FANOUT],
    used: usize,
    _units: Units,
}

impl Level for Branches {
    const SHIFT: u32 = Leaves::SHIFT + FANOUT_SHIFT;

    fn new(budget: &Arc<Budget>) -> Result<Box<Self>, NoMemory> {
        // Two pages, because a slot takes two words.
        let units = budget.take(2)?;
        Ok(Box::new(Self {
            slots: [const { Branch::Empty }; FANOUT],
            used: 0,
            _units: units,
        }))
    }

    fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn find(&self, page: u64) -> Option<(&Entry, u32)> {
        match self.slots.get(slot_of(page, Leaves::SHIFT))? {
            Branch::Empty => None,
            Branch::Large(entry) => Some((entry, LARGE_ORDER)),
            Branch::Small(leaves) => leaves.find(page),
        }
    }

    fn prepare(
        &mut self,
        base: u64,
        run: &Run,
        budget: &Arc<Budget>,
        reserve: &mut Units,
    ) -> Result<(), NoMemory> {
        let Some(range) = run.range.within(base, Self::SHIFT) else {
            return Ok(());
        };
        for (_, slot) in slots(&mut self.slots, base, &range, Leaves::SHIFT) {
            if matches!(slot, Branch::Empty) {
                if run.is_large() {
                    reserve.join(budget.take(1)?);
                } else {
                    *slot = Branch::Small(Leaves::new(budget)?);
                    self.used += 1;
                }
            }
        }
        Ok(())
    }

    fn install(
        &mut self,
        base: u64,
        run: &Run,
        reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory> {
        let Some(range) = run.range.within(base, Self::SHIFT) else {
            return Ok(());
        };
        for (base, slot) in slots(&mut self.slots, base, &range, Leaves::SHIFT) {
            if run.is_large() {
                if matches!(slot, Branch::Empty) {
                    self.used += 1;
                }
                slot.install_large(run.leaf_at(base), reserve, context)?;
            } else {
                match slot {
                    Branch::Small(_) => {}
                    Branch::Large(_) => slot.split(context),
                    Branch::Empty => {
                        *slot = Branch::Small(Leaves::new(context.budget)?);
                        self.used += 1;
                    }
                }
                if let Branch::Small(leaves) = slot {
                    leaves.install(base, run, reserve, context)?;
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, base: u64, range: &PageRange, rule: Rule, context: &mut Context<'_>) {
        let Some(range) = range.within(base, Self::SHIFT) else {
            return;
        };
        for (base, slot) in slots(&mut self.slots, base, &range, Leaves::SHIFT) {
            let Some(part) = range.within(base, Leaves::SHIFT) else {
                continue;
            };
            if let Branch::Large(entry) = slot {
                let Some(old) = entry.leaf() else { continue };
                let new = rule(old);
                if new == Some(old) {
                    continue;
                }
                if part.pages() == 1 << LARGE_ORDER {
                    (context.observe)(Change {
                        old: Some(old),
                        new,
                        pages: part.pages(),
                    });
                    match new {
                        Some(_) => entry.set(new),
                        None => {
                            drop(context.spares.split(1));
                            *slot = Branch::Empty;
                            self.used -= 1;
                        }
                    }
                    continue;
                }
                slot.split(context);
            }
            if let Branch::Small(leaves) = slot {
                leaves.change(base, &part, rule, context);
                if leaves.is_empty() {
                    *slot = Branch::Empty;
                    self.used -= 1;
                }
            }
        }
    }
}

impl Branch {
    /// Replaces a large leaf by small ones that say the same.
    fn split(&mut self, context: &mut Context<'_>) {
        let Self::Large(entry) = self else { return };
        let Some(leaf) = entry.leaf() else { return };
        *self = Self::Small(Leaves::all(leaf, context.spares.split(1)));
    }

    /// Replaces whatever there is by a large leaf.
    fn install_large(
        &mut self,
        leaf: Leaf,
        reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory> {
        let pages = 1 << LARGE_ORDER;
        match self {
            Self::Empty => {
                let unit = match reserve.count() {
                    0 => context.budget.take(1)?,
                    _ => reserve.split(1),
                };
                context.spares.join(unit);
                (context.observe)(Change {
                    old: None,
                    new: Some(leaf),
                    pages,
                });
                *self = Self::Large(Entry::new(Some(leaf)));
            }
            Self::Large(entry) => {
                let old = entry.leaf();
                let new = leaf.inherit(old);
                (context.observe)(Change {
                    old,
                    new: Some(new),
                    pages,
                });
                entry.set(Some(new));
            }
            Self::Small(leaves) => {
                // The large leaf has been used as far as any of its pages has: a TLB may go
                // on using what it knows of them.
                let mut large = leaf;
                for (entry, index) in leaves.entries.iter().zip(0..) {
                    let (old, new) = (entry.leaf(), leaf.at(index));
                    let marked = new.inherit(old);
                    large.accessed |= marked.accessed;
                    large.dirty |= marked.dirty;
                    (context.observe)(Change {
                        old,
                        new: Some(new),
                        pages: 1,
                    });
                }
                context.spares.join(leaves.units.split(1));
                *self = Self::Large(Entry::new(Some(large)));
            }
        }
        Ok(())
    }
}

/// A node of the lowest level.
#[derive(Debug)]
pub(super) struct Leaves {
    entries: [Entry; FANOUT],
    used: usize,
    units: Units,
}

impl Leaves {
    /// A full node that says the same as one large leaf.
    fn all(large: Leaf, units: Units) -> Box<Self> {
        let mut index = 0;
        let entries = std::array::from_fn(|_| {
            let entry = Entry::new(Some(large.at(index)));
            index += 1;
            entry
        });
        Box::new(Self {
            entries,
            used: FANOUT,
            units,
        })
    }
}

impl Level for Leaves {
    const SHIFT: u32 = FANOUT_SHIFT;

    fn new(budget: &Arc<Budget>) -> Result<Box<Self>, NoMemory> {
        let units = budget.take(1)?;
        let entries = std::array::from_fn(|_| Entry::default());
        Ok(Box::new(Self {
            entries,
            used: 0,
            units,
        }))
    }

    fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn find(&self, page: u64) -> Option<(&Entry, u32)> {
        self.entries.get(slot_of(page, 0)).map(|entry| (entry, 0))
    }

    fn prepare(
        &mut self,
        _base: u64,
        _run: &Run,
        _budget: &Arc<Budget>,
        _reserve: &mut Units,
    ) -> Result<(), NoMemory> {
        Ok(())
    }

    fn install(
        &mut self,
        base: u64,
        run: &Run,
        _reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory> {
        let Some(range) = run.range.within(base, Self::SHIFT) else {
            return Ok(());
        };
        for (page, entry) in slots(&mut self.entries, base, &range, 0) {
            let old = entry.leaf();
            let new = run.leaf_at(page).inherit(old);
            if old.is_none() {
                self.used += 1;
            }
            (context.observe)(Change {
                old,
                new: Some(new),
                pages: 1,
            });
            entry.set(Some(new));
        }
        Ok(())
    }

    fn change(&mut self, base: u64, range: &PageRange, rule: Rule, context: &mut Context<'_>) {
        for (_, entry) in slots(&mut self.entries, base, range, 0) {
            let Some(old) = entry.leaf() else { continue };
            let new = rule(old);
            if new == Some(old) {
                continue;
            }
            if new.is_none() {
                self.used -= 1;
            }
            (context.observe)(Change {
                old: Some(old),
                new,
                pages: 1,
            });
            entry.set(new);
        }
    }
}
