//! A guest without a machine: memory, four rings, and the socket of the daemon.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};
use rustix::process::{pidfd_open, PidfdFlags};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_device_hmm::command::JOB_REPLY;
use virtio_hmm_spec::wire::command::{Request, RequestHeader};
use virtio_hmm_spec::wire::{Queue, QUEUE_COUNT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// How long anything may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const RING_SIZE: u16 = 256;
const MEMORY: u64 = 32 << 20;
const RING_BYTES: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const BUFFERS: u64 = 1 << 20;
/// Half of it for the request, half for the reply.
const BUFFER: u64 = 16 << 10;

/// The first frame of the guest's memory that neither a ring nor a buffer uses.
pub(crate) const FREE_FRAME: u64 = (16 << 20) >> 12;

/// A daemon that is killed at the end of a test.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
    said: Arc<Condvar>,
    reader: Option<JoinHandle<()>>,
    _folder: Option<tempfile::TempDir>,
}

impl Daemon {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), options)
    }

    /// Starts a daemon in a folder that is removed with it.
    pub(crate) fn start_in(folder: tempfile::TempDir, options: &[&str]) -> Self {
        let socket = folder.path().join("hmm.sock");
        let mut daemon = Self::start_at(&socket, options);
        daemon._folder = Some(folder);
        daemon
    }

    pub(crate) fn start_at(socket: &Path, options: &[&str]) -> Self {
        let child = command(socket, options).spawn().unwrap();
        Self::watch(child, socket, "listening on ")
    }

    /// Takes a daemon over that was just started, once it says that it does `what`.
    #[expect(
        clippy::print_stderr,
        reason = "the harness shows it if the test fails"
    )]
    pub(crate) fn watch(mut child: Child, socket: &Path, what: &str) -> Self {
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let expected = format!("vhost-device-hmm: {what}");
        assert!(line.starts_with(&expected), "{line}");
        let (all, said) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Condvar>::default());
        let (kept, told) = (Arc::clone(&all), Arc::clone(&said));
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("{line}");
                kept.lock().push(line);
                told.notify_all();
            }
        });
        Self {
            child,
            socket: socket.to_owned(),
            lines: all,
            said,
            reader: Some(reader),
            _folder: None,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// The lines that it has printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// All lines that it has printed, after its end.
    pub(crate) fn all_lines(&mut self) -> Vec<String> {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.lines()
    }

    /// Waits until it has printed a line with this text.
    pub(crate) fn says(&self, what: &str) {
        let deadline = Instant::now() + DEADLINE;
        let mut lines = self.lines.lock();
        while !lines.iter().any(|line| line.contains(what)) {
            let late = self.said.wait_until(&mut lines, deadline).timed_out();
            assert!(!late, "the daemon does not say {what:?}");
        }
    }

    /// Asks it to end; returns its exit status and how long that took.
    pub(crate) fn terminate(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        kill(self.pid(), Signal::SIGTERM).unwrap();
        (self.ends(), begun.elapsed())
    }

    /// Waits until it has ended.
    pub(crate) fn ends(&mut self) -> ExitStatus {
        let process = rustix::process::Pid::from_child(&self.child);
        let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
        let mut events = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        assert_eq!(poll(&mut events, timeout), Ok(1), "the daemon goes on");
        self.child.wait().unwrap()
    }

    /// The number of its threads, open descriptors, and mappings of device memory.
    pub(crate) fn belongings(&self) -> [usize; 3] {
        let folder = |name| format!("/proc/{}/{name}", self.child.id());
        let count = |name| std::fs::read_dir(folder(name)).unwrap().count();
        let maps = std::fs::read_to_string(folder("maps")).unwrap();
        let mapped = maps.matches("hmm-device-memory").count();
        [count("task"), count("fd"), mapped]
    }
}

pub(crate) fn command(socket: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"));
    command
        .arg("--socket-path")
        .arg(socket)
        .args(options)
        .stderr(Stdio::piped());
    command
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Some tests have ended it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Guest {
    pub(crate) front_end: Frontend,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) rings: [Ring; QUEUE_COUNT],
    event_idx: bool,
    /// The driver polls for replies, with or without interrupts.
    pub(crate) looks: bool,
}

pub(crate) struct Ring {
    queue: Queue,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    available: u16,
    seen: u16,
    /// The device's position when the ring was stopped.
    stood: u16,
}

impl Guest {
    /// Connects and starts all rings.
    pub(crate) fn connect(daemon: &Daemon, event_idx: bool) -> Self {
        let mut guest = Self::prepare(daemon, event_idx);
        guest.start_rings();
        guest
    }

