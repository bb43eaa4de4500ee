// SPDX-License-Identifier: GPL-2.0

//! Interval notifiers: learn of changes to a process's address space before the kernel makes them,
//! and delay them until a mirror has followed.
//!
//! A [`MmuIntervalNotifier`] covers the whole address space. It owns the lock that protects
//! mirrored state (`driver->update` in Documentation/mm/hmm.rst), and sets the notifier's sequence
//! under it before anything else. It implements the two passes that the kernel offers: the first
//! one starts the invalidation of each mirror of a process, the second one waits for each.
//!
//! [`MirrorOps`] says what a mirror is and how it is invalidated. This module does not know what is
//! mirrored, how it was learnt ([`super::hmm`]), or how pages move.
//!
//! # Locking
//!
//! Lock order: `ExclusiveLock::making`, then the kernel's locks of the address space, then
//! `MmuIntervalNotifier::reserve`, then `MmuIntervalNotifier::state` or
//! `MmuIntervalNotifier::spares`. The last three are taken while the kernel may be reclaiming
//! memory: nothing may be allocated with them held.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use super::{
    exclusive_seq::{ExclusiveLock, ExclusiveSeq},
    locked::ChangingMm,
    turn::{Look, Turn, Turns},
    PgmapOwner,
};
use crate::{sys as bindings, wait::Event};
use core::{
    marker::PhantomData,
    ops::{Deref, DerefMut, Range},
    pin::Pin,
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    container_of, current,
    error::to_result,
    mm::MmWithUser,
    new_mutex, new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        lock::{mutex::MutexBackend, Guard},
        Arc, Mutex, SpinLock,
    },
    task::Kuid,
    time::Delta,
    types::Opaque,
};

/// How many changes of one address space can use the two passes at the same time. Further changes
/// run both passes at once, one change after the other.
const SPARES: usize = 4;

/// How long a change waits at most for what [`MirrorOps::blocked_by`] returns. No such wait takes
/// that long while the device answers.
const BLOCK_TIMEOUT: Delta = Delta::from_secs(5);

