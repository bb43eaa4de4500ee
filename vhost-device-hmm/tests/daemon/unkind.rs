//! Guests and front ends that obey only the letter of the protocol, or not even that. They do not
//! delay others for long, and the daemon continues, or ends when it is told to.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::memfd::{memfd_create, MFdFlags};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use super::*;
use guest::{full, DEADLINE};

/// How long the daemon may take to end in any case, with a margin for a busy machine.
const END: Duration = Duration::from_secs(10);

/// The address of a long request.
const LONG: u64 = 24 << 20;

/// Maps pages from address zero on, many times as many as exist.
fn fill_space(guest: &mut Guest, space: u32) {
    let run = LONG / PAGE_BYTES - FREE_FRAME;
    for request_number in 0..8 {
        let entry = |i: u64| MapEntry {
            address: U64::new((request_number * 32 + i) * run * PAGE_BYTES),
            frame: U64::new(FREE_FRAME),
            pages: U32::new(u32::try_from(run).unwrap()),
            order: U16::ZERO,
            flags: U16::new(u16::try_from(rights::ALL).unwrap()),
        };
        let entries: Vec<_> = (0..32).map(entry).collect();
        let (status, _) = guest.control(Request::Map, space, 32, entries.as_bytes());
        assert_eq!(status, OK);
    }
}

/// As many ranges as a request may have, each of which covers the whole address space.
fn everything_over_and_over() -> Vec<RangeEntry> {
    let all = RangeEntry {
        address: U64::ZERO,
        pages: U64::new(1 << 45),
    };
    vec![all; 4096]
}

// {dev-unmap-cost}
#[test]
fn a_request_about_the_same_pages_over_and_over_takes_no_longer_than_once() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(1);
    fill_space(&mut guest, 1);
    let ranges = everything_over_and_over();
    let protect = request(Request::Protect, 1, 4096, ranges.as_bytes());
    let head = guest.offer_at(Queue::Control, LONG, &protect);
    guest.kick(Queue::Control);
    // The rings stop at any point of the daemon's work, and continue from there.
    guest.stop_rings();
    guest.start_rings();
    let (returned, reply) = guest.returned(Queue::Control);
    assert_eq!((returned, reply), (head, vec![0; 8]));
    let statistics = guest.statistics();
    let pages = statistics.mapped_pages.get();
    assert_eq!(statistics.invalidated_pages.get(), pages);
    assert_eq!(pages, 8 * 32 * (LONG / PAGE_BYTES - FREE_FRAME));
}

/// One end of a pipe as an event.
fn as_event(end: impl IntoRawFd) -> EventFd {
    // SAFETY: the descriptor is taken over from its owner.
    unsafe { EventFd::from_raw_fd(end.into_raw_fd()) }
}

#[test]
fn an_interrupt_that_cannot_be_sent_holds_up_no_queue() {
    let mut daemon = Daemon::start(&[]);
    let mut guest = Guest::prepare(&daemon, false);
    guest.rings[0].call = full();
    let (reader, writer) = std::io::pipe().unwrap();
    guest.rings[1].call = as_event(writer);
    guest.looks = true;
    guest.start_rings();
    guest.init();
    // More than fits into a pipe, at eight bytes each.
    for _ in 0..9000 {
        guest.ask(Queue::Dma, &request(Request::Copy, 0, 0, &[]), 64);
    }
    guest.create_space(1);
    guest.stop_rings();
    let (status, time) = daemon.terminate();
    assert!(status.success() && time < END, "{time:?}");
    drop(reader);
}

#[test]
fn a_thread_that_never_comes_back_does_not_keep_the_daemon_from_its_end() {
    let mut daemon = Daemon::start(&[]);
    let guest = Guest::connect_wedged(&daemon);
    let (status, time) = daemon.terminate();
    assert!(status.success() && time < END, "{status:?} after {time:?}");
    daemon.says("what serves the front end does not end; it is ended by force");
    assert!(!daemon.socket.exists());
    drop(guest);
}

