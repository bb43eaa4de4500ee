//! The accelerator as a whole: carries out requests, one part of it or the other.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use parking_lot::{Mutex, RwLock};
use virtio_hmm_spec::wire::command::{
    query_flags, MapEntry, QueryResult, RangeEntry, Status, MAX_QUERY_PAGES,
};
use virtio_hmm_spec::wire::config::{capability, Config, MAGIC, VERSION};
use virtio_hmm_spec::wire::dma::ItemResult;
use virtio_hmm_spec::wire::fault::FaultRecord;
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::PAGE_BYTES;
use zerocopy::little_endian::{U32, U64};

use super::check::Check;
use super::dma::Dma;
use super::engine::{nanoseconds, Engine};
use super::job::{Ended, Job, Submission, Ticket};
use super::memory::{DeviceMemory, MemoryError, SystemMemory};
use super::mmu::{Budget, PageRange, Place, Run};
use super::operations::Work;
use super::request::{first_refusal, Answer, Command, Copy, Outcome, Refusal};
use super::schedule::{News, Schedule};
use super::space::{Epochs, Space, Taken};
use super::statistics::{Counter, Counters, Gauges};
use super::tlb::Tlb;
use super::validate;
use virtio_hmm_spec::wire::rights;

/// Width of a virtual address in bits.
const ADDRESS_BITS: u32 = super::mmu::ADDRESS_BITS;

/// Sizes and limits of an accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Device memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Engines, at least one.
    pub engines: u32,
    /// Spaces at a time.
    pub max_spaces: u32,
    /// Jobs at a time.
    pub max_jobs: u32,
    /// Memory for page tables, all spaces together, in bytes.
    pub table_memory: u64,
    /// Whether to check every translation and every frame that is used.
    pub check: bool,
}

impl DeviceConfig {
    /// Entries in one control request: half a megabyte of mappings page by page, and a
    /// request that fits 25 pages.
    pub const MAX_ENTRIES: u32 = 4096;

    /// Items in one DMA request.
    pub const MAX_ITEMS: u32 = 4096;

    /// Pages in one DMA request: 256 MiB, some ten milliseconds of copying.
    pub const MAX_COPY_PAGES: u32 = 64 << 10;
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            engines: 2,
            max_spaces: 256,
            max_jobs: 256,
            table_memory: 256 << 20,
            check: false,
        }
    }
}

/// Is told when there is something to collect.
///
/// Called by engines and by whoever executes a request, without any lock held.
pub trait Listener: Send + Sync {
    /// Jobs have ended: see [`Accelerator::take_ended`].
    fn jobs_ended(&self);
    /// Faults wait to be reported: see [`Accelerator::report_faults`].
    fn faults_raised(&self);
}

/// Why an accelerator could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No device memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No thread for an engine.
    #[error("cannot start an engine")]
    Engine(#[source] io::Error),
}

/// A virtual accelerator.
#[derive(Debug)]
pub struct Accelerator {
    config: DeviceConfig,
    ready: AtomicBool,
    device: Arc<DeviceMemory>,
    system: Arc<RwLock<Arc<SystemMemory>>>,
    budget: Arc<Budget>,
    epochs: Arc<Epochs>,
    spaces: RwLock<HashMap<u32, Arc<Space>>>,
    schedule: Arc<Schedule>,
    check: Option<Arc<Check>>,
    counters: Arc<Counters>,
    tlbs: Vec<Arc<Mutex<Tlb>>>,
    engines: Mutex<Vec<JoinHandle<()>>>,
    /// Held while a list of copies is carried out.
    copying: Mutex<()>,
    listener: Arc<Ear>,
}

/// Where the listener is, once there is one.
#[derive(Default)]
struct Ear(OnceLock<Weak<dyn Listener>>);

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ear").field(&self.0.get().is_some()).finish()
    }
}

