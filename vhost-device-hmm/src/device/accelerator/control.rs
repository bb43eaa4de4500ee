//! Control requests, carried out or refused.
//!
//! Each function looks at everything that could be wrong, in the order of the status
//! ladder, before it changes anything.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use virtio_hmm_spec::wire::command::{
    map_flags, query_flags, MapEntry, QueryResult, RangeEntry, Status, MAX_FETCH_PAGES,
    MAX_QUERY_PAGES,
};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::{rights, PAGE_BYTES};
use zerocopy::little_endian::{U32, U64};

use super::Accelerator;
use crate::device::check::Check;
use crate::device::engine::nanoseconds;
use crate::device::mmu::{PageRange, Place, Run};
use crate::device::request::{first_refusal, Answer, Command, Fetch, Outcome, Refusal};
use crate::device::schedule::News;
use crate::device::space::{Space, Taken};
use crate::device::statistics::Gauges;
use crate::device::validate;

/// How a space takes rights back in ranges.
type Take = for<'a> fn(&'a Space, &[PageRange], Option<&Check>) -> Taken<'a>;

/// Every right.
const ALL: u32 = rights::ALL;

impl Accelerator {
    /// Carries out a control request, or says why not. One at a time, please: the order
    /// of two that run at once is not defined.
    pub fn execute(&self, request: Result<Command<'_>, Refusal>) -> Outcome {
        let outcome = self.try_execute(request);
        match outcome {
            Ok(outcome) => {
                self.counters.control_requests.add(1);
                outcome
            }
            Err(refusal) => {
                log::debug!("control request refused: {refusal}");
                self.counters.requests_refused.add(1);
                Outcome::Refused(refusal)
            }
        }
    }

    fn try_execute(&self, request: Result<Command<'_>, Refusal>) -> Result<Outcome, Refusal> {
        if let Ok(Command::Init { version }) = request {
            return self.initialise(version);
        }
        match self.admit(request)? {
            Command::Init { version } => self.initialise(version),
            Command::SpaceCreate { space } => self.create_space(space),
            Command::SpaceDestroy { space } => self.destroy_space(space),
            Command::Map { space, entries } => self.map(space, entries),
            Command::Unmap { space, ranges } => self.take_back(space, ranges, Space::unmap, ALL),
            Command::Protect { space, ranges } => {
                self.take_back(space, ranges, Space::protect, ALL & !rights::READ)
            }
            Command::Fetch(fetch) => self.fetch_soon(fetch),
            Command::Answer(answers) => Ok(self.answer(&answers)),
            Command::Cancel(jobs) => Ok(self.cancel(&jobs)),
            Command::Query { space, range } => self.query(space, &range),
            Command::Statistics => Ok(Outcome::Statistics(Box::new(self.statistics()))),
        }
    }

    fn initialise(&self, version: u32) -> Result<Outcome, Refusal> {
        if version != VERSION {
            return Err(Status::NotReady.into());
        }
        self.close();
        self.listener.tell(self.schedule.cancel_all(None));
        let copying = self.copying.exclude();
        let spaces = std::mem::take(&mut *self.spaces.write());
        for space in spaces.values() {
            space.retire();
            space.unmap(&[PageRange::ALL], self.check.as_deref());
        }
        self.device.live().remove(0, self.device.frames());
        copying.taken(0, self.device.frames());
        self.device
            .release(0, self.device.frames())
            .map_err(|error| {
                log::error!("cannot release device memory: {error}");
                Status::DeviceError
            })?;
        if let Some(check) = &self.check {
            check.cleared();
        }
        self.counters.reset();
        self.schedule.open();
        self.ready.store(true, Ordering::Release);
        drop(copying);
        Ok(Outcome::Done)
    }

    fn create_space(&self, id: u32) -> Result<Outcome, Refusal> {
        let mut spaces = self.spaces.write();
        if id >= self.config.max_spaces {
            return Err(Status::Limit.into());
        }
        if spaces.contains_key(&id) {
            return Err(Status::Exists.into());
        }
        let space = Space::new(id, &self.budget, &self.epochs).map_err(|_| Status::NoMemory)?;
        spaces.insert(id, Arc::new(space));
        Ok(Outcome::Done)
    }

