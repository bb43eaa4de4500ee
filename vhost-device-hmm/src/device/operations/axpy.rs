//! A vector times a number, added to another vector.

use super::block::{size, Block, BLOCK_BYTES};
use super::kernels;
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step, STEP_BYTES};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{self, Element};
use virtio_hmm_spec::wire::rights::{READ, WRITE};

/// `y[i] = alpha * x[i] + y[i]`; each element is changed once, when its block is written.
#[derive(Debug)]
pub(super) struct Axpy {
    x: Range,
    y: Range,
    factor: Factor,
    progress: Progress,
    x_block: Block,
    y_block: Block,
}

/// The factor in the type of the elements.
#[derive(Clone, Copy, Debug)]
enum Factor {
    F32(f32),
    F64(f64),
}

impl Axpy {
    pub(super) fn new(operation: operation::Axpy) -> Result<Self, Status> {
        let operation::Axpy {
            x,
            y,
            count,
            element,
            alpha,
        } = operation;
        let factor = match element {
            #[expect(clippy::cast_possible_truncation, reason = "it is to be rounded")]
            Element::F32 => Factor::F32(alpha as f32),
            Element::F64 => Factor::F64(alpha),
            Element::U32 | Element::U64 | Element::I64 => return Err(Status::BadArgument),
        };
        Ok(Self {
            x: Range::new(x, count, element.bytes())?,
            y: Range::new(y, count, element.bytes())?,
            factor,
            progress: Progress::new(count),
            x_block: Block::new(BLOCK_BYTES)?,
            y_block: Block::new(BLOCK_BYTES)?,
        })
    }
}

impl Run for Axpy {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let size = size(match self.factor {
            Factor::F32(_) => Element::F32,
            Factor::F64(_) => Element::F64,
        });
        let offset = self.progress.done() * size as u64;
        self.x.expect_from(memory, offset, READ);
        self.y.expect_from(memory, offset, WRITE);
        for _ in 0..STEP_BYTES / (3 * BLOCK_BYTES) {
            let count = self.progress.next(BLOCK_BYTES / size);
            if count == 0 {
                break;
            }
            let (offset, bytes) = (self.progress.done() * size as u64, count * size);
            memory.read(self.x.at(offset), self.x_block.get_mut(bytes))?;
            // Reserved before the read, so that one fault makes the page present for both.
            memory.reserve(self.y.at(offset), bytes as u64)?;
            memory.read(self.y.at(offset), self.y_block.get_mut(bytes))?;
            let (x, y) = (&self.x_block, &mut self.y_block);
            match self.factor {
                Factor::F32(alpha) => kernels::axpy_f32(alpha, x.get(count), y.get_mut(count)),
                Factor::F64(alpha) => kernels::axpy_f64(alpha, x.get(count), y.get_mut(count)),
            }
            memory.write(self.y.at(offset), self.y_block.get(bytes))?;
            self.progress.advance(count);
        }
        Ok(Step::more_until(self.progress.finished(), [0; 4]))
    }
}
