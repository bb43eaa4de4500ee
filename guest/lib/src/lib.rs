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
//! # Waiting for several things at once
//!
//! [`Space::wait_any`] waits for the first of several jobs. A [`Space`] can also be polled among
//! other files: it is readable when a job has ended whose result has not been fetched. An eventfd
//! can be signalled at the end of selected jobs only ([`Space::submit_notifying`]). A job that is
//! no longer needed can be cancelled ([`Job::cancel`]).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use hmm::{work, Device};
//! use rustix::event::epoll;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (some, others) = (vec![1_u64; 1 << 20], vec![2_u64; 1 << 20]);
//! const JOBS: u64 = 1;
//!
//! let space = Device::open("/dev/hmm0")?.bind()?;
//! let files = epoll::create(epoll::CreateFlags::CLOEXEC)?;
//! epoll::add(&files, &space, epoll::EventData::new_u64(JOBS), epoll::EventFlags::IN)?;
//! // And sockets, timers, signals …
//!
//! space.scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
//!     let mut jobs = vec![
//!         scope.submit(work::sum(&some))?,
//!         scope.submit(work::sum(&others))?,
//!     ];
//!     let mut events = Vec::with_capacity(8);
//!     while !jobs.is_empty() {
//!         epoll::wait(&files, rustix::buffer::spare_capacity(&mut events), None)?;
//!         for event in events.drain(..) {
//!             if event.data.u64() == JOBS {
//!                 // All that have ended, without sleeping.
//!                 while let Some(ended) = scope.wait_any_timeout(&mut jobs, Duration::ZERO)? {
//!                     println!("job {}: {}", ended.fence, ended.result?.value);
//!                 }
//!             }
//!         }
//!     }
//!     Ok(())
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is where
//!
//! [`Device`] is an open node, [`Space`] is one that is bound to this process, and [`Process`] one that
//! is bound to another one. [`work`] makes typed jobs of slices and pointers, [`Job`] and [`Scope`] are work in flight, [`PageRange`] and
//! [`PageState`] describe pages. [`calls`] is for bindings to other languages. This library carries
//! out the calls of [`spec::uapi`]. It knows nothing of virtio or of queues, nor how the driver
//! keeps its promises. All unsafe system calls are in one private module.

pub mod calls;
mod device;
mod error;
mod failure;
mod job;
mod memory;
mod outcome;
mod process;
mod scope;
mod space;
mod submit;
mod sys;
pub mod work;

pub use device::Device;
pub use error::{Error, Result, SystemError};
pub use failure::{JobFailure, Usage, Values};
pub use job::Job;
pub use memory::{page_size, Migration, PageRange, PageState, Place};
pub use outcome::{Ended, Outcome, Progress};
pub use process::Process;
pub use scope::{Scope, ScopedJob};
pub use space::Space;

/// The definitions that this library shares with the driver and the device.
pub use virtio_hmm_spec as spec;
pub use virtio_hmm_spec::uapi::{Counters, Destination, DriverStatistics, Info, SpaceCounters};
pub use virtio_hmm_spec::wire::command::Status;
pub use virtio_hmm_spec::wire::fault::Reason;
pub use virtio_hmm_spec::wire::operation::{Element, Operation};
pub use virtio_hmm_spec::wire::statistics::Statistics;

/// The example in the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;
