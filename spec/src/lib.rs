//! The virtio-hmm wire format and the guest's user interface, defined once.
//!
//! Everything that crosses a boundary is here and nowhere else: the interface between the guest
//! driver and the device ([`wire`]), and the interface between a program in the guest and the
//! driver ([`uapi`]). The daemon, the guest library, the tests and, through `#[path]`, the kernel
//! module compile these same files. `tests/prose` checks the prose in `virtio-hmm.md` and `uapi.md`
//! against them. [`points`] names the moments that the specification leaves open.
//!
//! This crate holds layouts, values and their checked forms. It knows nothing of queues, memory or
//! processes, and carries out no ioctls.
#![no_std]
#![forbid(unsafe_code)]

// First, because its macros declare the layouts of both.
#[macro_use]
pub mod wire;
pub mod points;
pub mod uapi;
