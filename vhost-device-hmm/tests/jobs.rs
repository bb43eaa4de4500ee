//! Jobs, their faults, and the promise that an invalidation gives.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use common::*;
use vhost_device_hmm::device::job::End;
use vhost_device_hmm::device::memory::{SystemMemory, FRAME_BYTES};
use vhost_device_hmm::device::request::{Answer, Command};
use vhost_device_hmm::device::DeviceConfig;
use virtio_hmm_spec::wire::command::{query_flags, Status};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::dma::Kind;
use virtio_hmm_spec::wire::fault::{Reason, STORM_RETRIES};
use virtio_hmm_spec::wire::operation::{AtomicAdd, Copy, Element, Fill, ListWalk, Sum};
use virtio_hmm_spec::wire::{rights, PAGE_BYTES};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn sum(page_number: u64, pages: u64) -> Sum {
    Sum {
        source: page(page_number),
        count: pages * PAGE_BYTES / 8,
        element: Element::U64,
    }
}

fn fill(page_number: u64, pages: u64, pattern: u64) -> Fill {
    Fill {
        destination: page(page_number),
        bytes: pages * PAGE_BYTES,
        pattern,
    }
}

/// A job that does not end within the time of a test.
fn endless(page_number: u64) -> AtomicAdd {
    AtomicAdd {
        address: page(page_number),
        element: Element::U64,
        operand: 1,
        repeat: u64::MAX,
    }
}

fn ok(values: [u64; 4]) -> End {
    End::Finished(Status::Ok, values)
}

#[test]
fn a_job_works_on_the_guests_own_bytes() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(100), 7, 2, READ_WRITE)]);
    machine.submit(5, 1, fill(100, 2, 3));
    assert_eq!(machine.end_of(5).end, ok([0; 4]));
    assert_eq!(
        machine.read_ram(7, 16),
        [3, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    );
    machine.submit(6, 1, sum(100, 2));
    let ended = machine.end_of(6);
    assert_eq!(ended.end, ok([3 * 1024, 0, 0, 0]));
    assert_eq!((ended.faults, ended.tally.system_bytes), (0, 8192));
    let statistics = machine.statistics();
    assert_eq!(
        (statistics.jobs_ended.get(), statistics.jobs_ok.get()),
        (2, 2)
    );
    assert_eq!(statistics.device_bytes.get(), 0);
}

/// How often a space is destroyed while engines run its jobs.
const DESTRUCTIONS: u64 = 2000;

// {dev-destroy-jobs}
#[test]
fn no_job_outlives_its_space_though_several_fault_at_that_moment() {
    const JOBS: u64 = 16;
    let machine = Machine::new(DeviceConfig {
        engines: 4,
        ..small()
    });
    for round in 0..DESTRUCTIONS {
        machine.done(Command::SpaceCreate { space: 1 });
        let names = round * JOBS..(round + 1) * JOBS;
        for job in names.clone() {
            // Nothing is mapped.
            machine.submit(job, 1, sum(job, 1));
        }
        machine.done(Command::SpaceDestroy { space: 1 });
        for job in names {
            assert!(machine.has_ended(job), "job {job} in round {round}");
        }
        assert_eq!(machine.statistics().jobs.get(), 0, "round {round}");
    }
}

// {dev-retry-looks-again}
#[test]
fn a_job_that_misses_a_page_waits_and_goes_on() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, READ)]);
    machine.write_ram(1, &5_u64.to_le_bytes());
    machine.submit(1, 1, sum(10, 2));
    let fault = machine.fault();
    assert_eq!((fault.job.get(), fault.space.get()), (1, 1));
    assert_eq!(
        (fault.address.get(), fault.access.get()),
        (page(11), rights::READ)
    );
    assert!(!machine.has_ended(1));
    assert_eq!(machine.statistics().parked_jobs.get(), 1);
    machine.map(1, &[system(page(11), 1, 1, READ)]);
    machine.answer(Answer::Retry {
        fault: fault.fault.get(),
    });
    let ended = machine.end_of(1);
    assert_eq!((ended.end, ended.faults), (ok([5, 0, 0, 0]), 1));
}

