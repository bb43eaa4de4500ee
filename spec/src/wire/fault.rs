//! Fault records and the driver's answers ("Fault queue").
//!
//! The driver offers buffers that the device may write. The device fills one with a [`FaultHeader`]
//! and as many waiting records as fit.

use zerocopy::little_endian::{U32, U64};

values! {
    /// The driver's answer to a fault.
    pub enum Action: u32 {
        /// The page is mapped as well as it can be: try again.
        Retry = 1,
        /// The page cannot be provided: end the job with a [`Reason`].
        Terminate = 2,
    }
}

values! {
    /// Why a page cannot be provided.
    pub enum Reason: u32 {
        /// Nothing is mapped there in the process.
        Unmapped = 1,
        /// The process itself may not access it in this way.
        Denied = 2,
        /// The memory is poisoned.
        Poisoned = 3,
        /// The system has no memory for it.
        NoMemory = 4,
        /// The process kept changing its mappings for too long.
        Busy = 5,
        /// The process is gone.
        Gone = 6,
        /// The driver is shutting down.
        Shutdown = 7,
    }
}

layout! {
    /// The start of a filled fault buffer.
    pub struct FaultHeader {
        /// The number of records that follow.
        pub count: U32,
        /// Zero.
        pub reserved: U32,
    }

    /// A job waits for a page.
    pub struct FaultRecord {
        /// The name of this fault in the driver's answer; never reused before the next
        /// [`Request::Init`](super::command::Request::Init).
        pub fault: U64,
        /// The address that the job accessed.
        pub address: U64,
        /// The job that waits.
        pub job: U64,
        /// The job's space.
        pub space: U32,
        /// The rights that the job needs (see [`rights`](super::rights)).
        pub access: U32,
        /// A hint: the number of pages from this one on that the job will need in the same way.
        pub pages: U32,
        /// Zero.
        pub reserved: U32,
    }
}

/// The smallest fault buffer that a driver may offer, in bytes: one record.
pub const MIN_BUFFER: usize =
    core::mem::size_of::<FaultHeader>() + core::mem::size_of::<FaultRecord>();

/// The number of retries in a row, at one address and without progress, after which a job ends with
/// [`Status::Storm`](super::command::Status::Storm).
///
/// An invalidation that races with the driver causes far fewer. A driver that answers without
/// mapping anything is stopped within moments.
pub const STORM_RETRIES: u32 = 1024;
