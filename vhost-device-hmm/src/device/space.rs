//! A space: one process's mappings, and the lock that makes taking them back a promise.
//!
//! An engine holds the read lock for one step of a job and touches memory in no other
//! way. Whoever takes something back holds the write lock: the steps under way are
//! then over, and later ones see the new table. A change that took something back gives
//! the space a new epoch, so that no TLB entry made before is ever used again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::check::Check;
use super::mmu::{Budget, Change, NoMemory, PageRange, PageTable, Run};

/// Gives each space a new epoch when it needs one; see [`super::tlb`].
#[derive(Debug)]
pub struct Epochs(AtomicU64);

impl Epochs {
    /// Epochs from one on; zero belongs to nobody.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1)))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// One process's address space on the device.
#[derive(Debug)]
pub struct Space {
    id: u32,
    alive: AtomicBool,
    mappings: RwLock<Mappings>,
}

/// What an engine may see of a space during a step.
#[derive(Debug)]
pub struct Mappings {
    /// The page table.
    pub table: PageTable,
    /// What TLB entries made from the table are tagged with.
    pub epoch: u64,
    epochs: Arc<Epochs>,
}

/// What a change of a space's mappings has done. As long as it exists, nobody sees the space,
/// nor changes it again.
#[derive(Debug)]
pub struct Taken<'a> {
    /// Pages that allow less than before.
    pub pages: u64,
    /// The epoch in force since then.
    pub epoch: u64,
    /// How long it took until no engine used the space any more.
    pub waited: Duration,
    /// None when this is being dropped.
    mappings: Option<RwLockWriteGuard<'a, Mappings>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(mappings) = self.mappings.take() {
            // An engine that waits has the lock next. One change after the other would
            // else keep it from its step for long: it does not wake up before the next one begins.
            RwLockWriteGuard::unlock_fair(mappings);
        }
    }
}

impl Space {
    /// A space without mappings.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when there is none left for its table.
    pub fn new(id: u32, budget: &Arc<Budget>, epochs: &Arc<Epochs>) -> Result<Self, NoMemory> {
        let mappings = Mappings {
            table: PageTable::new(budget)?,
            epoch: epochs.next(),
            epochs: Arc::clone(epochs),
        };
        Ok(Self {
            id,
            alive: AtomicBool::new(true),
            mappings: RwLock::new(mappings),
        })
    }

    /// The driver's name for it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether it has not been destroyed.
    pub fn alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Declares it destroyed: no job is taken for it any more.
    pub fn retire(&self) {
        self.alive.store(false, Ordering::Release);
    }

    /// The mappings, unchanging as long as the guard lives. Do not take a second one
    /// while holding one: a waiting change would come between them for ever.
    pub fn read(&self) -> RwLockReadGuard<'_, Mappings> {
        self.mappings.read()
    }

    /// Maps all runs or none.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when there is none left for tables; nothing has then changed.
    pub fn map(&self, runs: &[Run], check: Option<&Check>) -> Result<Taken<'_>, NoMemory> {
        self.change(check, |table, observe| table.map(runs, observe))
    }

    /// Removes all mappings in the ranges.
    pub fn unmap(&self, ranges: &[PageRange], check: Option<&Check>) -> Taken<'_> {
        let Ok(taken) = self.change(check, |table, observe| {
            ranges
                .iter()
                .for_each(|range| table.unmap(range, &mut *observe));
            Ok::<(), std::convert::Infallible>(())
        });
        taken
    }

    /// Leaves only the right to read in the ranges.
    pub fn protect(&self, ranges: &[PageRange], check: Option<&Check>) -> Taken<'_> {
        let Ok(taken) = self.change(check, |table, observe| {
            ranges
                .iter()
                .for_each(|range| table.protect(range, &mut *observe));
            Ok::<(), std::convert::Infallible>(())
        });
        taken
    }

    fn change<E>(
        &self,
        check: Option<&Check>,
        change: impl FnOnce(&mut PageTable, &mut dyn FnMut(Change)) -> Result<(), E>,
    ) -> Result<Taken<'_>, E> {
        let started = Instant::now();
        let mut mappings = self.mappings.write();
        let waited = started.elapsed();
        let mut pages = 0;
        let result = change(&mut mappings.table, &mut |change| {
            if change.takes_back() {
                pages += change.pages;
            }
            if let Some(check) = check {
                check.changed(self.id, &change);
            }
        });
        if pages != 0 {
            mappings.epoch = mappings.epochs.next();
        }
        result.map(|()| Taken {
            pages,
            epoch: mappings.epoch,
            waited,
            mappings: Some(mappings),
        })
    }
}
