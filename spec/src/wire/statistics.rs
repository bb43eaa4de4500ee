//! The device's counters ("Statistics").

use zerocopy::little_endian::U64;

layout! {
    /// The device's counters since the last reset, and its current state.
    ///
    /// The first group is the current state; all others only grow until reset.
    pub struct Statistics {
        /// Spaces that exist.
        pub spaces: U64,
        /// Jobs that have not ended.
        pub jobs: U64,
        /// Jobs among them that wait for a page.
        pub parked_jobs: U64,
        /// Pages that are mapped, in all spaces, in units of 4 KiB.
        pub mapped_pages: U64,
        /// Large leaves among the mappings.
        pub large_leaves: U64,
        /// Memory that page tables take, in bytes.
        pub table_bytes: U64,
        /// Frames of device memory that have been written and not discarded.
        pub live_frames: U64,

        /// Jobs that have ended.
        pub jobs_ended: U64,
        /// Jobs among them that ended well.
        pub jobs_ok: U64,
        /// Nanoseconds that engines have spent on jobs.
        pub engine_nanoseconds: U64,
        /// Bytes of the guest's memory that jobs have read or written.
        pub system_bytes: U64,
        /// Bytes of device memory that jobs have read or written.
        pub device_bytes: U64,
        /// Translations found in an engine's TLB.
        pub tlb_hits: U64,
        /// Translations that needed a walk of the page table.
        pub tlb_misses: U64,

        /// Faults raised.
        pub faults: U64,
        /// Fault buffers filled.
        pub fault_buffers: U64,
        /// Faults answered with retry.
        pub faults_retried: U64,
        /// Faults answered with terminate.
        pub faults_terminated: U64,
        /// Answers to faults that were no longer waiting.
        pub answers_late: U64,

        /// Control requests carried out.
        pub control_requests: U64,
        /// Map entries carried out.
        pub map_entries: U64,
        /// Ranges unmapped or protected.
        pub invalidations: U64,
        /// Pages whose rights these removed or restricted.
        pub invalidated_pages: U64,
        /// Nanoseconds that invalidations waited for engines.
        pub invalidation_wait_nanoseconds: U64,

        /// DMA requests carried out.
        pub dma_requests: U64,
        /// Nanoseconds spent on carrying out their lists.
        pub copy_nanoseconds: U64,
        /// Bytes copied to device memory.
        pub bytes_to_device: U64,
        /// Bytes copied to the guest's memory.
        pub bytes_to_system: U64,
        /// Bytes copied within device memory.
        pub bytes_on_device: U64,
        /// Bytes cleared.
        pub bytes_cleared: U64,
        /// Frames discarded.
        pub frames_discarded: U64,
        /// Items that failed.
        pub items_failed: U64,

        /// Requests refused with a status.
        pub requests_refused: U64,
        /// Chains that could not be answered.
        pub chains_dropped: U64,
        /// With [`CHECK`](super::config::capability::CHECK): accesses through a stale translation.
        pub stale_accesses: U64,
        /// With [`CHECK`](super::config::capability::CHECK): uses of a frame that is free.
        pub freed_frame_uses: U64,
    }
}
