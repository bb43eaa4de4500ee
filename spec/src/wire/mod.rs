//! The interface between the driver and the device.
//!
//! All fields are little-endian. Reserved fields are written as zero; a receiver that finds another
//! value answers [`command::Status::Malformed`].
//!
//! Sources: `virtio-hmm.md`, whose section names are given at each type.

#[macro_use]
mod layout;
pub mod command;
pub mod config;
pub mod dma;
pub mod fault;
pub mod job;
pub mod operation;
pub mod statistics;

pub use layout::{Field, Layout, Value, Values};

/// The provisional virtio device id ("Device ID").
///
/// No driver of Linux 7.3 claims it and QEMU can name it. Because it is not
/// assigned to this device, a driver must also check [`config::MAGIC`].
pub const DEVICE_ID: u32 = 37;

/// The number of virtqueues ("Virtqueues").
pub const QUEUE_COUNT: usize = 4;

values! {
    /// The virtqueues, by index ("Virtqueues").
    pub enum Queue: u16 {
        /// Requests about spaces and mappings, answered in order.
        Control = 0,
        /// Lists of copies between system memory and device memory.
        Dma = 1,
        /// Jobs; each chain is held until its job has ended.
        Submit = 2,
        /// Buffers that the device fills with fault records.
        Fault = 3,
    }
}

/// log2 of the size of a page and of a frame, in bytes.
pub const PAGE_SHIFT: u32 = 12;

/// The size of a page and of a frame, in bytes.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;

/// log2 of the pages that a large leaf maps.
pub const LARGE_ORDER: u32 = 9;

/// The number of pages that a large leaf maps.
pub const LARGE_PAGES: u64 = 1 << LARGE_ORDER;

/// What an engine may do through a mapping, as a set of bits ("Rights").
pub mod rights {
    /// Loads.
    pub const READ: u32 = 1 << 0;
    /// Stores.
    pub const WRITE: u32 = 1 << 1;
    /// Atomic read-modify-write.
    pub const ATOMIC: u32 = 1 << 2;
    /// Every defined right.
    pub const ALL: u32 = READ | WRITE | ATOMIC;
    /// The bits with their names, for reports.
    pub const VALUES: &[(&str, u32)] = &[("READ", READ), ("WRITE", WRITE), ("ATOMIC", ATOMIC)];
}
