//! Coherent device memory: a front end that maps it for its guest, or does not.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{
    FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};
use vhost::VhostUserMemoryRegionInfo;
use virtio_hmm_spec::wire::config::MEMORY_REGION;
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryMmap};

use super::*;
use guest::DEADLINE;

const MEMORY: u64 = 4 << 20;

/// The address at which the guest sees device memory.
const PLACE: u64 = 1 << 32;

/// The frames of the guest's memory that are device memory.
const ALIAS: u64 = PLACE / PAGE_BYTES;

fn coherent_daemon() -> Daemon {
    Daemon::start(&["--coherent", "--memory", "4M", "--check"])
}

/// The front end's side of the channel for requests of the daemon.
struct Requests {
    maps: Sender<(VhostUserMMap, File)>,
    refuse: bool,
}

impl VhostUserFrontendReqHandlerMut for Requests {
    fn shmem_map(&mut self, request: &VhostUserMMap, file: &dyn AsRawFd) -> HandlerResult<u64> {
        // SAFETY: the descriptor is open as long as the object that is borrowed.
        let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(file.as_raw_fd()) };
        let file = File::from(file.try_clone_to_owned()?);
        let _ = self.maps.send((*request, file));
        if self.refuse {
            return Err(io::Error::from_raw_os_error(22));
        }
        Ok(0)
    }
}

/// A front end whose guest is to see device memory.
struct Shown {
    guest: Guest,
    maps: Receiver<(VhostUserMMap, File)>,
    _serving: JoinHandle<()>,
}

impl Shown {
    /// Connects a front end that has a region, and starts the rings.
    fn connect(daemon: &Daemon, refuse: bool) -> Self {
        let mut guest = Guest::prepare(daemon, true);
        assert_eq!(capabilities(&mut guest), capability::CHECK);
        let config = guest.front_end.get_shmem_config().unwrap();
        // {dev-region-length}
        assert_eq!((config.nregions, config.memory_sizes[0]), (1, MEMORY));
        let both = capability::CHECK | capability::COHERENT;
        assert_eq!(capabilities(&mut guest), both);

        let (told, maps) = channel();
        let requests = Requests { maps: told, refuse };
        let mut handler = FrontendReqHandler::new(Arc::new(Mutex::new(requests))).unwrap();
        handler.set_reply_ack_flag(true);
        guest
            .front_end
            .set_backend_request_fd(&handler.get_tx_raw_fd())
            .unwrap();
        // It ends with the test.
        let serving = std::thread::spawn(move || while handler.handle_request().is_ok() {});
        guest.start_rings();
        Self {
            guest,
            maps,
            _serving: serving,
        }
    }

    /// Takes the daemon's request for a mapping.
    fn map(&mut self) -> File {
        let (request, file) = self.maps.recv_timeout(DEADLINE).unwrap();
        let VhostUserMMap {
            shmid,
            fd_offset,
            shm_offset,
            len,
            flags,
            ..
        } = request;
        assert_eq!((shmid, fd_offset, shm_offset), (MEMORY_REGION, 0, 0));
        assert_eq!((len, flags), (MEMORY, VhostUserMMapFlags::WRITABLE.bits()));
        file
    }

    /// Maps the region for the guest, and reports it to the daemon as the front end does.
    fn show(&mut self, file: File) -> View {
        let view = View::new(file);
        self.guest.list_memory(&[view.info]);
        view
    }
}

/// Device memory as a CPU sees it.
struct View {
    memory: GuestMemoryMmap,
    info: VhostUserMemoryRegionInfo,
}

