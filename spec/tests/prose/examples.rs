//! The values of the documents' examples, by label.

use virtio_hmm_spec::uapi::{Bind, Submit};
use virtio_hmm_spec::wire::command::{
    map_flags, query_flags, AnswerEntry, FetchEntry, InitEntry, MapEntry, QueryResult, RangeEntry,
    ReplyHeader, Request, RequestHeader, Status,
};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::fault::{Action, FaultHeader, FaultRecord, Reason};
use virtio_hmm_spec::wire::job::{JobReply, JobRequest};
use virtio_hmm_spec::wire::operation::{Checksum, ListWalk, Operation};
use virtio_hmm_spec::wire::{rights, LARGE_ORDER, LARGE_PAGES};
use zerocopy::IntoBytes;

const SPACE: u32 = 3;
const PAGE: u64 = 0x7f12_3456_7000;
const LARGE: u64 = 0x7f12_3460_0000;

/// Every example: its label and its required bytes.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("init-request", request(Request::Init, 0, &[init()])),
        ("ok-reply", reply::<ItemResult>(Status::Ok, 0, &[])),
        (
            "map-request",
            request(Request::Map, SPACE, &[map(PAGE, 0x12345, READ_WRITE)]),
        ),
        ("job-request", job_request()),
        ("fault-buffer", fault_buffer()),
        (
            "fault-map-request",
            request(
                Request::Map,
                SPACE,
                &[
                    map(PAGE, 0x12345, rights::READ),
                    map(PAGE + 0x1000, 0xabcd, rights::READ),
                ],
            ),
        ),
        (
            "answer-request",
            request(Request::Answer, 0, &[answer(Action::Retry, 0)]),
        ),
        ("job-reply", job_reply()),
        (
            "terminate-request",
            request(
                Request::Answer,
                0,
                &[answer(Action::Terminate, Reason::Unmapped.raw())],
            ),
        ),
        (
            "unmap-large-request",
            request(Request::Unmap, SPACE, &[range(LARGE, LARGE_PAGES)]),
        ),
        (
            "copy-to-device-request",
            request(
                Request::Copy,
                0,
                &[item(Kind::ToDevice, 512, 0x45600, 0x200)],
            ),
        ),
        ("copy-reply", copied()),
        (
            "map-large-request",
            request(Request::Map, SPACE, &[map_large()]),
        ),
        (
            "unmap-part-request",
            request(Request::Unmap, SPACE, &[range(LARGE + 16 * 0x1000, 16)]),
        ),
        (
            "query-request",
            request(Request::Query, SPACE, &[range(LARGE + 15 * 0x1000, 2)]),
        ),
        ("query-reply", query_reply()),
        ("fetch-request", request(Request::Fetch, SPACE, &[fetch()])),
        ("fetch-reply", copied()),
        (
            "discard-request",
            request(Request::Copy, 0, &[item(Kind::Discard, 16, 0, 0x200)]),
        ),
        (
            "refused-request",
            request(
                Request::Unmap,
                SPACE,
                &[range(LARGE, 1), range(LARGE + 0x1234, 1)],
            ),
        ),
        (
            "refused-reply",
            reply::<ItemResult>(Status::BadAddress, 1, &[]),
        ),
        (
            "bind-call",
            bytes(&Bind {
                version: virtio_hmm_spec::uapi::VERSION,
                flags: 0,
            }),
        ),
        ("list-walk-descriptor", list_walk_descriptor()),
        (
            "submit-call",
            bytes(&Submit {
                jobs: 0x7ffd_1000_2000,
                count: 1,
                flags: 0,
                first_fence: 1,
                submitted: 1,
                eventfd: 0,
            }),
        ),
    ]
}

const READ_WRITE: u32 = rights::READ | rights::WRITE;

fn bytes<T: IntoBytes + zerocopy::Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

fn request<T: IntoBytes + zerocopy::Immutable>(
    operation: Request,
    space: u32,
    entries: &[T],
) -> Vec<u8> {
    let header = RequestHeader {
        operation: operation.raw().into(),
        flags: 0.into(),
        space: space.into(),
        count: u32::try_from(entries.len()).expect("few entries").into(),
        reserved: 0.into(),
    };
    [header.as_bytes(), entries.as_bytes()].concat()
}

