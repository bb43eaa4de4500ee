//! Bytes of requests → checked requests; outcomes → bytes of replies.
//!
//! This module checks what the bytes alone can show: lengths, counts, reserved fields, operations.
//! It does not know how the bytes got here or what a request does.

use std::mem::size_of;

use virtio_hmm_spec::wire::command::{
    AnswerEntry, CancelEntry, FetchEntry, InitEntry, MapEntry, QueryResult, RangeEntry,
    ReplyHeader, Request, RequestHeader, Status,
};
use virtio_hmm_spec::wire::dma::ItemResult;
use virtio_hmm_spec::wire::fault::{Action, FaultHeader, FaultRecord, Reason};
use virtio_hmm_spec::wire::job::{JobReply, JobRequest};
use virtio_hmm_spec::wire::operation::{DecodeError, Operation};
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::Queue;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::device::engine::nanoseconds;
use crate::device::job::{End, Ended, Submission};
use crate::device::request::{Answer, Command, Fetch, Outcome, Refusal, Transfer};
use crate::device::DeviceConfig;
use crate::lateness::About;

/// The smallest reply to a control or DMA request, in bytes.
pub const MIN_REPLY: usize = size_of::<ReplyHeader>();

/// The reply to a job, in bytes.
pub const JOB_REPLY: usize = size_of::<JobReply>();

/// The longest control request that is read, in bytes; a longer one exceeds a limit anyway. An
/// entry of a fetch is the longest entry.
pub const MAX_CONTROL: usize =
    size_of::<RequestHeader>() + DeviceConfig::MAX_ENTRIES as usize * size_of::<FetchEntry>();

/// The longest DMA request that is read, in bytes.
pub const MAX_TRANSFER: usize =
    size_of::<RequestHeader>() + DeviceConfig::MAX_ITEMS as usize * size_of::<FetchEntry>();

/// The longest job request that is read, in bytes.
pub const MAX_JOB: usize = size_of::<JobRequest>();

/// A request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Its bytes, as far as they were read.
    pub bytes: &'a [u8],
    /// Its full length in bytes.
    pub length: u64,
    /// The number of bytes that a reply may take.
    pub room: u64,
}

/// A request with a valid header.
#[derive(Clone, Copy)]
struct Framed<'a> {
    space: u32,
    count: u32,
    body: &'a [u8],
    raw: Raw<'a>,
}

type Decoded<T> = Result<T, Refusal>;

const MALFORMED: Status = Status::Malformed;

/// What rules can match of a request before it is checked.
pub fn about(queue: Queue, request: &[u8]) -> About {
    match queue {
        Queue::Control | Queue::Dma => RequestHeader::ref_from_prefix(request)
            .map(|(header, _)| About {
                space: Some(header.space.get()),
                operation: Request::from_raw(header.operation.get()).map(Request::name),
            })
            .unwrap_or_default(),
        Queue::Submit => JobRequest::ref_from_prefix(request)
            .map(|(job, _)| About {
                space: Some(job.space.get()),
                operation: Operation::decode(&job.descriptor)
                    .ok()
                    .map(|operation| operation.name()),
            })
            .unwrap_or_default(),
        Queue::Fault => About::default(),
    }
}

