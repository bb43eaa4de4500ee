//! The operations of jobs, in small steps that can be repeated.
//!
//! An operation sees a job's addresses only through [`Memory`]. It knows nothing of pages,
//! translations, locks, engines or queues, and runs just as well on a vector of bytes.

mod atomics;
mod axpy;
mod bfs;
mod block;
mod bytes;
mod gather;
mod gemm;
mod histogram;
mod kernels;
mod list;
mod range;
mod reduce;
mod sort;
mod step;
#[cfg(test)]
mod tests;
mod tree;

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::Operation;

use step::Run;
pub use step::{Fault, Memory, Step, Width, STEP_BYTES};

/// Declares which type runs which operation: the type of the same name.
macro_rules! works {
    ($( $module:ident::$name:ident, )+) => {
        #[derive(Debug)]
        enum Running { $( $name($module::$name), )+ }

        impl Running {
            fn new(operation: Operation) -> Result<Self, Status> {
                Ok(match operation {
                    $( Operation::$name(operation) => Self::$name($module::$name::new(operation)?), )+
                })
            }
        }

        impl Run for Running {
            fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
                match self {
                    $( Self::$name(running) => running.step(memory), )+
                }
            }
        }
    };
}

works! {
    bytes::Fill,
    bytes::Copy,
    bytes::Compare,
    bytes::Checksum,
    reduce::Sum,
    reduce::Min,
    reduce::Max,
    reduce::Dot,
    axpy::Axpy,
    gemm::Gemm,
    sort::Sort,
    histogram::Histogram,
    gather::Gather,
    gather::Scatter,
    list::ListWalk,
    tree::TreeSearch,
    tree::TreeSum,
    bfs::Bfs,
    atomics::AtomicAdd,
    atomics::AtomicExchange,
    atomics::AtomicCompareExchange,
}

/// A running operation: what it does, its progress, and its own memory, which is at most
/// [`Work::MOST_BYTES`].
///
/// A step that ends with a [`Fault`] has changed nothing that matters: the same step can be
/// repeated once the page is there. A step needs only a handful of pages at the same time to make
/// progress, so that a job ends even if pages come and go.
#[derive(Debug)]
pub struct Work {
    running: Running,
}

impl Work {
    /// The most memory that an operation allocates, in bytes.
    pub const MOST_BYTES: usize = 2 << 20;

    /// Starts an operation.
    ///
    /// # Errors
    ///
    /// [`Status::BadAddress`] when a range goes beyond the last address, [`Status::BadArgument`]
    /// when the arguments contradict each other, and [`Status::NoMemory`].
    pub fn new(operation: Operation) -> Result<Self, Status> {
        Ok(Self {
            running: Running::new(operation)?,
        })
    }

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// The [`Fault`] that stopped the step; repeat the step when the page is there.
    pub fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        self.running.step(memory)
    }
}
