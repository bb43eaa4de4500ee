// SPDX-License-Identifier: GPL-2.0

//! Pages that the kernel collects for a migration although they must stay.
//!
//! Findings: "KSM pages move into device memory, and ksmd reads them there" and "A device page that
//! is moved to system memory twice makes the kernel spin". When both are fixed, delete this file,
//! its call in `migrate/transfer.rs`, and `virtio_hmm_may_move` in `quirks.c`.

use crate::{
    mm::migrate::{Collected, Source},
    sys as bindings,
};

/// Whether the page collected at an index may move. A page that may not must not be given new
/// memory.
pub(crate) fn may_move(collected: &Collected<'_>, index: usize) -> bool {
    match collected.slot(index).map(|slot| slot.source) {
        None => false,
        Some(Source::Hole) => true,
        // SAFETY: By the invariants of `Collected` this is a page that the kernel has collected: it
        // holds the page's lock and a reference until `collected` is dropped.
        Some(Source::Folio(pfn)) => unsafe { bindings::virtio_hmm_may_move(pfn) },
    }
}