#[test]
fn threads_that_never_come_back_are_left_behind_up_to_a_number() {
    const MOST: usize = 4;
    let mut daemon = Daemon::start(&["--memory", "4M"]);
    // A front end that disconnects but keeps the descriptor.
    let wedge = || Guest::connect_wedged(&daemon).rings.map(|ring| ring.call);
    let [first, ..] = wedge();
    let mut stuck: Vec<_> = (1..MOST).map(|_| wedge()).collect();
    Guest::connect(&daemon, true).init();
    let left_behind = |line: &String| line.contains("does not end in time; it is left behind");
    let lines = daemon.lines();
    assert_eq!(lines.iter().filter(|line| left_behind(line)).count(), MOST);
    // A device that ends after all makes room for the next one.
    let with_all = daemon.belongings();
    first.read().unwrap();
    let begun = Instant::now();
    while daemon.belongings()[2] == with_all[2] {
        assert!(begun.elapsed() < DEADLINE, "it stays: {with_all:?}");
        std::thread::yield_now();
    }
    stuck.push(wedge());
    Guest::connect(&daemon, true).init();
    stuck.push(wedge());
    let status = daemon.ends();
    assert_eq!(status.code(), Some(1));
    daemon.says("5 earlier front ends have gone, but the devices that served them do not end");
    assert!(!daemon.socket.exists());
}

#[test]
fn a_log_that_is_not_read_holds_up_no_queue() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let mut child = command(&socket, &["--log-level", "trace"]).spawn().unwrap();
    // The connection waits until the daemon listens; its output is not read.
    while !socket.exists() {
        std::thread::yield_now();
    }
    let mut guest = Guest::prepare_at(&socket, true);
    guest.start_rings();
    guest.init();
    // Each is refused with a line: more than fits into a pipe.
    for _ in 0..4000 {
        let refused = guest.control(Request::SpaceDestroy, 9, 0, &[]);
        assert_eq!(refused.0, Status::NoSpace.raw());
    }
    guest.stop_rings();
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("NoSpace"), "{said}");
}

#[test]
fn a_full_disk_where_the_log_goes_is_no_reason_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut child = command(&socket, &["--log-level", "trace"])
        .stderr(Stdio::from(full()))
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::yield_now();
    }
    let mut guest = Guest::prepare_at(&socket, true);
    guest.start_rings();
    guest.init();
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    // Output that cannot be written is a failure, not a panic.
    let mut capabilities = command(&socket, &["--print-capabilities"]);
    let status = capabilities.stdout(Stdio::from(full())).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_kick_that_another_process_has_read_ends_no_queue() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::prepare(&daemon, true);
    // One event for two queues: only one of their threads can read it.
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    for ring in &mut guest.rings[..2] {
        ring.kick = kick.try_clone().unwrap();
    }
    guest.start_rings();
    // A kick that one thread has read is lost to the other: kick until both have answered.
    let both = [
        (Queue::Control, request(Request::Statistics, 0, 0, &[]), 16),
        (Queue::Dma, request(Request::Copy, 0, 0, &[]), 64),
    ];
    for _ in 0..300 {
        for (queue, request, room) in &both {
            guest.offer(*queue, request, *room);
        }
        let deadline = Instant::now() + DEADLINE;
        while both.iter().any(|(queue, ..)| guest.is_quiet(*queue)) {
            kick.write(1).unwrap();
            assert!(Instant::now() < deadline, "a queue is not served any more");
        }
        for (queue, ..) in &both {
            let (_, reply) = guest.returned(*queue);
            assert_eq!(reply[..4], Status::Malformed.raw().to_le_bytes());
        }
    }
}

#[test]
fn a_queue_that_cannot_be_kicked_ends_the_connection_with_a_word() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.stop_rings();
    let (reader, writer) = std::io::pipe().unwrap();
    guest.rings[0].kick = as_event(reader);
    drop(writer);
    // The connection may be over before all rings have started.
    let _ = guest.try_start_rings();
    daemon.says("Control queue cannot be kicked");
    guest.is_cut_off();
    drop(guest);
    Guest::connect(&daemon, true).init();
}

