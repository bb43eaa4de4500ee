// SPDX-License-Identifier: GPL-2.0

//! Interval notifiers: learning of changes to a process's address space before they
//! happen, and delaying them until a mirror has followed.
//!
//! An [`Interval`] covers the whole address space. It owns the lock under which
//! mirrored state is changed, sets the sequence under it before anything else, and
//! runs the two passes that the kernel offers: in the first pass all mirrors of a
//! process are asked, in the second one each is waited for.
//!
//! C header: `include/linux/mmu_notifier.h`.
//!
//! Lock order: `Interval::taking`, then the kernel's locks of the address space, then
//! `Interval::last`, then `Interval::state` or `Interval::spare`. The last three are taken
//! while the kernel may be reclaiming memory: nothing may be allocated with them held.

use super::Owner;
use crate::{sys as bindings, wait::Event};
use core::{
    mem::offset_of,
    ops::{Deref, DerefMut, Range},
    pin::Pin,
};
use kernel::{
    current,
    error::to_result,
    mm::MmWithUser,
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        lock::{mutex::MutexBackend, Guard},
        Arc, Mutex, SpinLock,
    },
    task::Task,
    types::Opaque,
};

/// How many changes to one address space can be waited for at the same time in two
/// passes. More take one pass each, one after the other.
const SPARES: usize = 4;

/// How many threads at a time can tell the mirror themselves of what they move; see
/// [`Interval::move_by_caller`].
const MOVERS: usize = 4;

/// How many parts of an address space can be kept still at the same time.
const STILLS: usize = 8;

/// How long a change waits for who keeps a part of the address space still, in milliseconds; see
/// [`Interval::keep_still`]. Longer than it ever takes, as long as the device answers.
const STILL_PATIENCE: u32 = 5000;

/// Mirrors an address space.
pub(crate) trait Mirror: Send + Sync + Sized + 'static {
    /// What is changed together with the mirror, under the interval's lock.
    type State: Send + Unpin;
    /// What it takes to ask for an invalidation without allocating memory.
    type Means: Send + Unpin;
    /// An invalidation that has been asked for.
    type Promise: Send;

    /// Whose exclusive access does not concern the mirror; see [`super::exclusive`].
    fn owner(&self) -> Owner;

    /// Allocates what one invalidation takes.
    fn means(&self) -> Result<Self::Means>;

    /// Called for every change; counts it, say.
    fn changing(&self);

    /// The part of the range that the mirror must forget, if any. Called with the
    /// sequence set.
    fn concerned(&self, state: &Self::State, range: &Range<usize>) -> Option<Range<usize>>;

    /// Asks for the range to be forgotten. May sleep, but not for memory.
    fn ask(&self, means: Self::Means, range: &Range<usize>) -> Self::Promise;

    /// Waits until what was asked for is done. May sleep, but not for memory. Returns
    /// the means, to be used again; `None` means that nothing is mirrored from now on, so
    /// that nothing needs to be asked for any more.
    fn wait(&self, promise: Self::Promise) -> Option<Self::Means>;

    /// Called when the range has been forgotten.
    fn forgotten(&self, state: &mut Self::State, range: &Range<usize>);
}

/// A subscription to all changes of an address space, until it is dropped.
///
/// # Invariants
///
/// `raw` is inserted, with [`Interval::OPS`], from initialisation to drop.
#[pin_data(PinnedDrop)]
pub(crate) struct Interval<T: Mirror> {
    mirror: T,
    #[pin]
    state: Mutex<State<T>>,
    #[pin]
    spare: SpinLock<KVec<KBox<Pending<T>>>>,
    #[pin]
    last: Mutex<Option<T::Means>>,
    /// Held by who is getting exclusive access to a page.
    #[pin]
    pub(super) taking: Mutex<()>,
    // Last, because callbacks run as soon as it is initialised.
    #[pin]
    raw: Opaque<bindings::mmu_interval_notifier>,
}

