//! The device's counters.

use std::sync::atomic::{AtomicU64, Ordering};
use virtio_hmm_spec::wire::statistics::Statistics;
use zerocopy::little_endian::U64;

/// A number that several threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, amount: u64) {
        if amount != 0 {
            self.0.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

macro_rules! counters {
    ($($name:ident,)+) => {
        /// The counters that only grow until reset; their meanings are documented at
        /// [`Statistics`].
        #[derive(Debug, Default)]
        pub struct Counters { $( #[allow(missing_docs)] pub $name: Counter, )+ }

        impl Counters {
            /// Sets all to zero.
            pub fn reset(&self) {
                $( self.$name.reset(); )+
            }

            /// All counters, with the current state.
            pub fn snapshot(&self, now: &Gauges) -> Statistics {
                Statistics {
                    spaces: U64::new(now.spaces),
                    jobs: U64::new(now.jobs),
                    parked_jobs: U64::new(now.parked_jobs),
                    mapped_pages: U64::new(now.mapped_pages),
                    large_leaves: U64::new(now.large_leaves),
                    table_bytes: U64::new(now.table_bytes),
                    live_frames: U64::new(now.live_frames),
                    $( $name: U64::new(self.$name.get()), )+
                }
            }
        }
    };
}

counters! {
    jobs_ended,
    jobs_ok,
    engine_nanoseconds,
    system_bytes,
    device_bytes,
    tlb_hits,
    tlb_misses,
    faults,
    fault_buffers,
    faults_retried,
    faults_terminated,
    answers_late,
    control_requests,
    map_entries,
    invalidations,
    invalidated_pages,
    invalidation_wait_nanoseconds,
    dma_requests,
    copy_nanoseconds,
    bytes_to_device,
    bytes_to_system,
    bytes_on_device,
    bytes_cleared,
    frames_discarded,
    items_failed,
    requests_refused,
    chains_dropped,
    stale_accesses,
    freed_frame_uses,
}

/// The current state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Spaces that exist.
    pub spaces: u64,
    /// Jobs that have not ended.
    pub jobs: u64,
    /// Jobs among them that wait for a page.
    pub parked_jobs: u64,
    /// Pages that are mapped.
    pub mapped_pages: u64,
    /// Large leaves.
    pub large_leaves: u64,
    /// Memory that page tables take, in bytes.
    pub table_bytes: u64,
    /// Frames of device memory that hold data.
    pub live_frames: u64,
}

/// The work of one engine since it last reported to the [`Counters`].
///
/// Kept apart so that engines do not share a cache line for every access.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Bytes of the guest's memory read or written.
    pub system_bytes: u64,
    /// Bytes of device memory read or written.
    pub device_bytes: u64,
    /// Translations found in the TLB.
    pub hits: u64,
    /// Translations that needed a walk.
    pub misses: u64,
}

impl Tally {
    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        self.system_bytes += other.system_bytes;
        self.device_bytes += other.device_bytes;
        self.hits += other.hits;
        self.misses += other.misses;
    }
}
