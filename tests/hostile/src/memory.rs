//! Memory of this process that the device can reach, and may change only where it was offered.
//!
//! It consists of huge pages: each is one run of guest physical memory that stays where it is. A
//! copy is kept of everything that was written here. [`Arena::verify`] compares, and so finds any
//! byte that the device changed without an offer. It knows nothing of queues or requests.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// The size of a huge page in bytes.
pub(crate) const HUGE: usize = 2 << 20;

/// The size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

const SMALL: u64 = PAGE as u64;
const RESERVE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const PAGEMAP: &str = "/proc/self/pagemap";
/// Linux, Documentation/admin-guide/mm/pagemap.rst: present, and the frame number.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// The value of untouched memory: never zero, so that cleared bytes are noticed too.
const PAINT: u8 = 0xa5;

/// Memory of this process at known physical addresses.
///
/// Places in it are named by their offset. A run of bytes is contiguous for the device as long as
/// it stays within its huge page.
#[derive(Debug)]
pub(crate) struct Arena {
    region: Arc<MmapRegion>,
    physical: Vec<u64>,
    /// The expected value of each byte.
    expected: Vec<u8>,
    /// Which bytes the device may have changed.
    offered: Vec<Range<usize>>,
}

/// The bytes of an arena for another thread, without any bookkeeping.
#[derive(Clone, Debug)]
pub(crate) struct Unwatched(Arc<MmapRegion>);

impl Arena {
    /// Takes this many huge pages.
    ///
    /// # Errors
    ///
    /// When the machine has too few of them, or does not report where they are.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        fs::write(RESERVE, pages.to_string()).with_context(|| format!("writing {RESERVE}"))?;
        let size = pages * HUGE;
        let region = MmapRegion::build(
            None,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_HUGETLB
                | libc::MAP_POPULATE
                | libc::MAP_LOCKED,
        )
        .with_context(|| format!("taking {pages} huge pages"))?;
        let mut arena = Self {
            region: Arc::new(region),
            physical: Vec::new(),
            expected: Vec::new(),
            offered: Vec::new(),
        };
        arena.repaint()?;
        let map = File::open(PAGEMAP).with_context(|| format!("opening {PAGEMAP}"))?;
        let start = u64::try_from(arena.region.as_ptr().addr())?;
        for page in 0..pages {
            let address = start + u64::try_from(page * HUGE)?;
            arena.physical.push(locate(&map, address)?);
        }
        Ok(arena)
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.expected.len()
    }

    /// The guest physical address of a byte.
    pub(crate) fn physical(&self, at: usize) -> u64 {
        self.physical[at / HUGE] + offset_in_page(at)
    }

    /// Whether all of these frames are ours and the device may write them.
    pub(crate) fn owns(&self, frame: u64, frames: u64) -> bool {
        self.offered.iter().any(|range| {
            // A run that leaves its huge page is not found: its frames are not adjacent.
            let first = self.physical(range.start) / SMALL;
            let end = self.physical(range.end - 1) / SMALL + 1;
            first <= frame && frame < end && frames <= end - frame
        })
    }

    /// Writes bytes, which are then expected to stay.
    ///
    /// # Errors
    ///
    /// When they lie outside.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        self.region
            .as_volatile_slice()
            .write_slice(bytes, at)
            .context("writing outside the arena")?;
        self.expected[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Writes two bytes that the device may read at the same time. It sees all earlier writes
    /// before this one.
    ///
    /// # Errors
    ///
    /// When they lie outside.
    pub(crate) fn publish(&mut self, at: usize, value: u16) -> Result<()> {
        self.region
            .as_volatile_slice()
            .store(value.to_le(), at, Ordering::Release)
            .context("writing outside the arena")?;
        self.expected[at..at + 2].copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    /// Reads two bytes that the device may write at the same time. The device's earlier writes are
    /// seen afterwards.
    ///
    /// # Errors
    ///
    /// When they lie outside.
    pub(crate) fn observe(&self, at: usize) -> Result<u16> {
        let value: u16 = self
            .region
            .as_volatile_slice()
            .load(at, Ordering::Acquire)
            .context("reading outside the arena")?;
        Ok(u16::from_le(value))
    }

    /// Reads bytes.
    ///
    /// # Errors
    ///
    /// When they lie outside.
    pub(crate) fn read(&self, at: usize, bytes: usize) -> Result<Vec<u8>> {
        let mut into = vec![0; bytes];
        self.region
            .as_volatile_slice()
            .read_slice(&mut into, at)
            .context("reading outside the arena")?;
        Ok(into)
    }

    /// Lets the device change these bytes until the next [`Self::verify`].
    pub(crate) fn offer(&mut self, range: Range<usize>) {
        self.offered.push(range);
    }

    /// Withdraws an offer of exactly these bytes: from now on they must not change.
    ///
    /// # Errors
    ///
    /// When they lie outside.
    pub(crate) fn take_back(&mut self, range: &Range<usize>) -> Result<()> {
        if let Some(position) = self.offered.iter().position(|offered| offered == range) {
            self.offered.swap_remove(position);
            let found = self.read(range.start, range.len())?;
            self.expected[range.clone()].copy_from_slice(&found);
        }
        Ok(())
    }

    /// Checks that only offered bytes have changed, and paints everything anew. Afterwards nothing
    /// is offered.
    ///
    /// # Errors
    ///
    /// The first byte that was changed without an offer.
    pub(crate) fn verify(&mut self) -> Result<()> {
        let found = self.read(0, self.len())?;
        for range in self.offered.drain(..) {
            self.expected[range.clone()].copy_from_slice(&found[range]);
        }
        let changed = self.expected.iter().zip(&found).position(|(a, b)| a != b);
        if let Some(at) = changed {
            let expected = self.expected[at];
            let now = found[at];
            self.repaint()?;
            bail!(
                "the device wrote where nothing was offered: {at:#x} held {expected:#04x}, \
                 now {now:#04x}"
            );
        }
        self.repaint()
    }

    /// The same memory for a thread that changes it without any bookkeeping. It may only write to
    /// bytes that are offered.
    pub(crate) fn unwatched(&self) -> Unwatched {
        Unwatched(Arc::clone(&self.region))
    }

    fn repaint(&mut self) -> Result<()> {
        self.offered.clear();
        self.expected.clear();
        self.expected.resize(self.region.size(), PAINT);
        self.region
            .as_volatile_slice()
            .write_slice(&self.expected, 0)
            .context("painting the arena")
    }
}

impl Unwatched {
    /// Writes bytes.
    ///
    /// # Errors
    ///
    /// When they lie outside.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.0
            .as_volatile_slice()
            .write_slice(bytes, at)
            .context("writing outside the arena")
    }
}

fn offset_in_page(at: usize) -> u64 {
    (at % HUGE) as u64
}

fn locate(map: &File, address: u64) -> Result<u64> {
    let mut entry = [0; 8];
    map.read_exact_at(&mut entry, address / SMALL * 8)
        .with_context(|| format!("reading {PAGEMAP}"))?;
    let entry = u64::from_le_bytes(entry);
    ensure!(
        entry & PRESENT != 0 && entry & FRAME != 0,
        "{PAGEMAP} does not say where {address:#x} is; this needs root"
    );
    Ok((entry & FRAME) * SMALL)
}