// SAFETY: The notifier may be removed from any thread, and all else is `Send`.
unsafe impl<T: Mirror> Send for Interval<T> {}
// SAFETY: The notifier does its own locking; what may be shared of the rest is behind
// locks or `Sync`.
unsafe impl<T: Mirror> Sync for Interval<T> {}

/// What is kept from the first to the second pass.
#[repr(C)]
struct Pending<T: Mirror> {
    finish: Opaque<bindings::mmu_interval_notifier_finish>,
    range: Range<usize>,
    work: Work<T>,
}

// SAFETY: The link is only used by the thread that the invalidation runs in.
unsafe impl<T: Mirror> Send for Pending<T> {}

enum Work<T: Mirror> {
    Idle(T::Means),
    Asked(T::Promise),
    Taken,
}

/// What is changed under the interval's lock.
struct State<T: Mirror> {
    mirrored: T::State,
    /// Counts changes, but for those by which the mirror itself gets exclusive access.
    changes: usize,
    /// What `changes` was when the mirror last got exclusive access, unless another change
    /// went on at that moment.
    at_exclusive: Option<usize>,
    /// Who keeps parts of the address space still. They do not overlap.
    stills: [Option<Stillness>; STILLS],
    /// Who tells the mirror of what it moves.
    movers: [Option<Mover>; MOVERS],
}

impl<T: Mirror> State<T> {
    /// The part of a range that the mirror must forget, or is being told to forget, if any.
    fn concerned(&self, mirror: &T, range: &Range<usize>) -> Option<Range<usize>> {
        let mut concerned = mirror.concerned(&self.mirrored, range);
        for mover in self.movers.iter().flatten() {
            let Mover::Telling(told) = mover else {
                continue;
            };
            let (start, end) = (told.start.max(range.start), told.end.min(range.end));
            if start < end {
                let other = concerned.unwrap_or(start..end);
                concerned = Some(start.min(other.start)..end.max(other.end));
            }
        }
        concerned
    }
}

/// Somebody who tells the mirror of what it moves.
#[derive(PartialEq, Eq)]
enum Mover {
    /// A thread that may be taking pages away from the process.
    Taking(Thread),
    /// It has taken these away, and the mirror may not have forgotten them yet.
    Telling(Range<usize>),
}

/// Somebody keeps a part of an address space still.
struct Stillness {
    /// The thread, which is not to wait for itself.
    thread: Thread,
    range: Range<usize>,
    /// Happens when it is over.
    over: Arc<Event>,
}

impl Stillness {
    /// The part of a range that is kept still.
    fn part(&self, range: &Range<usize>) -> Range<usize> {
        self.range.start.max(range.start)..self.range.end.min(range.end)
    }
}

/// A thread, to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Thread(*const Task);

// SAFETY: The pointer is only compared.
unsafe impl Send for Thread {}

impl Thread {
    /// The one that calls.
    fn current() -> Self {
        let caller = current!();
        let task: &Task = caller;
        Self(task)
    }
}

/// What the thread that made it moves to or from device memory of the mirror's owner does not
/// concern the mirror, until [`Self::tell`].
pub(crate) struct OwnMove<'a, T: Mirror> {
    interval: &'a Interval<T>,
    place: usize,
}

impl<T: Mirror> OwnMove<'_, T> {
    /// Notes that the mirror is about to be told of all that was taken away from the process,
    /// which lies in `range`. Other changes there wait for the mirror until this is dropped,
    /// which must not be before it has forgotten the pages.
    pub(crate) fn tell(&self, state: &mut StateGuard<'_, T>, range: Range<usize>) {
        state.0.movers[self.place] = Some(Mover::Telling(range));
    }
}

impl<T: Mirror> Drop for OwnMove<'_, T> {
    fn drop(&mut self) {
        self.interval.state.lock().movers[self.place] = None;
    }
}

/// As long as it exists, changes that take large pages on the move away from a part of the
/// address space wait before they begin; see [`Interval::keep_still`].
pub(crate) struct Still<'a, T: Mirror> {
    interval: &'a Interval<T>,
    place: usize,
}

