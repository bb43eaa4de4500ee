//! The accelerator: spaces, mappings, jobs, faults and copies.
//!
//! Nothing in here knows virtio, queues or vhost-user. Requests come in as [`request::Command`],
//! [`request::Transfer`] and [`job::Submission`]. The guest's memory is a [`memory::SystemMemory`],
//! so that a test can provide any memory.
//!
//! ```text
//! Accelerator ─┬─ space ── mmu            what is mapped, and the promise
//!              ├─ schedule ── job, fault  what runs, what waits, what has ended
//!              ├─ engine ── view ── tlb   how a job reaches memory
//!              │              └─ operations
//!              ├─ dma ── stream           copies between frames
//!              ├─ memory ── linger        what frames are backed by, and for how long
//!              └─ check, statistics       what went on
//! ```
//!
//! Lock order: `copying`, the list of spaces, a space, an engine's TLB, the guest's
//! memory, the schedule. The listener is called without any of them.

pub mod check;
pub mod dma;
pub mod engine;
pub mod fault;
pub mod job;
pub mod linger;
pub mod memory;
pub mod mmu;
#[allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "an operation indexes blocks of its own; a mistake in it ends its job, see `engine`"
)]
pub mod operations;
pub mod request;
pub mod schedule;
pub mod snapshot;
pub mod space;
pub mod statistics;
mod stream;
pub mod tlb;
mod turns;
pub mod view;

mod accelerator;
mod config;
mod validate;

pub use accelerator::{Accelerator, Listener, StartError, Stop};
pub use config::DeviceConfig;
