//! The daemon as a process, with a front end that acts as the guest.

mod guest;
#[cfg(target_arch = "x86_64")]
mod inject;
mod late;
mod log;
mod region;
#[cfg(target_arch = "x86_64")]
mod sandbox;
mod sockets;
mod unkind;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use guest::{command, job_room, request, Daemon, Guest, DEADLINE, FREE_FRAME, RING_SIZE};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::VhostBackend;
use virtio_hmm_spec::wire::command::{
    AnswerEntry, FetchEntry, InitEntry, MapEntry, RangeEntry, Request, Status,
};
use virtio_hmm_spec::wire::config::{capability, Config, MAGIC, VERSION};
use virtio_hmm_spec::wire::dma::{DmaItem, Kind};
use virtio_hmm_spec::wire::fault::{Action, FaultHeader, FaultRecord, Reason};
use virtio_hmm_spec::wire::job::{JobReply, JobRequest};
use virtio_hmm_spec::wire::operation::{AtomicAdd, Element, Fill, Operation};
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::{rights, Queue, PAGE_BYTES, QUEUE_COUNT};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const OK: u32 = Status::Ok as u32;

impl Guest {
    fn init(&mut self) {
        let entry = InitEntry {
            version: U32::new(VERSION),
            reserved: U32::ZERO,
        };
        assert_eq!(self.control(Request::Init, 0, 1, entry.as_bytes()).0, OK);
    }

    fn create_space(&mut self, space: u32) {
        assert_eq!(self.control(Request::SpaceCreate, space, 0, &[]).0, OK);
    }

    fn map(&mut self, space: u32, address: u64, frame: u64) {
        let entry = MapEntry {
            address: U64::new(address),
            frame: U64::new(frame),
            pages: U32::new(1),
            order: U16::ZERO,
            flags: U16::new(u16::try_from(rights::ALL).unwrap()),
        };
        assert_eq!(self.control(Request::Map, space, 1, entry.as_bytes()).0, OK);
    }

    fn statistics(&mut self) -> Statistics {
        let (status, results) = self.control(Request::Statistics, 0, 0, &[]);
        assert_eq!(status, OK);
        Statistics::read_from_bytes(&results).unwrap()
    }

    fn answer(&mut self, fault: &FaultRecord, action: Action, reason: u32) {
        let entry = AnswerEntry {
            fault: fault.fault,
            action: U32::new(action.raw()),
            reason: U32::new(reason),
        };
        assert_eq!(self.control(Request::Answer, 0, 1, entry.as_bytes()).0, OK);
    }

    fn submit_fill(&mut self, job: u64, space: u32, address: u64, bytes: u64) -> u16 {
        let fill = fill(job, space, address, bytes, 0x77);
        let head = self.offer(Queue::Submit, fill.as_bytes(), job_room());
        self.kick(Queue::Submit);
        head
    }

    fn job_reply(&mut self) -> JobReply {
        JobReply::read_from_bytes(&self.returned(Queue::Submit).1).unwrap()
    }

    fn offer_fault_buffer(&mut self, room: u32) {
        self.offer(Queue::Fault, &[], room);
        self.kick(Queue::Fault);
    }

    fn faults(&mut self) -> Vec<FaultRecord> {
        let (_, bytes) = self.returned(Queue::Fault);
        let (header, records) = FaultHeader::ref_from_prefix(&bytes).unwrap();
        let records = <[FaultRecord]>::ref_from_bytes(records).unwrap();
        assert_eq!(usize::try_from(header.count.get()).unwrap(), records.len());
        // {dev-reserved}
        assert!(header.reserved == 0 && records.iter().all(|record| record.reserved == 0));
        records.to_vec()
    }
}

/// A job that fills memory with a word.
fn fill(job: u64, space: u32, address: u64, bytes: u64, pattern: u64) -> JobRequest {
    let fill = Fill {
        destination: address,
        bytes,
        pattern,
    };
    JobRequest {
        job: U64::new(job),
        space: U32::new(space),
        reserved: U32::ZERO,
        descriptor: Operation::from(fill).encode(),
    }
}

