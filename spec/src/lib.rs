//! The virtio-hmm wire format and the guest's user interface, defined once.
//!
//! Everything that crosses a boundary is here and nowhere else: what the guest
//! driver and the device say to each other ([`wire`]) and what a program in the
//! guest says to the driver ([`uapi`]). The daemon, the guest library, the tests
//! and, through `#[path]`, the kernel module compile these same files. The prose
//! in `virtio-hmm.md` and `uapi.md` is checked against them by `tests/prose`.
//!
//! This crate holds layouts, values and their checked forms. It knows nothing of
//! queues, memory, processes or ioctls being carried out.
#![no_std]
#![forbid(unsafe_code)]

// First, because its macros declare the layouts of both.
#[macro_use]
pub mod wire;
pub mod uapi;