// {dev-rights}, {dev-terminate}
#[test]
fn a_write_through_a_read_only_mapping_faults() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, READ)]);
    machine.submit(1, 1, fill(10, 1, 9));
    let fault = machine.fault();
    assert_eq!(
        (fault.address.get(), fault.access.get()),
        (page(10), rights::WRITE)
    );
    machine.answer(Answer::Terminate {
        fault: fault.fault.get(),
        reason: Reason::Denied,
    });
    match machine.end_of(1).end {
        End::Faulted(fault, Reason::Denied) => assert_eq!(fault.address, page(10)),
        other => panic!("{other:?}"),
    }
    assert_eq!(machine.read_ram(0, 8), [0; 8], "nothing was written");
}

// {dev-rights}
#[test]
fn an_atomic_needs_every_right() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, READ_WRITE)]);
    let add = AtomicAdd {
        address: page(10),
        element: Element::U64,
        operand: 2,
        repeat: 3,
    };
    machine.submit(1, 1, add);
    let fault = machine.fault();
    assert_eq!(fault.access.get(), rights::ALL);
    machine.map(1, &[system(page(10), 0, 1, ALL)]);
    machine.answer(Answer::Retry {
        fault: fault.fault.get(),
    });
    assert_eq!(machine.end_of(1).end, ok([4, 0, 0, 0]));
    assert_eq!(machine.read_ram(0, 8), 6_u64.to_le_bytes());
}

#[test]
fn addresses_that_no_process_has_fault_like_any_other() {
    let machine = Machine::checking();
    for (job, address) in (1..).zip([1 << 57, 1 << 63, u64::MAX - 4095, !7]) {
        let walk = ListWalk {
            head: address,
            next_offset: 0,
            value_offset: 0,
            key: 0,
            limit: 9,
        };
        machine.submit(job, 1, walk);
        let fault = machine.fault();
        assert_eq!(fault.address.get(), address);
        let reason = Reason::Unmapped;
        machine.answer(Answer::Terminate {
            fault: fault.fault.get(),
            reason,
        });
        assert!(matches!(
            machine.end_of(job).end,
            End::Faulted(_, Reason::Unmapped)
        ));
    }
}

// {dev-cancel-parked}
#[test]
fn a_fault_says_how_many_pages_will_be_wanted() {
    let machine = Machine::checking();
    machine.submit(1, 1, fill(10, 64, 0));
    let fault = machine.fault();
    assert_eq!(fault.address.get(), page(10));
    assert_eq!(fault.pages.get(), 64);
    machine.done(Command::Cancel(vec![1]));
    assert_eq!(machine.end_of(1).end, End::Cancelled);
}

// {dev-storm}
#[test]
fn an_answer_that_maps_nothing_is_not_repeated_for_ever() {
    let machine = Machine::checking();
    machine.submit(1, 1, fill(10, 1, 0));
    for _ in 0..STORM_RETRIES {
        assert!(!machine.has_ended(1));
        machine.answer(Answer::Retry {
            fault: machine.fault().fault.get(),
        });
    }
    let ended = machine.end_of(1);
    assert!(matches!(ended.end, End::Stormed(fault) if fault.address == page(10)));
    assert_eq!(ended.faults, STORM_RETRIES + 1);
}

// {dev-late-answer}, {dev-cancel-parked}
#[test]
fn only_a_fault_that_was_told_can_be_answered() {
    let machine = Machine::checking();
    machine.submit(1, 1, fill(10, 1, 0));
    while machine.accelerator.faults_waiting() == 0 {
        std::thread::yield_now();
    }
    for fault in 0..10 {
        machine.answer(Answer::Retry { fault });
    }
    assert_eq!(machine.statistics().answers_late.get(), 10);
    let fault = machine.fault().fault.get();
    machine.done(Command::Cancel(vec![1]));
    assert_eq!(machine.end_of(1).end, End::Cancelled);
    machine.answer(Answer::Retry { fault });
    assert_eq!(machine.statistics().answers_late.get(), 11);
}

// {dev-control-not-behind-job}, {dev-unmap-promise}, {dev-no-late-access}
#[test]
fn an_invalidation_is_not_held_up_by_a_job_that_goes_on() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, ALL)]);
    machine.submit(1, 1, endless(10));
    for _ in 0..50 {
        machine.unmap(1, page(10), 1);
        let before = machine.read_ram(0, 8);
        let fault = machine.fault();
        // {dev-promise-visible}
        assert_eq!(machine.read_ram(0, 8), before, "written after the promise");
        machine.map(1, &[system(page(10), 0, 1, ALL)]);
        machine.answer(Answer::Retry {
            fault: fault.fault.get(),
        });
    }
    machine.done(Command::Cancel(vec![1]));
    assert_eq!(machine.end_of(1).end, End::Cancelled);
    assert_eq!(machine.statistics().stale_accesses.get(), 0);
}