#[test]
fn half_a_message_keeps_no_front_end_from_the_daemon() {
    let daemon = Daemon::start(&[]);
    let mut half = connect(&daemon);
    half.write_all(&[1, 0, 0, 0, 1, 0]).unwrap();
    let cut_off = half.read(&mut [0]);
    assert!(cut_off.is_ok_and(|count| count == 0), "it is cut off");
    daemon.says("began a message");
    Guest::connect(&daemon, true).init();
}

/// A connection with a timeout.
fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(&daemon.socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let daemon = Daemon::start(&[]);
    let message = |request: u32, value: u64| {
        let mut bytes = Vec::new();
        for number in [request, 1, 8] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(value.to_ne_bytes());
        bytes
    };
    // Packed rings, and a log of what is written.
    for (request, value) in [(2, 1 << 34 | 1 << 32), (16, 1 << 1)] {
        let mut stream = connect(&daemon);
        stream.write_all(&message(request, value)).unwrap();
        let cut_off = stream.read(&mut [0]);
        assert!(cut_off.is_ok_and(|count| count == 0), "it is cut off");
        daemon.says("features that it was not offered");
    }
    Guest::connect(&daemon, true).init();
}

#[test]
fn an_end_of_a_daemon_does_not_remove_the_socket_of_another_one() {
    let mut first = Daemon::start(&[]);
    std::fs::remove_file(&first.socket).unwrap();
    let mut second = Daemon::start_at(&first.socket, &[]);
    assert!(first.terminate().0.success());
    Guest::connect(&second, true).init();
    assert!(second.terminate().0.success());
    assert!(!second.socket.exists());
}

#[test]
fn front_ends_that_keep_their_channel_take_nothing_with_them() {
    let daemon = Daemon::start(&["--coherent", "--memory", "4M"]);
    let mut kept = Vec::new();
    let mut before = None;
    for _ in 0..6 {
        let mut guest = Guest::prepare(&daemon, true);
        guest.front_end.get_shmem_config().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        guest.front_end.set_backend_request_fd(&theirs).unwrap();
        guest.start_rings();
        // The daemon has sent a request, and waits for an answer that never comes.
        let mut asked = [0; 12];
        (&ours).read_exact(&mut asked).unwrap();
        kept.push((ours, theirs));
        // The first one found the daemon unchanged.
        let before = *before.get_or_insert_with(|| daemon.belongings());
        // A thread that ends is counted until the kernel has removed it from its list.
        let begun = Instant::now();
        while daemon.belongings() != before && begun.elapsed() < DEADLINE {
            std::thread::yield_now();
        }
        assert_eq!(daemon.belongings(), before);
    }
}

#[test]
fn a_guest_cannot_fill_the_log() {
    let daemon = Daemon::start(&["--log-level", "info"]);
    let mut guest = Guest::connect(&daemon, false);
    let begun = Instant::now();
    for _ in 0..100 {
        for queue in [Queue::Dma, Queue::Submit, Queue::Fault] {
            let ring = &guest.rings[usize::from(queue.raw())];
            ring.set_available(&guest.memory, RING_SIZE + 1);
            guest.kick(queue);
        }
        guest.init();
        let empty = guest.ask(Queue::Control, &[0; 4], 1);
        assert!(empty.is_empty());
        guest.stop_rings();
        guest.clear_rings();
        guest.start_rings();
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    let lines = daemon.lines();
    for kind in ["stays so until reset", "has no room for a reply"] {
        let count = lines.iter().filter(|line| line.contains(kind)).count();
        assert!((1..=4 * seconds).contains(&count), "{count} lines: {kind}");
    }
}

/// Whether the daemon has memory of this name mapped, and whether all of it is excluded from core
/// dumps.
pub(crate) fn mapped(daemon: &Daemon, name: &str) -> (bool, bool) {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", daemon.child.id())).unwrap();
    let (mut found, mut left_out, mut within) = (false, true, false);
    for line in maps.lines() {
        match line.split_once(": ") {
            Some((field, flags)) if field.ends_with("VmFlags") => {
                left_out &= !within || flags.split(' ').any(|flag| flag == "dd");
            }
            None if line.contains('-') => {
                within = line.contains(name);
                found |= within;
            }
            _ => {}
        }
    }
    (found, left_out)
}

/// A piece of memory beside the guest's own.
pub(crate) fn more_memory(name: &std::ffi::CStr, bytes: u64) -> GuestMemoryMmap {
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    let bytes = usize::try_from(bytes).unwrap();
    let ranges = [(GuestAddress(1 << 32), bytes, Some(FileOffset::new(file, 0)))];
    GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()
}

pub(crate) fn listed(memory: &GuestMemoryMmap) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo::from_guest_region(memory.iter().next().unwrap()).unwrap()
}

