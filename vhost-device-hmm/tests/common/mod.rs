//! An accelerator with some guest memory, and a driver that accepts everything.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vhost_device_hmm::device::job::{End, Ended, Submission};
use vhost_device_hmm::device::memory::SystemMemory;
use vhost_device_hmm::device::request::{Answer, Command, Outcome, Refusal, Transfer};
use vhost_device_hmm::device::{Accelerator, DeviceConfig, Listener};
use virtio_hmm_spec::wire::command::{MapEntry, QueryResult, RangeEntry, Status};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::fault::FaultRecord;
use virtio_hmm_spec::wire::operation::Operation;
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::{rights, PAGE_BYTES};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::little_endian::{U16, U32, U64};

/// How long anything may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Guest memory of a test: 32 MiB from address zero.
pub(crate) const RAM_PAGES: u64 = 8192;

/// An accelerator, its guest, and the events that it reported.
pub(crate) struct Machine {
    pub(crate) accelerator: Arc<Accelerator>,
    pub(crate) ram: Arc<GuestMemoryMmap>,
    news: Arc<News>,
}

#[derive(Default)]
struct News {
    told: Mutex<u64>,
    changed: Condvar,
    ended: Mutex<Vec<Ended>>,
}

impl Listener for News {
    fn jobs_ended(&self) {
        self.ring();
    }
    fn faults_raised(&self) {
        self.ring();
    }
}

impl News {
    fn ring(&self) {
        *self.told.lock() += 1;
        self.changed.notify_all();
    }

    /// Calls `look` after each event until it returns a value.
    fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut told = self.told.lock();
        loop {
            if let Some(found) = look() {
                return found;
            }
            let late = self.changed.wait_until(&mut told, deadline).timed_out();
            assert!(!late, "waited too long for {what}");
        }
    }
}

impl Machine {
    /// A machine whose device is initialised.
    pub(crate) fn new(config: DeviceConfig) -> Self {
        let machine = Self::before_init(config);
        machine.done(Command::Init { version: VERSION });
        machine
    }

    pub(crate) fn before_init(config: DeviceConfig) -> Self {
        let accelerator = Arc::new(Accelerator::new(config).unwrap());
        let bytes = usize::try_from(RAM_PAGES * PAGE_BYTES).unwrap();
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        let ram = Arc::new(ram);
        accelerator.set_system_memory(SystemMemory::new(Arc::clone(&ram)));
        let news = Arc::new(News::default());
        accelerator.listen(Arc::downgrade(&news) as Weak<dyn Listener>);
        Self {
            accelerator,
            ram,
            news,
        }
    }

    /// A machine with one space, number 1, and the checking mode on.
    pub(crate) fn checking() -> Self {
        let machine = Self::new(DeviceConfig {
            check: true,
            ..small()
        });
        machine.done(Command::SpaceCreate { space: 1 });
        machine
    }

    /// A machine with one space, number 1.
    pub(crate) fn plain() -> Self {
        let machine = Self::new(small());
        machine.done(Command::SpaceCreate { space: 1 });
        machine
    }

    pub(crate) fn execute(&self, command: Command<'_>) -> Outcome {
        self.accelerator.execute(Ok(command))
    }

    #[track_caller]
    pub(crate) fn done(&self, command: Command<'_>) {
        match self.execute(command.clone()) {
            Outcome::Done => {}
            other => panic!("{command:?} came to {other:?}"),
        }
    }

