// SPDX-License-Identifier: GPL-2.0

//! The order of exclusive access: tells a mirror whether a page that it has taken away from the
//! CPUs is still its own.
//!
//! `make_device_exclusive()` is itself a change of the address space. The kernel notifies the
//! mirror of it, and the notifier's sequence is set as for any other change. So
//! `mmu_interval_read_retry()` cannot tell whether there was another change since. Changes are
//! counted here instead, and the count is kept that was valid when the mirror got access. On the
//! way there the kernel may also copy the page, or take it back from the device. So only other
//! changes after that moment matter.
//!
//! Does not know how a page is made exclusive: [`super::exclusive`] does that. The notifier reports
//! every change.
//!
//! # Locking
//!
//! An [`ExclusiveSeq`] is protected by the lock of the mirrored state. An [`ExclusiveLock`] is held
//! while one page is made exclusive, so that the count belongs to that page. It is taken before the
//! mmap lock.
//!
//! C header: [`include/linux/rmap.h`](srctree/include/linux/rmap.h)

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        lock::{mutex::MutexBackend, Guard},
        Mutex,
    },
};

/// Counts the changes of an address space, apart from those by which its mirror gets exclusive
/// access.
pub(super) struct ExclusiveSeq {
    changes: usize,
    /// The value of `changes` when the mirror last got exclusive access, unless another change was
    /// in progress at that moment.
    at_exclusive: Option<usize>,
}

impl ExclusiveSeq {
    /// No change has been reported.
    pub(super) const fn new() -> Self {
        Self {
            changes: 0,
            at_exclusive: None,
        }
    }

    /// Another change begins.
    pub(super) fn changed(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// The mirror gets exclusive access to a page. `is_alone` says that no other change is in
    /// progress.
    pub(super) fn made_exclusive(&mut self, is_alone: bool) {
        self.at_exclusive = is_alone.then_some(self.changes);
    }

    /// How many changes have been reported.
    pub(super) fn changes(&self) -> usize {
        self.changes
    }

    /// Takes the value of that count when the mirror last got exclusive access. `None` if another
    /// change was in progress at that moment.
    pub(super) fn take_at_exclusive(&mut self) -> Option<usize> {
        self.at_exclusive.take()
    }
}

/// Lets one thread at a time make a page of an address space exclusive.
#[pin_data]
pub(super) struct ExclusiveLock {
    #[pin]
    making: Mutex<()>,
}

impl ExclusiveLock {
    /// Not held.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            making <- new_mutex!((), "ExclusiveLock::making"),
        })
    }

    /// Waits until no other thread makes a page exclusive.
    pub(super) fn lock(&self) -> Guard<'_, (), MutexBackend> {
        self.making.lock()
    }
}
