//! Well-formed requests as bytes, and replies as values.
//!
//! It knows the wire format and not what a device does with it.

use anyhow::{ensure, Context, Result};
use virtio_hmm_spec::wire::command::{
    AnswerEntry, CancelEntry, FetchEntry, InitEntry, MapEntry, QueryResult, RangeEntry,
    ReplyHeader, Request, RequestHeader, Status,
};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::fault::{Action, Reason};
use virtio_hmm_spec::wire::job::{JobReply, JobRequest};
use virtio_hmm_spec::wire::operation::Operation;
use virtio_hmm_spec::wire::statistics::Statistics;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A request with its entries; their number goes into the header.
pub(crate) fn list<E: IntoBytes + Immutable>(
    operation: Request,
    space: u32,
    entries: &[E],
) -> Vec<u8> {
    let header = RequestHeader {
        operation: U16::new(operation.raw()),
        flags: U16::ZERO,
        space: U32::new(space),
        count: U32::new(u32::try_from(entries.len()).unwrap_or(u32::MAX)),
        reserved: U32::ZERO,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(entries.as_bytes());
    bytes
}

/// A request without entries.
pub(crate) fn bare(operation: Request, space: u32) -> Vec<u8> {
    list::<InitEntry>(operation, space, &[])
}

/// Forget everything.
pub(crate) fn init() -> Vec<u8> {
    let entry = InitEntry {
        version: U32::new(VERSION),
        reserved: U32::ZERO,
    };
    list(Request::Init, 0, &[entry])
}

/// Rights as they stand among the flags of a mapping.
pub(crate) const fn flags(rights: u32) -> u16 {
    let [low, high, ..] = rights.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// A run of pages mapped to a run of frames.
pub(crate) fn mapping(address: u64, frame: u64, pages: u32, order: u16, flags: u16) -> MapEntry {
    MapEntry {
        address: U64::new(address),
        frame: U64::new(frame),
        pages: U32::new(pages),
        order: U16::new(order),
        flags: U16::new(flags),
    }
}

/// A run of pages.
pub(crate) fn range(address: u64, pages: u64) -> RangeEntry {
    RangeEntry {
        address: U64::new(address),
        pages: U64::new(pages),
    }
}

/// Try again.
pub(crate) fn retry(fault: u64) -> AnswerEntry {
    AnswerEntry {
        fault: U64::new(fault),
        action: U32::new(Action::Retry.raw()),
        reason: U32::ZERO,
    }
}

/// The page cannot be had.
pub(crate) fn terminate(fault: u64, reason: Reason) -> AnswerEntry {
    AnswerEntry {
        fault: U64::new(fault),
        action: U32::new(Action::Terminate.raw()),
        reason: U32::new(reason.raw()),
    }
}

/// End a job.
pub(crate) fn cancel(job: u64) -> Vec<u8> {
    list(Request::Cancel, 0, &[CancelEntry { job: U64::new(job) }])
}

/// One run to be copied, cleared or discarded.
pub(crate) fn item(kind: Kind, pages: u32, source: u64, destination: u64) -> DmaItem {
    DmaItem {
        kind: U32::new(kind.raw()),
        pages: U32::new(pages),
        source: U64::new(source),
        destination: U64::new(destination),
    }
}

/// One run of pages to be unmapped and copied to the guest's memory.
pub(crate) fn fetch(address: u64, source: u64, destination: u64, pages: u32) -> FetchEntry {
    FetchEntry {
        address: U64::new(address),
        source: U64::new(source),
        destination: U64::new(destination),
        pages: U32::new(pages),
        reserved: U32::ZERO,
    }
}

/// A job.
pub(crate) fn job(job: u64, space: u32, operation: impl Into<Operation>) -> Vec<u8> {
    let request = JobRequest {
        job: U64::new(job),
        space: U32::new(space),
        reserved: U32::ZERO,
        descriptor: operation.into().encode(),
    };
    request.as_bytes().to_vec()
}

/// The room that the reply to a request needs, in bytes.
pub(crate) fn reply_room(request: &[u8]) -> usize {
    let header = size_of::<ReplyHeader>();
    let Ok((head, rest)) = RequestHeader::ref_from_prefix(request) else {
        return header;
    };
    let results = match Request::from_raw(head.operation.get()) {
        Some(Request::Statistics) => size_of::<Statistics>(),
        Some(Request::Query) => RangeEntry::ref_from_prefix(rest).map_or(0, |(range, _)| {
            usize::try_from(range.pages.get())
                .unwrap_or(usize::MAX)
                .saturating_mul(size_of::<QueryResult>())
        }),
        Some(Request::Copy) => rest.len() / size_of::<DmaItem>() * size_of::<ItemResult>(),
        Some(Request::Fetch) => rest.len() / size_of::<FetchEntry>() * size_of::<ItemResult>(),
        _ => 0,
    };
    header.saturating_add(results)
}

/// A reply to a control or DMA request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The status.
    pub(crate) status: Status,
    /// The entry at fault, or the number of results.
    pub(crate) detail: u32,
    results: Vec<u8>,
}

impl Reply {
    /// The reply that a device has written.
    ///
    /// # Errors
    ///
    /// When the bytes are not one.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let (header, results) = ReplyHeader::read_from_prefix(bytes)
            .map_err(|_| anyhow::anyhow!("a reply of {} bytes", bytes.len()))?;
        Ok(Self {
            status: status(header.status.get())?,
            detail: header.detail.get(),
            results: results.to_vec(),
        })
    }

    /// The results, all of them.
    ///
    /// # Errors
    ///
    /// When there are more or fewer than the header says, or they are of another size.
    pub(crate) fn results<T: FromBytes + Immutable + Clone>(&self) -> Result<Vec<T>> {
        let (results, rest) =
            <[T]>::ref_from_prefix_with_elems(&self.results, usize::try_from(self.detail)?)
                .map_err(|_| anyhow::anyhow!("fewer than {} results", self.detail))?;
        ensure!(rest.is_empty(), "{} bytes after the results", rest.len());
        Ok(results.to_vec())
    }

    /// How many bytes of results there are.
    pub(crate) fn result_bytes(&self) -> usize {
        self.results.len()
    }
}

/// The status of this number.
///
/// # Errors
///
/// When the ladder has none.
pub(crate) fn status(raw: u32) -> Result<Status> {
    Status::from_raw(raw).with_context(|| format!("{raw} is no status"))
}

/// The reply to a job.
///
/// # Errors
///
/// When the bytes are not one.
pub(crate) fn job_reply(bytes: &[u8]) -> Result<JobReply> {
    JobReply::read_from_bytes(bytes)
        .map_err(|_| anyhow::anyhow!("a job's reply of {} bytes", bytes.len()))
}
