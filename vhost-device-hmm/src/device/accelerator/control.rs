//! Control requests, carried out or refused.
//!
//! Each function checks everything that could be wrong, in the order of the status ladder, before
//! it changes anything.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::command::{
    map_flags, query_flags, MapEntry, QueryResult, RangeEntry, Status, MAX_FETCH_PAGES,
    MAX_MAP_PAGES, MAX_QUERY_PAGES,
};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::PAGE_BYTES;
use zerocopy::little_endian::{U32, U64};

use super::invalidate::{Progress, Unfinished};
use super::transfer::Points;
use super::{Accelerator, Stop};
use crate::device::engine::nanoseconds;
use crate::device::mmu::{PageRange, Place, Rule, Run};
use crate::device::request::{first_refusal, Answer, Command, Fetch, Outcome, Refusal};
use crate::device::schedule::News;
use crate::device::space::Space;
use crate::device::statistics::Gauges;
use crate::device::validate::{self, ranges, within};
use crate::lateness::About;

/// How much device memory is freed at a time, in frames: 128 MiB, some ten milliseconds of the
/// host's time.
const GIVEN_BACK_AT_ONCE: u64 = 32 << 10;

impl Accelerator {
    /// Carries out or refuses a control request. Call it for one request at a time: the order of
    /// two concurrent ones is not defined.
    pub fn execute(&self, request: Result<Command<'_>, Refusal>) -> Outcome {
        let refused = || Outcome::Refused(Status::DeviceError.into());
        self.execute_unless(request, &|| false)
            .unwrap_or_else(refused)
    }

    /// The same, but returns `None` if `stop` returns true. `stop` is called after each piece of a
    /// request that may take long. After `None` the request must be carried out again before any
    /// other request, or the device be initialised.
    pub fn execute_unless(
        &self,
        request: Result<Command<'_>, Refusal>,
        stop: Stop<'_>,
    ) -> Option<Outcome> {
        match self.try_execute(request, stop) {
            Ok(outcome) => {
                self.counters.control_requests.add(1);
                Some(outcome)
            }
            Err(Unfinished::Refused(refusal)) => {
                log::debug!("control request refused: {refusal}");
                self.counters.requests_refused.add(1);
                Some(Outcome::Refused(refusal))
            }
            Err(Unfinished::Stopped) => None,
        }
    }

    fn try_execute(
        &self,
        request: Result<Command<'_>, Refusal>,
        stop: Stop<'_>,
    ) -> Progress<Outcome> {
        if let Ok(Command::Init { version }) = request {
            return self.initialise(version, stop);
        }
        let outcome = match self.admit(request)? {
            Command::Init { version } => return self.initialise(version, stop),
            Command::SpaceDestroy { space } => return self.destroy_space(space, stop),
            Command::Unmap { space, ranges } => {
                return self.take_back(space, ranges, Rule::Unmap, stop)
            }
            Command::Protect { space, ranges } => {
                return self.take_back(space, ranges, Rule::Protect, stop)
            }
            Command::SpaceCreate { space } => self.create_space(space)?,
            Command::Map { space, entries } => self.map(space, entries)?,
            Command::Fetch(fetch) => self.fetch_soon(fetch)?,
            Command::Answer(answers) => self.answer(&answers),
            Command::Cancel(jobs) => self.cancel(&jobs),
            Command::Query { space, range } => self.query(space, &range)?,
            Command::Statistics => Outcome::Statistics(Box::new(self.statistics())),
        };
        Ok(outcome)
    }