// {dev-control-not-behind-fault}
#[test]
fn an_invalidation_does_not_wait_for_faults_of_others() {
    let machine = Machine::checking();
    machine.done(Command::SpaceCreate { space: 2 });
    for job in 0..8 {
        machine.submit(job, 2, fill(100 + job, 1, 0));
    }
    machine.map(1, &[system(page(10), 0, 4, READ)]);
    machine.unmap(1, page(10), 4);
    assert!(machine
        .query(1, page(10), 4)
        .iter()
        .all(|page| page.flags.get() == 0));
}

// {dev-protect-promise}
#[test]
fn protecting_a_page_stops_the_writes_to_it() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, ALL)]);
    machine.submit(1, 1, endless(10));
    while machine.read_ram(0, 8) == [0; 8] {
        std::thread::yield_now();
    }
    machine.done(Command::Protect {
        space: 1,
        ranges: &[range(page(10), 1)],
    });
    let before = machine.read_ram(0, 8);
    assert_eq!(machine.fault().access.get(), rights::ALL);
    assert_eq!(machine.read_ram(0, 8), before);
    let [page] = machine.query(1, page(10), 1).try_into().unwrap();
    let marks = query_flags::PRESENT | query_flags::ACCESSED | query_flags::DIRTY;
    assert_eq!(page.flags.get(), rights::READ | marks);
}

// {dev-map-promise}, {dev-map-visible}
#[test]
fn replacing_a_mapping_takes_the_old_one_back() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, ALL)]);
    machine.submit(1, 1, endless(10));
    while machine.read_ram(0, 8) == [0; 8] {
        std::thread::yield_now();
    }
    machine.map(1, &[system(page(10), 1, 1, ALL)]);
    let before = machine.read_ram(0, 8);
    while machine.read_ram(1, 8) == [0; 8] {
        std::thread::yield_now();
    }
    assert_eq!(machine.read_ram(0, 8), before);
}

// {dev-destroy-jobs}
#[test]
fn a_parked_job_ends_when_its_space_is_destroyed() {
    let machine = Machine::checking();
    machine.done(Command::SpaceCreate { space: 2 });
    machine.map(2, &[system(page(10), 0, 1, ALL)]);
    machine.submit(1, 1, fill(10, 1, 0));
    // {dev-job-space}
    let fault = machine.fault();
    machine.submit(2, 2, endless(10));
    machine.done(Command::SpaceDestroy { space: 1 });
    assert!(machine.has_ended(1), "before the request is answered");
    assert_eq!(machine.end_of(1).end, End::Cancelled);
    assert!(!machine.has_ended(2), "another space's job goes on");
    machine.answer(Answer::Retry {
        fault: fault.fault.get(),
    });
    assert_eq!(
        machine.try_submit(3, 1, fill(10, 1, 0)),
        Err(Status::NoSpace)
    );
    let refusal = machine.refusal(Command::SpaceDestroy { space: 1 });
    assert_eq!(refusal.status, Status::NoSpace);
}

// {dev-destroy-jobs}, {dev-destroy-promise}, {dev-destroy-frees}, {dev-job-quiet}
#[test]
fn a_running_job_ends_when_its_space_is_destroyed() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, ALL)]);
    machine.submit(1, 1, endless(10));
    while machine.read_ram(0, 8) == [0; 8] {
        std::thread::yield_now();
    }
    machine.done(Command::SpaceDestroy { space: 1 });
    assert!(machine.has_ended(1));
    let before = machine.read_ram(0, 8);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(machine.read_ram(0, 8), before);
    let statistics = machine.statistics();
    assert_eq!(
        (statistics.mapped_pages.get(), statistics.table_bytes.get()),
        (0, 0)
    );
}

// {dev-job-turns}, {dev-cancel}
#[test]
fn more_jobs_than_engines_take_turns() {
    let machine = Machine::checking();
    for job in 0..8 {
        machine.map(1, &[system(page(10 + job), job, 1, ALL)]);
        machine.submit(job, 1, endless(10 + job));
    }
    for job in 0..8 {
        while machine.read_ram(job, 8) == [0; 8] {
            std::thread::yield_now();
        }
    }
    machine.done(Command::Cancel((0..8).collect()));
    for job in 0..8 {
        let ended = machine.end_of(job);
        assert_eq!(ended.end, End::Cancelled);
        assert!(ended.engine_time > Duration::ZERO);
    }
}

