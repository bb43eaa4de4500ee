//! What a guest and a device did, on one clock.
//!
//! The guest's part are the events of the driver's tracepoints, as the kernel's tracing writes them
//! ([`ftrace`], [`guest`]). The device's part are the records of its daemon ([`device`]). Each has a
//! clock of its own; [`clocks`] finds the difference, from the jobs that both have seen. [`draw`] makes
//! [`tracks`] of both, `perfetto` writes these to a file, and [`summary`] adds up. [`together`] does all of that.
//!
//! Nothing here traces anything.

pub mod clocks;
pub mod device;
pub mod draw;
pub mod ftrace;
pub mod guest;
#[cfg(feature = "perfetto")]
pub mod perfetto;
pub mod summary;
pub mod together;
pub mod tracks;
