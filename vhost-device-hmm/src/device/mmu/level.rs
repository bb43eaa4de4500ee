//! The nodes of a page table, one type for each kind of level.
//!
//! ```text
//! Upper<Upper<Upper<Branches>>>   three upper levels, whose slots hold nodes
//!                   Branches      a large leaf, or a table of small ones, in each slot
//!                   Leaves        512 small leaves
//! ```
//!
//! A node knows its children, the number of its slots in use, and the number of slots in which some
//! leaf allows more than reading. It knows nothing else. The parent frees a node that has become
//! empty.
//!
//! Invariant: for each large leaf there is one unit among the spares of the table. An invalidation
//! may have to split the leaf, and must not fail for lack of memory.

use super::budget::{Budget, NoMemory, Units};
use super::change::{Change, Run};
use super::entry::{Entry, Leaf};
use super::range::PageRange;
use std::sync::Arc;
use virtio_hmm_spec::wire::LARGE_ORDER;

/// log2 of the slots in a node.
const FANOUT_SHIFT: u32 = 9;

/// Slots in a node.
const FANOUT: usize = 1 << FANOUT_SHIFT;

/// The resources that a change of a table needs at every level.
pub(super) struct Context<'a> {
    pub(super) budget: &'a Arc<Budget>,
    /// One unit for each large leaf.
    pub(super) spares: &'a mut Units,
    /// Called for each leaf that changes.
    pub(super) observe: &'a mut dyn FnMut(Change),
}

/// The change that is applied to the leaves in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Takes every right: the leaf is removed.
    Unmap,
    /// Takes every right but reading. A leaf that cannot be read is removed.
    Protect,
    /// Changes no leaf. Only nodes without any leaf are removed.
    Prune,
}

impl Rule {
    /// The leaf after the change; `None` removes it.
    fn apply(self, leaf: Leaf) -> Option<Leaf> {
        match self {
            Self::Unmap => None,
            Self::Protect => leaf.read_only(),
            Self::Prune => Some(leaf),
        }
    }

    /// Whether the rule changes nothing below a node. {dev-unmap-cost}
    fn spares(self, node: &impl Level) -> bool {
        self == Self::Protect && node.is_read_only() && !node.is_empty()
    }
}

/// A node and everything below it. `base` is always the first page that it covers.
pub(super) trait Level: Sized {
    /// log2 of the pages that the node covers.
    const SHIFT: u32;

    /// An empty node.
    fn new(budget: &Arc<Budget>) -> Result<Box<Self>, NoMemory>;

    /// Whether no slot is in use.
    fn is_empty(&self) -> bool;

    /// Whether no leaf allows more than reading.
    fn is_read_only(&self) -> bool;

    /// The leaf that maps a page, and its order.
    fn find(&self, page: u64) -> Option<(&Entry, u32)>;

    /// The first leaf that maps `from`, which the node covers, or a later page: its first page, the
    /// leaf, and its order.
    fn next(&self, base: u64, from: u64) -> Option<(u64, Leaf, u32)>;

    /// Allocates the nodes that [`Level::install`] will need and puts a unit into
    /// `reserve` for each large leaf that it will add.
    fn prepare(
        &mut self,
        base: u64,
        run: &Run,
        budget: &Arc<Budget>,
        reserve: &mut Units,
    ) -> Result<(), NoMemory>;

