//! An accelerator with guest memory behind it, as the daemon has them.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::memfd::{memfd_create, MFdFlags};
use vhost_device_hmm::device::job::{End, Submission};
use vhost_device_hmm::device::memory::SystemMemory;
use vhost_device_hmm::device::request::{Command, Outcome};
use vhost_device_hmm::device::{Accelerator, DeviceConfig, Listener};
use virtio_hmm_spec::wire::command::{MapEntry, Status, MAX_MAP_PAGES};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::operation::Operation;
use virtio_hmm_spec::wire::{rights, LARGE_ORDER, PAGE_BYTES, PAGE_SHIFT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, VolatileSlice};
use zerocopy::little_endian::{U16, U32, U64};

/// Bytes of the guest's memory, and of the device's.
pub(crate) const MEMORY: u64 = 256 << 20;

/// Frames of either.
pub(crate) const FRAMES: u64 = MEMORY / PAGE_BYTES;

/// The address that the guest's memory is mapped at, in each space that maps it.
pub(crate) const BASE: u64 = 1 << 40;

/// How the guest's memory is mapped in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// By leaves of 4 KiB.
    Small,
    /// By leaves of 2 MiB.
    Large,
}

impl Leaves {
    /// For the names of measurements.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "4 KiB leaves",
            Self::Large => "2 MiB leaves",
        }
    }

    /// log2 of the pages in a leaf.
    pub(crate) fn order(self) -> u16 {
        match self {
            Self::Small => 0,
            Self::Large => u16::try_from(LARGE_ORDER).unwrap_or(u16::MAX),
        }
    }

    /// The space of a [`Machine`] that maps everything in this way.
    pub(crate) fn space(self) -> u32 {
        match self {
            Self::Small => 1,
            Self::Large => 2,
        }
    }
}

/// An accelerator, the guest's memory, and two spaces that map all of it.
pub(crate) struct Machine {
    /// The accelerator.
    pub(crate) accelerator: Arc<Accelerator>,
    /// The guest's memory, for plain code.
    pub(crate) system: Arc<SystemMemory>,
    ends: Arc<Ends>,
}

/// Wakes the thread that waits for a job.
#[derive(Default)]
struct Ends {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Listener for Ends {
    fn jobs_ended(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    fn faults_raised(&self) {
        // Everything is mapped. A job that faults all the same never ends: see `run_all`.
        self.jobs_ended();
    }
}

impl Ends {
    fn wait(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = self
            .changed
            .wait_while(told, |told| !*told)
            .unwrap_or_else(PoisonError::into_inner);
        *told = false;
    }
}

impl Machine {
    /// Makes the machine; every byte of the guest's memory is allocated.
    pub(crate) fn new() -> Self {
        Self::with(DeviceConfig {
            memory: MEMORY,
            ..DeviceConfig::default()
        })
    }

    /// The same with another device.
    pub(crate) fn with(config: DeviceConfig) -> Self {
        let map = Arc::new(guest_memory());
        let system = Arc::new(SystemMemory::new(Arc::clone(&map)));
        all_of(&system).write_all(0x5a);
        let accelerator = Arc::new(Accelerator::new(config).expect("there is memory for a device"));
        accelerator.set_system_memory(SystemMemory::new(map));
        let ends = Arc::new(Ends::default());
        let listener: Arc<dyn Listener> = Arc::clone(&ends) as _;
        accelerator.listen(Arc::downgrade(&listener));
        let machine = Self {
            accelerator,
            system,
            ends,
        };
        machine.execute(Command::Init { version: VERSION });
        for leaves in [Leaves::Small, Leaves::Large] {
            let space = leaves.space();
            machine.execute(Command::SpaceCreate { space });
            let everything = map_entry(BASE, 0, FRAMES, leaves);
            machine.execute(Command::Map {
                space,
                entries: &[everything],
            });
        }
        machine
    }

    /// Maps any number of entries, by as few requests as they fit in; the time of the requests.
    pub(crate) fn map(&self, space: u32, mut entries: &[MapEntry]) -> Duration {
        let mut time = Duration::ZERO;
        while !entries.is_empty() {
            let mut pages = 0;
            let fits = |entry: &&MapEntry| {
                pages += u64::from(entry.pages.get());
                pages <= MAX_MAP_PAGES
            };
            let most = entries.len().min(DeviceConfig::MAX_ENTRIES as usize);
            // One entry is never too much.
            let count = entries[..most].iter().take_while(fits).count().max(1);
            let (now, later) = entries.split_at(count);
            time += self.execute(Command::Map {
                space,
                entries: now,
            });
            entries = later;
        }
        time
    }

    /// Executes a request that must not be refused.
    pub(crate) fn execute(&self, command: Command<'_>) -> Duration {
        let start = Instant::now();
        let outcome = self.accelerator.execute(Ok(command));
        let time = start.elapsed();
        assert!(
            !matches!(outcome, Outcome::Refused(_)),
            "a request was refused: {outcome:?}"
        );
        time
    }