// {dev-init-first}, {dev-fault-prompt}
#[test]
fn a_driver_that_keeps_the_rules_gets_its_answers() {
    for event_idx in [false, true] {
        let daemon = Daemon::start(&["--check"]);
        let mut guest = Guest::connect(&daemon, event_idx);
        let config = guest.config(64);
        let (config, padding) = Config::ref_from_prefix(&config).unwrap();
        assert_eq!((config.magic.get(), config.version.get()), (MAGIC, VERSION));
        assert_eq!(config.device_memory.get(), 256 << 20);
        assert_eq!(config.capabilities.get(), capability::CHECK);
        assert!(config.reserved == 0 && padding.iter().all(|byte| *byte == 0));

        let (status, _) = guest.control(Request::Statistics, 0, 0, &[]);
        assert_eq!(status, Status::NotReady.raw());
        guest.init();
        guest.create_space(3);
        guest.offer_fault_buffer(4096);
        let head = guest.submit_fill(9, 3, 0x1000, PAGE_BYTES);
        let [fault] = guest.faults().try_into().unwrap();
        assert_eq!(
            (fault.job.get(), fault.address.get(), fault.pages.get()),
            (9, 0x1000, 1)
        );
        assert!(guest.is_quiet(Queue::Submit));
        guest.map(3, 0x1000, FREE_FRAME);
        guest.answer(&fault, Action::Retry, 0);
        let (returned, reply) = guest.returned(Queue::Submit);
        let reply = JobReply::read_from_bytes(&reply).unwrap();
        assert_eq!(
            (returned, reply.status.get(), reply.faults.get()),
            (head, OK, 1)
        );
        assert_eq!(reply.system_bytes.get(), PAGE_BYTES);
        let written: u64 = guest
            .memory
            .read_obj(GuestAddress(FREE_FRAME * PAGE_BYTES))
            .unwrap();
        assert_eq!(written, 0x77);

        let copies = [
            (Kind::ToDevice, FREE_FRAME, 5),
            (Kind::ToSystem, 5, FREE_FRAME + 1),
        ];
        let items = copies.map(|(kind, source, destination)| DmaItem {
            kind: U32::new(kind.raw()),
            pages: U32::new(1),
            source: U64::new(source),
            destination: U64::new(destination),
        });
        let list = request(Request::Copy, 0, 2, items.as_bytes());
        let reply = guest.ask(Queue::Dma, &list, 64);
        assert_eq!(reply, [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let place = GuestAddress((FREE_FRAME + 1) * PAGE_BYTES);
        assert_eq!(guest.memory.read_obj::<u64>(place).unwrap(), 0x77);

        let statistics = guest.statistics();
        assert_eq!(
            (statistics.jobs_ok.get(), statistics.faults_retried.get()),
            (1, 1)
        );
        assert_eq!(
            (statistics.mapped_pages.get(), statistics.live_frames.get()),
            (1, 1)
        );
        assert_eq!(statistics.fault_buffers.get(), 1);
        assert_eq!(statistics.stale_accesses.get(), 0);
    }
}

#[test]
fn the_configuration_space_stays_as_it_is() {
    let daemon = Daemon::start(&["--engines", "1", "--max-spaces", "1", "--max-jobs", "1"]);
    let mut guest = Guest::connect(&daemon, true);
    let before = guest.config(64);
    let (config, _) = Config::ref_from_prefix(&before).unwrap();
    // {dev-limits-positive}
    for (limit, least) in [
        (config.max_spaces, 1),
        (config.max_jobs, 1),
        (config.engines, 1),
        (config.max_entries, 1),
        (config.max_items, 1),
        (config.max_copy_pages, 1),
        (config.address_bits, 12), // {dev-address-bits}
    ] {
        assert!(limit.get() >= least, "{config:?}");
    }
    assert!(config.address_bits.get() <= 57);
    // {dev-config-writes}
    let flags = VhostUserConfigFlags::WRITABLE;
    guest.front_end.set_config(0, flags, &[0x55; 64]).unwrap();
    assert_eq!(guest.config(64), before);
    // {dev-config-constant}
    guest.init();
    guest.create_space(0);
    guest.map(0, 0x1000, FREE_FRAME);
    guest.submit_fill(1, 0, 0x1000, 8);
    assert_eq!(guest.job_reply().status.get(), OK);
    assert_eq!(guest.config(64), before);
}

#[test]
fn what_the_transport_has_is_offered() {
    let daemon = Daemon::start(&[]);
    let guest = Guest::prepare(&daemon, true);
    let features = guest.front_end.get_features().unwrap();
    let offered = |bit: u32| features >> bit & 1 == 1;
    assert!(offered(32), "VIRTIO_F_VERSION_1: {features:#x}"); // {dev-version-1}
                                                               // {dev-transport-features}
    assert!(offered(28), "VIRTIO_F_INDIRECT_DESC: {features:#x}");
    assert!(offered(29), "VIRTIO_F_EVENT_IDX: {features:#x}");
}

// {dev-fault-batch}, {dev-park}
#[test]
fn one_fault_buffer_takes_all_faults_that_wait() {
    let daemon = Daemon::start(&["--engines", "1"]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(0);
    for job in 0..20 {
        guest.submit_fill(job, 0, 0x1000 * (job + 1), 8);
    }
    while guest.statistics().parked_jobs.get() < 20 {
        std::thread::yield_now();
    }
    guest.offer_fault_buffer(47);
    guest.offer_fault_buffer(8 + 40 * 3);
    guest.offer_fault_buffer(4096);
    let (_, too_small) = guest.returned(Queue::Fault);
    assert!(too_small.is_empty());
    let (some, others) = (guest.faults(), guest.faults());
    assert_eq!((some.len(), others.len()), (3, 17));
    // Each job has one fault. The driver is told of it once, by a unique number. {dev-one-fault},
    // {dev-fault-once}, {dev-fault-numbers}
    let both = || some.iter().chain(&others);
    let jobs: BTreeSet<_> = both().map(|fault| fault.job.get()).collect();
    let numbers: BTreeSet<_> = both().map(|fault| fault.fault.get()).collect();
    assert_eq!((jobs.len(), numbers.len()), (20, 20));
    for fault in some.iter().chain(&others) {
        guest.answer(fault, Action::Terminate, Reason::Unmapped.raw());
        let reply = guest.job_reply();
        assert_eq!(reply.status.get(), Status::Fault.raw());
        assert_eq!(reply.reason.get(), Reason::Unmapped.raw());
        assert_eq!(reply.address, fault.address);
    }
    assert_eq!(guest.statistics().chains_dropped.get(), 1);
}

// {dev-pause}
#[test]
fn a_guest_that_was_paused_finds_its_jobs_again() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(1);
    guest.offer_fault_buffer(4096);
    guest.submit_fill(4, 1, 0x5000, 8);
    let [fault] = guest.faults().try_into().unwrap();
    let stood = guest.stop_rings();
    assert_eq!(stood.map(|base| base > 0), [true, false, true, true]);
    guest.start_rings();
    guest.map(1, 0x5000, FREE_FRAME);
    guest.answer(&fault, Action::Retry, 0);
    assert_eq!(guest.job_reply().status.get(), OK);
}

// {dev-reset-chains}
#[test]
fn a_driver_that_starts_anew_gets_nothing_of_the_one_before() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, false);
    guest.init();
    guest.create_space(1);
    guest.map(1, 0x6000, FREE_FRAME);
    guest.submit_fill(3, 1, 0x6000, 8);
    assert_eq!(guest.job_reply().status.get(), OK);
    guest.submit_fill(4, 1, 0x5000, 8);
    while guest.statistics().parked_jobs.get() < 1 {
        std::thread::yield_now();
    }
    guest.stop_rings();
    guest.clear_rings();
    guest.start_rings();
    guest.init();
    guest.offer_fault_buffer(4096);
    guest.create_space(1);
    guest.map(1, 0x5000, FREE_FRAME);
    guest.submit_fill(5, 1, 0x5000, 8);
    // The previous driver had the second chain.
    let head = guest.returned(Queue::Submit).0;
    assert_eq!(head, 0, "the only chain there is");
    assert!(guest.is_quiet(Queue::Submit) && guest.is_quiet(Queue::Fault));
    assert_eq!(guest.statistics().jobs_ended.get(), 1);
}