/// Mirrors an address space.
///
/// For each change the notifier calls, in this order: [`on_event`](Self::on_event);
/// [`released`](Self::released) if it is the last one; [`ignores`](Self::ignores), [`affected_range`](Self::affected_range) and
/// [`blocked_by`](Self::blocked_by), with the mirrored state locked and the sequence set;
/// [`unblocked`](Self::unblocked). If a part of the mirror is affected,
/// [`invalidate_start`](Self::invalidate_start), [`invalidate_wait`](Self::invalidate_wait) and
/// [`invalidated`](Self::invalidated) follow. From the moment that the sequence is set until the
/// change is over, nothing can be mirrored again in that range.
pub(crate) trait MirrorOps: Send + Sync + Sized + 'static {
    /// State that changes together with the mirror, under the notifier's lock.
    type State: Send + Unpin;
    /// Preallocated resources for one invalidation.
    type Resources: Send + Unpin;
    /// An invalidation that has been started.
    type Pending: Send;

    /// The owner whose exclusive access does not affect the mirror; see [`super::exclusive`].
    fn owner(&self) -> PgmapOwner;

    /// Allocates the resources for one invalidation.
    fn alloc_resources(&self) -> Result<Self::Resources>;

    /// The user whose threads pause if the mirror cannot look at the address space; see
    /// [`super::turn`]. By default the caller's.
    fn user(&self) -> Kuid {
        Kuid::current_euid()
    }

    /// Called for every change, for example to count or trace it. Must not sleep.
    fn on_event(&self, _change: &MmuNotifierRange<'_>) {}

    /// Called when no process has the address space any more, before all of it is unmapped. Must not
    /// sleep.
    fn released(&self) {}

    /// Whether the mirror learns of a change by other means, so that the notifier must not
    /// invalidate it. Called with the sequence set, by the thread that makes the change.
    fn ignores(&self, _state: &Self::State, _change: &MmuNotifierRange<'_>) -> bool {
        false
    }

    /// What a change must wait for before it proceeds, if anything; called again after each wait.
    /// Called with the sequence set. The thread that makes the change may hold locks, so each wait
    /// has a timeout.
    fn blocked_by(
        &self,
        _state: &Self::State,
        _change: &MmuNotifierRange<'_>,
    ) -> Option<Arc<Event>> {
        None
    }

    /// Called when such a wait has timed out; the change proceeds nevertheless.
    fn block_timed_out(&self) {}

    /// Called when the change has nothing left to wait for, before the mirror is invalidated. May
    /// sleep if the change may, but not for memory.
    fn unblocked(&self, _change: &MmuNotifierRange<'_>) {}

    /// The part of the range that the mirror must forget, if any. Called with the sequence set.
    fn affected_range(&self, state: &Self::State, range: &Range<usize>) -> Option<Range<usize>>;

    /// Starts to invalidate the range. May sleep, but not for memory.
    fn invalidate_start(&self, resources: Self::Resources, range: &Range<usize>) -> Self::Pending;

    /// Waits until an invalidation is complete. May sleep, but not for memory. Returns the
    /// resources for reuse; when all are lost, [`Self::resources_lost`] is called in the end.
    fn invalidate_wait(&self, pending: Self::Pending) -> Option<Self::Resources>;

    /// No resources are left for an invalidation: the mirror must forget everything and not start
    /// anew. May sleep, but not for memory.
    fn resources_lost(&self);

    /// Called when the range has been invalidated.
    fn invalidated(&self, state: &mut Self::State, range: &Range<usize>);
}

/// A subscription to all changes of an address space, until it is dropped.
///
/// # Invariants
///
/// `raw` is inserted, with [`MmuIntervalNotifier::OPS`], from initialisation to drop.
#[pin_data(PinnedDrop)]
pub(crate) struct MmuIntervalNotifier<T: MirrorOps> {
    mirror: T,
    #[pin]
    state: Mutex<State<T>>,
    #[pin]
    spares: SpinLock<KVec<KBox<Finish<T>>>>,
    #[pin]
    reserve: Mutex<Option<T::Resources>>,
    #[pin]
    exclusive: ExclusiveLock,
    turns: Arc<Turns>,
    // Last, because callbacks run as soon as it is initialised.
    #[pin]
    raw: Opaque<bindings::mmu_interval_notifier>,
}

// SAFETY: The notifier may be removed from any thread, and all else is `Send`.
unsafe impl<T: MirrorOps> Send for MmuIntervalNotifier<T> {}
// SAFETY: The notifier does its own locking; what may be shared of the rest is behind
// locks or `Sync`.
unsafe impl<T: MirrorOps> Sync for MmuIntervalNotifier<T> {}

/// What the first pass keeps for the second.
#[repr(C)]
struct Finish<T: MirrorOps> {
    raw: Opaque<bindings::mmu_interval_notifier_finish>,
    range: Range<usize>,
    work: Work<T>,
}

// SAFETY: The link is only used by the thread that the invalidation runs in.
unsafe impl<T: MirrorOps> Send for Finish<T> {}

enum Work<T: MirrorOps> {
    Idle(T::Resources),
    Started(T::Pending),
    Taken,
}

/// What is changed under the notifier's lock.
struct State<T: MirrorOps> {
    mirrored: T::State,
    exclusive: ExclusiveSeq,
}

/// The lock of the mirrored state, and the proof that the mirror may be updated with what was
/// learnt about the address space.
pub(crate) struct StateGuard<'a, T: MirrorOps>(Guard<'a, State<T>, MutexBackend>);

impl<T: MirrorOps> Deref for StateGuard<'_, T> {
    type Target = T::State;

    fn deref(&self) -> &T::State {
        &self.0.mirrored
    }
}

