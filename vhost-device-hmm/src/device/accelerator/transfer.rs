//! Lists of copies, and pages that are taken back and copied home at once.

use std::sync::Arc;
use std::time::Instant;

use virtio_hmm_spec::wire::command::{FetchEntry, RangeEntry, Status};
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::rights;
use zerocopy::little_endian::U32;

use super::control::ranges;
use super::Accelerator;
use crate::device::dma::Dma;
use crate::device::engine::nanoseconds;
use crate::device::linger::Lingering;
use crate::device::request::{Fetch, Refusal, Transfer};
use crate::device::space::Space;
use crate::device::statistics::Counter;
use crate::device::DeviceConfig;

impl Accelerator {
    /// Carries out a DMA request and puts one result for each item or entry into `results`.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the list as a whole is not carried out; none of it then is.
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
        // Readiness is looked at under the lock that a reset takes.
        let lingering = self.copying.share();
        let most = DeviceConfig::MAX_COPY_PAGES.into();
        match self.admit(request)? {
            Transfer::Copy { items } => {
                within(most, items.iter().map(|item| item.pages))?;
                self.carry_out(items.iter().copied(), &lingering, results);
            }
            Transfer::Fetch(fetch) => self.fetch(fetch, most, &lingering, results)?,
        }
        self.copying.unlock(lingering);
        Ok(())
    }

    /// Takes up to `most` pages back, and then brings home what they show.
    pub(super) fn fetch(
        &self,
        Fetch { space, entries }: Fetch<'_>,
        most: u64,
        lingering: &Lingering,
        results: &mut Vec<ItemResult>,
    ) -> Result<(), Refusal> {
        within(most, entries.iter().map(|entry| entry.pages))?;
        let space = self.space(space)?;
        let ranges = ranges(entries.iter().map(range))?;
        self.take(&space, &ranges, Space::unmap, rights::ALL);
        self.carry_out(entries.iter().map(item), lingering, results);
        Ok(())
    }

    /// Carries out items of a list that is not too long.
    fn carry_out(
        &self,
        items: impl Iterator<Item = DmaItem>,
        lingering: &Lingering,
        results: &mut Vec<ItemResult>,
    ) {
        let system = Arc::clone(&self.system.read());
        let dma = Dma {
            device: &self.device,
            lingering,
            system: &system,
            check: self.check.as_deref(),
            counters: &self.counters,
            injector: &self.injector,
        };
        let begun = Instant::now();
        results.extend(items.map(|item| ItemResult {
            status: U32::new(dma.run(&item).raw()),
        }));
        self.counters
            .copy_nanoseconds
            .add(nanoseconds(begun.elapsed()));
    }
}

/// Checks that a list is about so many pages at most.
fn within(most: u64, pages: impl Iterator<Item = U32>) -> Result<(), Status> {
    // At most 2^12 times 2^32 pages: the sum fits.
    let sum: u64 = pages.map(|pages| u64::from(pages.get())).sum();
    (sum <= most).then_some(()).ok_or(Status::Limit)
}

/// The pages of an entry.
fn range(entry: &FetchEntry) -> RangeEntry {
    RangeEntry {
        address: entry.address,
        pages: u64::from(entry.pages.get()).into(),
    }
}

/// How what they show comes home.
fn item(entry: &FetchEntry) -> DmaItem {
    DmaItem {
        kind: Kind::ToSystem.raw().into(),
        pages: entry.pages,
        source: entry.source,
        destination: entry.destination,
    }
}
