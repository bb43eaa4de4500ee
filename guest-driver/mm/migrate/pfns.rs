// SPDX-License-Identifier: GPL-2.0

//! The arrays of a migration: what was collected at each index of a range, and what replaces it.
//!
//! Does not know how pages are collected, nor whose they are.
//!
//! C header: [`include/linux/migrate.h`](srctree/include/linux/migrate.h)

use crate::{
    mm::{pages_of, HPAGE_PMD_ORDER},
    sys as bindings,
};
use core::ops::Range;
use kernel::prelude::*;

pub(super) const VALID: usize = bindings::MIGRATE_PFN_VALID as usize;
pub(super) const MIGRATE: usize = bindings::MIGRATE_PFN_MIGRATE as usize;
pub(super) const COMPOUND: usize = bindings::MIGRATE_PFN_COMPOUND as usize;
pub(super) const PFN_SHIFT: u32 = bindings::MIGRATE_PFN_SHIFT;

/// The arrays `migrate_vma::src` and `migrate_vma::dst`, for one migration at a time.
pub(crate) struct MigratePfns {
    pub(super) src: KVVec<usize>,
    pub(super) dst: KVVec<usize>,
}

impl MigratePfns {
    /// Arrays for a migration of `pages` pages.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        Ok(Self {
            src: KVVec::from_elem(0, pages, GFP_KERNEL)?,
            dst: KVVec::from_elem(0, pages, GFP_KERNEL)?,
        })
    }

    /// The number of pages that they are large enough for.
    pub(crate) fn pages(&self) -> usize {
        self.src.len()
    }
}

/// What there is to move at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing yet: the page is all zeros.
    Hole,
    /// A folio that begins with this frame number.
    Folio(usize),
}

/// A page, or a huge page, that has been taken away from its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The index of its first page within the range.
    pub(crate) index: usize,
    /// The memory to move.
    pub(crate) source: Source,
    /// log2 of its pages.
    pub(crate) order: u32,
}

impl Slot {
    /// How many pages it has.
    pub(crate) fn pages(self) -> usize {
        pages_of(self.order)
    }

    /// The indices of its pages.
    pub(crate) fn indices(self) -> Range<usize> {
        self.index..self.index.saturating_add(self.pages())
    }
}

/// log2 of the pages that an array entry stands for.
pub(super) fn entry_order(entry: usize) -> u32 {
    if entry & COMPOUND == 0 {
        0
    } else {
        HPAGE_PMD_ORDER
    }
}