impl<T: MirrorOps> DerefMut for StateGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T::State {
        &mut self.0.mirrored
    }
}

impl<T: MirrorOps> StateGuard<'_, T> {
    /// The order of exclusive access.
    pub(super) fn exclusive_seq(&mut self) -> &mut ExclusiveSeq {
        &mut self.0.exclusive
    }
}

impl<T: MirrorOps> MmuIntervalNotifier<T> {
    const OPS: &'static bindings::mmu_interval_notifier_ops =
        &bindings::mmu_interval_notifier_ops {
            invalidate: None,
            invalidate_start: Some(Self::invalidate_start),
            invalidate_finish: Some(Self::invalidate_finish),
        };

    /// Subscribes to the changes of `mm`, whose mmap lock the caller must not hold.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for that, `EINTR` if the caller is being killed.
    pub(crate) fn new<'a>(
        mm: &'a MmWithUser,
        mirror: T,
        state: T::State,
    ) -> Result<impl PinInit<Self, Error> + 'a> {
        let mut spares = KVec::with_capacity(SPARES, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..SPARES {
            let finish = Finish {
                raw: Opaque::uninit(),
                range: 0..0,
                work: Work::Idle(mirror.alloc_resources()?),
            };
            spares.push(KBox::new(finish, GFP_KERNEL_ACCOUNT)?, GFP_KERNEL_ACCOUNT)?;
        }
        let reserve = mirror.alloc_resources()?;
        let user = mirror.user();
        // The notifier must cover a whole number of pages; the last page is not addressable.
        const WHOLE: usize = usize::MAX & !(PAGE_SIZE - 1);
        // INVARIANT: `raw` is inserted below, or initialisation fails.
        Ok(try_pin_init!(Self {
            mirror,
            state <- new_mutex!(
                State {
                    mirrored: state,
                    exclusive: ExclusiveSeq::new(),
                },
                "MmuIntervalNotifier::state"
            ),
            spares <- new_spinlock!(spares, "MmuIntervalNotifier::spares"),
            reserve <- new_mutex!(Some(reserve), "MmuIntervalNotifier::reserve"),
            exclusive <- ExclusiveLock::new(),
            turns: Turns::new(user)?,
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::mmu_interval_notifier| {
                let locked = ChangingMm::killable(mm)?;
                // SAFETY: `slot` is part of a pinned `MmuIntervalNotifier` whose other fields are
                // initialised, which it stays until `drop` removes the notifier. `mm`
                // has users, and its mmap lock is held for writing.
                to_result(unsafe {
                    bindings::mmu_interval_notifier_insert_locked(
                        slot,
                        locked.as_raw(),
                        0,
                        WHOLE,
                        Self::OPS,
                    )
                })
            }),
        }))
    }

    /// Locks the mirrored state. What was learnt about the address space before must not be used
    /// any more; [`super::hmm`] checks that.
    pub(crate) fn lock(&self) -> StateGuard<'_, T> {
        StateGuard(self.state.lock())
    }

    /// The mirror.
    #[allow(dead_code)] // The sample does not need it.
    pub(crate) fn mirror(&self) -> &T {
        &self.mirror
    }

    pub(super) fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.raw.get()
    }

    /// The owner whose exclusive access does not count as a change.
    pub(super) fn owner(&self) -> PgmapOwner {
        self.mirror.owner()
    }

    /// Held while a page is made exclusive.
    pub(super) fn exclusive_lock(&self) -> &ExclusiveLock {
        &self.exclusive
    }

    /// Whether this is the address space that the notifier covers.
    pub(super) fn covers(&self, mm: &MmWithUser) -> bool {
        self.is_for(mm.as_raw())
    }

    /// The same for an address space that may not exist any more.
    pub(crate) fn is_for(&self, mm: *const bindings::mm_struct) -> bool {
        // SAFETY: By the invariants the notifier is inserted; its `mm` does not change.
        unsafe { core::ptr::eq((*self.raw.get()).mm, mm) }
    }

    /// Whether the address space has changed, or is changing, since this sequence was read.
    pub(crate) fn read_retry(&self, _state: &StateGuard<'_, T>, seq: usize) -> bool {
        // SAFETY: By the invariants the notifier is inserted. The lock is the one under
        // which its callbacks set the sequence.
        unsafe { bindings::virtio_hmm_read_retry(self.raw.get(), seq) }
    }

    /// Announces that the caller will look at the address space repeatedly until it has a valid
    /// view, or drops the returned value. If endless changes prevent that, the threads that make
    /// them pause, each for a bounded time.
    pub(crate) fn want_turn(&self) -> Option<Turn<'_>> {
        self.turns.want()
    }

    /// Whether a look at the address space was requested longer ago than `time` and changes have
    /// not allowed it yet.
    pub(crate) fn is_starved(&self, time: Delta) -> bool {
        self.turns.is_starved(time)
    }

    /// Announces that the caller waits for a look, and for nothing else, until it drops the
    /// returned value.
    pub(super) fn looking(&self) -> Option<Look<'_>> {
        self.turns.look()
    }

    /// Waits until no change that the mirror was notified of is in progress. Returns the sequence
    /// for [`Self::read_retry`], which tells whether another change has begun.
    pub(crate) fn read_begin(&self) -> usize {
        let _turn = self.turns.want();
        let _look = self.turns.look();
        // SAFETY: By the invariants the notifier is inserted.
        unsafe { bindings::mmu_interval_read_begin(self.raw.get()) }
    }

    /// Waits until no change that the mirror was notified of is in progress.
    pub(crate) fn wait_for_changes(&self) {
        self.read_begin();
    }

    /// # Safety
    ///
    /// `raw` must point to the notifier of a `MmuIntervalNotifier<T>`, which must live for `'a`.
    unsafe fn from_raw<'a>(raw: *mut bindings::mmu_interval_notifier) -> &'a Self {
        // SAFETY: The caller promises that this is the field of a `MmuIntervalNotifier` that lives
        // for `'a`.
        unsafe { &*container_of!(Opaque::cast_from(raw), Self, raw) }
    }

    extern "C" fn invalidate_start(
        raw: *mut bindings::mmu_interval_notifier,
        range: *const bindings::mmu_notifier_range,
        seq: c_ulong,
        finish: *mut *mut bindings::mmu_interval_notifier_finish,
    ) -> bool {
        // SAFETY: By the invariants the notifier is that of a `MmuIntervalNotifier`, whose drop
        // waits for this call.
        let this = unsafe { Self::from_raw(raw) };
        // SAFETY: The kernel calls with a valid range.
        let (start, end) = unsafe { ((*range).start, (*range).end) };
        // SAFETY: The kernel calls with a valid range.
        let blockable = unsafe { bindings::virtio_hmm_blockable(range) };
        // SAFETY: The kernel calls with a valid range, which does not change during the call.
        let event = unsafe { MmuNotifierEvent::of(&*range, this.mirror.owner()) };
        // SAFETY: The kernel calls with a valid range.
        let number = unsafe { (*range).event };
        // INVARIANT: This is the callback for that change, and `change` does not outlive it. By the
        // invariants the notifier is inserted, so the address space exists.
        let change = MmuNotifierRange {
            // SAFETY: By the invariants the notifier is inserted; its `mm` does not change.
            mm: unsafe { (*raw).mm },
            event,
            number,
            addresses: start..end,
            is_blockable: blockable,
            _callback: PhantomData,
        };

        this.mirror.on_event(&change);
        if event == MmuNotifierEvent::Release {
            this.mirror.released();
        }
        let is_own = current!().mm().is_some_and(|mm| this.is_for(mm.as_raw()));
        this.turns.yield_later(is_own);
        let mut state = if blockable {
            this.state.lock()
        } else if let Some(state) = this.state.try_lock() {
            state
        } else {
            return false;
        };
        // Changes in progress at the same time share a sequence.
        //
        // SAFETY: `raw` is inserted; the sequence is only changed with the lock held.
        let is_alone = unsafe { (*raw).invalidate_seq } != seq;
        // Whatever the event: what was learnt before it must not be used.
        //
        // SAFETY: `raw` is inserted, `seq` is what this callback was given, and `state`
        // is the lock under which sequences are compared.
        unsafe { bindings::virtio_hmm_set_seq(raw, seq) };
        if event == MmuNotifierEvent::OwnExclusive {
            // The page stays where it is; only CPUs lose access to it.
            state.exclusive.made_exclusive(is_alone);
            return true;
        }
        state.exclusive.changed();
        if this.mirror.ignores(&state.mirrored, &change) {
            return true;
        }
        let affected = (this.mirror).affected_range(&state.mirrored, change.addresses());
        let mut blocker = this.mirror.blocked_by(&state.mirrored, &change);
        drop(state);
        if !blockable && (blocker.is_some() || affected.is_some()) {
            // This change may wait neither for a migration nor for the mirror.
            return false;
        }
        while let Some(event) = blocker {
            if !event.wait_timeout(BLOCK_TIMEOUT) {
                this.mirror.block_timed_out();
                break;
            }
            let state = this.state.lock();
            blocker = this.mirror.blocked_by(&state.mirrored, &change);
        }
        this.mirror.unblocked(&change);
        let Some(range) = affected else {
            return true;
        };

        // From here on nothing is mirrored again until this change is over: the sequence makes each
        // attempt to do so wait.
        let spare = this.spares.lock().pop();
        let Some(mut pass) = spare else {
            this.invalidate_at_once(&range);
            return true;
        };
        let Work::Idle(resources) = core::mem::replace(&mut pass.work, Work::Taken) else {
            // All spare entries are idle.
            this.invalidate_at_once(&range);
            return true;
        };
        pass.work = Work::Started(this.mirror.invalidate_start(resources, &range));
        pass.range = range;
        let pass = KBox::into_raw(pass);
        // SAFETY: `finish` is valid for writes. The first field of `Finish` is the
        // second pass's link; the kernel passes it to `invalidate_finish` once.
        unsafe { *finish = pass.cast() };
        // SAFETY: `pass` is valid. The kernel fills in `link` itself.
        unsafe { (*(*pass).raw.get()).notifier = raw };
        true
    }

    extern "C" fn invalidate_finish(finish: *mut bindings::mmu_interval_notifier_finish) {
        // SAFETY: This is a link that `invalidate_start` has handed out, which is the
        // first field of a `Finish` from `into_raw`.
        let mut pass = unsafe { KBox::from_raw(finish.cast::<Finish<T>>()) };
        // SAFETY: `invalidate_start` has set this.
        let raw = unsafe { (*pass.raw.get()).notifier };
        // SAFETY: By the invariants the notifier is that of a `MmuIntervalNotifier`, whose drop
        // waits for the end of the change.
        let this = unsafe { Self::from_raw(raw) };

        if let Work::Started(pending) = core::mem::replace(&mut pass.work, Work::Taken) {
            if let Some(resources) = this.mirror.invalidate_wait(pending) {
                pass.work = Work::Idle(resources);
            }
        }
        this.mirror.invalidated(&mut this.lock(), &pass.range);
        if let Work::Idle(_) = pass.work {
            // The vector still has the capacity that it was popped from.
            let _ = this.spares.lock().push_within_capacity(pass);
        }
    }

    /// Runs both passes at once, with the resources reserved for this. Then the two passes of
    /// different mirrors do not overlap: no thread holds the last resources of one mirror while it
    /// waits for those of another.
    fn invalidate_at_once(&self, range: &Range<usize>) {
        let mut reserve = self.reserve.lock();
        if let Some(resources) = reserve.take() {
            let pending = self.mirror.invalidate_start(resources, range);
            *reserve = self.mirror.invalidate_wait(pending);
        } else {
            self.mirror.resources_lost();
        }
        self.mirror.invalidated(&mut self.lock(), range);
    }
}

