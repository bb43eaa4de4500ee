//! The size of a device, and how much it takes at a time.

/// Sizes and limits of an accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Device memory in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Whether host memory is allocated at the start, and kept.
    pub prealloc: bool,
    /// Engines, at least one.
    pub engines: u32,
    /// Spaces at a time.
    pub max_spaces: u32,
    /// Jobs at a time.
    pub max_jobs: u32,
    /// Memory for page tables, all spaces together, in bytes.
    pub table_memory: u64,
    /// Whether to check every translation and every frame that is used.
    pub check: bool,
}

impl DeviceConfig {
    /// Entries in one control request: half a megabyte of mappings page by page, and a request that
    /// fits 25 pages.
    pub const MAX_ENTRIES: u32 = 4096;

    /// Items in one DMA request.
    pub const MAX_ITEMS: u32 = 4096;

    /// Pages in one DMA request: 256 MiB, some ten milliseconds of copying.
    pub const MAX_COPY_PAGES: u32 = 64 << 10;
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            prealloc: false,
            engines: 2,
            max_spaces: 256,
            max_jobs: 256,
            table_memory: 256 << 20,
            check: false,
        }
    }
}