impl Ear {
    fn tell(&self, news: News) {
        if news == News::default() {
            return;
        }
        if let Some(listener) = self.0.get().and_then(Weak::upgrade) {
            if news.ended {
                listener.jobs_ended();
            }
            if news.faults {
                listener.faults_raised();
            }
        }
    }
}

impl Accelerator {
    /// Makes an accelerator and starts its engines. It is not ready before
    /// [`Command::Init`].
    ///
    /// # Errors
    ///
    /// [`StartError`] when the host lacks memory or threads.
    pub fn new(config: DeviceConfig) -> Result<Self, StartError> {
        let device = Arc::new(DeviceMemory::new(config.memory)?);
        let counters = Arc::new(Counters::default());
        let check = config
            .check
            .then(|| Arc::new(Check::new(Arc::clone(&device), Arc::clone(&counters))));
        let system = Arc::new(SystemMemory::default());
        let tlb = || {
            Arc::new(Mutex::new(Tlb::new(
                Arc::clone(&device),
                Arc::clone(&system),
            )))
        };
        let accelerator = Self {
            ready: AtomicBool::new(false),
            tlbs: (0..config.engines).map(|_| tlb()).collect(),
            system: Arc::new(RwLock::new(Arc::clone(&system))),
            budget: Budget::new(config.table_memory),
            epochs: Epochs::new(),
            spaces: RwLock::default(),
            schedule: Arc::new(Schedule::new(config.max_jobs, Arc::clone(&counters))),
            engines: Mutex::default(),
            copying: Mutex::default(),
            listener: Arc::default(),
            device,
            check,
            counters,
            config,
        };
        for (tlb, index) in accelerator.tlbs.iter().zip(0..) {
            let engine = accelerator
                .start_engine(index, tlb)
                .map_err(StartError::Engine)?;
            accelerator.engines.lock().push(engine);
        }
        Ok(accelerator)
    }

    fn start_engine(&self, index: u32, tlb: &Arc<Mutex<Tlb>>) -> io::Result<JoinHandle<()>> {
        let engine = Engine {
            schedule: Arc::clone(&self.schedule),
            tlb: Arc::clone(tlb),
            device: Arc::clone(&self.device),
            system: Arc::clone(&self.system),
            check: self.check.clone(),
            counters: Arc::clone(&self.counters),
        };
        let listener = Arc::clone(&self.listener);
        std::thread::Builder::new()
            .name(format!("engine-{index}"))
            .spawn(move || engine.run(|news| listener.tell(news)))
    }