#[pinned_drop]
impl<T: MirrorOps> PinnedDrop for MmuIntervalNotifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the invariants the notifier is inserted, and this is not one of its
        // callbacks: those hold no reference that could be the last one.
        unsafe { bindings::mmu_interval_notifier_remove(self.raw.get()) };
    }
}

/// A change that the kernel is about to make: a `struct mmu_notifier_range`.
///
/// # Invariants
///
/// During `'c` the kernel is notifying of a change of `addresses` of `mm`, an address space that
/// exists. The thread that makes the change holds its mmap lock or, if it found the range by a
/// reverse map, the lock of that reverse map.
pub(crate) struct MmuNotifierRange<'c> {
    mm: *mut bindings::mm_struct,
    event: MmuNotifierEvent,
    number: u32,
    addresses: Range<usize>,
    is_blockable: bool,
    _callback: PhantomData<&'c ()>,
}

impl MmuNotifierRange<'_> {
    /// The address space.
    pub(crate) fn mm(&self) -> *mut bindings::mm_struct {
        self.mm
    }

    /// Why it changes.
    pub(crate) fn event(&self) -> MmuNotifierEvent {
        self.event
    }

    /// The same as a number: an `enum mmu_notifier_event`.
    #[allow(dead_code)] // The sample does not need it.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The addresses that change.
    pub(crate) fn addresses(&self) -> &Range<usize> {
        &self.addresses
    }

    /// Whether the change may wait. Only the memory of a process that is being killed is taken away
    /// by a thread that may not: the OOM killer's, or that of process_mrelease(2).
    pub(crate) fn is_blockable(&self) -> bool {
        self.is_blockable
    }

    /// Whether a thread of the process itself makes the change.
    pub(crate) fn is_by_process(&self) -> bool {
        let caller = current!();
        caller
            .mm()
            .is_some_and(|mm| core::ptr::eq(mm.as_raw(), self.mm))
    }
}