// {dev-reset-quiet}
#[test]
fn a_job_of_the_time_before_is_over_when_the_queues_run_again() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, false);
    guest.init();
    guest.create_space(1);
    guest.map(1, 0x5000, FREE_FRAME);
    let add = AtomicAdd {
        address: 0x5000,
        element: Element::U64,
        operand: 1,
        repeat: u64::MAX,
    };
    let endless = JobRequest {
        descriptor: Operation::from(add).encode(),
        ..fill(1, 1, 0, 0, 0)
    };
    guest.offer(Queue::Submit, endless.as_bytes(), job_room());
    guest.kick(Queue::Submit);
    let counter = |guest: &Guest| -> u64 {
        let place = GuestAddress(FREE_FRAME * PAGE_BYTES);
        guest.memory.read_obj(place).unwrap()
    };
    while counter(&guest) == 0 {
        std::thread::yield_now();
    }
    guest.stop_rings();
    let last = counter(&guest);
    guest.clear_rings();
    guest.start_rings();
    // The device is not told of the reset: it notices by the position at which the queue starts.
    guest.kick(Queue::Submit);
    let deadline = Instant::now() + DEADLINE;
    while guest.statistics().jobs.get() > 0 {
        assert!(Instant::now() < deadline, "it goes on");
    }
    assert_eq!(counter(&guest), last);
}