    fn initialise(&self, version: u32, stop: Stop<'_>) -> Progress<Outcome> {
        if version != VERSION {
            return Err(Status::NotReady.into());
        }
        self.close();
        // {dev-init-jobs}
        self.listener.tell(self.schedule.cancel_all(None));
        let about = About {
            space: None,
            operation: Some("Init"),
        };
        // {dev-late-init}
        self.lateness.pass(Point::ControlInit, about, || false);
        // {dev-init-copies}
        let copying = self.copying.exclude();
        // One by one, so that a repeated request finds what is left after a stop. {dev-init-spaces}
        loop {
            let space = self.spaces.read().values().next().cloned();
            let Some(space) = space else { break };
            space.retire();
            self.take(&space, &[PageRange::ALL], Rule::Unmap, stop)?;
            self.spaces.write().remove(&space.id());
        }
        let frames = self.device.frames();
        self.device.live().remove(0, frames);
        copying.taken(0, frames);
        let mut next = 0;
        while next < frames {
            let count = GIVEN_BACK_AT_ONCE.min(frames - next);
            self.device.release(next, count).map_err(|error| {
                log::error!("cannot release device memory: {error}");
                Status::DeviceError
            })?;
            next += count;
            if stop() && next < frames {
                return Err(Unfinished::Stopped);
            }
        }
        if let Some(check) = &self.check {
            check.cleared();
        }
        // {dev-init-counters}
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
        let space =
            Space::new(id, &self.budgets.of_space(), &self.epochs).map_err(|_| Status::NoMemory)?;
        spaces.insert(id, Arc::new(space));
        Ok(Outcome::Done)
    }

    fn destroy_space(&self, id: u32, stop: Stop<'_>) -> Progress<Outcome> {
        // The space may be half destroyed if this was stopped before.
        let space = self.spaces.read().get(&id).cloned();
        let space = space.ok_or(Status::NoSpace)?;
        space.retire();
        // {dev-destroy-jobs}
        self.listener.tell(self.schedule.cancel_all(Some(id)));
        // {dev-destroy-promise}
        self.take(&space, &[PageRange::ALL], Rule::Unmap, stop)?;
        // Removed last: a repeated request must find it after a stop. {dev-destroy-frees}
        self.spaces.write().remove(&id);
        Ok(Outcome::Done)
    }

    fn map(&self, id: u32, entries: &[MapEntry]) -> Result<Outcome, Refusal> {
        within(MAX_MAP_PAGES, entries.iter().map(|entry| entry.pages))?;
        let space = self.space(id)?;
        let system = Arc::clone(&self.system.read());
        let mut runs: Vec<Run> = Vec::with_capacity(entries.len());
        // {dev-refuse-whole}
        first_refusal(
            entries
                .iter()
                .map(|entry| validate::run(entry, &self.device, &system).map(|run| runs.push(run))),
        )?;
        let taken = space
            .map(&runs, self.check.as_deref())
            // {dev-map-memory}
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
        rule: Rule,
        stop: Stop<'_>,
    ) -> Progress<Outcome> {
        let space = self.space(id)?;
        // {dev-refuse-whole}
        let ranges = ranges(entries.iter().copied())?;
        self.take(&space, &ranges, rule, stop)?;
        Ok(Outcome::Done)
    }

    /// A fetch that is short enough for the requests that wait behind it.
    /// {dev-control-not-behind-copy}
    fn fetch_soon(&self, fetch: Fetch<'_>) -> Result<Outcome, Refusal> {
        let mut results = Vec::with_capacity(fetch.entries.len());
        let mut lingering = self.copying.share();
        let most = MAX_FETCH_PAGES;
        self.fetch(fetch, most, Points::CONTROL, &mut lingering, &mut results)?;
        self.copying.unlock(lingering);
        Ok(Outcome::Copied(results))
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

    // {dev-query}
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

    /// The counters, and the current state.
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
            .budgets
            .used()
            .saturating_sub(now.large_leaves)
            .saturating_mul(PAGE_BYTES);
        self.counters.snapshot(&now)
    }
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
        // The same request again, on a TLB that missed the invalidation.
        done(Command::Unmap {
            space: 1,
            ranges: &ranges,
        });
        assert_eq!(accelerator.counters.stale_accesses.get(), 1);
    }
}
