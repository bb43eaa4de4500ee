//! A limit on the memory of page tables, for all spaces together.
//!
//! Without it a guest could make the daemon allocate four tables for every page that it maps far
//! away from any other.
//!
//! One half is divided among the maximum number of spaces: each space is guaranteed its share,
//! whatever the other spaces map. Spaces take from the other half on a first come, first served
//! basis.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use virtio_hmm_spec::wire::PAGE_BYTES;

/// There is no memory left for tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory for page tables is used up")]
pub struct NoMemory;

/// The memory that page tables may take, in units of one page: of all spaces, or of one space.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    share: Option<Share>,
}

/// The pools that a space's budget draws from.
#[derive(Debug)]
struct Share {
    guaranteed: u64,
    /// Units beyond the guaranteed ones are taken from here.
    common: Arc<Budget>,
    /// Counts the units of all spaces.
    whole: Arc<Budget>,
}

impl Share {
    /// How many more common units a budget takes when it uses `new` units instead of `old`.
    fn beyond(&self, old: u64, new: u64) -> u64 {
        new.saturating_sub(self.guaranteed) - old.saturating_sub(self.guaranteed)
    }
}

/// The budgets of spaces.
#[derive(Debug)]
pub struct Budgets {
    guaranteed: u64,
    common: Arc<Budget>,
    whole: Arc<Budget>,
}

impl Budgets {
    /// Budgets of `bytes` bytes in total, for at most `spaces` spaces.
    pub fn new(bytes: u64, spaces: u32) -> Self {
        let units = bytes / PAGE_BYTES;
        let guaranteed = (units / 2).checked_div(spaces.into()).unwrap_or(0);
        let common = units - guaranteed * u64::from(spaces);
        Self {
            guaranteed,
            common: Budget::new(common * PAGE_BYTES),
            whole: Budget::new(bytes),
        }
    }

    /// The number of units that all spaces take.
    pub fn used(&self) -> u64 {
        self.whole.used()
    }

    /// The budget of one space.
    pub fn of_space(&self) -> Arc<Budget> {
        Arc::new(Budget {
            limit: u64::MAX,
            used: AtomicU64::new(0),
            share: Some(Share {
                guaranteed: self.guaranteed,
                common: Arc::clone(&self.common),
                whole: Arc::clone(&self.whole),
            }),
        })
    }
}

impl Budget {
    /// A budget of `bytes` bytes, rounded down to pages.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit: bytes / PAGE_BYTES,
            used: AtomicU64::new(0),
            share: None,
        })
    }

    /// The number of units taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes units, which are given back when the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when fewer are left; no unit is then taken.
    pub fn take(self: &Arc<Self>, count: u64) -> Result<Units, NoMemory> {
        self.reserve(count)?;
        Ok(Units {
            budget: Arc::clone(self),
            count,
        })
    }

    fn reserve(&self, count: u64) -> Result<(), NoMemory> {
        let old = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(count).filter(|sum| *sum <= self.limit)
            })
            .map_err(|_| NoMemory)?;
        if let Some(share) = &self.share {
            let beyond = share.beyond(old, old + count);
            if let Err(error) = share.common.reserve(beyond) {
                self.used.fetch_sub(count, Ordering::Relaxed);
                return Err(error);
            }
            share.whole.used.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }

    fn release(&self, count: u64) {
        let old = self.used.fetch_sub(count, Ordering::Relaxed);
        if let Some(share) = &self.share {
            share.common.release(share.beyond(old - count, old));
            share.whole.used.fetch_sub(count, Ordering::Relaxed);
        }
    }
}

/// Units of a [`Budget`] that are taken.
#[derive(Debug)]
pub struct Units {
    budget: Arc<Budget>,
    count: u64,
}

impl Units {
    /// The number of units.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The budget to which they belong.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Adds other units of the same budget to these.
    pub fn join(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.budget, &other.budget));
        self.count += std::mem::take(&mut other.count);
    }

    /// Splits off `count` units, or all if there are fewer.
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
        self.budget.release(self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_that_takes_all_leaves_others_what_they_are_guaranteed() {
        let budgets = Budgets::new(64 * PAGE_BYTES, 4);
        let hog = budgets.of_space();
        let mut taken: Vec<Units> = Vec::new();
        while let Ok(unit) = hog.take(1) {
            taken.push(unit);
        }
        // Its own eighth, and the common half.
        assert_eq!(taken.len(), 8 + 32);
        assert_eq!(budgets.used(), 40);
        for _ in 0..3 {
            let other = budgets.of_space();
            let units = other.take(8).expect("it is guaranteed");
            assert!(other.take(1).is_err(), "the common half is taken");
            drop(units);
            assert_eq!(budgets.used(), 40, "it is as it was");
        }
        // Units that are given back are available to all spaces.
        taken.truncate(8);
        assert_eq!(budgets.used(), 8);
        let units = budgets.of_space().take(8 + 32).expect("the common half");
        assert!(hog.take(1).is_err());
        drop(units);
        assert!(hog.take(1).is_ok());
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let budgets = Budgets::new(16 * PAGE_BYTES, 2);
        let space = budgets.of_space();
        let units = space.take(3).expect("some");
        assert!(space.take(14).is_err());
        assert_eq!((space.used(), budgets.used()), (3, 3));
        drop(units);
        assert_eq!((space.used(), budgets.used()), (0, 0));
        assert!(Budgets::new(PAGE_BYTES, 0).of_space().take(1).is_ok());
    }
}