    /// Runs a job; returns the time from its submission until its end is known.
    pub(crate) fn run(
        &self,
        leaves: Leaves,
        operation: impl Into<Operation>,
    ) -> Result<Duration, String> {
        self.run_all(&[(leaves.space(), operation.into())])
    }

    /// Runs jobs in their spaces, all at the same time; returns the time from the first submission
    /// until the last end is known.
    pub(crate) fn run_all(&self, jobs: &[(u32, Operation)]) -> Result<Duration, String> {
        let start = Instant::now();
        for (&(space, operation), job) in jobs.iter().zip(1..) {
            let submission = Submission {
                job,
                space,
                operation,
            };
            self.accelerator
                .submit(Ok(submission), job)
                .map_err(|ended| format!("a job was refused: {ended:?}"))?;
        }
        let mut ended = 0;
        while ended < jobs.len() {
            self.ends.wait();
            for job in self.accelerator.take_ended() {
                if !matches!(job.end, End::Finished(Status::Ok, _)) {
                    return Err(format!("a job did not end well: {job:?}"));
                }
                ended += 1;
            }
            if self.accelerator.faults_waiting() > 0 {
                return Err("a job faults where everything is mapped".into());
            }
        }
        Ok(start.elapsed())
    }
}

/// An entry that maps pages to the guest's frames.
pub(crate) fn map_entry(address: u64, frame: u64, pages: u64, leaves: Leaves) -> MapEntry {
    MapEntry {
        address: U64::new(address),
        frame: U64::new(frame),
        pages: U32::new(u32::try_from(pages).expect("no more than a table holds")),
        order: U16::new(leaves.order()),
        flags: U16::new(u16::try_from(rights::ALL).expect("rights are in the low byte")),
    }
}

/// Memory as QEMU shares it: a file without a name.
fn guest_memory() -> GuestMemoryMmap {
    let file = memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    let file = File::from(file);
    file.set_len(MEMORY).expect("its size");
    let size = usize::try_from(MEMORY).expect("64 bits");
    GuestMemoryMmap::from_ranges_with_files([(
        GuestAddress(0),
        size,
        Some(FileOffset::new(file, 0)),
    )])
    .expect("address space")
}

/// All of the guest's memory.
pub(crate) fn all_of(system: &SystemMemory) -> Plain<'_> {
    Plain(system.slice(0, FRAMES).expect("it lies side by side"))
}

/// Memory as plain code sees it.
#[derive(Clone, Copy)]
pub(crate) struct Plain<'a>(pub(crate) VolatileSlice<'a>);

impl<'a> Plain<'a> {
    /// A part of it.
    pub(crate) fn part(&self, bytes: Range<usize>) -> Plain<'a> {
        let length = bytes.len();
        Plain(self.0.subslice(bytes.start, length).expect("within it"))
    }

    /// Its words. The device changes them at the same time only by atomic accesses, or not at all.
    pub(crate) fn words(&self) -> &'a [AtomicU64] {
        let guard = self.0.ptr_guard_mut();
        let (pointer, count) = (guard.as_ptr(), self.0.len() / size_of::<AtomicU64>());
        assert!(
            pointer.cast::<AtomicU64>().is_aligned(),
            "parts are of whole words"
        );
        // SAFETY: the slice is that many bytes of shared memory that stay mapped for 'a; the words
        // are aligned, and all other users in this process access them through atomics or while
        // they are not read here.
        unsafe { std::slice::from_raw_parts(pointer.cast(), count) }
    }

    /// Sets every byte, as `memset` does.
    pub(crate) fn write_all(&self, value: u8) {
        let guard = self.0.ptr_guard_mut();
        // SAFETY: the slice is that many bytes of mapped memory. There are no references to it: it
        // is handed out only as volatile slices and atomics.
        unsafe { std::ptr::write_bytes(guard.as_ptr(), value, self.0.len()) }
    }

    /// Copies all of it, as `memcpy` does.
    pub(crate) fn copy_to(&self, other: &Plain<'_>) {
        self.0.copy_to_volatile_slice(other.0);
    }
}

/// Byte offsets as sizes: all offsets here are far smaller than an address space.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("a size")
}

/// Pages as a byte range.
pub(crate) fn bytes_of(frame: u64, pages: u64) -> Range<usize> {
    index(frame << PAGE_SHIFT)..index((frame + pages) << PAGE_SHIFT)
}

/// A random order of `count` numbers, the same each time.
pub(crate) fn shuffled(count: u64) -> Vec<u64> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut numbers: Vec<u64> = (0..count).collect();
    for last in (1..numbers.len()).rev() {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        numbers.swap(last, index(seed % (last as u64 + 1)));
    }
    numbers
}