    fn destroy_space(&self, id: u32) -> Result<Outcome, Refusal> {
        let space = self.spaces.write().remove(&id).ok_or(Status::NoSpace)?;
        space.retire();
        self.listener.tell(self.schedule.cancel_all(Some(id)));
        self.take(&space, &[PageRange::ALL], Space::unmap, ALL);
        Ok(Outcome::Done)
    }

    fn map(&self, id: u32, entries: &[MapEntry]) -> Result<Outcome, Refusal> {
        let space = self.space(id)?;
        let system = Arc::clone(&self.system.read());
        let mut runs: Vec<Run> = Vec::with_capacity(entries.len());
        first_refusal(
            entries
                .iter()
                .map(|entry| validate::run(entry, &self.device, &system).map(|run| runs.push(run))),
        )?;
        let taken = space
            .map(&runs, self.check.as_deref())
            .map_err(|_| Status::NoMemory)?;
        self.counters.map_entries.add(runs.len() as u64);
        self.counters
            .invalidation_wait_nanoseconds
            .add(nanoseconds(taken.waited));
        Ok(Outcome::Done)
    }

    fn take_back(
        &self,
        id: u32,
        entries: &[RangeEntry],
        take: Take,
        access: u32,
    ) -> Result<Outcome, Refusal> {
        let space = self.space(id)?;
        let ranges = ranges(entries.iter().copied())?;
        self.take(&space, &ranges, take, access);
        Ok(Outcome::Done)
    }

    /// A fetch that is short enough for those who wait behind it.
    fn fetch_soon(&self, fetch: Fetch<'_>) -> Result<Outcome, Refusal> {
        let mut results = Vec::with_capacity(fetch.entries.len());
        let lingering = self.copying.share();
        self.fetch(fetch, MAX_FETCH_PAGES, &lingering, &mut results)?;
        self.copying.unlock(lingering);
        Ok(Outcome::Copied(results))
    }

    /// Takes rights back, counts it, and in the checking mode proves it.
    pub(super) fn take(&self, space: &Space, ranges: &[PageRange], take: Take, access: u32) {
        let taken = take(space, ranges, self.check.as_deref());
        self.counters.invalidations.add(ranges.len() as u64);
        self.counters.invalidated_pages.add(taken.pages);
        self.counters
            .invalidation_wait_nanoseconds
            .add(nanoseconds(taken.waited));
        self.audit(space, &taken, ranges, access);
    }

    /// In the checking mode: proves that no TLB would still yield what was taken back.
    fn audit(&self, space: &Space, taken: &Taken<'_>, ranges: &[PageRange], access: u32) {
        let Some(check) = &self.check else { return };
        for tlb in &self.tlbs {
            let tlb = tlb.lock();
            for range in ranges.iter().filter(|r| tlb.yields(taken.epoch, r, access)) {
                check.found_stale(
                    space.id(),
                    format_args!("pages {:#x}+{} can be used", range.start(), range.pages()),
                );
            }
        }
    }

    fn answer(&self, answers: &[Answer]) -> Outcome {
        let mut ended = false;
        for answer in answers {
            match *answer {
                Answer::Retry { fault } => {
                    self.schedule.retry(fault);
                }
                Answer::Terminate { fault, reason } => {
                    ended |= self.schedule.terminate(fault, reason).ended;
                }
            }
        }
        self.listener.tell(News {
            ended,
            faults: false,
        });
        Outcome::Done
    }

    fn cancel(&self, jobs: &[u64]) -> Outcome {
        let ended = jobs
            .iter()
            .fold(false, |ended, job| ended | self.schedule.cancel(*job).ended);
        self.listener.tell(News {
            ended,
            faults: false,
        });
        Outcome::Done
    }

