//! Fault records and the driver's answers ("Fault queue").
//!
//! The driver offers buffers that the device may write. The device fills one with
//! a [`FaultHeader`] and as many records as are waiting and fit.

use zerocopy::little_endian::{U32, U64};

values! {
    /// What the driver has done about a fault.
    pub enum Action: u32 {
        /// The page is mapped as well as it can be: try again.
        Retry = 1,
        /// The page cannot be had: end the job with a [`Reason`].
        Terminate = 2,
    }
}

values! {
    /// Why a page cannot be had.
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
    /// What a filled fault buffer begins with.
    pub struct FaultHeader {
        /// How many records follow.
        pub count: U32,
        /// Zero.
        pub reserved: U32,
    }

    /// A job waits for a page.
    pub struct FaultRecord {
        /// Names this fault in the driver's answer; never used twice until the next
        /// [`Request::Init`](super::command::Request::Init).
        pub fault: U64,
        /// The address that was touched.
        pub address: U64,
        /// The job that waits.
        pub job: U64,
        /// The job's space.
        pub space: U32,
        /// The rights that are wanted (see [`rights`](super::rights)).
        pub access: U32,
        /// A hint: how many pages from this one on the job will want in the same way.
        pub pages: U32,
        /// Zero.
        pub reserved: U32,
    }
}

/// The smallest fault buffer that a driver may offer, in bytes: one record.
pub const MIN_BUFFER: usize =
    core::mem::size_of::<FaultHeader>() + core::mem::size_of::<FaultRecord>();

/// How many retries in a row, at one address and without progress, end a job with
/// [`Status::Storm`](super::command::Status::Storm).
///
/// Far more than an invalidation that races with the driver can cause, and few enough
/// that a driver that answers without mapping anything is stopped within moments.
pub const STORM_RETRIES: u32 = 1024;
