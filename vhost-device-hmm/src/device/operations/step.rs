//! The interface between operations and their callers: memory, steps, faults.
//!
//! This module does not know which operations there are.

use virtio_hmm_spec::wire::command::Status;

/// The most bytes that one step reads or writes. An invalidation may have to wait for a step, so it
/// stays far below a millisecond. {dev-bounded-step}
pub const STEP_BYTES: usize = 128 << 10;

/// An address that cannot be used now; the job must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first address that could not be used.
    pub address: u64,
    /// The rights that were needed (see [`virtio_hmm_spec::wire::rights`]).
    pub access: u32,
}

/// A job's addresses during one step.
///
/// Any address may be accessed, also one whose range wraps. That is a fault like any other; the
/// driver decides that the address can never be mapped.
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

    /// Loads eight bytes, little-endian. Must be fast, because operations follow chains of pointers
    /// with it.
    ///
    /// # Errors
    ///
    /// A [`Fault`] at the first page that is missing.
    fn load(&mut self, address: u64) -> Result<u64, Fault>;

    /// Copies bytes within memory, between ranges that do not overlap.
    ///
    /// It equals a [`read`](Self::read) and a [`write`](Self::write); an implementation that can
    /// copy directly is twice as fast.
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

    /// Ensures that a following write to the range succeeds within this step.
    ///
    /// # Errors
    ///
    /// A [`Fault`] at the first page that is missing or may not be written.
    fn reserve(&mut self, address: u64, bytes: u64) -> Result<(), Fault>;

    /// Atomically replaces an aligned element by the result of `update` and returns the old value.
    /// `update` may run several times and returns `None` to leave the element unchanged.
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

    /// Announces the range that the job will use next in the same way, so that a fault can request
    /// more than one page. Lasts until the end of the step.
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
    /// {dev-ok-means-done}
    Done(Status, [u64; 4]),
}

impl Step {
    /// Ends a job with these results if it is finished.
    pub(super) fn more_until(finished: bool, results: [u64; 4]) -> Self {
        if finished {
            Self::Done(Status::Ok, results)
        } else {
            Self::More
        }
    }
}

/// The interface of each operation; see [`Work`](super::Work) for the guarantees.
pub(super) trait Run {
    /// Takes one step.
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault>;
}
