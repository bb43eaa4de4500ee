//! How much memory page tables may take, all spaces together.
//!
//! Without it a guest could make the daemon allocate four tables for every page that
//! it maps far away from any other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use virtio_hmm_spec::wire::PAGE_BYTES;

/// There is no memory left for tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory for page tables is used up")]
pub struct NoMemory;

/// The memory that page tables may take, in units of one page.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of so many bytes, rounded down to pages.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit: bytes / PAGE_BYTES,
            used: AtomicU64::new(0),
        })
    }

    /// How many units are taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes units, to be given back when the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when fewer are left; none is then taken.
    pub fn take(self: &Arc<Self>, count: u64) -> Result<Units, NoMemory> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(count).filter(|sum| *sum <= self.limit)
            })
            .map_err(|_| NoMemory)?;
        Ok(Units {
            budget: Arc::clone(self),
            count,
        })
    }
}

/// Units of a [`Budget`] that are taken.
#[derive(Debug)]
pub struct Units {
    budget: Arc<Budget>,
    count: u64,
}

impl Units {
    /// How many they are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The budget they belong to.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Puts other units of the same budget with these.
    pub fn join(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.budget, &other.budget));
        self.count += std::mem::take(&mut other.count);
    }

    /// Separates so many units from these, or all when there are fewer.
    pub fn split(&mut self, count: u64) -> Self {
        let count = count.min(self.count);
        self.count -= count;
        Self {
            budget: Arc::clone(&self.budget),
            count,
        }
    }
}

impl Drop for Units {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}
