// SPDX-License-Identifier: GPL-2.0

//! Turns: let a mirror look at an address space whose own threads change it all the time.
//!
//! The kernel lets a mirror look only while no change is in progress (`mmu_interval_read_begin()`),
//! and what the mirror has found is void once another change begins. The changes of many threads
//! may overlap without end. So a mirror announces that it wants to look ([`Turns::want`]). If it
//! does not get its turn soon, each thread that begins a change pauses after its system call or
//! page fault, on its way back to user mode ([`Turns::yield_later`]). There the thread holds no
//! lock that the mirror could wait for.
//!
//! Threads of the process pause, and those of other processes of the same user: they change the
//! address space, too, when they punch holes into a file that it maps. Threads of other users do
//! not pause. Otherwise a process could slow down a stranger by mapping what the stranger changes.
//! A thread that reclaims memory does not pause either.
//!
//! A system call that makes many changes is not interrupted: the thread pauses after the last one.
//!
//! Lock order: `Turns::pause` is taken with no other lock held.
//!
//! C header: [`include/linux/task_work.h`](srctree/include/linux/task_work.h)

use crate::{sys as bindings, wait::jiffies};
use kernel::{
    container_of, new_condvar, new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, CondVar, CondVarTimeoutResult, Mutex,
    },
    task::{Kuid, Task},
    time::Delta,
    types::Opaque,
};

/// How long a mirror waits for its turn before threads pause.
const SOON: Delta = Delta::from_millis(10);

/// How long a thread pauses at most. Bounded because the mirror may be waiting for
/// a page that this very thread has to provide.
const PAUSE: Delta = Delta::from_secs(1);

/// How long a thread pauses at most for a mirror that waits for nothing but the
/// end of changes. Such a mirror does not depend on a paused thread. Longer than [`PAUSE`]: if many
/// threads share few processors, the last one finishes its change long after the first one.
const LONG_PAUSE: Delta = Delta::from_secs(5);

/// How many turns are tracked at a time: usually more than threads look at one process.
const MAX_TURNS: usize = 8;

/// How many threads may pause at a time: usually more than change one process.
const PAUSES: usize = 128;

/// The mirrors that want to look at an address space.
#[pin_data]
pub(super) struct Turns {
    /// When each turn was requested, in nanoseconds of the kernel's clock; 0 for a free entry.
    wanted: [Atomic<i64>; MAX_TURNS],
    /// The same for looks that were requested from the kernel and not yet granted.
    looks: [Atomic<i64>; MAX_TURNS],
    /// The user of the process.
    user: Kuid,
    /// The threads that pause or are about to, each once; 0 for a free entry.
    pausing: [Atomic<usize>; PAUSES],
    #[pin]
    pause: Mutex<()>,
    /// Signalled when a turn for which threads may pause is over, after `pause` was locked.
    #[pin]
    over: CondVar,
}

impl Turns {
    /// The turns for an address space of a user.
    pub(super) fn new(user: Kuid) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                wanted: [const { Atomic::new(0) }; MAX_TURNS],
                looks: [const { Atomic::new(0) }; MAX_TURNS],
                user,
                pausing: [const { Atomic::new(0) }; PAUSES],
                pause <- new_mutex!((), "Turns::pause"),
                over <- new_condvar!("Turns::over"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Announces that the caller wants to look at the address space. The caller drops the returned
    /// value when it has looked, or before it waits for anything but the end of changes.
    ///
    /// `None` if there are too many requests. No thread then pauses for the caller.
    pub(super) fn want(&self) -> Option<Turn<'_>> {
        let index = begin(&self.wanted)?;
        Some(Turn { turns: self, index })
    }

