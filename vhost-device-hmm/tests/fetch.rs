//! Pages for which a CPU waits: unmapped and copied to system memory by one request.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use vhost_device_hmm::device::job::End;
use vhost_device_hmm::device::memory::FRAME_BYTES;
use vhost_device_hmm::device::request::{Answer, Command, Fetch, Outcome, Refusal, Transfer};
use vhost_device_hmm::device::DeviceConfig;
use virtio_hmm_spec::wire::command::{FetchEntry, Status, MAX_FETCH_PAGES};
use virtio_hmm_spec::wire::dma::{ItemResult, Kind};
use virtio_hmm_spec::wire::operation::{AtomicAdd, Element};
use virtio_hmm_spec::wire::{Queue, LARGE_PAGES};

/// Pages from `page_number` on, whose contents are in device memory from frame `source` on.
fn entry(page_number: u64, source: u64, destination: u64, pages: u32) -> FetchEntry {
    FetchEntry {
        address: page(page_number).into(),
        source: source.into(),
        destination: destination.into(),
        pages: pages.into(),
        reserved: 0.into(),
    }
}

/// The queues that a fetch can be sent on.
const QUEUES: [Queue; 2] = [Queue::Control, Queue::Dma];

/// The result of a fetch on one of them.
fn ask(machine: &Machine, queue: Queue, fetch: Fetch<'_>) -> Result<Vec<ItemResult>, Refusal> {
    if queue == Queue::Dma {
        let mut results = Vec::new();
        let fetch = Ok(Transfer::Fetch(fetch));
        return machine
            .accelerator
            .transfer(fetch, &mut results)
            .map(|()| results);
    }
    match machine.accelerator.execute(Ok(Command::Fetch(fetch))) {
        Outcome::Copied(results) => Ok(results),
        Outcome::Refused(refusal) => Err(refusal),
        other => panic!("{fetch:?} came to {other:?}"),
    }
}

/// The status of each entry.
fn fetch(machine: &Machine, queue: Queue, entries: &[FetchEntry]) -> Vec<Status> {
    let results = ask(machine, queue, Fetch { space: 1, entries }).unwrap();
    results
        .iter()
        .map(|result| Status::from_raw(result.status.get()).unwrap())
        .collect()
}

/// A job that counts up the first word of page 10.
fn endless_additions() -> AtomicAdd {
    AtomicAdd {
        address: page(10),
        element: Element::U64,
        operand: 1,
        repeat: u64::MAX,
    }
}

fn is_mapped(machine: &Machine, page_number: u64) -> bool {
    machine.query(1, page(page_number), 1)[0].flags.get() != 0
}

// {dev-fetch-done}
#[test]
fn pages_come_back_and_are_not_mapped_any_more() {
    for queue in QUEUES {
        let machine = Machine::checking();
        for (frame, byte) in (0..4).zip(1..) {
            machine.write_ram(frame, &[byte; 64]);
        }
        machine.copy(&[item(Kind::ToDevice, 0, 5, 4)]);
        machine.map(1, &[device(page(10), 5, 4, ALL)]);
        let entries = [entry(10, 5, 100, 1), entry(12, 7, 102, 2)];
        assert_eq!(fetch(&machine, queue, &entries), [Status::Ok; 2]);
        let mapped: Vec<bool> = (10..14).map(|page| is_mapped(&machine, page)).collect();
        assert_eq!(mapped, [false, true, false, false]);
        let system: Vec<u8> = (100..104).map(|at| machine.read_ram(at, 1)[0]).collect();
        assert_eq!(system, [1, 0, 3, 4]);
        // {dev-fetch-bounds}
        for beside in [99, 101, 104] {
            assert_eq!(machine.read_ram(beside, FRAME_BYTES), [0; FRAME_BYTES]);
        }
        let statistics = machine.statistics();
        assert_eq!(statistics.invalidations.get(), 2);
        assert_eq!(statistics.invalidated_pages.get(), 3);
        assert_eq!(statistics.bytes_to_system.get(), page(3));
        assert_eq!(statistics.stale_accesses.get(), 0);
    }
}

// {dev-fetch-unmaps-first}
#[test]
fn no_write_of_a_job_is_missed() {
    for queue in QUEUES {
        let machine = Machine::checking();
        machine.copy(&[item(Kind::Clear, 0, 5, 1)]);
        machine.map(1, &[device(page(10), 5, 1, ALL)]);
        machine.submit(1, 1, endless_additions());
        let mut last = 0;
        for _ in 0..50 {
            assert_eq!(
                fetch(&machine, queue, &[entry(10, 5, 100, 1)]),
                [Status::Ok]
            );
            let fault = machine.fault();
            // The job's last write is still in the frame; it must have been copied.
            machine.copy(&[item(Kind::ToSystem, 5, 101, 1)]);
            assert_eq!(machine.read_ram(100, 8), machine.read_ram(101, 8));
            let count = u64::from_le_bytes(machine.read_ram(100, 8).try_into().unwrap());
            assert!(count >= last);
            last = count;
            machine.map(1, &[device(page(10), 5, 1, ALL)]);
            machine.answer(Answer::Retry {
                fault: fault.fault.get(),
            });
        }
        machine.done(Command::Cancel(vec![1]));
        assert_eq!(machine.end_of(1).end, End::Cancelled);
        assert_eq!(machine.statistics().stale_accesses.get(), 0);
    }
}

