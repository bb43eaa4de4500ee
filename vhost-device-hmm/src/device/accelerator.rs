//! The accelerator as a whole: its parts, and jobs.
//!
//! `control` carries out control requests, `transfer` carries out DMA requests, and `invalidate`
//! takes rights back for both. `control` uses `transfer`, both use `invalidate`, and this file uses
//! none of them.

mod control;
mod invalidate;
mod look;
mod transfer;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use hmm_timeline::device::Event;
use parking_lot::{Mutex, RwLock};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::config::{capability, Config, MAGIC, VERSION};
use virtio_hmm_spec::wire::fault::FaultRecord;
use zerocopy::little_endian::{U32, U64};

use super::check::Check;
use super::config::DeviceConfig;
use super::engine::Engine;
use super::job::{Ended, Job, Submission, Ticket};
use super::linger::Linger;
use super::memory::{DeviceMemory, MemoryError, SystemMemory};
use super::mmu::Budgets;
use super::operations::Work;
use super::request::Refusal;
use super::schedule::{News, Schedule};
use super::space::{Epochs, Space};
use super::statistics::Counters;
use super::tlb::Tlb;
use crate::lateness::Lateness;
use crate::trace;

/// Width of a virtual address in bits. {dev-address-bits}
const ADDRESS_BITS: u32 = super::mmu::ADDRESS_BITS;

/// Called when there is something to collect.
///
/// Engines call its functions, and so does the thread that executes a request, without any lock
/// held.
pub trait Listener: Send + Sync {
    /// Jobs have ended: see [`Accelerator::take_ended`].
    fn jobs_ended(&self);
    /// Faults wait to be reported: see [`Accelerator::report_faults`].
    fn faults_raised(&self);
}

/// Returns whether the device has to stop.
pub type Stop<'a> = &'a dyn Fn() -> bool;

