// SPDX-License-Identifier: GPL-2.0

//! Self-invalidating migrations: the driver itself tells its mirror which pages it takes away from
//! the process, instead of waiting for the notifier to do so.
//!
//! `migrate_vma_setup()` notifies of the whole range that it collects, and the notifier would wait
//! until the device has forgotten that range. A driver that collects a page because a CPU has
//! accessed it can do better: it sends the device one request that invalidates and copies. It owns
//! the migration, so `migrate_vma::pgmap_owner` identifies the event as its own.
//!
//! The driver reserves a [`SelfInvalidation`] with [`MmuIntervalNotifier::self_invalidate`], passes
//! it to the migration as its [`SelfInvalidate`], and calls [`SelfInvalidation::begin`] before it
//! sends the request. What has been collected does not move before that. Such a migration affects
//! the mirror in three phases, which [`SelfInvalidations`] records in the mirrored state:
//!
//! 1. Collecting: the notifier ignores the events that the collecting thread causes in its range.
//! 2. Collected: the pages are gone from the process, and the mirror does not know. The migration
//!    cannot commit.
//! 3. Invalidating: the mirror is being told. Until the value is dropped, another change of the
//!    range invalidates it as well, so that it waits for the device.
//!
//! Does not know how the device is told, nor how pages are collected.
//!
//! # Locking
//!
//! Everything is under the lock of the mirrored state; no other lock is taken with it held.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)

use super::{
    mmu_notifier::{
        MirrorOps, MmuIntervalNotifier, MmuNotifierEvent, MmuNotifierRange, StateGuard,
    },
    SelfInvalidate, Thread,
};
use core::ops::Range;

/// How many migrations of one address space can invalidate by themselves at the same time. Further
/// ones leave it to the notifier.
const SLOTS: usize = 4;

/// The self-invalidating migrations of an address space.
pub(crate) struct SelfInvalidations {
    slots: [Option<Phase>; SLOTS],
}

/// How far such a migration has got.
enum Phase {
    /// Nothing has been taken away from the process.
    Reserved,
    /// A thread is taking pages of a range away from the process.
    Collecting(Thread, Range<usize>),
    /// The thread has taken them away, and the mirror has not been told.
    Collected,
    /// The thread has taken these away, and the mirror may not have forgotten them yet.
    Invalidating(Range<usize>),
}

impl Phase {
    /// Whether the migration tells the mirror of what this thread takes away from the range.
    fn covers(&self, thread: Thread, range: &Range<usize>) -> bool {
        match self {
            Self::Collecting(collector, collected) => {
                *collector == thread && contains(collected, range)
            }
            Self::Reserved | Self::Collected | Self::Invalidating(_) => false,
        }
    }
}

/// Whether `outer` contains all of `inner`.
fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

impl SelfInvalidations {
    /// There are none.
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const { None }; SLOTS],
        }
    }

    /// Whether a migration itself tells the mirror of this change. Called by the thread that makes
    /// the change, for [`MirrorOps::ignores`].
    pub(crate) fn covers(&self, change: &MmuNotifierRange<'_>) -> bool {
        if change.event() != MmuNotifierEvent::OwnMigrate {
            return false;
        }
        let thread = Thread::current();
        let mut phases = self.slots.iter().flatten();
        phases.any(|phase| phase.covers(thread, change.addresses()))
    }

    /// What a change of `range` must invalidate, for [`MirrorOps::affected_range`]: the `mirrored`
    /// part of it, and what the mirror is being told to forget at the moment.
    pub(crate) fn extend(
        &self,
        mirrored: Option<Range<usize>>,
        range: &Range<usize>,
    ) -> Option<Range<usize>> {
        let mut affected = mirrored;
        for phase in self.slots.iter().flatten() {
            let Phase::Invalidating(told) = phase else {
                continue;
            };
            let (start, end) = (told.start.max(range.start), told.end.min(range.end));
            if start < end {
                let other = affected.unwrap_or(start..end);
                affected = Some(start.min(other.start)..end.max(other.end));
            }
        }
        affected
    }
}

/// Mirrored state that records self-invalidating migrations.
pub(crate) trait HasSelfInvalidations {
    /// The migrations.
    fn self_invalidations(&mut self) -> &mut SelfInvalidations;
}

/// A migration to or from device memory of the mirror's owner that invalidates the mirror itself.
/// The notifier does not invalidate what is collected with it. What was collected does not move
/// before [`Self::begin`].
pub(crate) struct SelfInvalidation<'a, T: MirrorOps>
where
    T::State: HasSelfInvalidations,
{
    notifier: &'a MmuIntervalNotifier<T>,
    slot: usize,
}

impl<T: MirrorOps> SelfInvalidation<'_, T>
where
    T::State: HasSelfInvalidations,
{
    /// Records that the mirror is about to be told of everything that was taken away from the
    /// process, all of it in `range`. Other changes there wait for the mirror until this value is
    /// dropped. It must not be dropped before the mirror has forgotten the pages.
    pub(crate) fn begin(&self, state: &mut StateGuard<'_, T>, range: Range<usize>) {
        self.set(state, Some(Phase::Invalidating(range)));
    }

    fn set(&self, state: &mut StateGuard<'_, T>, phase: Option<Phase>) {
        let slots = &mut state.self_invalidations().slots;
        if let Some(slot) = slots.get_mut(self.slot) {
            *slot = phase;
        }
    }
}

impl<T: MirrorOps> SelfInvalidate for SelfInvalidation<'_, T>
where
    T::State: HasSelfInvalidations,
{
    fn collecting(&self, range: &Range<usize>) {
        let phase = Phase::Collecting(Thread::current(), range.clone());
        self.set(&mut self.notifier.lock(), Some(phase));
    }

    fn collected(&self) {
        self.set(&mut self.notifier.lock(), Some(Phase::Collected));
    }

    fn may_move(&self, range: &Range<usize>) -> bool {
        let mut state = self.notifier.lock();
        match state.self_invalidations().slots.get(self.slot) {
            Some(Some(Phase::Invalidating(told))) => contains(told, range),
            Some(Some(Phase::Collecting(..) | Phase::Collected)) => false,
            Some(Some(Phase::Reserved) | None) | None => true,
        }
    }
}

impl<T: MirrorOps> Drop for SelfInvalidation<'_, T>
where
    T::State: HasSelfInvalidations,
{
    fn drop(&mut self) {
        self.set(&mut self.notifier.lock(), None);
    }
}

impl<T: MirrorOps> MmuIntervalNotifier<T>
where
    T::State: HasSelfInvalidations,
{
    /// Lets the caller collect memory without the notifier invalidating the mirror. The caller
    /// tells the mirror itself ([`SelfInvalidation::begin`]) of all pages that it has taken away
    /// from the process. Other pages are not affected: such a migration leaves them alone. As
    /// always, what was learnt about the address space before the migration must not be used after
    /// it.
    ///
    /// `None` if too many migrations do that already; the notifier then invalidates the mirror.
    pub(crate) fn self_invalidate(&self) -> Option<SelfInvalidation<'_, T>> {
        let mut state = self.lock();
        let slots = &mut state.self_invalidations().slots;
        let (slot, free) = slots
            .iter_mut()
            .enumerate()
            .find(|(_, phase)| phase.is_none())?;
        *free = Some(Phase::Reserved);
        Some(SelfInvalidation {
            notifier: self,
            slot,
        })
    }
}