    fn query(&self, id: u32, entry: &RangeEntry) -> Result<Outcome, Refusal> {
        if entry.pages.get() > MAX_QUERY_PAGES {
            return Err(Status::Limit.into());
        }
        let space = self.space(id)?;
        let range = validate::range(entry)?;
        let mappings = space.read();
        let translate = |page| match mappings.table.find(page) {
            None => QueryResult {
                frame: U64::ZERO,
                flags: U32::ZERO,
                order: U32::ZERO,
            },
            Some(found) => {
                let leaf = &found.leaf;
                let flag = |set: bool, bit: u32| if set { bit } else { 0 };
                let device = u32::from(map_flags::DEVICE);
                let flags = leaf.rights
                    | query_flags::PRESENT
                    | flag(leaf.place == Place::Device, device)
                    | flag(leaf.accessed, query_flags::ACCESSED)
                    | flag(leaf.dirty, query_flags::DIRTY);
                QueryResult {
                    frame: U64::new(found.frame_of(page)),
                    flags: U32::new(flags),
                    order: U32::new(found.order),
                }
            }
        };
        Ok(Outcome::Translations(
            (range.start()..range.end()).map(translate).collect(),
        ))
    }

    /// The counters, and what there is now.
    pub fn statistics(&self) -> Statistics {
        let spaces = self.spaces.read();
        let (jobs, parked_jobs) = self.schedule.count();
        let mut now = Gauges {
            spaces: spaces.len() as u64,
            jobs: jobs as u64,
            parked_jobs: parked_jobs as u64,
            live_frames: self.device.live().count(),
            ..Gauges::default()
        };
        for space in spaces.values() {
            let mappings = space.read();
            now.mapped_pages += mappings.table.mapped_pages();
            now.large_leaves += mappings.table.large_leaves();
        }
        now.table_bytes = self
            .budget
            .used()
            .saturating_sub(now.large_leaves)
            .saturating_mul(PAGE_BYTES);
        self.counters.snapshot(&now)
    }
}

/// The pages that range entries stand for, if all of them stand for some.
pub(super) fn ranges(entries: impl Iterator<Item = RangeEntry>) -> Result<Vec<PageRange>, Refusal> {
    let mut ranges = Vec::with_capacity(entries.size_hint().0);
    first_refusal(entries.map(|entry| validate::range(&entry).map(|range| ranges.push(range))))?;
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::job::Submission;
    use crate::device::memory::SystemMemory;
    use crate::device::DeviceConfig;
    use virtio_hmm_spec::wire::operation::Fill;
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use zerocopy::little_endian::U16;

    #[test]
    fn a_tlb_that_keeps_what_was_taken_back_is_found() {
        let config = DeviceConfig {
            memory: 2 << 20,
            engines: 1,
            check: true,
            ..Default::default()
        };
        let accelerator = Accelerator::new(config).unwrap();
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        accelerator.set_system_memory(SystemMemory::new(Arc::new(map)));
        let done = |command| assert!(matches!(accelerator.execute(Ok(command)), Outcome::Done));
        done(Command::Init { version: VERSION });
        done(Command::SpaceCreate { space: 1 });
        let entries = [MapEntry {
            address: U64::ZERO,
            frame: U64::ZERO,
            pages: U32::new(1),
            order: U16::ZERO,
            flags: U16::new(7),
        }];
        done(Command::Map {
            space: 1,
            entries: &entries,
        });
        let operation = Fill {
            destination: 0,
            bytes: 8,
            pattern: 1,
        }
        .into();
        accelerator
            .submit(
                Ok(Submission {
                    job: 1,
                    space: 1,
                    operation,
                }),
                1,
            )
            .unwrap();
        while accelerator.take_ended().is_empty() {
            std::thread::yield_now();
        }
        let space = accelerator.space(1).unwrap();
        let before = space.read().epoch;
        let ranges = [RangeEntry {
            address: U64::ZERO,
            pages: U64::new(1),
        }];
        done(Command::Unmap {
            space: 1,
            ranges: &ranges,
        });
        assert_eq!(accelerator.counters.stale_accesses.get(), 0);
        let epoch = space.read().epoch;
        accelerator.tlbs[0].lock().revive(before, epoch);
        // The same request again, on a TLB that was too late.
        done(Command::Unmap {
            space: 1,
            ranges: &ranges,
        });
        assert_eq!(accelerator.counters.stale_accesses.get(), 1);
    }
}