impl<T: Mirror> Still<'_, T> {
    /// Whether it is this address space of which a part is kept still.
    pub(super) fn is_of(&self, mm: *const bindings::mm_struct) -> bool {
        self.interval.is_for(mm)
    }
}

impl<T: Mirror> Drop for Still<'_, T> {
    fn drop(&mut self) {
        let still = self.interval.state.lock().stills[self.place].take();
        if let Some(still) = still {
            still.over.set();
        }
    }
}

/// The lock of the mirrored state, and the proof that the mirror may be changed by
/// what was learnt of the address space.
pub(crate) struct StateGuard<'a, T: Mirror>(Guard<'a, State<T>, MutexBackend>);

impl<T: Mirror> Deref for StateGuard<'_, T> {
    type Target = T::State;

    fn deref(&self) -> &T::State {
        &self.0.mirrored
    }
}

impl<T: Mirror> DerefMut for StateGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T::State {
        &mut self.0.mirrored
    }
}

impl<T: Mirror> StateGuard<'_, T> {
    /// How many changes there were, but for those by which the mirror itself got exclusive
    /// access.
    pub(super) fn changes(&self) -> usize {
        self.0.changes
    }

    /// What that number was when the mirror last got exclusive access, unless another
    /// change went on at that moment; forgets it.
    pub(super) fn take_at_exclusive(&mut self) -> Option<usize> {
        self.0.at_exclusive.take()
    }
}

impl<T: Mirror> Interval<T> {
    const OPS: &'static bindings::mmu_interval_notifier_ops =
        &bindings::mmu_interval_notifier_ops {
            invalidate: None,
            invalidate_start: Some(Self::invalidate_start),
            invalidate_finish: Some(Self::invalidate_finish),
        };

