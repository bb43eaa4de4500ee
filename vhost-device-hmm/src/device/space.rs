//! A space: one process's mappings, and the lock that makes an invalidation a promise.
//!
//! An engine holds the read lock for one step of a job and accesses memory in no other way. A
//! thread that takes rights back holds the write lock: the steps under way are then over, and later
//! ones see the new table. A change that took rights back gives the space a new epoch, so that no
//! TLB entry made before is ever used again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::check::Check;
use super::mmu::{Budget, Change, NoMemory, PageRange, PageTable, Rule, Run};

/// How many slots of a table one change visits: some hundred microseconds' worth. Other users of
/// the space wait for at most that long, and a longer change can be stopped.
const SLICE: u64 = 32 << 10;

/// The ranges to which a rule is still to be applied.
#[derive(Clone, Copy, Debug)]
pub struct Rest<'a> {
    ranges: &'a [PageRange],
    /// The rest of the first range, if it was begun.
    begun: Option<PageRange>,
}

impl<'a> Rest<'a> {
    /// All ranges.
    pub fn all(ranges: &'a [PageRange]) -> Self {
        let begun = None;
        Self { ranges, begun }
    }

    /// Whether all is done.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Gives each space a new epoch when it needs one; see [`super::tlb`].
#[derive(Debug)]
pub struct Epochs(AtomicU64);

impl Epochs {
    /// Epochs from one on; no space has zero.
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

/// The part of a space that an engine may use during a step.
#[derive(Debug)]
pub struct Mappings {
    /// The page table.
    pub table: PageTable,
    /// The epoch of TLB entries made from the table.
    pub epoch: u64,
    epochs: Arc<Epochs>,
}

/// The result of a change of a space's mappings. While it exists, the space is locked against
/// engines and other changes.
#[derive(Debug)]
pub struct Taken<'a> {
    /// Pages that allow less than before.
    pub pages: u64,
    /// The epoch in force since then.
    pub epoch: u64,
    /// How long it took until no engine used the space.
    pub waited: Duration,
    /// None while this is being dropped.
    mappings: Option<RwLockWriteGuard<'a, Mappings>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(mappings) = self.mappings.take() {
            // A waiting engine gets the lock next. Otherwise a series of changes would block its
            // step for long: it does not wake up before the next change begins.
            RwLockWriteGuard::unlock_fair(mappings);
        }
    }
}

impl Space {
    /// A space without mappings.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when the budget does not allow its table.
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

    /// Marks it as destroyed: no more jobs are taken for it.
    pub fn retire(&self) {
        self.alive.store(false, Ordering::Release);
    }

    /// The mappings, which do not change while the guard lives. Do not take a second guard while
    /// holding one: a waiting change would deadlock with it.
    pub fn read(&self) -> RwLockReadGuard<'_, Mappings> {
        self.mappings.read()
    }

    /// Maps all runs or none. {dev-map-whole}
    ///
    /// # Errors
    ///
    /// [`NoMemory`] when the budget does not allow the tables; nothing has then changed.
    pub fn map(&self, runs: &[Run], check: Option<&Check>) -> Result<Taken<'_>, NoMemory> {
        self.change(check, |table, observe| table.map(runs, observe))
    }

    /// Applies a rule to ranges, for at most `SLICE` slots. Updates `rest` to what is left.
    pub fn take_back(&self, rest: &mut Rest<'_>, rule: Rule, check: Option<&Check>) -> Taken<'_> {
        let Ok(taken) = self.change(check, |table, observe| {
            let mut visits = SLICE;
            while let (Some((first, others)), true) = (rest.ranges.split_first(), visits > 0) {
                // A range without any mapping counts, too.
                visits -= 1;
                let range = rest.begun.unwrap_or(*first);
                rest.begun = table.change(&range, rule, &mut visits, &mut *observe);
                if rest.begun.is_none() {
                    rest.ranges = others;
                }
            }
            // {dev-unmap-never-fails}
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
        // {dev-unmap-promise}, {dev-protect-promise}
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
        // {dev-no-late-access}, {dev-map-promise}, {dev-map-visible}
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
