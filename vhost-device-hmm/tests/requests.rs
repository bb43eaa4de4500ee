//! Requests that are refused, by which status, and lists of copies.

mod common;

use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use common::*;
use proptest::prelude::*;
use vhost_device_hmm::command::{
    decode_control, decode_job, decode_transfer, encode_copied, encode_outcome, Raw,
};
use vhost_device_hmm::device::linger::PERIOD;
use vhost_device_hmm::device::memory::FRAME_BYTES;
use vhost_device_hmm::device::request::{Command, Outcome, Refusal, Transfer};
use vhost_device_hmm::device::{Accelerator, DeviceConfig};
use virtio_hmm_spec::wire::command::{
    FetchEntry, MapEntry, Request, RequestHeader, Status, MAX_MAP_PAGES,
};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::dma::{DmaItem, Kind};
use virtio_hmm_spec::wire::{rights, LARGE_PAGES, PAGE_BYTES};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::{U16, U32};
use zerocopy::IntoBytes;

fn request(operation: u16, space: u32, count: u32, entries: &[u8]) -> Vec<u8> {
    let header = RequestHeader {
        operation: U16::new(operation),
        flags: U16::ZERO,
        space: U32::new(space),
        count: U32::new(count),
        reserved: U32::ZERO,
    };
    [header.as_bytes(), entries].concat()
}

fn raw(bytes: &[u8]) -> Raw<'_> {
    Raw {
        bytes,
        length: bytes.len() as u64,
        room: 1 << 20,
    }
}

/// The status of a control request, and the entry.
fn control(accelerator: &Accelerator, bytes: &[u8]) -> (Status, u32) {
    match accelerator.execute(decode_control(raw(bytes))) {
        Outcome::Refused(refusal) => (refusal.status, refusal.entry),
        _ => (Status::Ok, 0),
    }
}

fn fetch(pages: u32, reserved: u32) -> FetchEntry {
    FetchEntry {
        address: 0.into(),
        source: 0.into(),
        destination: 0.into(),
        pages: pages.into(),
        reserved: reserved.into(),
    }
}

