//! Lists of copies, and fetches: pages that are unmapped and copied to the guest's memory at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLockReadGuard;
use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::command::{FetchEntry, RangeEntry, Status};
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use zerocopy::little_endian::U32;

use super::Accelerator;
use crate::device::config::DeviceConfig;
use crate::device::dma::Dma;
use crate::device::engine::nanoseconds;
use crate::device::linger::Lingering;
use crate::device::mmu::Rule;
use crate::device::request::{Fetch, Refusal, Transfer};
use crate::device::statistics::Counter;
use crate::device::validate::{ranges, within};
use crate::lateness::About;

/// The points that a list of copies passes on its queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Points {
    between: Point,
    item: Point,
}

impl Points {
    pub(super) const CONTROL: Self = Self {
        between: Point::ControlFetch,
        item: Point::ControlItem,
    };
    pub(super) const DMA: Self = Self {
        between: Point::DmaFetch,
        item: Point::DmaItem,
    };
}

impl Accelerator {
    /// Carries out a DMA request and puts one result for each item or entry into `results`.
    /// {dev-items-done}
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the list as a whole is refused; no item is then carried out.
    pub fn transfer(
        &self,
        request: Result<Transfer<'_>, Refusal>,
        results: &mut Vec<ItemResult>,
    ) -> Result<(), Refusal> {
        results.clear();
        let done = self.try_transfer(request, results);
        let counter: &Counter = match done {
            Ok(()) => &self.counters.dma_requests,
            Err(refusal) => {
                log::debug!("DMA request refused: {refusal}");
                &self.counters.requests_refused
            }
        };
        counter.add(1);
        done
    }

    fn try_transfer(
        &self,
        request: Result<Transfer<'_>, Refusal>,
        results: &mut Vec<ItemResult>,
    ) -> Result<(), Refusal> {
        // Readiness is checked under the lock that a reset takes.
        let mut lingering = self.copying.share();
        let most = DeviceConfig::MAX_COPY_PAGES.into();
        let points = Points::DMA;
        match self.admit(request)? {
            Transfer::Copy { items } => {
                within(most, items.iter().map(|item| item.pages))?;
                self.carry_out(items.iter().copied(), points, &mut lingering, results);
            }
            Transfer::Fetch(fetch) => self.fetch(fetch, most, points, &mut lingering, results)?,
        }
        self.copying.unlock(lingering);
        Ok(())
    }

    /// Unmaps up to `most` pages, then copies what they showed to the guest's memory.
    pub(super) fn fetch(
        &self,
        Fetch { space, entries }: Fetch<'_>,
        most: u64,
        points: Points,
        lingering: &mut RwLockReadGuard<'_, Lingering>,
        results: &mut Vec<ItemResult>,
    ) -> Result<(), Refusal> {
        within(most, entries.iter().map(|entry| entry.pages))?;
        let space = self.space(space)?;
        let ranges = ranges(entries.iter().map(range))?;
        // A fetch has few pages, so it need not be stopped. {dev-fetch-unmaps-first}
        let taken = self.take(&space, &ranges, Rule::Unmap, &|| false);
        taken.map_err(|_| Status::DeviceError)?;
        let about = About {
            space: Some(space.id()),
            operation: Some("Fetch"),
        };
        // {dev-late-fetch}
        self.be_late(points.between, about, lingering);
        // {dev-fetch-done}
        self.carry_out(entries.iter().map(item), points, lingering, results);
        Ok(())
    }

    /// Carries out items of a list of allowed length. {dev-items-in-order}, {dev-item-status}
    fn carry_out(
        &self,
        items: impl Iterator<Item = DmaItem>,
        points: Points,
        lingering: &mut RwLockReadGuard<'_, Lingering>,
        results: &mut Vec<ItemResult>,
    ) {
        let begun = Instant::now();
        let mut late = Duration::ZERO;
        let mut system = Arc::clone(&self.system.read());
        results.extend(items.map(|item| {
            if self.lateness.concerns(points.item) {
                let about = About {
                    space: None,
                    operation: Kind::from_raw(item.kind.get()).map(Kind::name),
                };
                // {dev-late-item}
                late += self.be_late(points.item, about, lingering);
                system = Arc::clone(&self.system.read());
            }
            let dma = Dma {
                device: &self.device,
                lingering,
                system: &system,
                check: self.check.as_deref(),
                counters: &self.counters,
                lateness: &self.lateness,
                point: points.item,
            };
            ItemResult {
                status: U32::new(dma.run(&item).raw()),
            }
        }));
        self.counters
            .copy_nanoseconds
            .add(nanoseconds(begun.elapsed().saturating_sub(late)));
    }

    /// Delays between two parts of a request, if a rule says so, and returns for how long. The lock
    /// for copies is released meanwhile: the guest's memory may change.
    fn be_late(
        &self,
        point: Point,
        about: About,
        lingering: &mut RwLockReadGuard<'_, Lingering>,
    ) -> Duration {
        let Some(wait) = self.lateness.arrive(point, about) else {
            return Duration::ZERO;
        };
        let begun = Instant::now();
        RwLockReadGuard::unlocked(lingering, || self.lateness.wait(wait, || false));
        begun.elapsed()
    }
}

/// The pages of an entry.
fn range(entry: &FetchEntry) -> RangeEntry {
    RangeEntry {
        address: entry.address,
        pages: u64::from(entry.pages.get()).into(),
    }
}

/// The copy of an entry to the guest's memory.
fn item(entry: &FetchEntry) -> DmaItem {
    DmaItem {
        kind: Kind::ToSystem.raw().into(),
        pages: entry.pages,
        source: entry.source,
        destination: entry.destination,
    }
}
