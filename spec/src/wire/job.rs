//! Jobs and how they end ("Submit queue").
//!
//! A chain holds a [`JobRequest`] for the device to read and room for a [`JobReply`]. The device
//! returns the chain when the job has ended, in the order in which jobs end.

use zerocopy::little_endian::{U32, U64};

/// The number of arguments in a [`JobDescriptor`].
pub const MAX_ARGUMENTS: usize = 14;

layout! {
    /// A job as a program submits it; the driver passes it on without reading it.
    ///
    /// [`Operation`](super::operation::Operation) has the operations with their arguments.
    pub struct JobDescriptor {
        /// An operation's code.
        pub operation: U32,
        /// Zero.
        pub reserved: U32,
        /// The operation's arguments in order; the others are zero.
        pub arguments: [U64; MAX_ARGUMENTS],
    }

    /// A job.
    pub struct JobRequest {
        /// The driver's name for the job, unused by any job that has not ended.
        pub job: U64,
        /// The space whose addresses the job uses.
        pub space: U32,
        /// Zero.
        pub reserved: U32,
        /// The operation and its arguments.
        pub descriptor: JobDescriptor,
    }

    /// How a job ended.
    pub struct JobReply {
        /// A [`Status`](super::command::Status).
        pub status: U32,
        /// With [`Status::Fault`](super::command::Status::Fault): a
        /// [`Reason`](super::fault::Reason). Otherwise zero.
        pub reason: U32,
        /// With [`Status::Fault`](super::command::Status::Fault) and
        /// [`Status::Storm`](super::command::Status::Storm): the address. Otherwise zero.
        pub address: U64,
        /// The rights that the job needed there. Otherwise zero.
        pub access: U32,
        /// The number of times that the job waited for a page.
        pub faults: U32,
        /// The operation's results in order.
        pub values: [U64; 4],
        /// Time on an engine in nanoseconds, waiting for pages not included.
        pub nanoseconds: U64,
        /// Bytes of the guest's memory that the job read or wrote.
        pub system_bytes: U64,
        /// Bytes of device memory that the job read or wrote.
        pub device_bytes: U64,
    }
}
