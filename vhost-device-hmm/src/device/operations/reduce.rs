//! Operations that reduce many values to one: sum, min, max and dot.

use super::block::{size, Block, Value, BLOCK_BYTES};
use super::kernels;
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step, STEP_BYTES};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{self, Element};
use virtio_hmm_spec::wire::rights::READ;

/// Adds up elements; the order of floating point additions is unspecified.
#[derive(Debug)]
pub(super) struct Sum {
    source: Range,
    element: Element,
    progress: Progress,
    /// The bits of the sum so far: of a `u64`, or of an `f64`.
    sum: u64,
    block: Block,
}

impl Sum {
    pub(super) fn new(operation: operation::Sum) -> Result<Self, Status> {
        let operation::Sum {
            source,
            count,
            element,
        } = operation;
        Ok(Self {
            source: Range::new(source, count, element.bytes())?,
            element,
            progress: Progress::new(count),
            sum: 0,
            block: Block::new(BLOCK_BYTES)?,
        })
    }

    /// The sum so far with the first `count` elements of the block.
    fn with_block(&self, count: usize) -> u64 {
        let integer = |sum: u64| self.sum.wrapping_add(sum);
        let float = |sum: f64| (f64::from_bits(self.sum) + sum).to_bits();
        match self.element {
            Element::U32 => integer(kernels::sum_u32(self.block.get(count))),
            Element::U64 => integer(kernels::sum_u64(self.block.get(count))),
            Element::I64 => integer(Ranked::bits(kernels::sum_i64(self.block.get(count)))),
            Element::F32 => float(kernels::sum_f32(self.block.get(count))),
            Element::F64 => float(kernels::sum_f64(self.block.get(count))),
        }
    }
}

impl Run for Sum {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let size = size(self.element);
        self.source
            .expect_from(memory, self.progress.done() * size as u64, READ);
        for _ in 0..STEP_BYTES / BLOCK_BYTES {
            let count = self.progress.next(BLOCK_BYTES / size);
            if count == 0 {
                break;
            }
            let address = self.source.at(self.progress.done() * size as u64);
            memory.read(address, self.block.get_mut(count * size))?;
            self.sum = self.with_block(count);
            self.progress.advance(count);
        }
        Ok(Step::more_until(
            self.progress.finished(),
            [self.sum, 0, 0, 0],
        ))
    }
}

/// Finds the smallest or the largest element.
#[derive(Debug)]
struct Extreme {
    source: Range,
    progress: Progress,
    best: Option<Best>,
    block: Block,
}

/// The best element so far.
#[derive(Clone, Copy, Debug)]
struct Best {
    bits: u64,
    index: u64,
}

/// A type whose elements can be the smallest or the largest.
trait Ranked: Value {
    /// The value's bits, zero-extended.
    fn bits(self) -> u64;
    /// The value with these bits.
    fn from_bits(bits: u64) -> Self;
    /// The smallest value that is a number.
    fn min(values: &[Self]) -> Self;
    /// The largest value that is a number.
    fn max(values: &[Self]) -> Self;
}

macro_rules! ranked {
    ($( $type:ty, $min:ident, $max:ident, $to:expr, $from:expr; )+) => { $(
        impl Ranked for $type {
            fn bits(self) -> u64 {
                $to(self)
            }
            fn from_bits(bits: u64) -> Self {
                $from(bits)
            }
            fn min(values: &[Self]) -> Self {
                kernels::$min(values)
            }
            fn max(values: &[Self]) -> Self {
                kernels::$max(values)
            }
        }
    )+ };
}

/// The low half of a zero-extended value.
#[expect(clippy::cast_possible_truncation, reason = "the high half is zero")]
fn low(bits: u64) -> u32 {
    bits as u32
}

ranked! {
    u32, min_u32, max_u32, u64::from, low;
    u64, min_u64, max_u64, |value| value, |bits| bits;
    i64, min_i64, max_i64,
        |value: i64| u64::from_ne_bytes(value.to_ne_bytes()),
        |bits: u64| i64::from_ne_bytes(bits.to_ne_bytes());
    f32, min_f32, max_f32, |value: f32| value.to_bits().into(), |bits| f32::from_bits(low(bits));
    f64, min_f64, max_f64, f64::to_bits, f64::from_bits;
}

impl Extreme {
    fn new(source: u64, count: u64, element: Element) -> Result<Self, Status> {
        Ok(Self {
            source: Range::new(source, count, element.bytes())?,
            progress: Progress::new(count),
            best: None,
            block: Block::new(BLOCK_BYTES)?,
        })
    }