impl View {
    fn new(file: File) -> Self {
        let bytes = usize::try_from(MEMORY).unwrap();
        let file = FileOffset::new(file, 0);
        let ranges = [(GuestAddress(PLACE), bytes, Some(file))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        let region = memory.iter().next().unwrap();
        let info = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        Self { memory, info }
    }

    fn word(&self, frame: u64) -> u64 {
        let address = GuestAddress(PLACE + frame * PAGE_BYTES);
        self.memory.read_obj(address).unwrap()
    }

    fn store(&self, frame: u64, word: u64) {
        let address = GuestAddress(PLACE + frame * PAGE_BYTES);
        self.memory.write_obj(word, address).unwrap();
    }
}

fn capabilities(guest: &mut Guest) -> u64 {
    let config = guest.config(64);
    let (config, _) = Config::ref_from_prefix(&config).unwrap();
    config.capabilities.get()
}

fn copy(guest: &mut Guest, kind: Kind, source: u64, destination: u64) {
    let item = DmaItem {
        kind: U32::new(kind.raw()),
        pages: U32::new(1),
        source: U64::new(source),
        destination: U64::new(destination),
    };
    let list = request(Request::Copy, 0, 1, item.as_bytes());
    let reply = guest.ask(Queue::Dma, &list, 64);
    assert_eq!(reply, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "{kind:?}");
}

fn offer_init(guest: &mut Guest) {
    let entry = InitEntry {
        version: U32::new(VERSION),
        reserved: U32::ZERO,
    };
    guest.offer(
        Queue::Control,
        &request(Request::Init, 0, 1, entry.as_bytes()),
        64,
    );
    guest.kick(Queue::Control);
}

fn init_status(guest: &mut Guest) -> u32 {
    let (_, reply) = guest.returned(Queue::Control);
    U32::read_from_prefix(&reply).unwrap().0.get()
}

// {dev-region-ready}
#[test]
fn the_guest_sees_device_memory_before_it_is_told_that_the_device_is_ready() {
    let daemon = coherent_daemon();
    let mut shown = Shown::connect(&daemon, false);
    let file = shown.map();
    offer_init(&mut shown.guest);
    // The front end has agreed, but has not mapped it.
    assert!(shown.guest.is_quiet(Queue::Control));
    let view = shown.show(file);
    assert_eq!(init_status(&mut shown.guest), OK);

    let guest = &mut shown.guest;
    copy(guest, Kind::Clear, 0, 3);
    assert_eq!(view.word(3), 0);
    view.store(3, 77);
    copy(guest, Kind::ToSystem, 3, FREE_FRAME);
    let place = GuestAddress(FREE_FRAME * PAGE_BYTES);
    assert_eq!(guest.memory.read_obj::<u64>(place).unwrap(), 77);
    guest.memory.write_obj(78_u64, place).unwrap();
    copy(guest, Kind::ToDevice, FREE_FRAME, 1023);
    assert_eq!(view.word(1023), 78, "the last frame is at the end");

    guest.create_space(1);
    let entry = MapEntry {
        address: U64::new(0x5000),
        frame: U64::new(1023),
        pages: U32::new(1),
        order: U16::ZERO,
        flags: U16::new(0x107),
    };
    let mapped = guest.control(Request::Map, 1, 1, entry.as_bytes());
    assert_eq!(mapped.0, OK);
    guest.submit_fill(1, 1, 0x5000, 8);
    assert_eq!(guest.job_reply().status.get(), OK);
    assert_eq!(view.word(1023), 0x77);
    assert_eq!(guest.statistics().freed_frame_uses.get(), 0);
}

// {dev-region-failed}, {dev-catch-all}
#[test]
fn a_front_end_that_refuses_has_a_device_that_cannot_be_started() {
    let daemon = coherent_daemon();
    let mut shown = Shown::connect(&daemon, true);
    let _ = shown.map();
    for _ in 0..2 {
        offer_init(&mut shown.guest);
        assert_eq!(init_status(&mut shown.guest), Status::DeviceError.raw());
    }
    let (status, _) = shown.guest.control(Request::Statistics, 0, 0, &[]);
    assert_eq!(status, Status::NotReady.raw());
    drop(shown);
    let mut next = Shown::connect(&daemon, false);
    let file = next.map();
    next.show(file);
    next.guest.init();
}

#[test]
fn a_front_end_without_regions_has_a_device_with_private_memory() {
    let daemon = coherent_daemon();
    let mut guest = Guest::connect(&daemon, true);
    assert_eq!(capabilities(&mut guest), capability::CHECK);
    guest.init();
}

#[test]
fn device_memory_is_shown_anew_after_a_reset_and_stays_over_a_pause() {
    let daemon = coherent_daemon();
    let mut shown = Shown::connect(&daemon, false);
    let file = shown.map();
    shown.show(file);
    shown.guest.init();

    shown.guest.stop_rings();
    shown.guest.start_rings();
    shown.guest.create_space(1);
    assert!(shown.maps.try_recv().is_err(), "it is there");

    // A reset removes the mapping. The front end reports this when it starts anew.
    shown.guest.stop_rings();
    shown.guest.list_memory(&[]);
    shown.guest.clear_rings();
    shown.guest.start_rings();
    offer_init(&mut shown.guest);
    let file = shown.map();
    assert!(shown.guest.is_quiet(Queue::Control));
    shown.show(file);
    assert_eq!(init_status(&mut shown.guest), OK);
}

// {dev-region-alias}
#[test]
fn device_memory_under_its_other_name_is_memory_of_the_guest() {
    let daemon = coherent_daemon();
    let mut shown = Shown::connect(&daemon, false);
    let file = shown.map();
    let view = shown.show(file);
    let guest = &mut shown.guest;
    guest.init();
    guest.create_space(1);
    // To the same frame, and to another one.
    for (kind, source, destination) in [
        (Kind::Clear, 0, 8),
        (Kind::ToDevice, ALIAS + 8, 8),
        (Kind::ToSystem, 8, ALIAS + 8),
        (Kind::ToSystem, 8, ALIAS + 9),
    ] {
        copy(guest, kind, source, destination);
    }
    view.store(9, 5);
    guest.map(1, 0x5000, ALIAS + 9);
    guest.submit_fill(1, 1, 0x5000, PAGE_BYTES);
    let reply = guest.job_reply();
    assert_eq!(
        (reply.status.get(), reply.system_bytes.get()),
        (OK, PAGE_BYTES)
    );
    assert_eq!(view.word(9), 0x77);
    // Rings and requests in this memory are served, too.
    let beyond = MapEntry {
        address: U64::new(0x6000),
        frame: U64::new(ALIAS + MEMORY / PAGE_BYTES),
        pages: U32::new(1),
        order: U16::ZERO,
        flags: U16::new(7),
    };
    let refused = guest.control(Request::Map, 1, 1, beyond.as_bytes());
    assert_eq!(refused.0, Status::BadFrame.raw());
    assert_eq!(
        guest.statistics().live_frames.get(),
        1,
        "only what a copy has written"
    );

    // The guest removes the region while it is mapped and a job writes there. No memory other than
    // the guest's is accessed, and the job faults again.
    guest.submit_fill(2, 1, 0x5000, 8);
    assert_eq!(guest.job_reply().status.get(), OK);
    guest.list_memory(&[]);
    guest.offer_fault_buffer(4096);
    guest.submit_fill(3, 1, 0x5000, 8);
    let [fault] = guest.faults().try_into().unwrap();
    guest.answer(&fault, Action::Terminate, Reason::Unmapped.raw());
    assert_eq!(guest.job_reply().status.get(), Status::Fault.raw());
}

#[test]
fn a_front_end_that_never_answers_holds_up_no_other() {
    let mut daemon = coherent_daemon();
    let mut silent = Guest::prepare(&daemon, true);
    silent.front_end.get_shmem_config().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    silent.front_end.set_backend_request_fd(&theirs).unwrap();
    silent.front_end.set_backend_request_fd(&theirs).unwrap();
    silent.start_rings();
    offer_init(&mut silent);
    assert!(silent.is_quiet(Queue::Control));
    silent.stop_rings();
    drop(silent);

    let mut next = Shown::connect(&daemon, false);
    let file = next.map();
    next.show(file);
    next.guest.init();
    drop(next);
    kill(
        Pid::from_raw(daemon.child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(daemon.child.wait().unwrap().success());
    drop(ours);
}

#[test]
fn a_size_that_is_no_power_of_two_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--coherent", "--memory", "6M"];
    let output = command(&folder.path().join("s"), &options)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--memory 8M"), "{text}");
}