    /// Announces that the caller waits for the kernel to grant a look, and for nothing else, until
    /// it drops the returned value. `None` if there are too many requests.
    pub(super) fn look(&self) -> Option<Look<'_>> {
        let index = begin(&self.looks)?;
        Some(Look { turns: self, index })
    }

    /// Whether a mirror should have had its turn by now.
    fn is_late(&self) -> bool {
        is_any_older(&self.wanted, SOON)
    }

    /// Whether a look was requested longer ago than `time` and is still pending.
    pub(super) fn is_starved(&self, time: Delta) -> bool {
        is_any_older(&self.looks, time)
    }

    /// Makes the calling thread, which begins a change, pause on its way back to user mode if a
    /// mirror is late by then. `is_own` says that the thread belongs to the process itself. Does
    /// not sleep.
    pub(super) fn yield_later(self: &Arc<Self>, is_own: bool) {
        if !self.is_late() || !(is_own || Kuid::current_euid() == self.user) {
            return;
        }
        let Some(pausing) = self.reserve_pause() else {
            return;
        };
        // If the allocation fails, this thread does not pause.
        let work = KBox::new(
            Work {
                head: Opaque::zeroed(),
                pausing,
                turns: self.clone(),
            },
            GFP_NOWAIT,
        );
        let Ok(work) = work else {
            self.end_pause(pausing);
            return;
        };
        let work = KBox::into_raw(work);
        // SAFETY: The allocation is valid.
        let head = unsafe { (*work).head.get() };
        // SAFETY: `head` stays valid until `Work::run` takes it back. If this succeeds, the kernel
        // calls `Work::run` once.
        let is_added = unsafe { bindings::virtio_hmm_add_task_work(head, Some(Work::run)) };
        if !is_added {
            self.end_pause(pausing);
            // SAFETY: `work` comes from `into_raw` above, and the kernel has not taken it.
            drop(unsafe { KBox::from_raw(work) });
        }
    }

    /// Reserves an entry for a pause of the caller; `None` if the caller has one already, or if all
    /// are taken.
    fn reserve_pause(&self) -> Option<usize> {
        let caller = current!();
        let task: &Task = caller;
        let thread = core::ptr::from_ref(task).addr();
        if self
            .pausing
            .iter()
            .any(|other| other.load(Relaxed) == thread)
        {
            return None;
        }
        let is_taken = |entry: &Atomic<usize>| entry.cmpxchg(0, thread, Relaxed).is_ok();
        self.pausing.iter().position(is_taken)
    }

    fn end_pause(&self, index: usize) {
        if let Some(pausing) = self.pausing.get(index) {
            pausing.store(0, Relaxed);
        }
    }

    /// Waits until no mirror is late with its turn, for a bounded time.
    fn pause(&self) {
        let begun = now();
        let mut guard = self.pause.lock();
        while self.is_late() {
            let is_looking = is_any_older(&self.looks, Delta::ZERO);
            let most = if is_looking { LONG_PAUSE } else { PAUSE };
            // Nothing signals that a mirror has got its look, so check again periodically.
            let left = (most.as_nanos())
                .saturating_sub(now().saturating_sub(begun))
                .min(PAUSE.as_nanos());
            if left <= 0 {
                return;
            }
            let left = jiffies(Delta::from_nanos(left)).max(1);
            let woken = self.over.wait_interruptible_timeout(&mut guard, left);
            if matches!(woken, CondVarTimeoutResult::Signal { .. }) {
                return;
            }
        }
    }
}

/// A mirror wants to look at an address space.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    index: usize,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let is_late = self.turns.is_late();
        if let Some(entry) = self.turns.wanted.get(self.index) {
            entry.store(0, Relaxed);
        }
        if is_late {
            // A thread that is about to pause has checked before this and sleeps by now.
            drop(self.turns.pause.lock());
            self.turns.over.notify_all();
        }
    }
}

/// The caller waits for a look.
pub(super) struct Look<'a> {
    turns: &'a Turns,
    index: usize,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.turns.looks.get(self.index) {
            entry.store(0, Relaxed);
        }
    }
}

/// Stores the time in a free entry, if there is one.
fn begin(times: &[Atomic<i64>]) -> Option<usize> {
    let now = now();
    let is_taken = |entry: &Atomic<i64>| entry.cmpxchg(0, now, Relaxed).is_ok();
    times.iter().position(is_taken)
}

/// Whether one of these times is longer ago than `age`.
fn is_any_older(times: &[Atomic<i64>], age: Delta) -> bool {
    let mut times = times.iter().map(|time| time.load(Relaxed));
    times.any(|since| since != 0 && now().saturating_sub(since) > age.as_nanos())
}

/// What a thread does on its way back to user mode.
struct Work {
    head: Opaque<bindings::callback_head>,
    /// Its index in `Turns::pausing`.
    pausing: usize,
    turns: Arc<Turns>,
}

impl Work {
    extern "C" fn run(head: *mut bindings::callback_head) {
        // SAFETY: The kernel calls this once for what `yield_later` has handed in, which is the
        // field of a `Work` from `into_raw`.
        let work = unsafe {
            KBox::from_raw(container_of!(
                Opaque::cast_from(head).cast_mut(),
                Self,
                head
            ))
        };
        // SAFETY: May be called by any thread.
        if unsafe { !bindings::virtio_hmm_is_ending() } {
            work.turns.pause();
        }
        work.turns.end_pause(work.pausing);
        drop(work);
        // SAFETY: This call holds a reference to the module. Afterwards it runs no other code of
        // the module than its return, and `Remains` waits for that.
        unsafe { bindings::virtio_hmm_put_module() };
    }
}

/// Waits, when the module is unloaded, for threads that are about to leave its code.
pub(crate) struct Remains;

impl Drop for Remains {
    fn drop(&mut self) {
        // SAFETY: May be called by any thread that may sleep.
        unsafe { bindings::virtio_hmm_wait_for_tasks() };
    }
}

/// The kernel's clock, in nanoseconds; not 0.
fn now() -> i64 {
    // SAFETY: May be called by any thread.
    unsafe { bindings::ktime_get() }.max(1)
}