// {dev-init-faults}
#[test]
fn a_fault_of_the_time_before_an_init_is_not_told() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(1);
    guest.submit_fill(4, 1, 0x5000, 8);
    while guest.statistics().parked_jobs.get() < 1 {
        std::thread::yield_now();
    }
    guest.init();
    assert_eq!(guest.job_reply().status.get(), Status::Cancelled.raw());
    guest.offer_fault_buffer(4096);
    guest.create_space(1);
    guest.submit_fill(5, 1, 0x6000, 8);
    let [fault] = guest.faults().try_into().unwrap();
    assert_eq!(fault.job.get(), 5);
}

// {dev-init-copies}
#[test]
fn what_was_queued_before_an_init_is_refused() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    let clear = DmaItem {
        kind: U32::new(Kind::Clear.raw()),
        pages: U32::new(1),
        source: U64::ZERO,
        destination: U64::ZERO,
    };
    // Without a kick, the device looks at it only because of the following request.
    guest.offer(
        Queue::Dma,
        &request(Request::Copy, 0, 1, clear.as_bytes()),
        64,
    );
    guest.init();
    let (_, reply) = guest.returned(Queue::Dma);
    assert_eq!(reply[..4], Status::NotReady.raw().to_le_bytes());
    assert_eq!(guest.statistics().live_frames.get(), 0);
}

#[test]
fn a_ring_that_makes_no_sense_is_left_alone_until_it_is_reset() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, false);
    guest.init();
    let ring = &guest.rings[usize::from(Queue::Dma.raw())];
    ring.set_available(&guest.memory, RING_SIZE + 1);
    guest.kick(Queue::Dma);
    // The other queues are served as before.
    guest.create_space(1);
    assert!(guest.is_quiet(Queue::Dma));
    guest.stop_rings();
    guest.clear_rings();
    guest.start_rings();
    guest.init();
    let reply = guest.ask(Queue::Dma, &request(Request::Copy, 0, 0, &[]), 64);
    assert_eq!(reply[..4], Status::Malformed.raw().to_le_bytes());
}

// {dev-return-chain}, {dev-survive}, {dev-check-guest}
#[test]
fn chains_that_make_no_sense_come_back_empty() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    let far = 1 << 40;
    let (read, write, next, indirect) = (0, 2, 1, 4);
    // Address, length, flags, next.
    let chains: [&[(u64, u32, u16, u16)]; 9] = [
        &[(0x10_0000, 16, read, 0)],
        &[(0x10_0000, 16, read | next, 1), (0x10_1000, 7, write, 0)],
        &[(0x10_0000, 16, read | next, 0)],
        &[(0x10_0000, 16, read | next, 999)],
        &[(far, 16, read | next, 1), (0x10_1000, 64, write, 0)],
        &[(0x10_0000, 16, read | next, 1), (far, 64, write, 0)],
        &[(0x10_0000, 64, write | next, 1), (0x10_1000, 16, read, 0)],
        &[(far, 32, indirect, 0)],
        &[(0x10_0000, 17, indirect, 0)],
    ];
    for chain in chains {
        for (index, (address, length, flags, next)) in (0..).zip(chain) {
            let ring = &guest.rings[0];
            ring.describe(&guest.memory, index, *address, *length, *flags, *next);
        }
        guest.rings[0].make_available(&guest.memory, 0);
        guest.kick(Queue::Control);
        let (head, reply) = guest.returned(Queue::Control);
        assert_eq!((head, reply.len()), (0, 0), "{chain:?}");
    }
    // A head that is no descriptor cannot be returned.
    guest.rings[0].make_available(&guest.memory, RING_SIZE);
    let dropped = guest.statistics().chains_dropped.get();
    assert_eq!(dropped, chains.len() as u64 + 1);
}