#[test]
fn jobs_are_limited_and_have_names_of_their_own() {
    let machine = Machine::checking();
    assert_eq!(
        machine.try_submit(1, 9, fill(10, 1, 0)),
        Err(Status::NoSpace)
    );
    for job in 0..15 {
        machine.submit(job, 1, fill(10, 1, 0));
    }
    assert_eq!(
        machine.try_submit(3, 1, fill(10, 1, 0)),
        Err(Status::Exists)
    );
    machine.submit(15, 1, fill(10, 1, 0));
    assert_eq!(machine.try_submit(3, 1, fill(10, 1, 0)), Err(Status::Limit));
    machine.done(Command::Cancel(vec![3, 77]));
    machine.submit(3, 1, fill(10, 1, 0));
}

// {dev-cancel-early}
#[test]
fn a_job_that_is_cancelled_before_it_comes_never_begins() {
    let machine = Machine::checking();
    machine.done(Command::Cancel(vec![5, 5]));
    assert_eq!(
        machine.try_submit(5, 1, endless(10)),
        Err(Status::Cancelled)
    );
    let statistics = machine.statistics();
    assert_eq!(statistics.jobs_ended.get(), 1);
    assert_eq!(statistics.jobs.get(), 0);
    assert_eq!(statistics.requests_refused.get(), 0);
    assert_eq!(statistics.faults.get(), 0, "it has touched nothing");
    // The cancellation was for that job, once, and for no other.
    machine.submit(5, 1, fill(10, 1, 0));
    machine.submit(6, 1, fill(10, 1, 0));
}

// {dev-cancel-early}
#[test]
fn as_many_names_are_remembered_as_there_may_be_jobs_and_none_beyond_an_init() {
    let machine = Machine::checking();
    let most = 16;
    // The last name replaces the first one.
    machine.done(Command::Cancel((0..=most).collect()));
    machine.submit(0, 1, fill(10, 1, 0));
    for job in 1..=most {
        assert_eq!(
            machine.try_submit(job, 1, fill(10, 1, 0)),
            Err(Status::Cancelled),
            "job {job}"
        );
    }
    machine.done(Command::Cancel(vec![7]));
    machine.done(Command::Init { version: VERSION });
    machine.done(Command::SpaceCreate { space: 1 });
    machine.submit(7, 1, fill(10, 1, 0));
}

// {dev-init-jobs}, {dev-init-spaces}, {dev-init-counters}
#[test]
fn an_init_forgets_everything() {
    let machine = Machine::checking();
    assert_eq!(machine.copy(&[item(Kind::Clear, 0, 0, 4)]), [Status::Ok]);
    machine.map(
        1,
        &[device(page(10), 0, 1, ALL), system(page(11), 0, 1, ALL)],
    );
    machine.submit(1, 1, endless(10));
    machine.submit(2, 1, fill(50, 1, 0));
    let fault = machine.fault();
    machine.done(Command::Init { version: VERSION });
    assert_eq!(machine.end_of(1).end, End::Cancelled);
    assert_eq!(machine.end_of(2).end, End::Cancelled);
    let statistics = machine.statistics();
    // The request for the counters is not counted before it is done.
    assert_eq!(statistics.control_requests.get(), 1);
    let held = [
        statistics.spaces,
        statistics.jobs,
        statistics.mapped_pages,
        statistics.live_frames,
        statistics.table_bytes,
        statistics.bytes_cleared,
    ];
    assert!(held.iter().all(|value| value.get() == 0), "{statistics:?}");
    machine.answer(Answer::Retry {
        fault: fault.fault.get(),
    });
    assert_eq!(machine.statistics().answers_late.get(), 1);
}

// {dev-stopped-quiet}
#[test]
fn a_paused_device_leaves_the_guest_alone_and_goes_on_afterwards() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 0, 1, ALL)]);
    machine.submit(1, 1, endless(10));
    while machine.read_ram(0, 8) == [0; 8] {
        std::thread::yield_now();
    }
    machine.accelerator.pause();
    let before = machine.read_ram(0, 8);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(machine.read_ram(0, 8), before);
    assert!(!machine.has_ended(1));
    machine.accelerator.resume();
    while machine.read_ram(0, 8) == before {
        std::thread::yield_now();
    }
}

