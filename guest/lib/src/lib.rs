//! Use a virtio-hmm accelerator from a program in the guest.
//!
//! The accelerator works on the calling process's own addresses: any pointer that is
//! valid in the program is valid on the device. Nothing is registered, pinned or
//! copied beforehand.
//!
//! ```no_run
//! use hmm::{work, Destination, Device, PageRange};
//!
//! # fn main() -> Result<(), hmm::Error> {
//! let space = Device::open("/dev/hmm0")?.bind()?;
//! let numbers: Vec<u64> = (0..1_000_000).collect();
//! space.migrate(PageRange::covering(&numbers), Destination::Device)?;
//! let sum = space.run(work::sum(&numbers))?;
//! println!("{} in {:?}, {} faults", sum.value, sum.usage.time, sum.usage.faults);
//! # Ok(())
//! # }
//! ```
//!
//! # Ways to run a job
//!
//! | call | blocks | memory is kept alive by |
//! | --- | --- | --- |
//! | [`Space::run`] | until the job has ended | the borrow in the [`Work`](work::Work) |
//! | [`Space::run_all`] | until all jobs have ended | the borrows in the works |
//! | [`Space::scope`] | at the end of the scope | the borrows, which outlive the scope |
//! | [`Space::submit`] (unsafe) | no | the caller |
//!
//! # What is where
//!
//! [`Device`] is an open node, [`Space`] is one bound to this process, [`work`] makes
//! typed jobs of slices and pointers, [`Job`] and [`Scope`] are work in flight,
//! [`PageRange`] and [`PageState`] speak of pages. This library carries out the calls
//! of [`spec::uapi`] and knows nothing of virtio, of queues or of how the driver keeps
//! its promises. All unsafe system calls are in one private module.

mod device;
mod error;
mod job;
mod memory;
mod scope;
mod space;
mod sys;
pub mod work;

pub use device::Device;
pub use error::{Error, JobFailure, Result, SystemError};
pub use job::{Job, Outcome, Progress, Usage, Values};
pub use memory::{page_size, Migration, PageRange, PageState, Place};
pub use scope::{Scope, ScopedJob};
pub use space::Space;

/// The definitions that this library shares with the driver and the device.
pub use virtio_hmm_spec as spec;
pub use virtio_hmm_spec::uapi::{Counters, Destination, DriverStatistics, Info};
pub use virtio_hmm_spec::wire::command::Status;
pub use virtio_hmm_spec::wire::fault::Reason;
pub use virtio_hmm_spec::wire::operation::{Element, Operation};
pub use virtio_hmm_spec::wire::statistics::Statistics;

/// The example in the read-me file is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;