/// Why an address space changes: an `enum mmu_notifier_event`, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmuNotifierEvent {
    /// `MMU_NOTIFY_EXCLUSIVE` by the mirror's owner: it takes a page away from the CPUs.
    OwnExclusive,
    /// `MMU_NOTIFY_MIGRATE` by the mirror's owner: it moves pages to its device memory or back.
    OwnMigrate,
    /// `MMU_NOTIFY_UNMAP`: memory is unmapped.
    Unmap,
    /// `MMU_NOTIFY_CLEAR`: entries of page tables are cleared.
    Clear,
    /// `MMU_NOTIFY_RELEASE`: no process has the address space any more.
    Release,
    /// `MMU_NOTIFY_SOFT_DIRTY`: the kernel begins to track which pages are written.
    SoftDirty,
    /// Any other event.
    Other,
}

impl MmuNotifierEvent {
    /// # Safety
    ///
    /// `range` must be one that the kernel calls back with.
    unsafe fn of(range: &bindings::mmu_notifier_range, owner: PgmapOwner) -> Self {
        // Only the first two of these events have an owner at all.
        let is_own = || PgmapOwner::new(range.owner) == owner;
        match range.event {
            bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE if is_own() => Self::OwnExclusive,
            bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE if is_own() => Self::OwnMigrate,
            bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP => Self::Unmap,
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR => Self::Clear,
            bindings::mmu_notifier_event_MMU_NOTIFY_RELEASE => Self::Release,
            bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY => Self::SoftDirty,
            _ => Self::Other,
        }
    }
}
