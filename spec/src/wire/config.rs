//! The configuration space ("Device configuration layout").

use zerocopy::little_endian::{U32, U64};

/// The first four bytes of the configuration space: `vhmm`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"vhmm");

/// The version of everything that this crate defines.
pub const VERSION: u32 = 1;

/// The id of the shared memory region that shows coherent device memory.
pub const MEMORY_REGION: u8 = 0;

layout! {
    /// The configuration space: sizes and limits that never change after reset.
    ///
    /// The driver only reads it. Each limit applies to one request or to what the device holds at a
    /// time; exceeding it is answered with [`Status::Limit`](super::command::Status::Limit).
    pub struct Config {
        /// [`MAGIC`].
        pub magic: U32,
        /// [`VERSION`].
        pub version: U32,
        /// Size of the device memory in bytes, a multiple of 2 MiB.
        pub device_memory: U64,
        /// A set of the bits in [`capability`].
        pub capabilities: U64,
        /// Spaces that may exist at a time; space ids are below it.
        pub max_spaces: U32,
        /// Jobs that may be submitted and not yet ended.
        pub max_jobs: U32,
        /// Entries in one control request.
        pub max_entries: U32,
        /// Items in one DMA request.
        pub max_items: U32,
        /// Pages in all items of one DMA request together.
        pub max_copy_pages: U32,
        /// Engines.
        pub engines: U32,
        /// Width of a virtual address in bits.
        pub address_bits: U32,
        /// Zero.
        pub reserved: U32,
    }
}

/// Bits of [`Config::capabilities`].
pub mod capability {
    /// The device checks every translation that it uses and poisons discarded frames.
    ///
    /// A driver then discards frames as soon as they are free.
    pub const CHECK: u64 = 1 << 0;
    /// The guest's CPUs can address device memory.
    ///
    /// It is in [`MEMORY_REGION`](super::MEMORY_REGION) ("Coherent device memory").
    pub const COHERENT: u64 = 1 << 1;
}
