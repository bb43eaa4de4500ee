//! Copy lists ("DMA queue").
//!
//! A request is a [`RequestHeader`](super::command::RequestHeader) with
//! [`Request::Copy`](super::command::Request::Copy) and `count` items; a reply is a
//! [`ReplyHeader`](super::command::ReplyHeader) and, unless the request itself was
//! refused, one [`ItemResult`] for each item. One item's failure does not stop the
//! next one.

use zerocopy::little_endian::{U32, U64};

values! {
    /// The kind of an item.
    pub enum Kind: u32 {
        /// Copy from the guest's memory to device memory.
        ToDevice = 1,
        /// Copy from device memory to the guest's memory.
        ToSystem = 2,
        /// Copy within device memory; the runs must not overlap.
        OnDevice = 3,
        /// Fill frames of device memory with zeros.
        Clear = 4,
        /// Discard the contents of frames of device memory.
        Discard = 5,
    }
}

layout! {
    /// One run of pages to be copied, cleared or discarded.
    pub struct DmaItem {
        /// A [`Kind`].
        pub kind: U32,
        /// How many pages; at least one.
        pub pages: U32,
        /// The first frame to read; zero if nothing is read.
        pub source: U64,
        /// The first frame to write or discard.
        pub destination: U64,
    }

    /// The result of one item.
    pub struct ItemResult {
        /// A [`Status`](super::command::Status).
        pub status: U32,
    }
}
