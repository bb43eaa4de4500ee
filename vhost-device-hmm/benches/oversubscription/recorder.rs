//! Memory that records which pages the operations use, and what they have announced.
//!
//! It knows no operation.

use std::ops::Range;

use hmm_replay::trace::{Access, Trace, PAGE_BYTES};
use vhost_device_hmm::device::operations::{Fault, Memory, Step, Width, Work};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::Operation;
use virtio_hmm_spec::wire::rights::{READ, WRITE};
use zerocopy::{FromBytes, IntoBytes};

/// What a link carries at least.
const LINE_BYTES: u64 = 64;

/// How many ranges a step can have announced, as on the device.
const EXPECTATIONS: usize = 4;

/// A range that an operation will use next.
#[derive(Clone, Copy, Default)]
struct Expectation {
    address: u64,
    bytes: u64,
    access: u32,
}

/// Memory from address zero on, all of it present.
pub(crate) struct Recorder {
    memory: Vec<u64>,
    trace: Trace,
    expected: [Expectation; EXPECTATIONS],
    announced: usize,
    /// What the step has reserved last: a fault there is one of a write, even if a read comes first.
    reserved: Range<u64>,
    /// The last line of the last access. The next one has it at hand.
    line: Option<u64>,
}

impl Recorder {
    /// So many bytes of zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            memory: vec![0; bytes.div_ceil(8)],
            trace: Trace::default(),
            expected: [Expectation::default(); EXPECTATIONS],
            announced: 0,
            reserved: 0..0,
            line: None,
        }
    }

    /// The memory, to be filled; that is not recorded.
    pub(crate) fn memory(&mut self) -> &mut [u64] {
        &mut self.memory
    }

    /// Runs a job and records what it uses.
    pub(crate) fn run(&mut self, operation: impl Into<Operation>) {
        let mut work = Work::new(operation.into()).expect("the arguments are good");
        loop {
            // An announcement lasts for a step.
            self.expected = [Expectation::default(); EXPECTATIONS];
            self.reserved = 0..0;
            if let Step::Done(status, _) = work.step(self).expect("everything is present") {
                assert_eq!(status, Status::Ok);
                return;
            }
        }
    }

    /// What was recorded.
    pub(crate) fn finish(self) -> Trace {
        self.trace
    }

    /// How many pages from this one on the job has announced to use so.
    fn announced_pages(&self, page: u64, access: u32) -> u64 {
        let start = page * PAGE_BYTES;
        let ranges = self.expected.iter();
        let ranges = ranges.filter(|range| range.bytes > 0 && range.access == access);
        let ends = ranges.filter(|range| range.address < start + PAGE_BYTES);
        let end = ends.map(|range| range.address.saturating_add(range.bytes));
        let end = end.max().unwrap_or(0);
        end.saturating_sub(start).div_ceil(PAGE_BYTES)
    }

    /// Records an access and returns its place in memory.
    fn account(&mut self, address: u64, bytes: usize, access: u32) -> Result<usize, Fault> {
        let fault = Fault { address, access };
        let start = usize::try_from(address).map_err(|_| fault)?;
        let end = address.checked_add(bytes as u64).ok_or(fault)?;
        if end > 8 * self.memory.len() as u64 {
            return Err(fault);
        }
        if bytes == 0 {
            return Ok(start);
        }
        let (first, last) = (address / LINE_BYTES, (end - 1) / LINE_BYTES);
        let lines = last - first + u64::from(self.line != Some(first));
        self.line = Some(last);
        let page = address / PAGE_BYTES;
        let fault_access = if self.reserved.contains(&address) {
            WRITE
        } else {
            access
        };
        if lines > 0 {
            self.trace.push(Access {
                first: page,
                pages: (end - 1) / PAGE_BYTES - page + 1,
                bytes: lines * LINE_BYTES,
                written: access == WRITE,
                announced: self.announced_pages(page, fault_access),
            });
        }
        Ok(start)
    }
}

impl Memory for Recorder {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        let start = self.account(address, into.len(), READ)?;
        into.copy_from_slice(&self.memory.as_bytes()[start..start + into.len()]);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let start = self.account(address, from.len(), WRITE)?;
        self.memory.as_mut_bytes()[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn load(&mut self, address: u64) -> Result<u64, Fault> {
        let start = self.account(address, 8, READ)?;
        u64::read_from_prefix(&self.memory.as_bytes()[start..])
            .map(|(value, _)| value)
            .map_err(|_| Fault {
                address,
                access: READ,
            })
    }

    fn copy(&mut self, source: u64, destination: u64, bytes: usize) -> Result<(), Fault> {
        let from = self.account(source, bytes, READ)?;
        let to = self.account(destination, bytes, WRITE)?;
        let memory = self.memory.as_mut_bytes();
        memory.copy_within(from..from + bytes, to);
        Ok(())
    }

    fn reserve(&mut self, address: u64, bytes: u64) -> Result<(), Fault> {
        // A write follows, and counts.
        self.reserved = address..address.saturating_add(bytes);
        Ok(())
    }

    fn update(
        &mut self,
        address: u64,
        width: Width,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Fault> {
        let bytes = match width {
            Width::U32 => 4,
            Width::U64 => 8,
        };
        let start = self.account(address, bytes, WRITE)?;
        let cell = &mut self.memory.as_mut_bytes()[start..start + bytes];
        let mut old = [0; 8];
        old[..bytes].copy_from_slice(cell);
        let old = u64::from_le_bytes(old);
        if let Some(new) = update(old) {
            cell.copy_from_slice(&new.to_le_bytes()[..bytes]);
        }
        Ok(old)
    }

    fn expect(&mut self, address: u64, bytes: u64, access: u32) {
        self.expected[self.announced % EXPECTATIONS] = Expectation {
            address,
            bytes,
            access,
        };
        self.announced = self.announced.wrapping_add(1);
    }
}