    /// Installs a run; cannot fail after [`Level::prepare`].
    fn install(
        &mut self,
        base: u64,
        run: &Run,
        reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory>;

    /// Applies a rule to the leaves in a range, splitting leaves that are only partly in it.
    /// Subtracts each visited slot from `visits`. When none are left, it stops and returns the page
    /// from which to continue. It always visits at least the lowest node that it comes to first.
    fn change(
        &mut self,
        base: u64,
        range: &PageRange,
        rule: Rule,
        visits: &mut u64,
        context: &mut Context<'_>,
    ) -> Option<u64>;
}

/// Updates the number of slots that allow more than reading, after one slot has changed.
fn count_strong(strong: &mut usize, was_read_only: bool, is_read_only: bool) {
    match (was_read_only, is_read_only) {
        (true, false) => *strong += 1,
        (false, true) => *strong -= 1,
        _ => {}
    }
}

/// The slots that a range overlaps: the index of the first and their number.
fn overlapped(base: u64, range: &PageRange, child_shift: u32) -> (usize, usize) {
    // Both are below the fanout because the range lies within the node.
    let index = |page: u64| usize::try_from((page - base) >> child_shift).unwrap_or(usize::MAX);
    let first = index(range.start());
    (first, index(range.end() - 1) - first + 1)
}

/// The slots from that of a page on, each with its first page.
fn slots_from<T>(
    slots: &[T; FANOUT],
    base: u64,
    from: u64,
    child_shift: u32,
) -> impl Iterator<Item = (u64, &T)> {
    let numbered = (0..).map(move |index: u64| base + (index << child_shift));
    let first = slot_of(from, child_shift);
    numbered.zip(slots).skip(first)
}

/// The slot of a page.
fn slot_of(page: u64, child_shift: u32) -> usize {
    usize::try_from(page >> child_shift).unwrap_or(usize::MAX) % FANOUT
}

/// Visits the slots that a range overlaps, each with its first page.
fn slots<'a, T>(
    slots: &'a mut [T; FANOUT],
    base: u64,
    range: &PageRange,
    child_shift: u32,
) -> impl Iterator<Item = (u64, &'a mut T)> {
    let (first, count) = overlapped(base, range, child_shift);
    let start = base + ((first as u64) << child_shift);
    slots
        .iter_mut()
        .skip(first)
        .take(count)
        .zip((start..).step_by(1 << child_shift))
        .map(|(slot, base)| (base, slot))
}

/// The contents of a slot of a node above the lowest level.
pub(super) trait Slot: Sized {
    /// log2 of the pages that the slot covers.
    const SHIFT: u32;

    /// The units of memory that a node of such slots takes.
    const UNITS: u64;

    /// A slot that is not in use.
    const EMPTY: Self;

    /// Whether the slot is not in use.
    fn is_empty(&self) -> bool;

    /// Whether no leaf allows more than reading.
    fn is_read_only(&self) -> bool;

    /// Whether a rule changes nothing in this slot.
    fn is_spared(&self, rule: Rule) -> bool;

    /// See [`Level::find`].
    fn find(&self, page: u64) -> Option<(&Entry, u32)>;

    /// See [`Level::next`].
    fn next(&self, base: u64, from: u64) -> Option<(u64, Leaf, u32)>;

    /// See [`Level::prepare`].
    fn prepare(
        &mut self,
        base: u64,
        run: &Run,
        budget: &Arc<Budget>,
        reserve: &mut Units,
    ) -> Result<(), NoMemory>;

    /// See [`Level::install`].
    fn install(
        &mut self,
        base: u64,
        run: &Run,
        reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory>;

    /// See [`Level::change`]; the range lies in the slot. Empty nodes are freed.
    fn change(
        &mut self,
        base: u64,
        range: &PageRange,
        rule: Rule,
        visits: &mut u64,
        context: &mut Context<'_>,
    ) -> Option<u64>;
}

/// A node above the lowest level.
#[derive(Debug)]
pub(super) struct Directory<S> {
    slots: [S; FANOUT],
    used: usize,
    /// Slots that are not read-only.
    strong: usize,
    _units: Units,
}

/// A node of an upper level.
pub(super) type Upper<T> = Directory<Option<Box<T>>>;

/// A node of the second lowest level.
pub(super) type Branches = Directory<Branch>;

impl<S: Slot> Level for Directory<S> {
    const SHIFT: u32 = S::SHIFT + FANOUT_SHIFT;

    fn new(budget: &Arc<Budget>) -> Result<Box<Self>, NoMemory> {
        let units = budget.take(S::UNITS)?;
        Ok(Box::new(Self {
            slots: [const { S::EMPTY }; FANOUT],
            used: 0,
            strong: 0,
            _units: units,
        }))
    }

    fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn is_read_only(&self) -> bool {
        self.strong == 0
    }

    fn find(&self, page: u64) -> Option<(&Entry, u32)> {
        self.slots.get(slot_of(page, S::SHIFT))?.find(page)
    }