fn reply<T: IntoBytes + zerocopy::Immutable>(
    status: Status,
    detail: u32,
    results: &[T],
) -> Vec<u8> {
    let header = ReplyHeader {
        status: status.raw().into(),
        detail: detail.into(),
    };
    [header.as_bytes(), results.as_bytes()].concat()
}

fn init() -> InitEntry {
    InitEntry {
        version: VERSION.into(),
        reserved: 0.into(),
    }
}

fn map(address: u64, frame: u64, rights: u32) -> MapEntry {
    MapEntry {
        address: address.into(),
        frame: frame.into(),
        pages: 1.into(),
        order: 0.into(),
        flags: u16::try_from(rights).expect("rights are a byte").into(),
    }
}

fn map_large() -> MapEntry {
    let order = u16::try_from(LARGE_ORDER).expect("a small order");
    let large = map(LARGE, 0x200, READ_WRITE);
    MapEntry {
        pages: 512.into(),
        order: order.into(),
        flags: large.flags | map_flags::DEVICE,
        ..large
    }
}

fn range(address: u64, pages: u64) -> RangeEntry {
    RangeEntry {
        address: address.into(),
        pages: pages.into(),
    }
}

fn answer(action: Action, reason: u32) -> AnswerEntry {
    AnswerEntry {
        fault: 1.into(),
        action: action.raw().into(),
        reason: reason.into(),
    }
}

fn item(kind: Kind, pages: u32, source: u64, destination: u64) -> DmaItem {
    DmaItem {
        kind: kind.raw().into(),
        pages: pages.into(),
        source: source.into(),
        destination: destination.into(),
    }
}

fn fetch() -> FetchEntry {
    FetchEntry {
        address: LARGE.into(),
        source: 0x200.into(),
        destination: 0x60000.into(),
        pages: 16.into(),
        reserved: 0.into(),
    }
}

/// The reply to one item that was copied.
fn copied() -> Vec<u8> {
    let done = ItemResult {
        status: Status::Ok.raw().into(),
    };
    reply(Status::Ok, 1, &[done])
}

fn job_request() -> Vec<u8> {
    bytes(&JobRequest {
        job: 9.into(),
        space: SPACE.into(),
        reserved: 0.into(),
        descriptor: Operation::from(Checksum {
            source: PAGE,
            bytes: 0x2000,
        })
        .encode(),
    })
}

fn job_reply() -> Vec<u8> {
    bytes(&JobReply {
        status: Status::Ok.raw().into(),
        reason: 0.into(),
        address: 0.into(),
        access: 0.into(),
        faults: 1.into(),
        values: [0x1c29_1ca3.into(), 0.into(), 0.into(), 0.into()],
        nanoseconds: 5000.into(),
        system_bytes: 8192.into(),
        device_bytes: 0.into(),
    })
}

fn fault_buffer() -> Vec<u8> {
    let header = FaultHeader {
        count: 1.into(),
        reserved: 0.into(),
    };
    let record = FaultRecord {
        fault: 1.into(),
        address: PAGE.into(),
        job: 9.into(),
        space: SPACE.into(),
        access: rights::READ.into(),
        pages: 2.into(),
        reserved: 0.into(),
    };
    [header.as_bytes(), record.as_bytes()].concat()
}

fn query_reply() -> Vec<u8> {
    let flags = READ_WRITE | u32::from(map_flags::DEVICE) | query_flags::PRESENT;
    let present = QueryResult {
        frame: 0x20f.into(),
        flags: flags.into(),
        order: 0.into(),
    };
    let absent = QueryResult {
        frame: 0.into(),
        flags: 0.into(),
        order: 0.into(),
    };
    reply(Status::Ok, 2, &[present, absent])
}

fn list_walk_descriptor() -> Vec<u8> {
    let walk = ListWalk {
        head: 0x5581_c0a0_1000,
        next_offset: 0,
        value_offset: 8,
        key: 0,
        limit: 200_000,
    };
    bytes(&Operation::from(walk).encode())
}