#[test]
fn one_page_of_a_large_leaf_comes_back_alone() {
    for queue in QUEUES {
        let machine = Machine::checking();
        machine.copy(&[item(Kind::Clear, 0, 0, 512)]);
        let large = common::entry(0, 0, 512, 9, ALL | 1 << 8);
        machine.map(1, &[large]);
        assert_eq!(fetch(&machine, queue, &[entry(7, 7, 100, 1)]), [Status::Ok]);
        let mapped = (0..LARGE_PAGES).filter(|page| is_mapped(&machine, *page));
        assert_eq!(mapped.count() as u64, LARGE_PAGES - 1);
        assert!(!is_mapped(&machine, 7));
    }
}

#[test]
fn what_cannot_be_copied_is_told_and_does_not_stop_the_others() {
    for queue in QUEUES {
        let machine = Machine::checking();
        machine.write_ram(0, &[9; 8]);
        machine.copy(&[item(Kind::ToDevice, 0, 5, 1), item(Kind::Clear, 0, 6, 3)]);
        machine.map(1, &[device(page(10), 5, 4, ALL)]);
        let entries = [
            entry(11, 6, RAM_PAGES, 1),
            entry(12, 1 << 40, 100, 1),
            entry(13, 8, u64::MAX, 1),
            entry(10, 5, 101, 1),
        ];
        let bad = Status::BadFrame;
        assert_eq!(
            fetch(&machine, queue, &entries),
            [bad, bad, bad, Status::Ok]
        );
        assert_eq!(machine.read_ram(101, 8), [9; 8]);
        assert!(!(10..14).any(|page| is_mapped(&machine, page)));
        assert_eq!(machine.statistics().items_failed.get(), 3);
    }
}

// {dev-refuse-whole}
#[test]
fn a_fetch_that_is_refused_changes_nothing() {
    for queue in QUEUES {
        let machine = Machine::checking();
        machine.copy(&[item(Kind::Clear, 0, 0, 512)]);
        machine.map(1, &[device(page(10), 0, 4, ALL)]);
        machine.write_ram(100, &[9; 8]);
        let refusal = |space, entries: &[FetchEntry]| {
            let refusal = ask(&machine, queue, Fetch { space, entries }).unwrap_err();
            assert_eq!(machine.read_ram(100, 8), [9; 8]);
            assert!((10..14).all(|page| is_mapped(&machine, page)));
            (refusal.status, refusal.entry)
        };
        let good = entry(10, 0, 100, 1);
        let skew = FetchEntry {
            address: (page(11) + 8).into(),
            ..good
        };
        assert_eq!(refusal(1, &[good, skew]), (Status::BadAddress, 1));
        assert_eq!(refusal(2, &[good, skew]), (Status::NoSpace, 0));
        let most = match queue {
            Queue::Dma => DeviceConfig::MAX_COPY_PAGES,
            _ => u32::try_from(MAX_FETCH_PAGES).unwrap(),
        };
        let long = [good, entry(100, 100, 100, most)];
        assert_eq!(refusal(2, &long), (Status::Limit, 0));
        assert_eq!(machine.statistics().bytes_to_system.get(), 0);
        let longest = [good, entry(100, 100, 100, most - 1)];
        // A frame beyond both memories comes later on the ladder.
        assert_eq!(fetch(&machine, queue, &longest)[0], Status::Ok);
    }
}

#[test]
fn nothing_is_fetched_before_the_device_is_initialised() {
    for queue in QUEUES {
        let machine = Machine::before_init(small());
        let entries = &[entry(10, 0, 100, 1)];
        let refused = ask(&machine, queue, Fetch { space: 1, entries });
        assert_eq!(refused.unwrap_err(), Refusal::from(Status::NotReady));
    }
}

// {dev-control-not-behind-copy}
#[test]
fn a_fetch_does_not_wait_for_a_long_list_of_copies() {
    let machine = Machine::plain();
    let clear = item(Kind::Clear, 0, 0, 16);
    let items = vec![clear; DeviceConfig::MAX_ITEMS as usize];
    let live = machine.accelerator.device_memory().live();
    let mut came_first = false;
    // Only a fetch that was preempted for too long can come second.
    for _ in 0..50 {
        machine.copy(&[item(Kind::Discard, 0, 0, 16)]);
        let copied = AtomicBool::new(false);
        came_first |= std::thread::scope(|scope| {
            scope.spawn(|| {
                machine.copy(&items);
                copied.store(true, Ordering::Release);
            });
            while live.count() == 0 {
                std::thread::yield_now();
            }
            let short = [entry(10, 100, 100, 1)];
            assert_eq!(fetch(&machine, Queue::Control, &short), [Status::Ok]);
            !copied.load(Ordering::Acquire)
        });
    }
    assert!(came_first);
}

#[test]
fn what_is_mapped_beside_a_fetch_is_not_taken_for_stale() {
    let machine = Machine::checking();
    machine.copy(&[item(Kind::Clear, 0, 5, 1)]);
    machine.map(1, &[device(page(10), 5, 1, ALL)]);
    machine.submit(1, 1, endless_additions());
    let fetched = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                fetch(&machine, Queue::Dma, &[entry(10, 5, 100, 1)]);
            }
            fetched.store(true, Ordering::Release);
        });
        while !fetched.load(Ordering::Acquire) {
            machine.map(1, &[device(page(10), 5, 1, ALL)]);
            for fault in machine.accelerator.report_faults(1) {
                machine.answer(Answer::Retry {
                    fault: fault.fault.get(),
                });
            }
        }
    });
    machine.done(Command::Cancel(vec![1]));
    assert_eq!(machine.end_of(1).end, End::Cancelled);
    assert!(machine.statistics().invalidated_pages.get() > 0);
    assert_eq!(machine.statistics().stale_accesses.get(), 0);
}
