//! What jobs do: the operations, in small steps that can be repeated.
//!
//! An operation sees a job's addresses through [`Memory`] and nothing else. It
//! knows nothing of pages, translations, locks, engines or queues, and runs just
//! as well on a vector of bytes.

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
#[cfg(test)]
mod tests;
mod tree;

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::Operation;

/// The most bytes that one step reads or writes, so that a step stays far below a
/// millisecond: an invalidation may have to wait for it.
pub const STEP_BYTES: usize = 128 << 10;

/// An address that cannot be used as it is now; the job must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first address that could not be used.
    pub address: u64,
    /// The rights that were wanted (see [`virtio_hmm_spec::wire::rights`]).
    pub access: u32,
}

/// A job's addresses, as long as one step lasts.
///
/// Any address may be asked for, also one whose range wraps: that is a fault like
/// any other, and it is for the driver to say that the address can never be had.
pub trait Memory {
    /// Copies bytes out of memory.
    ///
    /// # Errors
    ///
    /// A [`Fault`] at the first page that is missing; `into` is then unspecified.
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault>;

    /// Copies bytes into memory: all of them, or none when there is a fault.
    ///
    /// # Errors
    ///
    /// A [`Fault`] at the first page that is missing or may not be written.
    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault>;

    /// Loads eight bytes, little-endian; not slower than it must be, because chains
    /// of pointers are followed with it.
    ///
    /// # Errors
    ///
    /// A [`Fault`] at the first page that is missing.
    fn load(&mut self, address: u64) -> Result<u64, Fault>;

    /// Copies bytes within memory, between ranges that do not overlap.
    ///
    /// This is a [`read`](Self::read) and a [`write`](Self::write); an implementation
    /// that can copy from one place to the other at once is twice as fast.
    ///
    /// # Errors
    ///
    /// A [`Fault`] at a page that is missing or may not be written; the destination is
    /// then unspecified.
    fn copy(&mut self, source: u64, destination: u64, bytes: usize) -> Result<(), Fault> {
        let mut block = [0; 4096];
        for start in (0..bytes).step_by(block.len()) {
            let block = &mut block[..(bytes - start).min(4096)];
            self.read(source.wrapping_add(start as u64), block)?;
            self.write(destination.wrapping_add(start as u64), block)?;
        }
        Ok(())
    }

    /// Makes sure that a following write to the range succeeds within this step.
    ///
    /// # Errors
    ///
    /// A [`Fault`] at the first page that is missing or may not be written.
    fn reserve(&mut self, address: u64, bytes: u64) -> Result<(), Fault>;

    /// Atomically replaces an aligned element by what `update` makes of it and returns
    /// what was there; `update` may run several times and returns `None` to leave it.
    ///
    /// # Errors
    ///
    /// A [`Fault`] when the page is missing or may not be changed atomically.
    fn update(
        &mut self,
        address: u64,
        width: Width,
        update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Fault>;

    /// Says which range the job will go through next in the same way, so that a fault
    /// can ask for more than one page. Lasts until the end of the step.
    fn expect(&mut self, address: u64, bytes: u64, access: u32);
}

/// The size of an atomic element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Four bytes.
    U32,
    /// Eight bytes.
    U64,
}

/// How one step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    More,
    /// The job has ended with this status (never [`Status::Fault`]) and these results.
    Done(Status, [u64; 4]),
}

impl Step {
    /// Whether a job that has these results is through, all being well.
    fn more_until(finished: bool, results: [u64; 4]) -> Self {
        if finished {
            Self::Done(Status::Ok, results)
        } else {
            Self::More
        }
    }
}

/// What each operation can do; see [`Work`] for the promises.
trait Run {
    /// Takes one step.
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault>;
}

/// Declares which type runs which operation.
macro_rules! works {
    ($( $name:ident in $module:ident, )+) => {
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
    Fill in bytes,
    Copy in bytes,
    Compare in bytes,
    Checksum in bytes,
    Sum in reduce,
    Min in reduce,
    Max in reduce,
    Dot in reduce,
    Axpy in axpy,
    Gemm in gemm,
    Sort in sort,
    Histogram in histogram,
    Gather in gather,
    Scatter in gather,
    ListWalk in list,
    TreeSearch in tree,
    TreeSum in tree,
    Bfs in bfs,
    AtomicAdd in atomics,
    AtomicExchange in atomics,
    AtomicCompareExchange in atomics,
}

/// An operation on its way: what it does, how far it has come, and the room that it
/// needs for itself, which is at most [`Work::MOST_BYTES`].
///
/// A step that ends with a [`Fault`] has changed nothing that matters: the same step
/// can be taken again once the page is there. What is needed at the same time for a
/// step to get on is a handful of pages, so that a job ends even if pages come and go.
#[derive(Debug)]
pub struct Work {
    running: Running,
}

impl Work {
    /// The most memory that an operation holds for itself, in bytes.
    pub const MOST_BYTES: usize = 2 << 20;

    /// Starts an operation.
    ///
    /// # Errors
    ///
    /// [`Status::BadAddress`] when a range goes beyond the last address,
    /// [`Status::BadArgument`] when the arguments make no sense together, and
    /// [`Status::NoMemory`].
    pub fn new(operation: Operation) -> Result<Self, Status> {
        Ok(Self {
            running: Running::new(operation)?,
        })
    }

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// The [`Fault`] that stopped the step; repeat it when the page is there.
    pub fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        self.running.step(memory)
    }
}
