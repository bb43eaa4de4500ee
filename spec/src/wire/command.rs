//! Control requests and their replies ("Control queue").
//!
//! A request is a [`RequestHeader`] followed by `count` entries of the type that its operation
//! names. A reply is a [`ReplyHeader`], followed by results for some operations.

use zerocopy::little_endian::{U16, U32, U64};

values! {
    /// What a control or DMA request asks for.
    pub enum Request: u16 {
        /// Forget everything and start anew; one [`InitEntry`].
        Init = 1,
        /// Create the space; no entries.
        SpaceCreate = 2,
        /// End the space's jobs, forget its mappings and the space; no entries.
        SpaceDestroy = 3,
        /// Install mappings; [`MapEntry`].
        Map = 4,
        /// Remove mappings; [`RangeEntry`]. The answer is a promise.
        Unmap = 5,
        /// Leave only the right to read; [`RangeEntry`]. The answer is a promise.
        Protect = 6,
        /// Answer faults; [`AnswerEntry`].
        Answer = 7,
        /// End jobs early; [`CancelEntry`].
        Cancel = 8,
        /// Look up translations; one [`RangeEntry`], answered with [`QueryResult`].
        Query = 9,
        /// Read the counters; answered with
        /// [`Statistics`](super::statistics::Statistics).
        Statistics = 10,
        /// Remove mappings, then copy to the guest's memory; [`FetchEntry`], each answered with
        /// an [`ItemResult`](super::dma::ItemResult). Also on the dma queue.
        Fetch = 11,
        /// Carry out a list of [`DmaItem`](super::dma::DmaItem); only on the dma queue.
        Copy = 16,
    }
}

values! {
    /// How a request or a job ended.
    ///
    /// If several apply, to the request or to any of its entries, the lowest number that is not
    /// zero is reported ("Status").
    pub enum Status: u32 {
        /// Done.
        Ok = 0,
        /// The bytes are not a request: lengths, counts or reserved fields are wrong.
        Malformed = 1,
        /// There is no such operation on this queue.
        Unsupported = 2,
        /// The device has not been initialised, or with another version.
        NotReady = 3,
        /// A limit of the configuration space is exceeded.
        Limit = 4,
        /// There is no such space.
        NoSpace = 5,
        /// The space or the job exists already.
        Exists = 6,
        /// An address or a range is not aligned, not canonical, or wraps.
        BadAddress = 7,
        /// A frame lies outside device memory or outside the guest's memory.
        BadFrame = 8,
        /// A set of rights is empty or holds undefined bits, or an order is undefined.
        BadRights = 9,
        /// The device has no memory left for its own tables.
        NoMemory = 10,
        /// The bytes could not be copied.
        CopyFailed = 11,
        /// A job's arguments contradict each other or its operation.
        BadArgument = 16,
        /// A job accessed an address that the driver could not make accessible.
        Fault = 17,
        /// The job was cancelled, or its space destroyed.
        Cancelled = 18,
        /// The job's own bound was reached before its end (list length, tree depth).
        Bound = 19,
        /// The job had the same fault too often without any progress.
        Storm = 20,
        /// The device failed in a way that no other status describes.
        DeviceError = 255,
    }
}

layout! {
    /// The start of each control and DMA request.
    pub struct RequestHeader {
        /// A [`Request`].
        pub operation: U16,
        /// Zero.
        pub flags: U16,
        /// The space of the request; zero if it has none.
        pub space: U32,
        /// The number of entries that follow.
        pub count: U32,
        /// Zero.
        pub reserved: U32,
    }

    /// The start of each reply.
    pub struct ReplyHeader {
        /// A [`Status`].
        pub status: U32,
        /// With an error: the index of the first entry that it applies to, or zero. Otherwise the
        /// number of results that follow.
        pub detail: U32,
    }

    /// The parameters of [`Request::Init`].
    pub struct InitEntry {
        /// [`VERSION`](super::config::VERSION).
        pub version: U32,
        /// Zero.
        pub reserved: U32,
    }

    /// A run of pages that are mapped to a run of frames.
    pub struct MapEntry {
        /// The virtual address, aligned to the leaf.
        pub address: U64,
        /// The first frame: of device memory with [`map_flags::DEVICE`], otherwise of the guest's
        /// physical memory. Aligned to the leaf.
        pub frame: U64,
        /// The number of pages, a multiple of the leaf's.
        pub pages: U32,
        /// log2 of the pages in a leaf: 0 or [`LARGE_ORDER`](super::LARGE_ORDER).
        pub order: U16,
        /// Rights in the low byte (see [`rights`](super::rights)), and [`map_flags`].
        pub flags: U16,
    }

    /// A run of pages.
    pub struct RangeEntry {
        /// The virtual address of the first page, aligned to a page.
        pub address: U64,
        /// The number of pages; at least one.
        pub pages: U64,
    }

    /// The driver's answer to one fault.
    pub struct AnswerEntry {
        /// [`FaultRecord::fault`](super::fault::FaultRecord::fault).
        pub fault: U64,
        /// An [`Action`](super::fault::Action).
        pub action: U32,
        /// With [`Action::Terminate`](super::fault::Action::Terminate): a
        /// [`Reason`](super::fault::Reason). Otherwise zero.
        pub reason: U32,
    }

    /// A job to be ended early.
    pub struct CancelEntry {
        /// [`JobRequest::job`](super::job::JobRequest::job).
        pub job: U64,
    }

    /// A run of pages to unmap and copy to the guest's memory.
    pub struct FetchEntry {
        /// The virtual address of the first page, aligned to a page.
        pub address: U64,
        /// The first frame of device memory.
        pub source: U64,
        /// The first frame of the guest's memory.
        pub destination: U64,
        /// The number of pages; at least one.
        pub pages: U32,
        /// Zero.
        pub reserved: U32,
    }

    /// The translation of one page of a queried range.
    pub struct QueryResult {
        /// The page's frame.
        pub frame: U64,
        /// Rights, [`map_flags`] and [`query_flags`]; zero if there is no mapping.
        pub flags: U32,
        /// log2 of the pages in the leaf.
        pub order: U32,
    }
}

/// Bits of [`MapEntry::flags`] beside the rights.
pub mod map_flags {
    /// The frames are those of device memory.
    pub const DEVICE: u16 = 1 << 8;
    /// Every defined bit, rights included.
    pub const ALL: u16 = DEVICE | 0b111;
}

/// Bits of [`QueryResult::flags`] beside the rights and [`map_flags`].
pub mod query_flags {
    /// There is a mapping.
    pub const PRESENT: u32 = 1 << 16;
    /// An engine has read or written through it.
    pub const ACCESSED: u32 = 1 << 17;
    /// An engine has written through it.
    pub const DIRTY: u32 = 1 << 18;
}

/// The most pages of one [`Request::Fetch`] on the control queue, all entries together.
pub const MAX_FETCH_PAGES: u64 = 64;

/// The most pages of one [`Request::Map`], all entries together.
///
/// Some milliseconds of work, for which an invalidation behind it waits; 128 times the pages of the
/// largest leaf.
pub const MAX_MAP_PAGES: u64 = 64 << 10;

/// The most pages of one query, each of which is one result.
pub const MAX_QUERY_PAGES: u64 = 512;