#[test]
fn memory_that_the_guest_has_no_more_is_let_go_of_at_once() {
    let daemon = Daemon::start(&["--engines", "4"]);
    let mut guest = Guest::prepare(&daemon, false);
    let more = more_memory(c"for-a-while", 1 << 20);
    guest.list_memory(&[listed(&more)]);
    guest.start_rings();
    guest.init();
    guest.create_space(1);
    let frame = (1 << 32) / PAGE_BYTES;
    guest.map(1, 0x5000, frame);
    for job in 0..8 {
        guest.submit_fill(job, 1, 0x5000, PAGE_BYTES);
    }
    for _ in 0..8 {
        assert_eq!(guest.job_reply().status.get(), OK);
    }
    assert!(mapped(&daemon, "for-a-while").0);
    // The ring is never empty.
    let stop = AtomicBool::new(false);
    let feeder = guest.feeder(Queue::Dma);
    std::thread::scope(|scope| {
        scope.spawn(|| feeder.feed(&stop));
        guest.list_memory(&[]);
        let deadline = Instant::now() + Duration::from_secs(5);
        while mapped(&daemon, "for-a-while").0 {
            if Instant::now() > deadline {
                stop.store(true, Ordering::Relaxed);
                panic!("it is still used");
            }
        }
        // Nor does such a ring block the other queues.
        guest.init();
        guest.stop_rings();
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn no_memory_of_the_guest_or_of_the_device_is_in_core_dumps() {
    let daemon = Daemon::start(&[]);
    let _guest = Guest::connect(&daemon, true);
    assert_eq!(mapped(&daemon, "memfd:guest"), (true, true));
    assert_eq!(mapped(&daemon, "memfd:hmm-device-memory"), (true, true));
    assert_eq!(mapped(&daemon, "vhost-device-hmm"), (true, false));
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let daemon = Daemon::start(&[]);
    let guest = Guest::prepare(&daemon, true);
    let more = more_memory(c"short", 1 << 20);
    let mut promised = listed(&more);
    promised.memory_size += PAGE_BYTES;
    let own = listed(&guest.memory);
    guest.front_end.set_mem_table(&[own, promised]).unwrap_err();
    daemon.says("is to end at byte 0x101000 of a file of 0x100000 bytes");
    drop(guest);
    Guest::connect(&daemon, true).init();
}

#[test]
fn memory_that_is_cut_off_kills_with_a_word() {
    let mut daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(1);
    guest.map(1, 0x5000, FREE_FRAME);
    let region = guest.memory.iter().next().unwrap();
    let file = region.file_offset().unwrap().file();
    file.set_len(FREE_FRAME * PAGE_BYTES).unwrap();
    guest.submit_fill(1, 1, 0x5000, 8);
    let status = daemon.child.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGBUS as i32));
    daemon.says("memory of the guest is not there");
}

#[test]
fn device_memory_can_be_taken_at_the_start() {
    for (options, expected) in [
        (&["--memory", "8M"][..], 0),
        (&["--memory", "8M", "--prealloc"], 8 << 20),
    ] {
        let daemon = Daemon::start(options);
        // The device exists as long as its front end.
        let mut guest = Guest::connect(&daemon, true);
        guest.init();
        let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap();
        let files = files.filter_map(|file| {
            let path = file.unwrap().path();
            let name = std::fs::read_link(&path).ok()?;
            let is_it = name.to_string_lossy().contains("hmm-device-memory");
            is_it.then(|| std::fs::metadata(path).unwrap().blocks() * 512)
        });
        let bytes: Vec<_> = files.collect();
        assert!(
            !bytes.is_empty() && bytes.iter().all(|bytes| *bytes == expected),
            "{bytes:?}"
        );
    }
}