/// Bytes that are often nearly valid.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let header = (0..20_u16, 0..3_u16, 0..4_u32, 0..4_u32, 0..2_u32);
    let right = (header, proptest::collection::vec(any::<u8>(), 0..300)).prop_map(
        |((operation, flags, space, count, reserved), rest)| {
            let mut bytes = Vec::new();
            bytes.extend(operation.to_le_bytes());
            bytes.extend(flags.saturating_sub(1).to_le_bytes());
            bytes.extend(space.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(reserved.to_le_bytes());
            bytes.extend(rest);
            bytes
        },
    );
    prop_oneof![right, proptest::collection::vec(any::<u8>(), 1..2000)]
}

// {dev-return-chain}, {dev-survive}, {dev-check-guest}
#[test]
fn garbage_in_every_queue_does_no_harm() {
    let daemon = Daemon::start(&["--check"]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(1);
    let queues = [Queue::Control, Queue::Dma, Queue::Submit];
    let mut runner = TestRunner::new(Cases {
        cases: 2000,
        ..Cases::default()
    });
    let guest = std::cell::RefCell::new(guest);
    runner
        .run(
            &(0..3_usize, bytes(), 8..4096_u32),
            |(queue, bytes, room)| {
                let reply = guest.borrow_mut().ask(queues[queue], &bytes, room);
                if reply.is_empty() {
                    prop_assert!(queue == 2 && room < job_room());
                } else {
                    let status = u32::from_le_bytes(reply[..4].try_into().unwrap());
                    prop_assert!(Status::from_raw(status).is_some());
                }
                Ok(())
            },
        )
        .unwrap();
    let mut guest = guest.into_inner();
    guest.init();
    guest.create_space(1);
    guest.map(1, 0x1000, FREE_FRAME);
    guest.submit_fill(1, 1, 0x1000, 8);
    assert_eq!(guest.job_reply().status.get(), OK);
    let range = RangeEntry {
        address: U64::new(0x1000),
        pages: U64::new(1),
    };
    assert_eq!(guest.control(Request::Unmap, 1, 1, range.as_bytes()).0, OK);
}

#[test]
fn the_next_front_end_finds_a_new_device() {
    let daemon = Daemon::start(&[]);
    for _ in 0..3 {
        let mut guest = Guest::connect(&daemon, true);
        let (status, _) = guest.control(Request::SpaceCreate, 1, 0, &[]);
        assert_eq!(status, Status::NotReady.raw());
        guest.init();
        guest.create_space(1);
        guest.submit_fill(1, 1, 0x1000, 8);
    }
}

#[test]
fn a_signal_ends_the_daemon_and_removes_the_socket() {
    for connected in [false, true] {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut daemon = Daemon::start(&[]);
            let guest = connected.then(|| {
                let mut guest = Guest::connect(&daemon, true);
                guest.init();
                guest.create_space(1);
                guest.submit_fill(1, 1, 0x1000, 8);
                guest
            });
            let pid = i32::try_from(daemon.child.id()).unwrap();
            kill(Pid::from_raw(pid), signal).unwrap();
            assert!(daemon.child.wait().unwrap().success());
            assert!(!daemon.socket.exists());
            drop(guest);
        }
    }
}

#[test]
fn a_socket_in_use_is_an_error_and_a_dead_one_is_replaced() {
    let mut first = Daemon::start(&[]);
    let second = command(&first.socket, &[]).output().unwrap();
    assert!(!second.status.success());
    let line = String::from_utf8(second.stderr).unwrap();
    assert!(line.contains("is in use"), "{line}");
    assert!(first.socket.exists(), "the first one still listens");
    Guest::connect(&first, true).init();

    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(first.socket.exists(), "left behind");
    let third = Daemon::start_at(&first.socket, &[]);
    Guest::connect(&third, true).init();

    let file = first.socket.with_extension("txt");
    std::fs::write(&file, "mine").unwrap();
    let fourth = command(&file, &[]).output().unwrap();
    assert!(!fourth.status.success());
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn an_idle_daemon_uses_no_time() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(1);
    guest.submit_fill(1, 1, 0x1000, 8);
    while guest.statistics().parked_jobs.get() < 1 {
        std::thread::yield_now();
    }
    // Polling shows only if the daemon is given time for it.
    let switches = || -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
        tasks
            .map(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                let line = status
                    .lines()
                    .find(|line| line.starts_with("voluntary_ctxt_switches"));
                line.unwrap()
                    .split_whitespace()
                    .last()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum()
    };
    std::thread::sleep(Duration::from_millis(100));
    let before = switches();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(switches(), before);
}