/// Why an accelerator could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device memory cannot be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The system cannot start a thread for an engine.
    #[error("cannot start an engine")]
    Engine(#[source] io::Error),
    /// The system cannot start the thread that frees memory.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A virtual accelerator.
#[derive(Debug)]
pub struct Accelerator {
    config: DeviceConfig,
    ready: AtomicBool,
    device: Arc<DeviceMemory>,
    system: Arc<RwLock<Arc<SystemMemory>>>,
    budgets: Budgets,
    epochs: Arc<Epochs>,
    spaces: RwLock<HashMap<u32, Arc<Space>>>,
    schedule: Arc<Schedule>,
    check: Option<Arc<Check>>,
    counters: Arc<Counters>,
    lateness: Arc<Lateness>,
    tlbs: Vec<Arc<Mutex<Tlb>>>,
    engines: Mutex<Vec<JoinHandle<()>>>,
    /// Shared while a list of copies is carried out.
    copying: Arc<Linger>,
    giving_back: Mutex<Option<JoinHandle<()>>>,
    listener: Arc<Ear>,
}

/// The listener, once it is set.
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
    /// Makes an accelerator and starts its engines. It is not ready before `Init`.
    ///
    /// # Errors
    ///
    /// [`StartError`] when the host lacks memory or threads.
    pub fn new(config: DeviceConfig) -> Result<Self, StartError> {
        Self::with_lateness(config, Arc::default())
    }

    /// The same, with rules for deliberate delays and faults.
    ///
    /// # Errors
    ///
    /// As [`Accelerator::new`].
    pub fn with_lateness(
        config: DeviceConfig,
        lateness: Arc<Lateness>,
    ) -> Result<Self, StartError> {
        let device = match config.prealloc {
            false => DeviceMemory::new(config.memory)?,
            true => DeviceMemory::allocated(config.memory)?,
        };
        let device = Arc::new(device);
        let counters = Arc::new(Counters::default());
        let check = config
            .check
            // {dev-check-counters}
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
            budgets: Budgets::new(config.table_memory, config.max_spaces),
            epochs: Epochs::new(),
            spaces: RwLock::default(),
            schedule: Arc::new(Schedule::new(
                config.max_jobs,
                Arc::clone(&counters),
                Arc::clone(&lateness),
            )),
            engines: Mutex::default(),
            copying: Linger::new(device.frames()),
            giving_back: Mutex::default(),
            listener: Arc::default(),
            lateness,
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
        let device = Arc::clone(&accelerator.device);
        let thread = accelerator.copying.start(device);
        *accelerator.giving_back.lock() = Some(thread.map_err(StartError::Thread)?);
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
            lateness: Arc::clone(&self.lateness),
        };
        let listener = Arc::clone(&self.listener);
        std::thread::Builder::new()
            .name(format!("engine-{index}"))
            .spawn(move || engine.run(|news| listener.tell(news)))
    }

    /// The rules for deliberate delays and faults.
    pub fn lateness(&self) -> &Arc<Lateness> {
        &self.lateness
    }

    /// Sets the listener; only the first call counts.
    pub fn listen(&self, listener: Weak<dyn Listener>) {
        // A second listener would miss events that the first one was given.
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
        self.copying.close();
        if let Some(thread) = self.giving_back.lock().take() {
            // It holds no reference to the accelerator.
            if thread.join().is_err() {
                log::error!("what gives memory back has ended before its time");
            }
        }
    }

    /// Device memory.
    pub fn device_memory(&self) -> &Arc<DeviceMemory> {
        &self.device
    }

    /// The configuration space of a device whose memory is private. {dev-reserved}
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

    /// Replaces the view of the guest's memory. When this returns, the old view is not used any
    /// more.
    pub fn set_system_memory(&self, system: SystemMemory) {
        let system = Arc::new(system);
        *self.system.write() = Arc::clone(&system);
        // An engine holds its TLB, and a copy its lock, as long as it uses a view. An idle engine's
        // TLB would otherwise keep the old view.
        for tlb in &self.tlbs {
            tlb.lock().follow(&system);
        }
        drop(self.copying.exclude());
    }

    /// Counts a chain that could not be answered.
    pub fn count_dropped_chain(&self) {
        self.counters.chains_dropped.add(1);
    }

    /// Counts a fault buffer that was filled.
    pub fn count_fault_buffer(&self) {
        self.counters.fault_buffers.add(1);
    }

    /// Refuses a request that is malformed, or any request while the device is not ready: whichever
    /// the ladder names first. {dev-init-first}, {dev-ladder}
    fn admit<T>(&self, request: Result<T, Refusal>) -> Result<T, Refusal> {
        let ready = self.ready.load(Ordering::Acquire);
        let not_ready = Status::NotReady;
        match request {
            Err(refusal) if ready || refusal.status.raw() < not_ready.raw() => Err(refusal),
            _ if !ready => Err(not_ready.into()),
            request => request,
        }
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// All spaces. The lock of their list is not held while the caller looks at one.
    pub(super) fn spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.read().values().cloned().collect()
    }

    /// Keeps engines from taking jobs until called with false, independent of the front end.
    pub fn set_engines_paused(&self, paused: bool) {
        self.schedule.set_held(paused);
    }

    /// A space that is not being destroyed.
    fn space(&self, id: u32) -> Result<Arc<Space>, Status> {
        let space = self.spaces.read().get(&id).cloned();
        space.filter(|space| space.alive()).ok_or(Status::NoSpace)
    }

    /// Submits a job. Its end is reported with the ticket.
    ///
    /// # Errors
    ///
    /// The end of a job that was refused.
    pub fn submit(&self, request: Result<Submission, Status>, ticket: Ticket) -> Result<(), Ended> {
        self.try_submit(request, ticket).map_err(|status| {
            log::debug!("job refused: {}", status.name());
            // A job that was cancelled before it came was valid, and has ended.
            if status != Status::Cancelled {
                self.counters.requests_refused.add(1);
            }
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
        trace::moment(Some(space.id()), || Event::Queued {
            job,
            operation: operation.name().into(),
        });
        self.schedule.insert(Job::new(job, space, work, ticket))
    }

    /// Refuses every request until the next `Init`. Jobs and copies taken before continue until
    /// then.
    pub fn close(&self) {
        self.ready.store(false, Ordering::Release);
        self.schedule.close();
    }

    /// Lets no engine run a job until [`Accelerator::resume`], and waits until no engine runs one.
    /// {dev-stopped-quiet}
    pub fn pause(&self) {
        self.schedule.pause();
    }

    /// Lets engines run jobs again.
    pub fn resume(&self) {
        self.schedule.resume();
    }

    /// Ends all jobs without reporting their ends, because the driver that submitted them has gone.
    pub fn abandon_jobs(&self) {
        // The listener has forgotten the tickets, too.
        let _ = self.schedule.cancel_all(None);
        self.schedule.take_ended();
    }

    /// Takes the ends of jobs that were not collected yet.
    pub fn take_ended(&self) -> Vec<Ended> {
        self.schedule.take_ended()
    }

    /// The number of fault records that wait to be reported.
    pub fn faults_waiting(&self) -> usize {
        self.schedule.faults_waiting()
    }

    /// Moves the second waiting fault before the first.
    pub fn swap_faults(&self) {
        self.schedule.swap_faults();
    }

    /// Takes up to `most` fault records, which the driver will answer.
    pub fn report_faults(&self, most: usize) -> Vec<FaultRecord> {
        self.schedule.report_faults(most)
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        self.shut_down();
    }
}