    /// One step over elements of one type. `find` finds the best of a block, and `better` returns
    /// whether it beats the best so far.
    fn step<T: Ranked>(
        &mut self,
        memory: &mut impl Memory,
        find: impl Fn(&[T]) -> T,
        better: impl Fn(&T, &T) -> bool,
    ) -> Result<Step, Fault> {
        let size = size_of::<T>();
        self.source
            .expect_from(memory, self.progress.done() * size as u64, READ);
        for _ in 0..STEP_BYTES / BLOCK_BYTES {
            let (done, count) = (self.progress.done(), self.progress.next(BLOCK_BYTES / size));
            if count == 0 {
                break;
            }
            memory.read(
                self.source.at(done * size as u64),
                self.block.get_mut(count * size),
            )?;
            let values = self.block.get(count);
            let found = find(values);
            if self
                .best
                .is_none_or(|best| better(&found, &T::from_bits(best.bits)))
            {
                // If the block holds only NaN, no element equals the result.
                if let Some(at) = values.iter().position(|value| *value == found) {
                    self.best = Some(Best {
                        bits: values[at].bits(),
                        index: done + at as u64,
                    });
                }
            }
            self.progress.advance(count);
        }
        let best = self.best.unwrap_or(Best {
            bits: 0,
            index: self.progress.total(),
        });
        Ok(Step::more_until(
            self.progress.finished(),
            [best.bits, best.index, 0, 0],
        ))
    }
}

macro_rules! extreme {
    ($(#[$meta:meta])* $name:ident, $find:ident, $better:ident) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub(super) struct $name {
            element: Element,
            extreme: Extreme,
        }

        impl $name {
            pub(super) fn new(operation: operation::$name) -> Result<Self, Status> {
                let operation::$name { source, count, element } = operation;
                Ok(Self { element, extreme: Extreme::new(source, count, element)? })
            }
        }

        impl Run for $name {
            fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
                let extreme = &mut self.extreme;
                match self.element {
                    Element::U32 => extreme.step(memory, <u32 as Ranked>::$find, u32::$better),
                    Element::U64 => extreme.step(memory, <u64 as Ranked>::$find, u64::$better),
                    Element::I64 => extreme.step(memory, <i64 as Ranked>::$find, i64::$better),
                    Element::F32 => extreme.step(memory, <f32 as Ranked>::$find, f32::$better),
                    Element::F64 => extreme.step(memory, <f64 as Ranked>::$find, f64::$better),
                }
            }
        }
    };
}

extreme! {
    /// Finds the smallest element.
    Min, min, lt
}

extreme! {
    /// Finds the largest element.
    Max, max, gt
}

/// The dot product; the order of additions is unspecified.
#[derive(Debug)]
pub(super) struct Dot {
    x: Range,
    y: Range,
    element: Element,
    progress: Progress,
    sum: f64,
    x_block: Block,
    y_block: Block,
}

impl Dot {
    pub(super) fn new(operation: operation::Dot) -> Result<Self, Status> {
        let operation::Dot {
            x,
            y,
            count,
            element,
        } = operation;
        if !matches!(element, Element::F32 | Element::F64) {
            return Err(Status::BadArgument);
        }
        Ok(Self {
            x: Range::new(x, count, element.bytes())?,
            y: Range::new(y, count, element.bytes())?,
            element,
            progress: Progress::new(count),
            sum: 0.0,
            x_block: Block::new(BLOCK_BYTES)?,
            y_block: Block::new(BLOCK_BYTES)?,
        })
    }
}

impl Run for Dot {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let size = size(self.element);
        let offset = self.progress.done() * size as u64;
        self.x.expect_from(memory, offset, READ);
        self.y.expect_from(memory, offset, READ);
        for _ in 0..STEP_BYTES / (2 * BLOCK_BYTES) {
            let count = self.progress.next(BLOCK_BYTES / size);
            if count == 0 {
                break;
            }
            let offset = self.progress.done() * size as u64;
            memory.read(self.x.at(offset), self.x_block.get_mut(count * size))?;
            memory.read(self.y.at(offset), self.y_block.get_mut(count * size))?;
            self.sum += if self.element == Element::F32 {
                kernels::dot_f32(self.x_block.get(count), self.y_block.get(count))
            } else {
                kernels::dot_f64(self.x_block.get(count), self.y_block.get(count))
            };
            self.progress.advance(count);
        }
        Ok(Step::more_until(
            self.progress.finished(),
            [self.sum.to_bits(), 0, 0, 0],
        ))
    }
}