    /// Subscribes to the changes of `mm`.
    pub(crate) fn new<'a>(
        mm: &'a MmWithUser,
        mirror: T,
        state: T::State,
    ) -> Result<impl PinInit<Self, Error> + 'a> {
        let mut spare = KVec::with_capacity(SPARES, GFP_KERNEL)?;
        for _ in 0..SPARES {
            let pending = Pending {
                finish: Opaque::uninit(),
                range: 0..0,
                work: Work::Idle(mirror.means()?),
            };
            spare.push(KBox::new(pending, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let last = mirror.means()?;
        // The notifier must cover a whole number of pages; the last one is no address.
        const WHOLE: usize = usize::MAX & !(super::PAGE_SIZE - 1);
        // INVARIANT: `raw` is inserted below, or initialisation fails.
        Ok(try_pin_init!(Self {
            mirror,
            state <- new_mutex!(
                State {
                    mirrored: state,
                    changes: 0,
                    at_exclusive: None,
                    stills: [const { None }; STILLS],
                    movers: [const { None }; MOVERS],
                },
                "Interval::state"
            ),
            spare <- new_spinlock!(spare, "Interval::spare"),
            last <- new_mutex!(Some(last), "Interval::last"),
            taking <- new_mutex!((), "Interval::taking"),
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::mmu_interval_notifier| {
                // SAFETY: `slot` is part of a pinned `Interval` whose other fields are
                // initialised, which it stays until `drop` removes the notifier. `mm`
                // has users. No lock of `mm` is held, or this would deadlock.
                to_result(unsafe {
                    bindings::mmu_interval_notifier_insert(slot, mm.as_raw(), 0, WHOLE, Self::OPS)
                })
            }),
        }))
    }

    /// Locks the mirrored state. What was learnt of the address space before must not be
    /// used any more: see [`super::hmm`] for that.
    pub(crate) fn lock(&self) -> StateGuard<'_, T> {
        StateGuard(self.state.lock())
    }

    pub(super) fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.raw.get()
    }

    /// Whose exclusive access does not count as a change.
    pub(super) fn owner(&self) -> Owner {
        self.mirror.owner()
    }

    /// Whether it is this address space whose changes are followed.
    pub(super) fn covers(&self, mm: &MmWithUser) -> bool {
        self.is_for(mm.as_raw())
    }

    /// The same of an address space that need not exist any more.
    pub(crate) fn is_for(&self, mm: *const bindings::mm_struct) -> bool {
        // SAFETY: By the invariants the notifier is inserted; its `mm` does not change.
        unsafe { core::ptr::eq((*self.raw.get()).mm, mm) }
    }

    /// Whether a change that the caller makes may take large pages away from the process that are
    /// in device memory or on the move.
    ///
    /// What is cleared may also be moved, or be split: by reclaim, by the kernel that moves it
    /// nearer to a processor, by another process that has it, too, by this driver. Those hold locks
    /// that who keeps the address space still needs, so that they must not wait for it.
    /// But they only clear what is present, and nobody splits or moves a large page in device
    /// memory unless it keeps it still itself.
    fn takes_away(&self, cause: Cause, range: &Range<usize>) -> bool {
        let may = match cause {
            Cause::Unmap => true,
            // `MADV_DONTNEED` and the like.
            Cause::Clear => {
                let caller = current!();
                caller.mm().is_some_and(|mm| self.is_for(mm.as_raw()))
            }
            Cause::OwnExclusive | Cause::OwnMove | Cause::Other => false,
        };
        // SAFETY: By the invariants the notifier is inserted, so that there is an address space.
        // Who changes a range of it holds its mmap lock or, if the range was found by a reverse
        // map, the lock of that. The kernel frees page tables of areas only after it has taken
        // them out of their reverse maps, for which it takes those locks, and below the mmap lock.
        may && unsafe {
            bindings::virtio_hmm_has_large_entry((*self.raw.get()).mm, range.start, range.end)
        }
    }

    /// Who keeps still what the caller's change takes away, if anybody does.
    fn awaited(&self, state: &State<T>, cause: Cause, range: &Range<usize>) -> Option<Arc<Event>> {
        let thread = Thread::current();
        let others = state.stills.iter().flatten();
        let mut others = others.filter(|still| still.thread != thread);
        let still = others.find(|still| {
            let part = still.part(range);
            !part.is_empty() && self.takes_away(cause, &part)
        });
        still.map(|still| still.over.clone())
    }

    /// Whether the address space has changed, or is changing, since this sequence was read.
    pub(super) fn has_changed(&self, _state: &StateGuard<'_, T>, seq: usize) -> bool {
        // SAFETY: By the invariants the notifier is inserted. The lock is the one under
        // which its callbacks set the sequence.
        unsafe { bindings::virtio_hmm_read_retry(self.raw.get(), seq) }
    }

    /// Lets changes that take large pages in device memory, or on their way from or to it, away
    /// from a part of the address space wait, but for those by the caller itself, once all
    /// changes that go on are over. One caller at a time for each part.
    ///
    /// Needed while large pages in device memory are on the move. When the kernel (7.3) takes
    /// memory away from a process and finds the entry of such a move in its page table, it
    /// takes it for one of a page that is still there, and gives back a reference which that
    /// entry does not have (`zap_huge_pmd_folio`): the folio would be freed under the move.
    /// Needed also while large pages move there: a change that began when one was not there yet
    /// would not wait for who moves it on.
    ///
    /// A change may wait here with locks held that the caller needs sooner or later; hence there
    /// is a bound for it.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for that.
    pub(crate) fn keep_still(&self, range: Range<usize>) -> Result<Still<'_, T>> {
        let over = Arc::pin_init(Event::new(), GFP_KERNEL)?;
        loop {
            // SAFETY: By the invariants the notifier is inserted.
            let seq = unsafe { bindings::mmu_interval_read_begin(self.raw.get()) };
            let mut guard = self.lock();
            let stills = &mut guard.0.stills;
            let free = stills.iter().position(Option::is_none);
            let mut others = stills.iter().flatten();
            let other = match free {
                Some(_) => others.find(|still| !still.part(&range).is_empty()),
                None => others.next(),
            };
            if let Some(other) = other.map(|other| other.over.clone()) {
                drop(guard);
                other.wait();
            } else if let (Some(place), false) = (free, self.has_changed(&guard, seq)) {
                guard.0.stills[place] = Some(Stillness {
                    thread: Thread::current(),
                    range,
                    over,
                });
                return Ok(Still {
                    interval: self,
                    place,
                });
            }
        }
    }

    /// Lets the caller move memory without the mirror being asked to forget it: it will see to
    /// that itself ([`OwnMove::tell`]), for all pages that it has taken away from the process,
    /// before anything is done with them and before it gives them back. Others are not
    /// concerned, because such a move leaves them alone. What was learnt of the address space
    /// before the move must not be used after it, as ever.
    ///
    /// `None` if too many do that already; the mirror is asked then.
    pub(crate) fn move_by_caller(&self) -> Option<OwnMove<'_, T>> {
        let mut guard = self.lock();
        let place = guard.0.movers.iter().position(Option::is_none)?;
        guard.0.movers[place] = Some(Mover::Taking(Thread::current()));
        Some(OwnMove {
            interval: self,
            place,
        })
    }

    /// Waits until no change goes on that the mirror has been told of.
    pub(super) fn wait_for_changes(&self) {
        // SAFETY: By the invariants the notifier is inserted.
        unsafe { bindings::mmu_interval_read_begin(self.raw.get()) };
    }

    /// # Safety
    ///
    /// `raw` must point to the notifier of an `Interval<T>`, which must live for `'a`.
    unsafe fn from_raw<'a>(raw: *mut bindings::mmu_interval_notifier) -> &'a Self {
        // SAFETY: The caller promises that this is the field of an `Interval`. `Opaque`
        // is transparent.
        unsafe { &*raw.byte_sub(offset_of!(Self, raw)).cast::<Self>() }
    }

    extern "C" fn invalidate_start(
        raw: *mut bindings::mmu_interval_notifier,
        range: *const bindings::mmu_notifier_range,
        seq: c_ulong,
        finish: *mut *mut bindings::mmu_interval_notifier_finish,
    ) -> bool {
        // SAFETY: By the invariants the notifier is that of an `Interval`, whose drop
        // waits for this call.
        let this = unsafe { Self::from_raw(raw) };
        // SAFETY: The kernel calls with a valid range.
        let (start, end) = unsafe { ((*range).start, (*range).end) };
        // SAFETY: As above.
        let blockable = unsafe { bindings::virtio_hmm_blockable(range) };
        // SAFETY: As above.
        let cause = unsafe { Cause::of(&*range, this.mirror.owner()) };

        this.mirror.changing();
        let mut state = if blockable {
            this.state.lock()
        } else if let Some(state) = this.state.try_lock() {
            state
        } else {
            return false;
        };
        // Changes that go on at the same time share a sequence.
        //
        // SAFETY: `raw` is inserted; nobody else changes the sequence with the lock held.
        let is_alone = unsafe { (*raw).invalidate_seq } != seq;
        // Whoever the change comes from: what was learnt before it must not be used.
        //
        // SAFETY: `raw` is inserted, `seq` is what this callback was given, and `state`
        // is the lock under which sequences are compared.
        unsafe { bindings::virtio_hmm_set_seq(raw, seq) };
        if cause == Cause::OwnExclusive {
            // The page stays where it is, and only CPUs lose it.
            state.at_exclusive = is_alone.then_some(state.changes);
            return true;
        }
        state.changes = state.changes.wrapping_add(1);
        let thread = Thread::current();
        if cause == Cause::OwnMove && state.movers.contains(&Some(Mover::Taking(thread))) {
            // See `move_by_caller`.
            return true;
        }
        let change = start..end;
        let concerned = state.concerned(&this.mirror, &change);
        let mut over = this.awaited(&state, cause, &change);
        drop(state);
        if !blockable && (over.is_some() || concerned.is_some()) {
            // Neither who moves pages nor the mirror can be waited for.
            return false;
        }
        // Nobody else begins to keep anything still as long as this change goes on.
        while over.is_some_and(|over| over.wait_timeout(STILL_PATIENCE)) {
            over = this.awaited(&this.state.lock(), cause, &change);
        }
        let Some(range) = concerned else {
            return true;
        };

        // From here on nothing is mirrored anew before this change is over: the sequence
        // tells all who want to that they have to wait.
        let spare = this.spare.lock().pop();
        let Some(mut pending) = spare else {
            this.invalidate_alone(&range);
            return true;
        };
        let Work::Idle(means) = core::mem::replace(&mut pending.work, Work::Taken) else {
            // Only such are spare.
            this.invalidate_alone(&range);
            return true;
        };
        pending.work = Work::Asked(this.mirror.ask(means, &range));
        pending.range = range;
        let pending = KBox::into_raw(pending);
        // SAFETY: `finish` is valid for writes. The first field of `Pending` is the
        // second pass's link; the kernel passes it to `invalidate_finish` once.
        unsafe { *finish = pending.cast() };
        // SAFETY: `pending` is valid. The kernel fills in `link` itself.
        unsafe { (*(*pending).finish.get()).notifier = raw };
        true
    }

    extern "C" fn invalidate_finish(finish: *mut bindings::mmu_interval_notifier_finish) {
        // SAFETY: This is a link that `invalidate_start` has handed out, which is the
        // first field of a `Pending` from `into_raw`.
        let mut pending = unsafe { KBox::from_raw(finish.cast::<Pending<T>>()) };
        // SAFETY: `invalidate_start` has set this.
        let raw = unsafe { (*pending.finish.get()).notifier };
        // SAFETY: By the invariants the notifier is that of an `Interval`, whose drop
        // waits for the end of the change.
        let this = unsafe { Self::from_raw(raw) };

        if let Work::Asked(promise) = core::mem::replace(&mut pending.work, Work::Taken) {
            if let Some(means) = this.mirror.wait(promise) {
                pending.work = Work::Idle(means);
            }
        }
        this.mirror.forgotten(&mut this.lock(), &pending.range);
        if let Work::Idle(_) = pending.work {
            // There is always room for what was taken from there.
            let _ = this.spare.lock().push_within_capacity(pending);
        }
    }

    /// Runs both passes at once, by the means that are kept for this. The two passes of
    /// different mirrors then do not overlap, so that nobody holds the last means of one
    /// mirror while waiting for those of another.
    fn invalidate_alone(&self, range: &Range<usize>) {
        let mut last = self.last.lock();
        // Without them nothing is mirrored any more; see `Mirror::wait`.
        if let Some(means) = last.take() {
            *last = self.mirror.wait(self.mirror.ask(means, range));
        }
        self.mirror.forgotten(&mut self.lock(), range);
    }
}

#[pinned_drop]
impl<T: Mirror> PinnedDrop for Interval<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the invariants the notifier is inserted, and this is not one of its
        // callbacks: those hold no reference that could be the last one.
        unsafe { bindings::mmu_interval_notifier_remove(self.raw.get()) };
    }
}

/// Why an address space changes, as far as that matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The owner takes a page away from the CPUs.
    OwnExclusive,
    /// The owner moves pages to its device memory or back.
    OwnMove,
    /// Memory is unmapped.
    Unmap,
    /// Entries of page tables are cleared.
    Clear,
    /// Anything else.
    Other,
}

impl Cause {
    /// # Safety
    ///
    /// `range` must be one that the kernel calls back with.
    unsafe fn of(range: &bindings::mmu_notifier_range, owner: Owner) -> Self {
        // Only the first two of these events have an owner at all.
        let is_own = || Owner::new(range.owner) == owner;
        match range.event {
            bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE if is_own() => Self::OwnExclusive,
            bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE if is_own() => Self::OwnMove,
            bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP => Self::Unmap,
            bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR => Self::Clear,
            _ => Self::Other,
        }
    }
}