#[test]
fn guest_memory_that_goes_away_becomes_a_fault() {
    let machine = Machine::checking();
    machine.map(1, &[system(page(10), 100, 1, ALL)]);
    machine.submit(1, 1, endless(10));
    while machine.read_ram(100, 8) == [0; 8] {
        std::thread::yield_now();
    }
    let smaller = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
    machine
        .accelerator
        .set_system_memory(SystemMemory::new(Arc::new(smaller)));
    let before = machine.read_ram(100, 8);
    assert_eq!(machine.fault().address.get(), page(10));
    assert_eq!(machine.read_ram(100, 8), before);
    let refusal = machine.refusal(Command::Map {
        space: 1,
        entries: &[system(page(10), 100, 1, ALL)],
    });
    assert_eq!(refusal.status, Status::BadFrame);
}

#[test]
fn a_job_on_device_memory_touches_no_system_page() {
    let machine = Machine::checking();
    let pages = 1024;
    for frame in 0..pages {
        machine.write_ram(frame, &frame.to_le_bytes());
    }
    let count = u32::try_from(pages).unwrap();
    assert_eq!(
        machine.copy(&[item(Kind::ToDevice, 0, 512, count)]),
        [Status::Ok]
    );
    let large = entry(512 << 12, 512, count, 9, ALL | 1 << 8);
    machine.map(1, &[large]);
    machine.submit(1, 1, sum(512, pages));
    let ended = machine.end_of(1);
    assert_eq!(ended.end, ok([pages * (pages - 1) / 2, 0, 0, 0]));
    assert_eq!(
        (ended.tally.system_bytes, ended.tally.device_bytes),
        (0, pages * PAGE_BYTES)
    );
    let statistics = machine.statistics();
    assert_eq!(statistics.large_leaves.get(), 2);
    assert_eq!(statistics.freed_frame_uses.get(), 0);
}

// {dev-no-late-access}
#[test]
fn mappings_that_change_under_running_jobs_never_give_a_wrong_answer() {
    let machine = Arc::new(Machine::checking());
    let pages = 64;
    for frame in 0..pages {
        machine.write_ram(frame, &[1; FRAME_BYTES]);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let driver = {
        let (machine, stop) = (Arc::clone(&machine), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut next = 0;
            while !stop.load(Ordering::Relaxed) {
                next = (next * 5 + 3) % pages;
                machine.unmap(1, page(10 + next), 3);
                for fault in machine.accelerator.report_faults(16) {
                    let number = fault.address.get() / PAGE_BYTES;
                    machine.map(1, &[system(page(number), number - 10, 1, READ_WRITE)]);
                    machine.answer(Answer::Retry {
                        fault: fault.fault.get(),
                    });
                }
            }
        })
    };
    for job in 0..200 {
        machine.submit(job, 1, sum(10, pages));
        let expected = 0x0101_0101_0101_0101_u64.wrapping_mul(pages * PAGE_BYTES / 8);
        assert_eq!(machine.end_of(job).end, ok([expected, 0, 0, 0]));
    }
    stop.store(true, Ordering::Relaxed);
    driver.join().unwrap();
    let statistics = machine.statistics();
    assert_eq!(statistics.stale_accesses.get(), 0);
    assert!(statistics.faults.get() > 0);
}

#[test]
fn a_copy_between_page_boundaries_moves_every_byte() {
    let machine = Machine::checking();
    let bytes: Vec<u8> = (0..3 * PAGE_BYTES).map(|i| (i % 251) as u8).collect();
    machine.write_ram(0, &bytes);
    machine.map(
        1,
        &[
            system(page(10), 0, 3, READ),
            system(page(20), 8, 3, READ_WRITE),
        ],
    );
    let (offset, count) = (77, 2 * PAGE_BYTES + 100);
    let job = Copy {
        source: page(10) + offset,
        destination: page(20) + 1,
        bytes: count,
    };
    machine.submit(1, 1, job);
    assert_eq!(machine.end_of(1).end, ok([0; 4]));
    let (start, count) = (
        usize::try_from(offset).unwrap(),
        usize::try_from(count).unwrap(),
    );
    let copied = machine.read_ram(8, 3 * FRAME_BYTES);
    assert_eq!(copied[1..=count], bytes[start..start + count]);
    assert_eq!((copied[0], copied[count + 1]), (0, 0), "not a byte more");
}