    fn next(&self, base: u64, from: u64) -> Option<(u64, Leaf, u32)> {
        let mut slots = slots_from(&self.slots, base, from, S::SHIFT);
        slots.find_map(|(base, slot)| slot.next(base, from.max(base)))
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
        for (base, slot) in slots(&mut self.slots, base, &range, S::SHIFT) {
            let was_empty = slot.is_empty();
            let prepared = slot.prepare(base, run, budget, reserve);
            self.used += usize::from(was_empty && !slot.is_empty());
            prepared?;
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
        for (base, slot) in slots(&mut self.slots, base, &range, S::SHIFT) {
            let (was_empty, was_read_only) = (slot.is_empty(), slot.is_read_only());
            let installed = slot.install(base, run, reserve, context);
            self.used += usize::from(was_empty && !slot.is_empty());
            count_strong(&mut self.strong, was_read_only, slot.is_read_only());
            installed?;
        }
        Ok(())
    }

    fn change(
        &mut self,
        base: u64,
        range: &PageRange,
        rule: Rule,
        visits: &mut u64,
        context: &mut Context<'_>,
    ) -> Option<u64> {
        let range = range.within(base, Self::SHIFT)?;
        let mut first = true;
        count_visits(visits, base, &range, S::SHIFT);
        for (base, slot) in slots(&mut self.slots, base, &range, S::SHIFT) {
            if slot.is_empty() || slot.is_spared(rule) {
                continue;
            }
            let Some(part) = range.within(base, S::SHIFT) else {
                continue;
            };
            if *visits == 0 && !first {
                return Some(part.start());
            }
            first = false;
            let was_read_only = slot.is_read_only();
            let rest = slot.change(base, &part, rule, visits, context);
            count_strong(&mut self.strong, was_read_only, slot.is_read_only());
            self.used -= usize::from(slot.is_empty());
            if rest.is_some() {
                return rest;
            }
        }
        None
    }
}

/// Subtracts the slots that a range overlaps from those that may still be visited.
fn count_visits(visits: &mut u64, base: u64, range: &PageRange, child_shift: u32) {
    let (_, count) = overlapped(base, range, child_shift);
    *visits = visits.saturating_sub(count as u64);
}

/// A node below an upper level.
impl<T: Level> Slot for Option<Box<T>> {
    const SHIFT: u32 = T::SHIFT;
    const UNITS: u64 = 1;
    const EMPTY: Self = None;

    fn is_empty(&self) -> bool {
        self.is_none()
    }

    fn is_read_only(&self) -> bool {
        self.as_ref().is_none_or(|node| node.is_read_only())
    }

    fn is_spared(&self, rule: Rule) -> bool {
        self.as_ref().is_some_and(|node| rule.spares(&**node))
    }

    fn find(&self, page: u64) -> Option<(&Entry, u32)> {
        self.as_ref()?.find(page)
    }

    fn next(&self, base: u64, from: u64) -> Option<(u64, Leaf, u32)> {
        self.as_ref()?.next(base, from)
    }

    fn prepare(
        &mut self,
        base: u64,
        run: &Run,
        budget: &Arc<Budget>,
        reserve: &mut Units,
    ) -> Result<(), NoMemory> {
        child(self, budget)?.prepare(base, run, budget, reserve)
    }

    fn install(
        &mut self,
        base: u64,
        run: &Run,
        reserve: &mut Units,
        context: &mut Context<'_>,
    ) -> Result<(), NoMemory> {
        child(self, context.budget)?.install(base, run, reserve, context)
    }

    fn change(
        &mut self,
        base: u64,
        range: &PageRange,
        rule: Rule,
        visits: &mut u64,
        context: &mut Context<'_>,
    ) -> Option<u64> {
        let node = self.as_mut()?;
        let rest = node.change(base, range, rule, visits, context);
        if node.is_empty() {
            *self = None;
        }
        rest
    }
}

/// The node in a slot, new if there was none.
fn child<'a, T: Level>(
    slot: &'a mut Option<Box<T>>,
    budget: &Arc<Budget>,
) -> Result<&'a mut Box<T>, NoMemory> {
    match slot {
        Some(node) => Ok(node),
        None => Ok(slot.insert(T::new(budget)?)),
    }
}

/// The contents of a slot of the second lowest level.
#[derive(Debug)]
pub(super) enum Branch {
    Empty,
    Large(Entry),
    Small(Box<Leaves>),
}

impl Slot for Branch {
    const SHIFT: u32 = Leaves::SHIFT;
    // A slot takes two words.
    const UNITS: u64 = 2;
    const EMPTY: Self = Self::Empty;

    fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn is_read_only(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Large(entry) => entry.leaf().is_none_or(|leaf| leaf.is_read_only()),
            Self::Small(leaves) => leaves.is_read_only(),
        }
    }

    fn is_spared(&self, rule: Rule) -> bool {
        matches!(self, Self::Small(leaves) if rule.spares(&**leaves))
    }

    fn find(&self, page: u64) -> Option<(&Entry, u32)> {
        match self {
            Self::Empty => None,
            Self::Large(entry) => Some((entry, LARGE_ORDER)),
            Self::Small(leaves) => leaves.find(page),
        }
    }

    fn next(&self, base: u64, from: u64) -> Option<(u64, Leaf, u32)> {
        match self {
            Self::Empty => None,
            Self::Large(entry) => Some((base, entry.leaf()?, LARGE_ORDER)),
            Self::Small(leaves) => leaves.next(base, from),
        }
    }

    fn prepare(
        &mut self,
        _base: u64,
        run: &Run,
        budget: &Arc<Budget>,
        reserve: &mut Units,
    ) -> Result<(), NoMemory> {
        match self {
            Self::Empty if run.is_large() => reserve.join(budget.take(1)?),
            Self::Empty => *self = Self::Small(Leaves::new(budget)?),
            Self::Large(_) | Self::Small(_) => {}
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
        if run.is_large() {
            return self.install_large(run.leaf_at(base), reserve, context);
        }
        match self {
            Self::Small(_) => {}
            Self::Large(_) => self.split(context),
            Self::Empty => *self = Self::Small(Leaves::new(context.budget)?),
        }
        match self {
            Self::Small(leaves) => leaves.install(base, run, reserve, context),
            _ => Ok(()),
        }
    }

    fn change(
        &mut self,
        base: u64,
        range: &PageRange,
        rule: Rule,
        visits: &mut u64,
        context: &mut Context<'_>,
    ) -> Option<u64> {
        if let Self::Large(entry) = self {
            let old = entry.leaf()?;
            let new = rule.apply(old);
            if new == Some(old) {
                return None;
            }
            if range.pages() == 1 << LARGE_ORDER {
                (context.observe)(Change {
                    old: Some(old),
                    new,
                    pages: range.pages(),
                });
                match new {
                    Some(_) => entry.set(new),
                    None => {
                        drop(context.spares.split(1));
                        *self = Self::Empty;
                    }
                }
                return None;
            }
            self.split(context);
        }
        if let Self::Small(leaves) = self {
            leaves.change(base, range, rule, visits, context);
            if leaves.is_empty() {
                *self = Self::Empty;
            }
        }
        None
    }
}

impl Branch {
    /// Replaces a large leaf by small ones with the same meaning.
    fn split(&mut self, context: &mut Context<'_>) {
        let Self::Large(entry) = self else { return };
        let Some(leaf) = entry.leaf() else { return };
        *self = Self::Small(Leaves::all(leaf, context.spares.split(1)));
    }

    /// Replaces the contents of the slot by a large leaf.
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
                // The large leaf inherits the marks of its pages: a TLB may continue to use its
                // entries for them.
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
    /// The number of leaves that allow more than reading.
    strong: usize,
    units: Units,
}

impl Leaves {
    /// A full node with the same meaning as one large leaf.
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
            strong: if large.is_read_only() { 0 } else { FANOUT },
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
            strong: 0,
            units,
        }))
    }

    fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn is_read_only(&self) -> bool {
        self.strong == 0
    }

    fn find(&self, page: u64) -> Option<(&Entry, u32)> {
        self.entries.get(slot_of(page, 0)).map(|entry| (entry, 0))
    }

    fn next(&self, base: u64, from: u64) -> Option<(u64, Leaf, u32)> {
        let mut entries = slots_from(&self.entries, base, from, 0);
        entries.find_map(|(page, entry)| Some((page, entry.leaf()?, 0)))
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
            let was_read_only = old.is_none_or(|old| old.is_read_only());
            count_strong(&mut self.strong, was_read_only, new.is_read_only());
            (context.observe)(Change {
                old,
                new: Some(new),
                pages: 1,
            });
            entry.set(Some(new));
        }
        Ok(())
    }

    fn change(
        &mut self,
        base: u64,
        range: &PageRange,
        rule: Rule,
        visits: &mut u64,
        context: &mut Context<'_>,
    ) -> Option<u64> {
        count_visits(visits, base, range, 0);
        for (_, entry) in slots(&mut self.entries, base, range, 0) {
            let Some(old) = entry.leaf() else { continue };
            let new = rule.apply(old);
            if new == Some(old) {
                continue;
            }
            if new.is_none() {
                self.used -= 1;
            }
            let is_read_only = new.is_none_or(|new| new.is_read_only());
            count_strong(&mut self.strong, old.is_read_only(), is_read_only);
            (context.observe)(Change {
                old: Some(old),
                new,
                pages: 1,
            });
            entry.set(new);
        }
        None
    }
}
