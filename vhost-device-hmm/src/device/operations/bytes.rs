//! Operations on plain bytes: fill, copy, compare and checksum.

use super::block::{Block, BLOCK_BYTES};
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step, STEP_BYTES};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation;
use virtio_hmm_spec::wire::rights::{READ, WRITE};

/// Writes a pattern over and over.
#[derive(Debug)]
pub(super) struct Fill {
    destination: Range,
    progress: Progress,
    /// The repeated pattern; each block that is written starts with a whole pattern.
    block: Block,
}

impl Fill {
    const BLOCK: usize = 16 << 10;

    pub(super) fn new(operation: operation::Fill) -> Result<Self, Status> {
        let operation::Fill {
            destination,
            bytes,
            pattern,
        } = operation;
        let destination = Range::new(destination, bytes, 1)?;
        let mut block = Block::new(Self::BLOCK)?;
        block.get_mut(Self::BLOCK / size_of::<u64>()).fill(pattern);
        Ok(Self {
            destination,
            progress: Progress::new(bytes),
            block,
        })
    }
}

impl Run for Fill {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        self.destination
            .expect_from(memory, self.progress.done(), WRITE);
        for _ in 0..STEP_BYTES / Self::BLOCK {
            let count = self.progress.next(Self::BLOCK);
            if count == 0 {
                break;
            }
            memory.write(
                self.destination.at(self.progress.done()),
                self.block.get(count),
            )?;
            self.progress.advance(count);
        }
        Ok(Step::more_until(self.progress.finished(), [0; 4]))
    }
}

/// Copies bytes, also between ranges that overlap.
#[derive(Debug)]
pub(super) struct Copy {
    source: Range,
    destination: Range,
    progress: Progress,
    order: Order,
}

/// The end from which a copy starts.
#[derive(Debug)]
enum Order {
    /// The ranges do not overlap; blocks are copied directly.
    Any,
    /// The destination begins before the source.
    Forward(Block),
    /// The destination begins within the source. A forward copy would overwrite the source's end
    /// before it is read.
    Backward(Block),
}

impl Copy {
    const BLOCK: usize = 16 << 10;

    pub(super) fn new(operation: operation::Copy) -> Result<Self, Status> {
        let operation::Copy {
            source,
            destination,
            bytes,
        } = operation;
        let from = Range::new(source, bytes, 1)?;
        let to = Range::new(destination, bytes, 1)?;
        let order = if !from.overlaps(to) {
            Order::Any
        } else if destination <= source {
            Order::Forward(Block::new(Self::BLOCK)?)
        } else {
            Order::Backward(Block::new(Self::BLOCK)?)
        };
        Ok(Self {
            source: from,
            destination: to,
            progress: Progress::new(bytes),
            order,
        })
    }
}

impl Run for Copy {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let Self {
            source,
            destination,
            progress,
            order,
        } = self;
        if let Order::Backward(_) = order {
            source.expect_before(memory, progress.rest(), READ);
            destination.expect_before(memory, progress.rest(), WRITE);
        } else {
            source.expect_from(memory, progress.done(), READ);
            destination.expect_from(memory, progress.done(), WRITE);
        }
        for _ in 0..STEP_BYTES / (2 * Self::BLOCK) {
            let count = progress.next(Self::BLOCK);
            if count == 0 {
                break;
            }
            match order {
                Order::Any => {
                    let offset = progress.done();
                    memory.copy(source.at(offset), destination.at(offset), count)?;
                }
                Order::Forward(block) => {
                    let offset = progress.done();
                    memory.read(source.at(offset), block.get_mut(count))?;
                    memory.write(destination.at(offset), block.get(count))?;
                }
                Order::Backward(block) => {
                    let offset = progress.rest() - count as u64;
                    memory.read(source.at(offset), block.get_mut(count))?;
                    memory.write(destination.at(offset), block.get(count))?;
                }
            }
            progress.advance(count);
        }
        Ok(Step::more_until(progress.finished(), [0; 4]))
    }
}

/// Looks for the first difference.
#[derive(Debug)]
pub(super) struct Compare {
    left: Range,
    right: Range,
    progress: Progress,
    left_block: Block,
    right_block: Block,
}

impl Compare {
    pub(super) fn new(operation: operation::Compare) -> Result<Self, Status> {
        let operation::Compare { left, right, bytes } = operation;
        Ok(Self {
            left: Range::new(left, bytes, 1)?,
            right: Range::new(right, bytes, 1)?,
            progress: Progress::new(bytes),
            left_block: Block::new(BLOCK_BYTES)?,
            right_block: Block::new(BLOCK_BYTES)?,
        })
    }
}

impl Run for Compare {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        self.left.expect_from(memory, self.progress.done(), READ);
        self.right.expect_from(memory, self.progress.done(), READ);
        for _ in 0..STEP_BYTES / (2 * BLOCK_BYTES) {
            let (done, count) = (self.progress.done(), self.progress.next(BLOCK_BYTES));
            if count == 0 {
                break;
            }
            memory.read(self.left.at(done), self.left_block.get_mut(count))?;
            memory.read(self.right.at(done), self.right_block.get_mut(count))?;
            let (left, right) = (
                self.left_block.get::<u8>(count),
                self.right_block.get::<u8>(count),
            );
            if left != right {
                let same = left
                    .iter()
                    .zip(right)
                    .take_while(|(left, right)| left == right);
                return Ok(Step::Done(
                    Status::Ok,
                    [done + same.count() as u64, 0, 0, 0],
                ));
            }
            self.progress.advance(count);
        }
        Ok(Step::more_until(
            self.progress.finished(),
            [self.progress.total(), 0, 0, 0],
        ))
    }
}

/// CRC-32C.
#[derive(Debug)]
pub(super) struct Checksum {
    source: Range,
    progress: Progress,
    checksum: u32,
    block: Block,
}

impl Checksum {
    /// The checksum is computed fastest over long blocks.
    const BLOCK: usize = 16 << 10;

    pub(super) fn new(operation: operation::Checksum) -> Result<Self, Status> {
        let operation::Checksum { source, bytes } = operation;
        Ok(Self {
            source: Range::new(source, bytes, 1)?,
            progress: Progress::new(bytes),
            checksum: 0,
            block: Block::new(Self::BLOCK)?,
        })
    }
}

impl Run for Checksum {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        self.source.expect_from(memory, self.progress.done(), READ);
        for _ in 0..STEP_BYTES / Self::BLOCK {
            let count = self.progress.next(Self::BLOCK);
            if count == 0 {
                break;
            }
            memory.read(
                self.source.at(self.progress.done()),
                self.block.get_mut(count),
            )?;
            self.checksum = crc32c::crc32c_append(self.checksum, self.block.get(count));
            self.progress.advance(count);
        }
        Ok(Step::more_until(
            self.progress.finished(),
            [self.checksum.into(), 0, 0, 0],
        ))
    }
}
