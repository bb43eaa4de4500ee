//! Moving elements by index: gather and scatter.
//!
//! An element may be anywhere, so each may fault. Elements that were moved before the fault stay
//! moved, and a page that comes for one element may be gone before the next.

use super::block::{size, Block};
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{self, Element};
use virtio_hmm_spec::wire::rights::{READ, WRITE};

/// Elements moved in one step: each may be a miss in every cache.
const STEP_ELEMENTS: usize = 1024;

/// The size of an index.
const INDEX_BYTES: usize = size_of::<u64>();

/// A table of elements.
#[derive(Clone, Copy, Debug)]
struct Table {
    range: Range,
    count: u64,
    size: usize,
}

/// Why the moving of a block of elements ended, and how many were moved.
struct End {
    moved: usize,
    why: Why,
}

enum Why {
    /// All are moved.
    Moved,
    /// The next element cannot be reached.
    Fault(Fault),
    /// The next index lies outside the table.
    BadIndex,
}

impl Table {
    fn new(address: u64, count: u64, element: Element) -> Result<Self, Status> {
        let range = Range::new(address, count, element.bytes())?;
        Ok(Self {
            range,
            count,
            size: size(element),
        })
    }

    /// The address of an element.
    fn at(self, index: u64) -> u64 {
        self.range.at(index * self.size as u64)
    }

    /// Calls `each` with each index and its element.
    fn walk<P>(
        self,
        indices: &[u64],
        elements: impl Iterator<Item = P>,
        mut each: impl FnMut(u64, P) -> Result<(), Fault>,
    ) -> End {
        for (moved, (index, element)) in indices.iter().zip(elements).enumerate() {
            if *index >= self.count {
                return End {
                    moved,
                    why: Why::BadIndex,
                };
            }
            if let Err(fault) = each(*index, element) {
                return End {
                    moved,
                    why: Why::Fault(fault),
                };
            }
        }
        End {
            moved: indices.len(),
            why: Why::Moved,
        }
    }
}

/// The indices and their elements, and how many are moved.
#[derive(Debug)]
struct Column {
    indices: Range,
    elements: Range,
    size: usize,
    progress: Progress,
    index_block: Block,
    element_block: Block,
}

impl Column {
    fn new(index: u64, elements: u64, count: u64, element: Element) -> Result<Self, Status> {
        Ok(Self {
            indices: Range::new(index, count, INDEX_BYTES as u64)?,
            elements: Range::new(elements, count, element.bytes())?,
            size: size(element),
            progress: Progress::new(count),
            index_block: Block::new(STEP_ELEMENTS * INDEX_BYTES)?,
            element_block: Block::new(STEP_ELEMENTS * size(element))?,
        })
    }

    /// Announces the next elements and reads their indices. Returns their number, and the address
    /// of their elements.
    fn next(&mut self, memory: &mut impl Memory, access: u32) -> Result<(usize, u64), Fault> {
        let (done, count) = (self.progress.done(), self.progress.next(STEP_ELEMENTS));
        let (offset, index_offset) = (done * self.size as u64, done * INDEX_BYTES as u64);
        self.elements.expect_from(memory, offset, access);
        self.indices.expect_from(memory, index_offset, READ);
        let indices = self.index_block.get_mut(count * INDEX_BYTES);
        memory.read(self.indices.at(index_offset), indices)?;
        Ok((count, self.elements.at(offset)))
    }

    /// Records how many elements are moved, and ends the step.
    fn end(&mut self, end: End) -> Result<Step, Fault> {
        self.progress.advance(end.moved);
        match end.why {
            Why::Moved => Ok(Step::more_until(self.progress.finished(), [0; 4])),
            Why::Fault(fault) => Err(fault),
            Why::BadIndex => Ok(Step::Done(
                Status::BadArgument,
                [self.progress.done(), 0, 0, 0],
            )),
        }
    }
}

/// `destination[i] = table[index[i]]`
#[derive(Debug)]
pub(super) struct Gather {
    table: Table,
    column: Column,
}

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
        Ok(Self {
            table: Table::new(table, table_count, element)?,
            column: Column::new(index, destination, count, element)?,
        })
    }
}

impl Run for Gather {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let Self { table, column } = self;
        if column.progress.finished() {
            return Ok(Step::Done(Status::Ok, [0; 4]));
        }
        let (count, destination) = column.next(memory, WRITE)?;
        // Reserved first, so that elements fetched before a fault can be kept.
        memory.reserve(destination, (count * table.size) as u64)?;
        let indices = column.index_block.get(count);
        let end = if table.size == size_of::<u64>() {
            let elements = column.element_block.get_mut::<u64>(count).iter_mut();
            table.walk(indices, elements, |index, element| {
                *element = memory.load(table.at(index))?;
                Ok(())
            })
        } else {
            let elements = column.element_block.get_mut::<u32>(count).iter_mut();
            table.walk(indices, elements, |index, element| {
                *element = table.range.load_u32(memory, index)?;
                Ok(())
            })
        };
        memory.write(
            destination,
            column.element_block.get(end.moved * table.size),
        )?;
        column.end(end)
    }
}

/// `table[index[i]] = source[i]`
#[derive(Debug)]
pub(super) struct Scatter {
    table: Table,
    column: Column,
}

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
        Ok(Self {
            table: Table::new(table, table_count, element)?,
            column: Column::new(index, source, count, element)?,
        })
    }
}

impl Run for Scatter {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let Self { table, column } = self;
        if column.progress.finished() {
            return Ok(Step::Done(Status::Ok, [0; 4]));
        }
        let (count, source) = column.next(memory, READ)?;
        memory.read(source, column.element_block.get_mut(count * table.size))?;
        let elements = column
            .element_block
            .get(count * table.size)
            .chunks_exact(table.size);
        let end = table.walk(column.index_block.get(count), elements, |index, element| {
            memory.write(table.at(index), element)
        });
        column.end(end)
    }
}