    /// Sends the daemon the guest's memory, and other pieces that the guest sees as memory.
    pub(crate) fn list_memory(&mut self, others: &[VhostUserMemoryRegionInfo]) {
        let region = self.memory.iter().next().unwrap();
        let own = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        let all = [&[own], others].concat();
        self.front_end.set_mem_table(&all).unwrap();
    }

    /// Connects.
    pub(crate) fn prepare(daemon: &Daemon, event_idx: bool) -> Self {
        Self::prepare_at(&daemon.socket, event_idx)
    }

    /// Connects, and wedges the control queue: its call descriptor is full, and was made blocking
    /// without the daemon's knowledge. The queue's thread has put a reply into the ring and then
    /// blocks for ever in signalling the guest.
    pub(crate) fn connect_wedged(daemon: &Daemon) -> Self {
        let mut guest = Self::prepare(daemon, false);
        guest.rings[0].call = full();
        guest.looks = true;
        guest.start_rings();
        let call = guest.rings[0].call_fd();
        fcntl(call, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        guest.control(Request::Statistics, 0, 0, &[]);
        guest
    }

    /// Connects to a socket.
    pub(crate) fn prepare_at(socket: &Path, event_idx: bool) -> Self {
        let front_end = Frontend::connect(socket, QUEUE_COUNT as u64).unwrap();
        Self::prepare_on(front_end, event_idx)
    }

    /// Prepares a front end that has connected.
    pub(crate) fn prepare_on(mut front_end: Frontend, event_idx: bool) -> Self {
        front_end.set_owner().unwrap();
        let mut features = front_end.get_features().unwrap();
        if !event_idx {
            features &= !(1 << 29);
        }
        let protocol = front_end.get_protocol_features().unwrap();
        front_end.set_protocol_features(protocol).unwrap();
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(front_end.get_queue_num().unwrap(), QUEUE_COUNT as u64);
        front_end.set_features(features).unwrap();

        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            usize::try_from(MEMORY).unwrap(),
            Some(FileOffset::new(file, 0)),
        )])
        .unwrap();
        let ring = |queue| Ring {
            queue,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            available: 0,
            seen: 0,
            stood: 0,
        };
        let rings = [Queue::Control, Queue::Dma, Queue::Submit, Queue::Fault].map(ring);
        let mut guest = Self {
            front_end,
            memory,
            rings,
            event_idx,
            looks: false,
        };
        guest.list_memory(&[]);
        guest
    }

    pub(crate) fn config(&mut self, bytes: u32) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        let buffer = vec![0; usize::try_from(bytes).unwrap()];
        self.front_end
            .get_config(0, bytes, flags, &buffer)
            .unwrap()
            .1
    }

    /// Starts the rings at their positions.
    pub(crate) fn start_rings(&mut self) {
        self.try_start_rings().unwrap();
    }

    /// The same with a daemon that may close the connection.
    pub(crate) fn try_start_rings(&mut self) -> vhost::Result<()> {
        let host = self.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        for ring in &self.rings {
            let (index, base) = (usize::from(ring.queue.raw()), host + ring.base());
            let config = VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr: base,
                used_ring_addr: base + USED,
                avail_ring_addr: base + AVAIL,
                log_addr: None,
            };
            self.front_end.set_vring_num(index, RING_SIZE)?;
            self.front_end.set_vring_base(index, ring.stood)?;
            self.front_end.set_vring_addr(index, &config)?;
            self.front_end.set_vring_call(index, &ring.call)?;
            self.front_end.set_vring_kick(index, &ring.kick)?;
            self.front_end.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Waits until the daemon no longer answers messages.
    pub(crate) fn is_cut_off(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while self.front_end.get_features().is_ok() {
            assert!(Instant::now() < deadline, "the daemon goes on");
        }
    }

    /// Stops the rings and returns the device's position in each.
    pub(crate) fn stop_rings(&mut self) -> [u32; QUEUE_COUNT] {
        [0, 1, 2, 3].map(|index| {
            let stood = self.front_end.get_vring_base(index).unwrap();
            self.rings[index].stood = u16::try_from(stood).unwrap();
            stood
        })
    }

    /// Resets the rings, as a driver does that starts.
    pub(crate) fn clear_rings(&mut self) {
        for ring in &mut self.rings {
            let zeros = vec![0; usize::try_from(RING_BYTES).unwrap()];
            self.memory
                .write_slice(&zeros, GuestAddress(ring.base()))
                .unwrap();
            (ring.available, ring.seen, ring.stood) = (0, 0, 0);
        }
    }

    fn ring(&mut self, queue: Queue) -> (&mut Ring, &GuestMemoryMmap) {
        (&mut self.rings[usize::from(queue.raw())], &self.memory)
    }

    /// Makes a request available, without a kick; returns its head.
    pub(crate) fn offer(&mut self, queue: Queue, request: &[u8], room: u32) -> u16 {
        let (ring, memory) = self.ring(queue);
        let head = ring.available % (RING_SIZE / 2) * 2;
        let buffer = ring.buffer(head);
        memory.write_slice(request, GuestAddress(buffer)).unwrap();
        let length = u32::try_from(request.len()).unwrap();
        match (length, room) {
            (0, room) => ring.describe(memory, head, buffer + BUFFER / 2, room, 2, 0),
            (length, 0) => ring.describe(memory, head, buffer, length, 0, 0),
            (length, room) => {
                ring.describe(memory, head, buffer, length, 1, head + 1);
                ring.describe(memory, head + 1, buffer + BUFFER / 2, room, 2, 0);
            }
        }
        ring.make_available(memory, head);
        head
    }

    /// The same for a request that is longer than a buffer: it is at an address of its own.
    pub(crate) fn offer_at(&mut self, queue: Queue, address: u64, request: &[u8]) -> u16 {
        let (ring, memory) = self.ring(queue);
        let head = ring.available % (RING_SIZE / 2) * 2;
        memory.write_slice(request, GuestAddress(address)).unwrap();
        let length = u32::try_from(request.len()).unwrap();
        let reply = ring.buffer(head) + BUFFER / 2;
        ring.describe(memory, head, address, length, 1, head + 1);
        ring.describe(memory, head + 1, reply, 64, 2, 0);
        ring.make_available(memory, head);
        head
    }

    /// The same for a reply at an address of its own.
    pub(crate) fn offer_reply_at(&mut self, queue: Queue, request: &[u8], reply: u64) -> u16 {
        let (ring, memory) = self.ring(queue);
        let head = ring.available % (RING_SIZE / 2) * 2;
        let buffer = ring.buffer(head);
        memory.write_slice(request, GuestAddress(buffer)).unwrap();
        let length = u32::try_from(request.len()).unwrap();
        let first = if length == 0 { head } else { head + 1 };
        if first != head {
            ring.describe(memory, head, buffer, length, 1, first);
        }
        ring.describe(memory, first, reply, 4096, 2, 0);
        ring.make_available(memory, head);
        head
    }

    /// A feeder that keeps a ring from becoming empty, with the same chain over and over.
    pub(crate) fn feeder(&mut self, queue: Queue) -> Feeder {
        let memory = self.memory.clone();
        let (ring, _) = self.ring(queue);
        let (base, kick) = (ring.base(), ring.kick.try_clone().unwrap());
        ring.describe(&memory, 0, ring.buffer(0), 16, 1, 1);
        ring.describe(&memory, 1, ring.buffer(0) + BUFFER / 2, 64, 2, 0);
        Feeder { memory, base, kick }
    }

    pub(crate) fn kick(&mut self, queue: Queue) {
        self.ring(queue).0.kick.write(1).unwrap();
    }

    /// Waits for the next chain that is returned: its head and the bytes written.
    pub(crate) fn returned(&mut self, queue: Queue) -> (u16, Vec<u8>) {
        let (event_idx, looks) = (self.event_idx, self.looks);
        let (ring, memory) = self.ring(queue);
        let deadline = Instant::now() + DEADLINE;
        loop {
            if event_idx {
                let place = ring.base() + AVAIL + 4 + u64::from(RING_SIZE) * 2;
                memory.write_obj(ring.seen, GuestAddress(place)).unwrap();
                std::sync::atomic::fence(Ordering::SeqCst);
            }
            if let Some(used) = ring.next_used(memory) {
                return used;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "no chain of the {} queue came back",
                ring.queue.name()
            );
            if looks {
                std::thread::yield_now();
                continue;
            }
            let mut events = [PollFd::new(ring.call_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap();
            if poll(&mut events, timeout).unwrap() > 0 {
                ring.call.read().unwrap();
            }
        }
    }

    /// Whether no new chain has been returned.
    pub(crate) fn is_quiet(&mut self, queue: Queue) -> bool {
        let (ring, memory) = self.ring(queue);
        ring.used_index(memory) == ring.seen
    }

    /// Sends a request and waits for its reply.
    pub(crate) fn ask(&mut self, queue: Queue, request: &[u8], room: u32) -> Vec<u8> {
        let head = self.offer(queue, request, room);
        self.kick(queue);
        let (returned, reply) = self.returned(queue);
        assert_eq!(returned, head);
        reply
    }

    /// Sends a control request; returns the status and the bytes after the header.
    pub(crate) fn control(
        &mut self,
        operation: Request,
        space: u32,
        count: u32,
        entries: &[u8],
    ) -> (u32, Vec<u8>) {
        let reply = self.ask(
            Queue::Control,
            &request(operation, space, count, entries),
            4096,
        );
        let (status, rest) = U32::read_from_prefix(&reply).unwrap();
        (status.get(), rest[4..].to_vec())
    }
}

/// Makes chains available as soon as the device has returned others.
pub(crate) struct Feeder {
    memory: GuestMemoryMmap,
    base: u64,
    kick: EventFd,
}

impl Feeder {
    pub(crate) fn feed(&self, stop: &AtomicBool) {
        let used = GuestAddress(self.base + USED + 2);
        let available = GuestAddress(self.base + AVAIL + 2);
        // Head zero, in all slots.
        let heads = vec![0; usize::from(RING_SIZE) * 2];
        let places = GuestAddress(self.base + AVAIL + 4);
        self.memory.write_slice(&heads, places).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let returned: u16 = self.memory.load(used, Ordering::Acquire).unwrap();
            let ahead = returned.wrapping_add(RING_SIZE / 2);
            self.memory
                .store(ahead, available, Ordering::Release)
                .unwrap();
            self.kick.write(1).unwrap();
        }
    }
}

/// A call descriptor that is full.
pub(crate) fn full() -> EventFd {
    let event = EventFd::new(0).unwrap();
    event.write(u64::MAX - 1).unwrap();
    event
}

/// The bytes of a request.
pub(crate) fn request(operation: Request, space: u32, count: u32, entries: &[u8]) -> Vec<u8> {
    let header = RequestHeader {
        operation: U16::new(operation.raw()),
        flags: U16::ZERO,
        space: U32::new(space),
        count: U32::new(count),
        reserved: U32::ZERO,
    };
    [header.as_bytes(), entries].concat()
}

/// The size of a job's reply.
pub(crate) fn job_room() -> u32 {
    u32::try_from(JOB_REPLY).unwrap()
}

impl Ring {
    fn base(&self) -> u64 {
        (u64::from(self.queue.raw()) + 1) * RING_BYTES
    }

    fn buffer(&self, head: u16) -> u64 {
        let slot = u64::from(self.queue.raw()) * u64::from(RING_SIZE / 2) + u64::from(head / 2);
        BUFFERS + slot * BUFFER
    }

    fn call_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the event that is borrowed.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.call.as_raw_fd()) }
    }

    /// Writes a descriptor.
    pub(crate) fn describe(
        &self,
        memory: &GuestMemoryMmap,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let place = self.base() + u64::from(index) * 16;
        memory.write_obj(address, GuestAddress(place)).unwrap();
        memory.write_obj(length, GuestAddress(place + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(place + 12)).unwrap();
        memory.write_obj(next, GuestAddress(place + 14)).unwrap();
    }

    pub(crate) fn make_available(&mut self, memory: &GuestMemoryMmap, head: u16) {
        let slot = u64::from(self.available % RING_SIZE);
        let place = self.base() + AVAIL + 4 + slot * 2;
        memory.write_obj(head, GuestAddress(place)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(memory, self.available);
    }

    pub(crate) fn set_available(&self, memory: &GuestMemoryMmap, index: u16) {
        let place = GuestAddress(self.base() + AVAIL + 2);
        memory.store(index, place, Ordering::Release).unwrap();
    }

    fn used_index(&self, memory: &GuestMemoryMmap) -> u16 {
        let place = GuestAddress(self.base() + USED + 2);
        memory.load(place, Ordering::Acquire).unwrap()
    }

    fn next_used(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, Vec<u8>)> {
        if self.used_index(memory) == self.seen {
            return None;
        }
        let place = self.base() + USED + 4 + u64::from(self.seen % RING_SIZE) * 8;
        let head: u32 = memory.read_obj(GuestAddress(place)).unwrap();
        let length: u32 = memory.read_obj(GuestAddress(place + 4)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        let mut reply = vec![0; usize::try_from(length).unwrap()];
        let from = GuestAddress(self.buffer(head) + BUFFER / 2);
        memory.read_slice(&mut reply, from).unwrap();
        Some((head, reply))
    }
}