/// Decodes a control request.
///
/// # Errors
///
/// A [`Refusal`] with [`Status::Malformed`], [`Status::Unsupported`] or
/// [`Status::Limit`].
pub fn decode_control(raw: Raw<'_>) -> Decoded<Command<'_>> {
    let (operation, framed) = frame(raw)?;
    let space = framed.space;
    let command = match operation {
        Request::Init => {
            let [entry] = framed.no_space()?.entries::<InitEntry, 1>()?;
            if entry.reserved.get() != 0 {
                return Err(MALFORMED.into());
            }
            Command::Init {
                version: entry.version.get(),
            }
        }
        Request::SpaceCreate => {
            framed.nothing()?;
            Command::SpaceCreate { space }
        }
        Request::SpaceDestroy => {
            framed.nothing()?;
            Command::SpaceDestroy { space }
        }
        Request::Map => {
            let entries = framed.list(DeviceConfig::MAX_ENTRIES, |entry: &MapEntry| {
                entry.pages.get() != 0
            })?;
            Command::Map { space, entries }
        }
        Request::Unmap => Command::Unmap {
            space,
            ranges: framed.ranges()?,
        },
        Request::Protect => Command::Protect {
            space,
            ranges: framed.ranges()?,
        },
        Request::Answer => {
            let entries: &[AnswerEntry] = framed
                .no_space()?
                .list(DeviceConfig::MAX_ENTRIES, |entry| answer(entry).is_some())?;
            Command::Answer(entries.iter().filter_map(answer).collect())
        }
        Request::Cancel => {
            let entries: &[CancelEntry] = framed
                .no_space()?
                .list(DeviceConfig::MAX_ENTRIES, |_| true)?;
            Command::Cancel(entries.iter().map(|entry| entry.job.get()).collect())
        }
        Request::Query => {
            let [range] = framed.entries::<RangeEntry, 1>()?;
            if range.pages.get() == 0 {
                return Err(MALFORMED.into());
            }
            framed.room_for::<QueryResult>(range.pages.get())?;
            Command::Query {
                space,
                range: *range,
            }
        }
        Request::Statistics => {
            framed.no_space()?.nothing()?;
            framed.room_for::<Statistics>(1)?;
            Command::Statistics
        }
        Request::Fetch => Command::Fetch(framed.fetch(DeviceConfig::MAX_ENTRIES)?),
        Request::Copy => return Err(misplaced(decode_transfer(raw))),
    };
    Ok(command)
}

/// The refusal of an operation on a queue that does not have it. A request that is malformed for
/// its own queue is refused as malformed, which comes first on the ladder.
fn misplaced<T>(decoded: Decoded<T>) -> Refusal {
    match decoded {
        Err(refusal) if refusal.status == MALFORMED => refusal,
        _ => Status::Unsupported.into(),
    }
}

/// Decodes a DMA request.
///
/// # Errors
///
/// As [`decode_control`].
pub fn decode_transfer(raw: Raw<'_>) -> Decoded<Transfer<'_>> {
    let (operation, framed) = frame(raw)?;
    match operation {
        Request::Copy => {
            let framed = framed.no_space()?;
            framed.room_for::<ItemResult>(framed.count.into())?;
            Ok(Transfer::Copy {
                items: framed.list(DeviceConfig::MAX_ITEMS, |_| true)?,
            })
        }
        Request::Fetch => Ok(Transfer::Fetch(framed.fetch(DeviceConfig::MAX_ITEMS)?)),
        _ => Err(misplaced(decode_control(raw))),
    }
}

/// Decodes a job.
///
/// # Errors
///
/// [`Status::Malformed`] or [`Status::Unsupported`].
pub fn decode_job(raw: Raw<'_>) -> Result<Submission, Status> {
    if raw.length != size_of::<JobRequest>() as u64 {
        return Err(MALFORMED);
    }
    let request = JobRequest::ref_from_bytes(raw.bytes).map_err(|_| MALFORMED)?;
    let operation = Operation::decode(&request.descriptor).map_err(|error| match error {
        DecodeError::Malformed => Status::Malformed,
        // The other fields are then undefined.
        DecodeError::Unsupported => Status::Unsupported,
    })?;
    if request.reserved.get() != 0 {
        return Err(MALFORMED);
    }
    Ok(Submission {
        job: request.job.get(),
        space: request.space.get(),
        operation,
    })
}

fn frame(raw: Raw<'_>) -> Decoded<(Request, Framed<'_>)> {
    let (header, body) = RequestHeader::ref_from_prefix(raw.bytes).map_err(|_| MALFORMED)?;
    // The other fields of an unknown operation are undefined too.
    let operation = Request::from_raw(header.operation.get()).ok_or(Status::Unsupported)?;
    // {dev-reserved-check}
    if header.flags.get() != 0 || header.reserved.get() != 0 {
        return Err(MALFORMED.into());
    }
    let (space, count) = (header.space.get(), header.count.get());
    Ok((
        operation,
        Framed {
            space,
            count,
            body,
            raw,
        },
    ))
}

impl<'a> Framed<'a> {
    /// Checks that the request names no space.
    fn no_space(self) -> Decoded<Self> {
        (self.space == 0).then_some(self).ok_or(MALFORMED.into())
    }

    /// Checks that the bytes are the header and `count` entries, whether read or not.
    /// {dev-check-guest}
    fn holds<T>(&self, count: u32) -> Decoded<()> {
        let header = size_of::<RequestHeader>() as u64;
        let expected = header + u64::from(count) * size_of::<T>() as u64;
        let right = self.count == count && self.raw.length == expected;
        right.then_some(()).ok_or(MALFORMED.into())
    }

    /// Checks that there are no entries.
    fn nothing(&self) -> Decoded<()> {
        self.holds::<u8>(0)
    }

    /// Exactly `N` entries.
    fn entries<T, const N: usize>(&self) -> Decoded<&'a [T; N]>
    where
        T: FromBytes + Immutable + KnownLayout,
    {
        self.holds::<T>(u32::try_from(N).unwrap_or(u32::MAX))?;
        <[T; N]>::ref_from_bytes(self.body).map_err(|_| MALFORMED.into())
    }

    /// At least one entry and at most `most`, each of which must be well formed.
    fn list<T>(&self, most: u32, well_formed: impl Fn(&T) -> bool) -> Decoded<&'a [T]>
    where
        T: FromBytes + Immutable + KnownLayout,
    {
        self.holds::<T>(self.count)?;
        if self.count == 0 {
            return Err(MALFORMED.into());
        }
        // {dev-allocate-after-check}
        if self.count > most {
            return Err(Status::Limit.into());
        }
        let entries = <[T]>::ref_from_bytes(self.body).map_err(|_| MALFORMED)?;
        match entries.iter().position(|entry| !well_formed(entry)) {
            Some(index) => Err(Refusal::at(MALFORMED, index)),
            None => Ok(entries),
        }
    }

    fn ranges(&self) -> Decoded<&'a [RangeEntry]> {
        self.list(DeviceConfig::MAX_ENTRIES, |range: &RangeEntry| {
            range.pages.get() != 0
        })
    }

    /// The ranges to fetch, in at most `most` entries.
    fn fetch(self, most: u32) -> Decoded<Fetch<'a>> {
        self.room_for::<ItemResult>(self.count.into())?;
        let entries = self.list(most, |entry: &FetchEntry| {
            entry.pages.get() != 0 && entry.reserved.get() == 0
        })?;
        Ok(Fetch {
            space: self.space,
            entries,
        })
    }

    /// Checks that a reply with `count` results fits.
    fn room_for<T>(&self, count: u64) -> Decoded<()> {
        let fits = count
            .checked_mul(size_of::<T>() as u64)
            .and_then(|bytes| bytes.checked_add(MIN_REPLY as u64))
            .is_some_and(|bytes| bytes <= self.raw.room);
        fits.then_some(()).ok_or(MALFORMED.into())
    }
}

