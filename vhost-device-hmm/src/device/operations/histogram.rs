//! How often each byte value occurs.

use super::block::{filled, Block, BLOCK_BYTES};
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step, STEP_BYTES};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation;
use virtio_hmm_spec::wire::rights::{READ, WRITE};

/// Values that a byte can have.
const VALUES: usize = 256;

/// Tables used in turn, so that equal bytes in a row do not wait for each other.
const TABLES: usize = 8;

/// The size of the counters in memory.
const COUNTERS_BYTES: usize = VALUES * size_of::<u64>();

/// Counts privately, and adds to the job's counters at the end, all at once.
#[derive(Debug)]
pub(super) struct Histogram {
    source: Range,
    counters: Range,
    progress: Progress,
    counts: Vec<[u64; VALUES]>,
    block: Block,
}

impl Histogram {
    pub(super) fn new(operation: operation::Histogram) -> Result<Self, Status> {
        let operation::Histogram {
            source,
            bytes,
            counters,
        } = operation;
        let source = Range::new(source, bytes, 1)?;
        let counters = Range::new(counters, 1, COUNTERS_BYTES as u64)?;
        if source.overlaps(counters) {
            return Err(Status::BadArgument);
        }
        Ok(Self {
            source,
            counters,
            progress: Progress::new(bytes),
            counts: filled(TABLES, [0; VALUES])?,
            block: Block::new(BLOCK_BYTES)?,
        })
    }

    /// Adds what was counted to the job's counters.
    fn publish(&mut self, memory: &mut impl Memory) -> Result<(), Fault> {
        let address = self.counters.at(0);
        memory.reserve(address, COUNTERS_BYTES as u64)?;
        memory.read(address, self.block.get_mut(COUNTERS_BYTES))?;
        for (value, counter) in self.block.get_mut::<u64>(VALUES).iter_mut().enumerate() {
            for counts in &self.counts {
                *counter = counter.wrapping_add(counts[value]);
            }
        }
        memory.write(address, self.block.get(COUNTERS_BYTES))
    }
}

impl Run for Histogram {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        if self.progress.total() == 0 {
            return Ok(Step::Done(Status::Ok, [0; 4]));
        }
        self.source.expect_from(memory, self.progress.done(), READ);
        for _ in 0..STEP_BYTES / (2 * BLOCK_BYTES) {
            let count = self.progress.next(BLOCK_BYTES);
            if count == 0 {
                break;
            }
            memory.read(
                self.source.at(self.progress.done()),
                self.block.get_mut(count),
            )?;
            count_bytes(self.block.get(count), &mut self.counts);
            self.progress.advance(count);
        }
        if !self.progress.finished() {
            return Ok(Step::More);
        }
        self.counters.expect_from(memory, 0, WRITE);
        self.publish(memory)?;
        Ok(Step::Done(Status::Ok, [0; 4]))
    }
}

/// Counts the bytes of one block.
fn count_bytes(bytes: &[u8], counts: &mut [[u64; VALUES]]) {
    let Ok(tables) = <&mut [_; TABLES]>::try_from(counts) else {
        unreachable!("there are {TABLES} tables")
    };
    let words = bytes.chunks_exact(TABLES);
    for (table, byte) in tables.iter_mut().zip(words.remainder()) {
        table[usize::from(*byte)] += 1;
    }
    for word in words {
        for (table, byte) in tables.iter_mut().zip(word) {
            table[usize::from(*byte)] += 1;
        }
    }
}