// {dev-reserved-check}, {dev-allocate-after-check}
#[test]
fn bytes_that_are_no_request_are_malformed() {
    let machine = Machine::plain();
    let map = Request::Map.raw();
    let good = system(page(1), 0, 1, READ);
    let reserved = |offset: usize| {
        let mut bytes = request(map, 1, 1, good.as_bytes());
        bytes[offset] = 1;
        bytes
    };
    let cases = [
        vec![],
        vec![4; 15],
        request(map, 1, 0, &[]),
        request(map, 1, 2, good.as_bytes()),
        request(map, 1, u32::MAX, good.as_bytes()),
        request(map, 1, 1, &good.as_bytes()[..23]),
        request(map, 1, 1, system(page(1), 0, 0, READ).as_bytes()),
        reserved(2),
        reserved(12),
        request(Request::Init.raw(), 0, 1, &[1, 0, 0, 0, 1, 0, 0, 0]),
        request(Request::Init.raw(), 1, 1, &[1, 0, 0, 0, 0, 0, 0, 0]),
        request(Request::Init.raw(), 0, 2, &[1; 16]),
        request(Request::SpaceCreate.raw(), 2, 1, &[0; 8]),
        request(Request::Unmap.raw(), 1, 1, range(page(1), 0).as_bytes()),
        request(Request::Query.raw(), 1, 1, range(page(1), 0).as_bytes()),
        request(Request::Query.raw(), 1, 1, range(0, 1 << 60).as_bytes()),
        request(Request::Statistics.raw(), 1, 0, &[]),
        // An answer with action 3, and a retry with a reason.
        request(
            Request::Answer.raw(),
            0,
            1,
            &[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        ),
        request(
            Request::Answer.raw(),
            0,
            1,
            &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        ),
        request(Request::Fetch.raw(), 1, 1, fetch(0, 0).as_bytes()),
        request(Request::Fetch.raw(), 1, 1, fetch(1, 1).as_bytes()),
        request(Request::Fetch.raw(), 1, 2, fetch(1, 0).as_bytes()),
        request(Request::Fetch.raw(), 1, 0, &[]),
        // A list of copies is malformed before it is on the wrong queue.
        request(Request::Copy.raw(), 0, 1, &[0; 23]),
    ];
    for bytes in &cases {
        assert_eq!(
            control(&machine.accelerator, bytes).0,
            Status::Malformed,
            "{bytes:?}"
        );
    }
    for bytes in [
        request(Request::Statistics.raw(), 0, 0, &[]),
        request(Request::Fetch.raw(), 1, 1, fetch(1, 0).as_bytes()),
    ] {
        let short = Raw {
            room: 8,
            ..raw(&bytes)
        };
        assert_eq!(decode_control(short).unwrap_err().status, Status::Malformed);
    }
    // For a fetch, this is so on either queue.
    for bytes in cases.iter().filter(|bytes| bytes.starts_with(&[11])) {
        let refusal = decode_transfer(raw(bytes)).unwrap_err();
        assert_eq!(refusal.status, Status::Malformed, "{bytes:?}");
    }
    assert_eq!(
        machine.statistics().requests_refused.get(),
        cases.len() as u64
    );
}

// {dev-ladder}, {dev-refuse-whole}, {dev-init-first}
#[test]
fn the_first_status_of_the_ladder_is_the_one_that_is_told() {
    let machine = Machine::before_init(small());
    let accelerator = &machine.accelerator;
    let map = |space, entries: &[MapEntry]| {
        let count = u32::try_from(entries.len()).unwrap();
        request(
            Request::Map.raw(),
            space,
            count,
            IntoBytes::as_bytes(entries),
        )
    };
    let good = system(page(1), 0, 1, READ);
    let address = system(1 << 57, u64::MAX, 1, 0);
    let frame = system(page(1), RAM_PAGES, 1, 0);
    let wrong = system(page(1), 0, 1, 0);
    let many = vec![wrong; 4097];
    assert_eq!(
        control(accelerator, &request(99, 7, 7, &[9])).0,
        Status::Unsupported
    );
    assert_eq!(control(accelerator, &map(9, &many)).0, Status::NotReady);
    let version = request(Request::Init.raw(), 0, 1, &[9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(control(accelerator, &version).0, Status::NotReady);
    machine.done(Command::Init { version: VERSION });
    assert_eq!(control(accelerator, &map(9, &many)).0, Status::Limit);
    assert_eq!(control(accelerator, &map(9, &[wrong])).0, Status::NoSpace);
    machine.done(Command::SpaceCreate { space: 9 });
    let status = |entries: &[MapEntry]| control(accelerator, &map(9, entries));
    assert_eq!(
        status(&[good, wrong, frame, address]),
        (Status::BadAddress, 3)
    );
    assert_eq!(status(&[good, wrong, frame]), (Status::BadFrame, 2));
    assert_eq!(status(&[good, wrong]), (Status::BadRights, 1));
    assert_eq!(
        machine.statistics().mapped_pages.get(),
        0,
        "not even the good one"
    );
    assert_eq!(status(&[good]), (Status::Ok, 0));
    let create = |space| {
        control(
            accelerator,
            &request(Request::SpaceCreate.raw(), space, 0, &[]),
        )
    };
    assert_eq!(create(16).0, Status::Limit);
    assert_eq!(create(9).0, Status::Exists);
    assert_eq!(create(15).0, Status::Ok);
}

// {dev-map-frames}
#[test]
fn mappings_must_be_aligned_to_their_leaves_and_lie_in_memory() {
    let machine = Machine::plain();
    let large = LARGE_PAGES;
    let ram = RAM_PAGES;
    let device_frames = (8 << 20) / PAGE_BYTES;
    let half = 1 << 8;
    let cases = [
        (entry(1, 0, 1, 0, READ), Status::BadAddress),
        (entry(page(1), 0, 512, 9, READ), Status::BadAddress),
        (entry(page(512), 0, 511, 9, READ), Status::BadAddress),
        (
            entry((1 << 57) - PAGE_BYTES, 0, 2, 0, READ),
            Status::BadAddress,
        ),
        (entry(page(512), 1, 512, 9, READ), Status::BadFrame),
        (entry(page(512), ram - 1, 2, 0, READ), Status::BadFrame),
        (
            entry(page(512), ram - large + 512, 512, 9, READ),
            Status::BadFrame,
        ),
        (
            entry(page(512), device_frames, 1, 0, READ | half),
            Status::BadFrame,
        ),
        (
            entry(page(512), u64::MAX, 1, 0, READ | half),
            Status::BadFrame,
        ),
        (entry(page(512), 1 << 52, 1, 0, READ), Status::BadFrame),
        (entry(page(512), 0, 1, 1, READ), Status::BadRights),
        (entry(page(512), 0, 1, 0, 8 | READ), Status::BadRights),
        (entry(page(512), 0, 1, 0, half), Status::BadRights),
    ];
    for (entry, status) in cases {
        let refusal = machine.refusal(Command::Map {
            space: 1,
            entries: &[entry],
        });
        assert_eq!(refusal, Refusal::from(status), "{entry:?}");
    }
    machine.map(1, &[entry((1 << 57) - PAGE_BYTES, ram - 1, 1, 0, READ)]);
    machine.map(1, &[entry(0, ram - large, 512, 9, rights::ALL)]);
}

// {dev-query}
#[test]
fn a_query_tells_what_was_mapped() {
    let machine = Machine::plain();
    machine.map(
        1,
        &[
            entry(0, 512, 512, 9, rights::ALL | 1 << 8),
            system(page(513), 3, 1, READ),
        ],
    );
    let results = machine.query(1, page(511), 3);
    let plain: Vec<_> = results
        .iter()
        .map(|result| (result.frame.get(), result.flags.get(), result.order.get()))
        .collect();
    assert_eq!(plain, [(1023, 0x1_0107, 9), (0, 0, 0), (3, 0x1_0001, 0)]);
    let refusal = machine.refusal(Command::Query {
        space: 1,
        range: range(0, 513),
    });
    assert_eq!(refusal.status, Status::Limit);
}

// {dev-map-memory}, {dev-map-whole}
#[test]
fn tables_are_limited() {
    let machine = Machine::new(DeviceConfig {
        table_memory: 64 << 10,
        ..small()
    });
    machine.done(Command::SpaceCreate { space: 1 });
    let far: Vec<_> = (0..16).map(|i| system(i << 48, 0, 1, READ)).collect();
    let refusal = machine.refusal(Command::Map {
        space: 1,
        entries: &far,
    });
    assert_eq!(refusal.status, Status::NoMemory);
    let statistics = machine.statistics();
    assert_eq!(
        (statistics.mapped_pages.get(), statistics.table_bytes.get()),
        (0, PAGE_BYTES)
    );
    machine.map(1, &far[..2]);
}

#[test]
fn a_map_is_limited_as_a_whole() {
    let machine = Machine::plain();
    let most = u32::try_from(MAX_MAP_PAGES).unwrap();
    let run = u32::try_from(RAM_PAGES).unwrap();
    let runs: Vec<_> = (0..u64::from(most / run))
        .map(|i| system(page(i * RAM_PAGES), 0, run, READ))
        .collect();
    machine.map(1, &runs);
    assert_eq!(machine.statistics().mapped_pages.get(), MAX_MAP_PAGES);
    let one_more = [&runs[..], &[system(page(1 << 20), 0, 1, READ)]].concat();
    let beyond = [system(0, 0, u32::MAX, READ)];
    for entries in [&one_more[..], &beyond] {
        let refusal = machine.refusal(Command::Map { space: 1, entries });
        assert_eq!((refusal.status, refusal.entry), (Status::Limit, 0));
    }
    assert_eq!(machine.statistics().mapped_pages.get(), MAX_MAP_PAGES);
}

#[test]
fn what_takes_long_can_be_stopped_and_is_carried_out_anew() {
    let ranges = [range(0, 1 << 40)];
    let (unmap, protect) = (
        Command::Unmap {
            space: 1,
            ranges: &ranges,
        },
        Command::Protect {
            space: 1,
            ranges: &ranges,
        },
    );
    let destroy = Command::SpaceDestroy { space: 1 };
    let init = Command::Init { version: VERSION };
    for command in [unmap, protect, destroy, init] {
        let machine = Machine::checking();
        let run = u32::try_from(RAM_PAGES).unwrap();
        let runs: Vec<_> = (0..8)
            .map(|i| system(page(i * RAM_PAGES), 0, run, READ_WRITE))
            .collect();
        machine.map(1, &runs);
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            true
        };
        let execute = |command| machine.accelerator.execute_unless(Ok(command), &stop);
        assert!(execute(command.clone()).is_none(), "{command:?}");
        assert_eq!(asked.get(), 1);
        // If each `stop` returns true, each call still does a bounded piece.
        let mut times = 1;
        let outcome = loop {
            if let Some(outcome) = execute(command.clone()) {
                break outcome;
            }
            times += 1;
            assert!(times < 20, "{command:?}");
        };
        assert!(matches!(outcome, Outcome::Done), "{command:?}");
        let statistics = machine.statistics();
        let protects = matches!(command, Command::Protect { .. });
        let left = if protects { 8 * RAM_PAGES } else { 0 };
        assert_eq!(statistics.mapped_pages.get(), left, "{command:?}");
        assert_eq!(statistics.stale_accesses.get(), 0);
    }
}

// {dev-items-in-order}, {dev-items-done}
#[test]
fn copies_move_bytes_both_ways_and_along() {
    let machine = Machine::checking();
    let bytes: Vec<u8> = (0..4 * PAGE_BYTES).map(|i| (i % 249) as u8).collect();
    machine.write_ram(10, &bytes);
    let list = [
        item(Kind::ToDevice, 10, 100, 4),
        item(Kind::OnDevice, 100, 104, 4),
        item(Kind::Clear, 0, 105, 1),
        item(Kind::ToSystem, 104, 20, 4),
    ];
    for frame in [19, 24] {
        machine.write_ram(frame, &[7; FRAME_BYTES]);
    }
    assert_eq!(machine.copy(&list), [Status::Ok; 4]);
    let mut expected = bytes.clone();
    expected[FRAME_BYTES..2 * FRAME_BYTES].fill(0);
    assert_eq!(machine.read_ram(20, 4 * FRAME_BYTES), expected);
    // {dev-item-bounds}
    for frame in [19, 24] {
        assert_eq!(machine.read_ram(frame, FRAME_BYTES), [7; FRAME_BYTES]);
    }
    for frame in [99, 108] {
        let mut beside = [1_u8; FRAME_BYTES];
        let memory = machine.accelerator.device_memory();
        memory.slice(frame, 1).unwrap().copy_to(&mut beside);
        assert_eq!(beside, [0; FRAME_BYTES], "frame {frame}");
    }
    let statistics = machine.statistics();
    let four = 4 * PAGE_BYTES;
    assert_eq!(statistics.bytes_to_device.get(), four);
    assert_eq!(statistics.bytes_to_system.get(), four);
    assert_eq!(statistics.bytes_on_device.get(), four);
    assert_eq!(statistics.bytes_cleared.get(), PAGE_BYTES);
    assert_eq!(statistics.live_frames.get(), 8);
    assert_eq!(statistics.freed_frame_uses.get(), 0);
}

// {dev-item-status}
#[test]
fn one_bad_item_does_not_stop_the_others() {
    let machine = Machine::plain();
    let last = (8 << 20) / PAGE_BYTES - 1;
    let unknown = DmaItem {
        kind: U32::new(6),
        ..item(Kind::Clear, 0, 0, 1)
    };
    let list = [
        (item(Kind::Clear, 0, last, 2), Status::BadFrame),
        (item(Kind::Clear, 0, u64::MAX, 1), Status::BadFrame),
        (item(Kind::ToDevice, RAM_PAGES, 0, 1), Status::BadFrame),
        (item(Kind::ToSystem, 0, u64::MAX, 1), Status::BadFrame),
        (item(Kind::OnDevice, 0, 1, 2), Status::BadFrame),
        (item(Kind::Clear, 1, 0, 1), Status::Malformed),
        (item(Kind::Clear, 0, 0, 0), Status::Malformed),
        (unknown, Status::Unsupported),
        (item(Kind::Clear, 0, last, 1), Status::Ok),
    ];
    let (items, expected): (Vec<_>, Vec<_>) = list.into_iter().unzip();
    assert_eq!(machine.copy(&items), expected);
    let statistics = machine.statistics();
    assert_eq!(
        (statistics.items_failed.get(), statistics.live_frames.get()),
        (8, 1)
    );
}

#[test]
fn a_list_is_limited_as_a_whole() {
    let machine = Machine::plain();
    let copy = |items: &[DmaItem]| {
        machine
            .accelerator
            .transfer(Ok(Transfer::Copy { items }), &mut Vec::new())
            .map_err(|r| r.status)
    };
    let most = DeviceConfig::MAX_COPY_PAGES;
    assert_eq!(
        copy(&[item(Kind::Clear, 0, 0, most + 1)]),
        Err(Status::Limit)
    );
    let two = [item(Kind::Clear, 0, 0, most), item(Kind::Clear, 0, 0, 1)];
    assert_eq!(copy(&two), Err(Status::Limit));
    let many = vec![item(Kind::Clear, 0, 0, 1); 4097];
    let bytes = request(Request::Copy.raw(), 0, 4097, many.as_bytes());
    assert_eq!(
        decode_transfer(raw(&bytes)).unwrap_err().status,
        Status::Limit
    );
    assert_eq!(machine.statistics().bytes_cleared.get(), 0);
}

#[test]
fn uses_of_free_frames_are_found() {
    let machine = Machine::checking();
    let uses = || machine.statistics().freed_frame_uses.get();
    machine.copy(&[item(Kind::Clear, 0, 5, 1)]);
    machine.map(1, &[device(page(1), 5, 1, READ)]);
    assert_eq!(uses(), 0);
    machine.copy(&[item(Kind::Discard, 0, 5, 1)]);
    assert_eq!(uses(), 1, "discarded while mapped");
    machine.unmap(1, page(1), 1);
    machine.copy(&[item(Kind::ToSystem, 5, 30, 1)]);
    assert_eq!(uses(), 2, "copied from");
    assert_eq!(machine.read_ram(30, 4), [0xdb; 4], "poisoned");
    machine.map(1, &[device(page(1), 5, 1, READ)]);
    assert_eq!(uses(), 3, "mapped");
    machine.submit(
        1,
        1,
        virtio_hmm_spec::wire::operation::Checksum {
            source: page(1),
            bytes: 8,
        },
    );
    machine.end_of(1);
    assert!(uses() > 3, "read by a job");
}

// {dev-check-counters}
#[test]
fn a_device_that_does_not_check_counts_nothing() {
    let machine = Machine::plain();
    machine.map(1, &[device(page(1), 5, 1, READ)]);
    machine.copy(&[item(Kind::Discard, 0, 5, 1), item(Kind::ToSystem, 5, 30, 1)]);
    let statistics = machine.statistics();
    let counted = (
        statistics.stale_accesses.get(),
        statistics.freed_frame_uses.get(),
    );
    assert_eq!(counted, (0, 0));
}

#[test]
fn a_store_to_a_free_frame_is_found_when_the_frame_is_used_again() {
    let machine = Machine::checking();
    let uses = || machine.statistics().freed_frame_uses.get();
    // A store of a guest CPU to the memory of a coherent device.
    let store = |frame| {
        let memory = machine.accelerator.device_memory();
        memory
            .slice(frame, 1)
            .unwrap()
            .write_obj(7_u8, 100)
            .unwrap();
    };
    machine.copy(&[item(Kind::Clear, 0, 4, 4)]);
    store(4);
    machine.copy(&[item(Kind::Discard, 0, 4, 4), item(Kind::Clear, 0, 4, 1)]);
    assert_eq!(
        uses(),
        0,
        "frames in use may be written, and free ones written by copies"
    );
    for (found, kind) in [(1, Kind::Clear), (2, Kind::ToDevice), (3, Kind::Discard)] {
        store(4 + found);
        assert_eq!(uses(), found - 1, "not yet");
        machine.copy(&[item(kind, 0, 4, 4)]);
        assert_eq!(uses(), found, "{kind:?}");
        machine.copy(&[item(Kind::Discard, 0, 4, 4)]);
        assert_eq!(uses(), found, "it is found once");
    }
    store(5);
    machine.done(Command::Init { version: VERSION });
    machine.copy(&[item(Kind::Clear, 0, 4, 4)]);
    assert_eq!(uses(), 0, "a reset forgets");
}

// {dev-no-leak}
#[test]
fn a_frame_that_is_discarded_gives_its_memory_back_before_long() {
    let machine = Machine::plain();
    machine.write_ram(0, &[7; 64]);
    machine.copy(&[item(Kind::ToDevice, 0, 0, 1), item(Kind::Discard, 0, 0, 1)]);
    let statistics = machine.statistics();
    let counted = (
        statistics.frames_discarded.get(),
        statistics.live_frames.get(),
    );
    assert_eq!(counted, (1, 0));
    let file = machine.accelerator.device_memory().file();
    let end = Instant::now() + 10 * PERIOD;
    while file.metadata().unwrap().blocks() > 0 {
        assert!(Instant::now() < end, "the memory stays");
        std::thread::sleep(PERIOD / 20);
    }
    assert_eq!(machine.copy(&[item(Kind::ToSystem, 0, 1, 1)]), [Status::Ok]);
    assert_eq!(machine.read_ram(1, 64), [0; 64]);
}

#[test]
fn a_reset_gives_all_memory_back_at_once() {
    let machine = Machine::plain();
    machine.copy(&[item(Kind::ToDevice, 0, 0, 2), item(Kind::Discard, 0, 0, 1)]);
    machine.done(Command::Init { version: VERSION });
    let file = machine.accelerator.device_memory().file();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    // The new contents have nothing to do with the discarded ones.
    machine.copy(&[item(Kind::ToDevice, 0, 0, 1)]);
    assert_eq!(file.metadata().unwrap().blocks() * 512, PAGE_BYTES);
}

proptest! {
    #[test]
    fn any_bytes_are_answered(
        operation in prop_oneof![0..20_u16, any::<u16>()],
        space in 0..3_u32,
        count in prop_oneof![0..6_u32, any::<u32>()],
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            (0..9_usize, any::<u8>()).prop_map(|(words, byte)| vec![byte & 1; words * 8]),
        ],
        whole in proptest::collection::vec(any::<u8>(), 0..200),
        room in 8..600_u64,
        surplus in prop_oneof![Just(0), any::<u32>().prop_map(u64::from)],
    ) {
        let machine = Machine::plain();
        let before = machine.ram.read_obj::<[u8; 32]>(GuestAddress(0)).unwrap();
        for bytes in [request(operation, space, count, &body), whole] {
            let raw = Raw { bytes: &bytes, length: bytes.len() as u64 + surplus, room };
            let mut reply = Vec::new();
            encode_outcome(&machine.accelerator.execute(decode_control(raw)), &mut reply);
            prop_assert!(reply.len() as u64 <= room);
            let (mut results, mut reply) = (Vec::new(), Vec::new());
            let done = machine.accelerator.transfer(decode_transfer(raw), &mut results);
            encode_copied(done, &results, &mut reply);
            prop_assert!(reply.len() as u64 <= room);
            let submitted = machine.accelerator.submit(decode_job(raw), 1);
            if surplus > 0 {
                prop_assert!(submitted.is_err());
            }
        }
        if ![Request::Copy.raw(), Request::Fetch.raw()].contains(&operation) {
            let after = machine.ram.read_obj::<[u8; 32]>(GuestAddress(0)).unwrap();
            prop_assert_eq!(before, after);
        }
    }
}