    /// Says who is told when there is something to collect; the first one stays.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        // A second listener would miss what the first one was told.
        let _ = self.listener.0.set(listener);
    }

    /// Ends all jobs and all engines, for good. Must not be called by the listener.
    pub fn shut_down(&self) {
        self.schedule.close();
        self.listener.tell(self.schedule.cancel_all(None));
        self.schedule.finish();
        let this = std::thread::current().id();
        for engine in self.engines.lock().drain(..) {
            // An engine may be the last one to hold the accelerator.
            if engine.thread().id() != this && engine.join().is_err() {
                log::error!("an engine has ended before its time");
            }
        }
    }

    /// The configuration space.
    pub fn config_space(&self) -> Config {
        let capabilities = if self.config.check {
            capability::CHECK
        } else {
            0
        };
        Config {
            magic: U32::new(MAGIC),
            version: U32::new(VERSION),
            device_memory: U64::new(self.config.memory),
            capabilities: U64::new(capabilities),
            max_spaces: U32::new(self.config.max_spaces),
            max_jobs: U32::new(self.config.max_jobs),
            max_entries: U32::new(DeviceConfig::MAX_ENTRIES),
            max_items: U32::new(DeviceConfig::MAX_ITEMS),
            max_copy_pages: U32::new(DeviceConfig::MAX_COPY_PAGES),
            engines: U32::new(self.config.engines),
            address_bits: U32::new(ADDRESS_BITS),
            reserved: U32::ZERO,
        }
    }

    /// Uses another view of the guest's memory. When this returns, nobody uses the one
    /// before.
    pub fn set_system_memory(&self, system: SystemMemory) {
        *self.system.write() = Arc::new(system);
        // An engine holds its TLB, and a copy its lock, as long as it uses a view.
        for tlb in &self.tlbs {
            drop(tlb.lock());
        }
        drop(self.copying.lock());
    }

    /// Counts a chain that could not be answered.
    pub fn count_dropped_chain(&self) {
        self.counters.chains_dropped.add(1);
    }

    /// Counts a fault buffer that was filled.
    pub fn count_fault_buffer(&self) {
        self.counters.fault_buffers.add(1);
    }

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
            Command::Answer(answers) => Ok(self.answer(&answers)),
            Command::Cancel(jobs) => Ok(self.cancel(&jobs)),
            Command::Query { space, range } => self.query(space, &range),
            Command::Statistics => Ok(Outcome::Statistics(Box::new(self.statistics()))),
        }
    }

    /// Refuses what is not well formed, and everything while the device is not ready:
    /// whichever the ladder names first.
    fn admit<T>(&self, request: Result<T, Refusal>) -> Result<T, Refusal> {
        let ready = self.ready.load(Ordering::Acquire);
        let not_ready = Status::NotReady;
        match request {
            Err(refusal) if ready || refusal.status.raw() < not_ready.raw() => Err(refusal),
            _ if !ready => Err(not_ready.into()),
            request => request,
        }
    }

    fn initialise(&self, version: u32) -> Result<Outcome, Refusal> {
        if version != VERSION {
            return Err(Status::NotReady.into());
        }
        self.close();
        self.listener.tell(self.schedule.cancel_all(None));
        let copying = self.copying.lock();
        let spaces = std::mem::take(&mut *self.spaces.write());
        for space in spaces.values() {
            space.retire();
            space.unmap(&[PageRange::ALL], self.check.as_deref());
        }
        self.device.live().remove(0, self.device.frames());
        self.device
            .release(0, self.device.frames())
            .map_err(|error| {
                log::error!("cannot release device memory: {error}");
                Status::DeviceError
            })?;
        self.counters.reset();
        self.schedule.open();
        self.ready.store(true, Ordering::Release);
        drop(copying);
        Ok(Outcome::Done)
    }

    fn space(&self, id: u32) -> Result<Arc<Space>, Status> {
        self.spaces.read().get(&id).cloned().ok_or(Status::NoSpace)
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
        let taken = space.unmap(&[PageRange::ALL], self.check.as_deref());
        self.account_taken(&taken, 1);
        self.audit(&space, &taken, &[PageRange::ALL], ALL);
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
        take: fn(&Space, &[PageRange], Option<&Check>) -> Taken,
        access: u32,
    ) -> Result<Outcome, Refusal> {
        let space = self.space(id)?;
        let mut ranges = Vec::with_capacity(entries.len());
        first_refusal(
            entries
                .iter()
                .map(|entry| validate::range(entry).map(|range| ranges.push(range))),
        )?;
        let taken = take(&space, &ranges, self.check.as_deref());
        self.account_taken(&taken, ranges.len());
        self.audit(&space, &taken, &ranges, access);
        Ok(Outcome::Done)
    }

    fn account_taken(&self, taken: &Taken, ranges: usize) {
        self.counters.invalidations.add(ranges as u64);
        self.counters.invalidated_pages.add(taken.pages);
        self.counters
            .invalidation_wait_nanoseconds
            .add(nanoseconds(taken.waited));
    }

    /// In the checking mode: proves that no TLB would still yield what was taken back.
    fn audit(&self, space: &Space, taken: &Taken, ranges: &[PageRange], access: u32) {
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
                let device = u32::from(virtio_hmm_spec::wire::command::map_flags::DEVICE);
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

    /// Carries out a list of copies and puts one result for each item into `results`.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the list as a whole is not carried out; no item then is.
    pub fn copy(
        &self,
        request: Result<Copy<'_>, Refusal>,
        results: &mut Vec<ItemResult>,
    ) -> Result<(), Refusal> {
        results.clear();
        let done = self.try_copy(request, results);
        let counter: &Counter = match done {
            Ok(()) => &self.counters.dma_requests,
            Err(_) => &self.counters.requests_refused,
        };
        counter.add(1);
        done
    }

    fn try_copy(
        &self,
        request: Result<Copy<'_>, Refusal>,
        results: &mut Vec<ItemResult>,
    ) -> Result<(), Refusal> {
        // Readiness is looked at under the lock that a reset takes.
        let _copying = self.copying.lock();
        let Copy { items } = self.admit(request)?;
        // At most 2^12 items of 2^32 pages: the sum fits.
        let pages: u64 = items.iter().map(|item| u64::from(item.pages.get())).sum();
        if pages > DeviceConfig::MAX_COPY_PAGES.into() {
            return Err(Status::Limit.into());
        }
        let system = Arc::clone(&self.system.read());
        let dma = Dma {
            device: &self.device,
            system: &system,
            check: self.check.as_deref(),
            counters: &self.counters,
        };
        results.extend(items.iter().map(|item| ItemResult {
            status: U32::new(dma.run(item).raw()),
        }));
        Ok(())
    }

    /// Hands in a job. Its end comes with the ticket.
    ///
    /// # Errors
    ///
    /// The end of a job that was not even begun.
    pub fn submit(&self, request: Result<Submission, Status>, ticket: Ticket) -> Result<(), Ended> {
        self.try_submit(request, ticket).map_err(|status| {
            self.counters.requests_refused.add(1);
            Ended::refused(ticket, status)
        })
    }

    fn try_submit(
        &self,
        request: Result<Submission, Status>,
        ticket: Ticket,
    ) -> Result<(), Status> {
        let Submission {
            job,
            space,
            operation,
        } = self
            .admit(request.map_err(Refusal::from))
            .map_err(|refusal| refusal.status)?;
        // In the order of the ladder: limits, the space, the name, the arguments.
        let admitted = self.schedule.admits(job);
        if let Err(status @ (Status::NotReady | Status::Limit)) = admitted {
            return Err(status);
        }
        let space = self.space(space)?;
        admitted?;
        let work = Work::new(operation)?;
        self.schedule.insert(Job::new(job, space, work, ticket))
    }

    /// Refuses every request until the next [`Command::Init`]. Jobs and copies that were
    /// taken before go on until then.
    pub fn close(&self) {
        self.ready.store(false, Ordering::Release);
        self.schedule.close();
    }

    /// Lets no engine run a job until [`Accelerator::resume`], and waits until none does.
    pub fn pause(&self) {
        self.schedule.pause();
    }

    /// Lets engines run jobs again.
    pub fn resume(&self) {
        self.schedule.resume();
    }

    /// Ends all jobs without a word to anyone, because those who handed them in are gone.
    pub fn abandon_jobs(&self) {
        // Who would be told has forgotten the tickets, too.
        let _ = self.schedule.cancel_all(None);
        self.schedule.take_ended();
    }

    /// Takes the ends of jobs that were not collected yet.
    pub fn take_ended(&self) -> Vec<Ended> {
        self.schedule.take_ended()
    }

    /// How many fault records wait to be reported.
    pub fn faults_waiting(&self) -> usize {
        self.schedule.faults_waiting()
    }

    /// Takes up to so many fault records, to be answered by the driver.
    pub fn report_faults(&self, most: usize) -> Vec<FaultRecord> {
        self.schedule.report_faults(most)
    }
}

/// Every right.
const ALL: u32 = rights::ALL;

impl Drop for Accelerator {
    fn drop(&mut self) {
        self.shut_down();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
