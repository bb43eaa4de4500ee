//! Moving elements by index: gather and scatter.
//!
//! An element may lie anywhere, so each may fault; what was moved before the fault
//! stays moved, and a page that comes for one element may go before the next.

use super::block::{size, Block};
use super::range::{Progress, Range};
use super::{Fault, Memory, Run, Step};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{self, Element};
use virtio_hmm_spec::wire::rights::{READ, WRITE};

/// Elements moved in one step: each may be a miss in every cache.
const STEP_ELEMENTS: usize = 1024;

/// The size of an index.
const INDEX_BYTES: usize = size_of::<u64>();

/// What both have in common: a table, indices into it, and a run of elements.
#[derive(Debug)]
struct Indexed {
    table: Range,
    table_count: u64,
    indices: Range,
    /// The elements in the order of the indices.
    run: Range,
    size: usize,
    progress: Progress,
    index_block: Block,
    run_block: Block,
}

/// Why the elements of a block could not all be moved.
enum Stop {
    Fault(Fault),
    /// The index lies outside the table.
    BadIndex,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Indexed {
    fn new(
        table: u64,
        table_count: u64,
        index: u64,
        run: u64,
        count: u64,
        element: Element,
    ) -> Result<Self, Status> {
        Ok(Self {
            table: Range::new(table, table_count, element.bytes())?,
            table_count,
            indices: Range::new(index, count, INDEX_BYTES as u64)?,
            run: Range::new(run, count, element.bytes())?,
            size: size(element),
            progress: Progress::new(count),
            index_block: Block::new(STEP_ELEMENTS * INDEX_BYTES)?,
            run_block: Block::new(STEP_ELEMENTS * size(element))?,
        })
    }

    /// Announces what comes and reads the next indices; says how many, and where the
    /// elements of the run are.
    fn next(&mut self, memory: &mut impl Memory, access: u32) -> Result<(usize, u64), Fault> {
        let (done, count) = (self.progress.done(), self.progress.next(STEP_ELEMENTS));
        let offset = done * self.size as u64;
        self.run.expect_from(memory, offset, access);
        let index_offset = done * INDEX_BYTES as u64;
        self.indices.expect_from(memory, index_offset, READ);
        let indices = self.index_block.get_mut(count * INDEX_BYTES);
        memory.read(self.indices.at(index_offset), indices)?;
        Ok((count, self.run.at(offset)))
    }

    /// The address of the element that the index in the block says.
    fn locate(&self, at: usize) -> Result<u64, Stop> {
        let index = self.index_block.get::<u64>(at + 1)[at];
        if index < self.table_count {
            Ok(self.table.at(index * self.size as u64))
        } else {
            Err(Stop::BadIndex)
        }
    }

    /// Notes that `moved` elements of a block are moved, and ends the step.
    fn end(&mut self, moved: usize, stop: Option<Stop>) -> Result<Step, Fault> {
        self.progress.advance(moved);
        match stop {
            Some(Stop::Fault(fault)) => Err(fault),
            Some(Stop::BadIndex) => Ok(Step::Done(
                Status::BadArgument,
                [self.progress.done(), 0, 0, 0],
            )),
            None => Ok(Step::more_until(self.progress.finished(), [0; 4])),
        }
    }
}

/// `destination[i] = table[index[i]]`
#[derive(Debug)]
pub(super) struct Gather(Indexed);

impl Gather {
    pub(super) fn new(operation: operation::Gather) -> Result<Self, Status> {
        let operation::Gather {
            table,
            table_count,
            index,
            destination,
            count,
            element,
        } = operation;
        Indexed::new(table, table_count, index, destination, count, element).map(Self)
    }

    /// Fetches the element for one index of the block.
    fn fetch(&mut self, memory: &mut impl Memory, at: usize) -> Result<(), Stop> {
        let address = self.0.locate(at)?;
        if self.0.size == size_of::<u64>() {
            self.0.run_block.get_mut::<u64>(at + 1)[at] = memory.load(address)?;
        } else {
            let start = at * self.0.size;
            memory.read(
                address,
                &mut self.0.run_block.get_mut(start + self.0.size)[start..],
            )?;
        }
        Ok(())
    }
}

impl Run for Gather {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        if self.0.progress.finished() {
            return Ok(Step::Done(Status::Ok, [0; 4]));
        }
        let (count, destination) = self.0.next(memory, WRITE)?;
        // First, so that what has been fetched when an element is missing can be kept.
        memory.reserve(destination, (count * self.0.size) as u64)?;
        let mut fetched = 0;
        let stop = loop {
            if fetched == count {
                break None;
            }
            match self.fetch(memory, fetched) {
                Ok(()) => fetched += 1,
                Err(stop) => break Some(stop),
            }
        };
        memory.write(destination, self.0.run_block.get(fetched * self.0.size))?;
        self.0.end(fetched, stop)
    }
}

/// `table[index[i]] = source[i]`
#[derive(Debug)]
pub(super) struct Scatter(Indexed);

impl Scatter {
    pub(super) fn new(operation: operation::Scatter) -> Result<Self, Status> {
        let operation::Scatter {
            source,
            index,
            table,
            table_count,
            count,
            element,
        } = operation;
        Indexed::new(table, table_count, index, source, count, element).map(Self)
    }

    /// Stores the element for one index of the block.
    fn store(&self, memory: &mut impl Memory, at: usize) -> Result<(), Stop> {
        let (address, start) = (self.0.locate(at)?, at * self.0.size);
        memory.write(address, &self.0.run_block.get(start + self.0.size)[start..])?;
        Ok(())
    }
}

impl Run for Scatter {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        if self.0.progress.finished() {
            return Ok(Step::Done(Status::Ok, [0; 4]));
        }
        let (count, source) = self.0.next(memory, READ)?;
        memory.read(source, self.0.run_block.get_mut(count * self.0.size))?;
        let mut stored = 0;
        let stop = loop {
            if stored == count {
                break None;
            }
            match self.store(memory, stored) {
                Ok(()) => stored += 1,
                Err(stop) => break Some(stop),
            }
        };
        self.0.end(stored, stop)
    }
}