fn answer(entry: &AnswerEntry) -> Option<Answer> {
    let (fault, reason) = (entry.fault.get(), entry.reason.get());
    match Action::from_raw(entry.action.get())? {
        Action::Retry => (reason == 0).then_some(Answer::Retry { fault }),
        Action::Terminate => {
            Reason::from_raw(reason).map(|reason| Answer::Terminate { fault, reason })
        }
    }
}

/// The reply to a control request, into an empty buffer.
pub fn encode_outcome(outcome: &Outcome, reply: &mut Vec<u8>) {
    match outcome {
        Outcome::Done => put_header(reply, Status::Ok, 0),
        Outcome::Refused(refusal) => put_header(reply, refusal.status, refusal.entry),
        Outcome::Copied(results) => encode_copied(Ok(()), results, reply),
        Outcome::Translations(results) => {
            put_header(
                reply,
                Status::Ok,
                u32::try_from(results.len()).unwrap_or(u32::MAX),
            );
            reply.extend_from_slice(results.as_bytes());
        }
        Outcome::Statistics(statistics) => {
            put_header(reply, Status::Ok, 1);
            reply.extend_from_slice(statistics.as_bytes());
        }
    }
}

/// The reply to a DMA request, into an empty buffer.
pub fn encode_copied(done: Result<(), Refusal>, results: &[ItemResult], reply: &mut Vec<u8>) {
    match done {
        Err(refusal) => put_header(reply, refusal.status, refusal.entry),
        Ok(()) => {
            put_header(
                reply,
                Status::Ok,
                u32::try_from(results.len()).unwrap_or(u32::MAX),
            );
            reply.extend_from_slice(results.as_bytes());
        }
    }
}

/// The reply to a job.
pub fn encode_ended(ended: &Ended) -> JobReply {
    let mut reply = JobReply {
        status: U32::new(Status::Ok.raw()),
        reason: U32::ZERO,
        address: U64::ZERO,
        access: U32::ZERO,
        faults: U32::new(ended.faults),
        values: [U64::ZERO; 4],
        nanoseconds: U64::new(nanoseconds(ended.engine_time)),
        system_bytes: U64::new(ended.tally.system_bytes),
        device_bytes: U64::new(ended.tally.device_bytes),
    };
    let status = match ended.end {
        End::Finished(status, values) => {
            reply.values = values.map(U64::new);
            status
        }
        End::Faulted(fault, reason) => {
            reply.reason = U32::new(reason.raw());
            reply.address = U64::new(fault.address);
            reply.access = U32::new(fault.access);
            Status::Fault
        }
        End::Stormed(fault) => {
            reply.address = U64::new(fault.address);
            reply.access = U32::new(fault.access);
            Status::Storm
        }
        End::Cancelled => Status::Cancelled,
        End::Refused(status) => status,
        End::Broken => Status::DeviceError,
    };
    reply.status = U32::new(status.raw());
    reply
}

/// The contents of a fault buffer, into an empty buffer. {dev-reserved}
pub fn encode_faults(records: &[FaultRecord], buffer: &mut Vec<u8>) {
    let count = U32::new(u32::try_from(records.len()).unwrap_or(u32::MAX));
    buffer.extend_from_slice(
        FaultHeader {
            count,
            reserved: U32::ZERO,
        }
        .as_bytes(),
    );
    buffer.extend_from_slice(records.as_bytes());
}

fn put_header(reply: &mut Vec<u8>, status: Status, detail: u32) {
    let header = ReplyHeader {
        status: U32::new(status.raw()),
        detail: U32::new(detail),
    };
    reply.extend_from_slice(header.as_bytes());
}