    pub(crate) fn refusal(&self, command: Command<'_>) -> Refusal {
        match self.execute(command.clone()) {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{command:?} came to {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn map(&self, space: u32, entries: &[MapEntry]) {
        self.done(Command::Map { space, entries });
    }

    #[track_caller]
    pub(crate) fn unmap(&self, space: u32, address: u64, pages: u64) {
        self.done(Command::Unmap {
            space,
            ranges: &[range(address, pages)],
        });
    }

    pub(crate) fn query(&self, space: u32, address: u64, pages: u64) -> Vec<QueryResult> {
        match self.execute(Command::Query {
            space,
            range: range(address, pages),
        }) {
            Outcome::Translations(results) => results,
            other => panic!("a query came to {other:?}"),
        }
    }

    pub(crate) fn statistics(&self) -> Statistics {
        match self.execute(Command::Statistics) {
            Outcome::Statistics(statistics) => *statistics,
            other => panic!("statistics came to {other:?}"),
        }
    }

    /// Submits a job and returns its ticket, which is also its name.
    #[track_caller]
    pub(crate) fn submit(&self, job: u64, space: u32, operation: impl Into<Operation>) {
        self.try_submit(job, space, operation).unwrap();
    }

    pub(crate) fn try_submit(
        &self,
        job: u64,
        space: u32,
        operation: impl Into<Operation>,
    ) -> Result<(), Status> {
        let submission = Submission {
            job,
            space,
            operation: operation.into(),
        };
        self.accelerator
            .submit(Ok(submission), job)
            .map_err(|ended| match ended.end {
                End::Refused(status) => status,
                other => panic!("a job that never began ended with {other:?}"),
            })
    }

    /// Waits for the end of a job.
    pub(crate) fn end_of(&self, job: u64) -> Ended {
        self.news.wait_for("the end of a job", || {
            let mut ended = self.news.ended.lock();
            ended.extend(self.accelerator.take_ended());
            let index = ended.iter().position(|ended| ended.ticket == job)?;
            Some(ended.swap_remove(index))
        })
    }

    /// Whether a job has ended by now.
    pub(crate) fn has_ended(&self, job: u64) -> bool {
        let mut ended = self.news.ended.lock();
        ended.extend(self.accelerator.take_ended());
        ended.iter().any(|ended| ended.ticket == job)
    }

    /// Waits for the next fault record.
    pub(crate) fn fault(&self) -> FaultRecord {
        self.news
            .wait_for("a fault", || self.accelerator.report_faults(1).pop())
    }

    pub(crate) fn answer(&self, answer: Answer) {
        self.done(Command::Answer(vec![answer]));
    }

    #[track_caller]
    pub(crate) fn copy(&self, items: &[DmaItem]) -> Vec<Status> {
        let mut results: Vec<ItemResult> = Vec::new();
        self.accelerator
            .transfer(Ok(Transfer::Copy { items }), &mut results)
            .unwrap();
        results
            .iter()
            .map(|r| Status::from_raw(r.status.get()).unwrap())
            .collect()
    }

    pub(crate) fn write_ram(&self, frame: u64, bytes: &[u8]) {
        self.ram
            .write_slice(bytes, GuestAddress(frame * PAGE_BYTES))
            .unwrap();
    }

    pub(crate) fn read_ram(&self, frame: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.ram
            .read_slice(&mut bytes, GuestAddress(frame * PAGE_BYTES))
            .unwrap();
        bytes
    }
}

/// A small device: 8 MiB, two engines, sixteen jobs.
pub(crate) fn small() -> DeviceConfig {
    DeviceConfig {
        memory: 8 << 20,
        max_jobs: 16,
        max_spaces: 16,
        ..DeviceConfig::default()
    }
}

pub(crate) fn page(number: u64) -> u64 {
    number * PAGE_BYTES
}

/// Pages mapped to frames of the guest's memory.
pub(crate) fn system(address: u64, frame: u64, pages: u32, wanted: u32) -> MapEntry {
    entry(address, frame, pages, 0, wanted)
}

/// Pages mapped to frames of device memory.
pub(crate) fn device(address: u64, frame: u64, pages: u32, wanted: u32) -> MapEntry {
    entry(address, frame, pages, 0, wanted | 1 << 8)
}

pub(crate) fn entry(address: u64, frame: u64, pages: u32, order: u16, flags: u32) -> MapEntry {
    MapEntry {
        address: U64::new(address),
        frame: U64::new(frame),
        pages: U32::new(pages),
        order: U16::new(order),
        flags: U16::new(u16::try_from(flags).unwrap()),
    }
}

pub(crate) fn range(address: u64, pages: u64) -> RangeEntry {
    RangeEntry {
        address: U64::new(address),
        pages: U64::new(pages),
    }
}

pub(crate) fn item(kind: Kind, source: u64, destination: u64, pages: u32) -> DmaItem {
    DmaItem {
        kind: U32::new(kind.raw()),
        pages: U32::new(pages),
        source: U64::new(source),
        destination: U64::new(destination),
    }
}

pub(crate) const READ: u32 = rights::READ;
pub(crate) const READ_WRITE: u32 = rights::READ | rights::WRITE;
pub(crate) const ALL: u32 = rights::ALL;
