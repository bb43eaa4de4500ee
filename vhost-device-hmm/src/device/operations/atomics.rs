//! Atomic changes of one element.

use super::step::{Fault, Memory, Run, Step, Width};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{self, Element};

/// Additions in one step: each may fetch the line from another processor.
const STEP_ADDITIONS: u64 = 512;

/// The width of an element that can be changed atomically, if its address is aligned and the values
/// fit.
fn check(address: u64, element: Element, values: [u64; 2]) -> Result<Width, Status> {
    if address % element.bytes() != 0 {
        return Err(Status::BadAddress);
    }
    let (width, most) = match element {
        Element::U32 => (Width::U32, u32::MAX.into()),
        Element::U64 => (Width::U64, u64::MAX),
        Element::I64 | Element::F32 | Element::F64 => return Err(Status::BadArgument),
    };
    if values.iter().any(|value| *value > most) {
        return Err(Status::BadArgument);
    }
    Ok(width)
}

/// Adds to an element, several times.
#[derive(Debug)]
pub(super) struct AtomicAdd {
    operation: operation::AtomicAdd,
    width: Width,
    done: u64,
    before: u64,
}

impl AtomicAdd {
    pub(super) fn new(operation: operation::AtomicAdd) -> Result<Self, Status> {
        let width = check(operation.address, operation.element, [operation.operand, 0])?;
        Ok(Self {
            operation,
            width,
            done: 0,
            before: 0,
        })
    }
}

impl Run for AtomicAdd {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let operation::AtomicAdd {
            address,
            operand,
            repeat,
            ..
        } = self.operation;
        let mask = match self.width {
            Width::U32 => u32::MAX.into(),
            Width::U64 => u64::MAX,
        };
        for _ in 0..(repeat - self.done).min(STEP_ADDITIONS) {
            // {dev-atomic-once}
            self.before = memory.update(address, self.width, |there| {
                Some(there.wrapping_add(operand) & mask)
            })?;
            self.done += 1;
        }
        Ok(Step::more_until(
            self.done == repeat,
            [self.before, 0, 0, 0],
        ))
    }
}

/// Replaces an element.
#[derive(Debug)]
pub(super) struct AtomicExchange {
    operation: operation::AtomicExchange,
    width: Width,
}

impl AtomicExchange {
    pub(super) fn new(operation: operation::AtomicExchange) -> Result<Self, Status> {
        let width = check(operation.address, operation.element, [operation.operand, 0])?;
        Ok(Self { operation, width })
    }
}

impl Run for AtomicExchange {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let operation::AtomicExchange {
            address, operand, ..
        } = self.operation;
        let before = memory.update(address, self.width, |_| Some(operand))?;
        Ok(Step::Done(Status::Ok, [before, 0, 0, 0]))
    }
}

/// Replaces an element that has the expected value.
#[derive(Debug)]
pub(super) struct AtomicCompareExchange {
    operation: operation::AtomicCompareExchange,
    width: Width,
}

impl AtomicCompareExchange {
    pub(super) fn new(operation: operation::AtomicCompareExchange) -> Result<Self, Status> {
        let values = [operation.expected, operation.operand];
        let width = check(operation.address, operation.element, values)?;
        Ok(Self { operation, width })
    }
}

impl Run for AtomicCompareExchange {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let operation::AtomicCompareExchange {
            address,
            expected,
            operand,
            ..
        } = self.operation;
        let before = memory.update(address, self.width, |there| {
            (there == expected).then_some(operand)
        })?;
        Ok(Step::Done(
            Status::Ok,
            [before, u64::from(before == expected), 0, 0],
        ))
    }
}
