//! The vhost-user layer: four queues, the configuration space, the guest's memory.
//!
//! Each queue has its own thread, so that no queue waits for another. This module moves chains
//! between rings and the accelerator. It does not know what a request means or how it is carried
//! out.
//!
//! Lock order: the control lane, the dma lane, the submit lane, the fault lane. Engines take the
//! last two, one at a time, and hold nothing of the accelerator meanwhile.

mod courier;
mod lane;
mod region;
mod ring;
mod window;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use vhost::vhost_user::Backend as FrontEnd;
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::config::{capability, VERSION};
use virtio_hmm_spec::wire::fault::{FaultHeader, FaultRecord, MIN_BUFFER};
use virtio_hmm_spec::wire::{Queue, QUEUE_COUNT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier,
};
use zerocopy::little_endian::U64;
use zerocopy::IntoBytes;

pub use self::window::MOST as LONGEST_POLL;
use crate::command::{self, Raw};
use crate::device::job::{Ended, Ticket};
use crate::device::memory::SystemMemory;
use crate::device::request::{Command, Outcome};
use crate::device::{Accelerator, Listener};
use crate::lateness::{About, Lateness};
use crate::misreport::Misreport;
use crate::queue::{self, Chain};
use crate::sigbus;
use courier::Courier;
use lane::{Lane, Moving, Patience, Seen, State, QUEUE_SIZE};
use region::Region;
pub use ring::{GuestMemoryHandle, Ring};

/// The size of the configuration space in bytes, padding included.
const CONFIG_BYTES: usize = 64;

/// vhost-user's own feature bit.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Settings of the vhost-user side of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The guest's CPUs can address device memory.
    pub coherent: bool,
    /// The longest time to poll for the next control request before sleeping.
    pub poll: Duration,
    /// What the configuration space says and is not so.
    pub misreports: Vec<Misreport>,
}

impl Default for Options {
    /// Private memory. Polls only if the host has processors to spare: a processor of the guest,
    /// the thread for copies and an engine may run at the same time.
    fn default() -> Self {
        let few = std::thread::available_parallelism().is_ok_and(|count| count.get() < 4);
        Self {
            coherent: false,
            poll: if few { Duration::ZERO } else { window::MOST },
            misreports: Vec::new(),
        }
    }
}

/// The device as one front end sees it.
pub struct Backend {
    /// A weak reference to itself, for threads that must not keep it alive.
    this: Weak<Self>,
    accelerator: Accelerator,
    misreports: Vec<Misreport>,
    /// Where the guest's CPUs see device memory, if it is coherent.
    region: Option<Arc<Region>>,
    memory: GuestMemoryHandle,
    lanes: [Lane; QUEUE_COUNT],
    /// The chains of jobs that have not ended.
    held: Mutex<HashMap<Ticket, Chain>>,
    /// Threads that return chains of jobs and fill fault buffers when a rule may delay that. They
    /// take over from threads that must not be delayed.
    couriers: [Arc<Courier<Self>>; 2],
    next_ticket: AtomicU64,
    exits: Mutex<Vec<RawFd>>,
    /// The number of the connection for threads that are delayed by rules.
    connection: u64,
    /// Ends the connection.
    unable: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Backend {
    /// A device for one front end, whose memory is read through this handle.
    pub fn new(accelerator: Accelerator, options: Options, memory: GuestMemoryHandle) -> Arc<Self> {
        let region = options
            .coherent
            .then(|| Region::new(Arc::clone(accelerator.device_memory())));
        let connection = accelerator.lateness().begin();
        let backend = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            region,
            memory,
            lanes: [Queue::Control, Queue::Dma, Queue::Submit, Queue::Fault]
                .map(|queue| Lane::new(queue, accelerator.lateness(), options.poll)),
            accelerator,
            misreports: options.misreports,
            held: Mutex::default(),
            couriers: [
                Courier::new(Weak::clone(this), |backend| {
                    backend.return_ended(Patience::Late)
                }),
                Courier::new(Weak::clone(this), |backend| {
                    backend.deliver_faults(Patience::Late)
                }),
            ],
            next_ticket: AtomicU64::new(0),
            exits: Mutex::default(),
            unable: OnceLock::new(),
            connection,
        });
        let device = backend.accelerator.device_memory();
        if let Some(all) = device.slice(0, device.frames()) {
            sigbus::device_memory_is_at(all.ptr_guard().as_ptr() as usize, all.len());
        }
        let listener: Weak<dyn Listener> = Arc::downgrade(&backend) as Weak<dyn Listener>;
        backend.accelerator.listen(listener);
        backend
    }

    /// Sets what to call when a queue can no longer be served; only the first call counts.
    pub fn when_unable(&self, end: impl Fn() + Send + Sync + 'static) {
        // There is one connection.
        let _ = self.unable.set(Box::new(end));
    }

    /// A queue can no longer be served. Ends the connection: the front end would wait for the queue
    /// for ever.
    fn give_up(&self) {
        if let Some(end) = self.unable.get() {
            end();
        }
    }

    /// Ends the device: no engine runs afterwards, and nothing is written to the guest.
    pub fn shut_down(&self) {
        self.lateness().end(self.connection);
        if let Some(region) = &self.region {
            region.close();
        }
        for lane in &self.lanes {
            lane.quiet().state = State::Stopped(None);
        }
        self.accelerator.shut_down();
        for courier in &self.couriers {
            courier.close();
        }
    }

    /// The state of the queues, for the control socket.
    pub fn queues(&self) -> serde_json::Value {
        self.lanes.iter().map(Lane::describe).collect()
    }

    /// The rules for deliberate delays and faults.
    pub fn lateness(&self) -> &Arc<Lateness> {
        self.accelerator.lateness()
    }

    /// The device itself.
    pub fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    /// The configuration space. It is read when the front end has said what it can do.
    /// {dev-config-constant}
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut space = self.accelerator.config_space();
        if self
            .region
            .as_ref()
            .is_some_and(|region| region.is_offered())
        {
            space.capabilities |= U64::new(capability::COHERENT);
        }
        for misreport in &self.misreports {
            misreport.apply(&mut space);
        }
        let mut config = [0; CONFIG_BYTES];
        for (to, from) in config.iter_mut().zip(space.as_bytes()) {
            *to = *from;
        }
        config
    }

    fn lane(&self, queue: Queue) -> &Lane {
        let [control, dma, submit, fault] = &self.lanes;
        match queue {
            Queue::Control => control,
            Queue::Dma => dma,
            Queue::Submit => submit,
            Queue::Fault => fault,
        }
    }

    /// Serves a queue that has been kicked, or has just started.
    fn serve(&self, queue: Queue, vring: &VringRwLock) {
        let lane = self.lane(queue);
        lane.vring.get_or_init(|| vring.clone());
        self.start(lane, vring);
        match queue {
            Queue::Control => self.serve_control(),
            Queue::Dma => self.serve_copies(),
            Queue::Submit => self.serve_jobs(),
            Queue::Fault => self.deliver_faults(Patience::Late),
        }
    }

    /// Marks a queue as running, if it was not.
    fn start(&self, lane: &Lane, vring: &VringRwLock) {
        let position = {
            let ring = vring.get_ref();
            if !ring.is_enabled() || !queue::is_ready(ring.get_queue()) {
                return;
            }
            queue::position(ring.get_queue())
        };
        let mut moves = lane.hold();
        let State::Stopped(before) = moves.state else {
            return;
        };
        moves.state = State::Running;
        moves.returned.told = position.1;
        drop(moves);
        self.lateness().start(Some(lane.queue));
        log::debug!("{} queue starts at {position:?}", lane.queue.name());
        if let (Queue::Control, Some(region)) = (lane.queue, &self.region) {
            region.rings_started();
        }
        if lane.queue == Queue::Submit {
            // A ring that continues where it stopped belongs to a guest that was paused. Any other
            // ring belongs to a driver that has started anew and does not know the chains that are
            // still held. The two cannot be confused: a new ring has the same index on both sides,
            // a ring with held chains does not. {dev-pause}
            if before != Some(position) {
                // {dev-reset-chains}
                self.held.lock().clear();
                // {dev-reset-quiet}
                self.accelerator.abandon_jobs();
            }
            self.accelerator.resume();
            self.return_ended(Patience::Late);
        }
    }

    /// Whether `memory` is still the guest's memory. Called with the lane held, because the memory
    /// may have changed before. A thread that changes it later has to wait for the lane.
    fn is_current(&self, memory: &GuestMemoryMmap) -> bool {
        std::ptr::eq(&*self.memory.memory(), memory)
    }

    fn serve_control(&self) {
        while self.serve_some_control() {}
    }

    /// Returns whether to look at the lane again.
    fn serve_some_control(&self) -> bool {
        if self
            .region
            .as_ref()
            .is_some_and(|region| region.is_pending())
        {
            // The queue is served when the region is settled, no matter whether a kick comes
            // before. {dev-region-ready}
            return false;
        }
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Control).running(&memory, Patience::Late) else {
            return false;
        };
        if !self.is_current(&memory) {
            return true;
        }
        let mut reply = Vec::new();
        let stop = || self.lane(Queue::Control).is_wanted();
        lane.drain(&self.accelerator, command::MAX_CONTROL, |lane, chain| {
            if chain.room() < command::MIN_REPLY as u64 {
                lane.drop_chain(&self.accelerator, Some(chain.head()), NO_ROOM);
                return;
            }
            let request = command::decode_control(raw(chain));
            let resets = matches!(request, Ok(Command::Init { version: VERSION }));
            // These replies tell the driver nothing that it did not know when it sent the request.
            let seen = match request {
                Ok(Command::Map { .. } | Command::Answer(_) | Command::Cancel(_)) => Seen::Together,
                _ => Seen::Soon,
            };
            if resets {
                self.refuse_what_is_queued();
            }
            let in_order = |region: &Arc<Region>| region.is_in_order();
            // {dev-region-failed}
            let outcome = if resets && !self.region.as_ref().is_none_or(in_order) {
                log::error!("the guest does not see device memory: the device is not started");
                Some(Outcome::Refused(Status::DeviceError.into()))
            } else {
                self.accelerator.execute_unless(request, &stop)
            };
            let Some(outcome) = outcome else {
                // The request is carried out again when the ring continues from here.
                return lane.untake();
            };
            if resets {
                // A fault from before the reset may still be on its way to the ring.
                // {dev-init-faults}
                drop(self.lane(Queue::Fault).quiet());
            }
            reply.clear();
            command::encode_outcome(&outcome, &mut reply);
            lane.answer(chain, &mut reply, seen);
        })
    }

    /// Answers everything in the dma and submit queues with "not ready": chains made available
    /// before a reset must not be carried out after it. {dev-init-copies}
    fn refuse_what_is_queued(&self) {
        self.accelerator.close();
        while self.serve_some_copies(Patience::Prompt) {}
        while self.serve_some_jobs(Patience::Prompt) {}
    }

    fn serve_copies(&self) {
        while self.serve_some_copies(Patience::Late) {}
    }

    /// Returns whether to look at the lane again.
    fn serve_some_copies(&self, patience: Patience) -> bool {
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Dma).running(&memory, patience) else {
            return false;
        };
        if !self.is_current(&memory) {
            return true;
        }
        let (mut results, mut reply) = (Vec::new(), Vec::new());
        lane.drain(&self.accelerator, command::MAX_TRANSFER, |lane, chain| {
            if chain.room() < command::MIN_REPLY as u64 {
                lane.drop_chain(&self.accelerator, Some(chain.head()), NO_ROOM);
                return;
            }
            let request = command::decode_transfer(raw(chain));
            let done = self.accelerator.transfer(request, &mut results);
            reply.clear();
            command::encode_copied(done, &results, &mut reply);
            lane.answer(chain, &mut reply, Seen::Soon);
        })
    }

    fn serve_jobs(&self) {
        while self.serve_some_jobs(Patience::Late) {}
    }

    /// Returns whether to look at the lane again.
    fn serve_some_jobs(&self, patience: Patience) -> bool {
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Submit).running(&memory, patience) else {
            return false;
        };
        if !self.is_current(&memory) {
            return true;
        }
        lane.drain(&self.accelerator, command::MAX_JOB, |lane, chain| {
            if chain.room() < command::JOB_REPLY as u64 {
                lane.drop_chain(&self.accelerator, Some(chain.head()), NO_ROOM);
                return;
            }
            let submission = command::decode_job(raw(chain));
            let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
            // Inserted first: the job may end before `submit` returns.
            self.held.lock().insert(ticket, std::mem::take(chain));
            if let Err(refused) = self.accelerator.submit(submission, ticket) {
                self.return_jobs(lane, &[refused]);
            }
        })
    }

    /// Returns the chains of jobs that have ended, with one interrupt.
    fn return_ended(&self, patience: Patience) {
        loop {
            let memory = self.memory.memory();
            let Some(mut lane) = self.lane(Queue::Submit).running(&memory, patience) else {
                return;
            };
            if !self.is_current(&memory) {
                continue;
            }
            let ended = self.accelerator.take_ended();
            if !ended.is_empty() {
                self.return_jobs(&mut lane, &ended);
                lane.signal();
            }
            return;
        }
    }

    fn return_jobs(&self, lane: &mut Moving<'_>, ended: &[Ended]) {
        for ended in ended {
            // None if its driver has gone.
            let Some(chain) = self.held.lock().remove(&ended.ticket) else {
                continue;
            };
            let mut reply = command::encode_ended(ended);
            lane.answer(&chain, reply.as_mut_bytes(), Seen::Together);
        }
    }

    /// Fills the driver's buffers with the faults that wait.
    fn deliver_faults(&self, patience: Patience) {
        while self.deliver_some_faults(patience) {}
    }

    /// Returns whether to look at the lane again.
    fn deliver_some_faults(&self, patience: Patience) -> bool {
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Fault).running(&memory, patience) else {
            return false;
        };
        if !self.is_current(&memory) {
            return true;
        }
        if !lane.begin_taking() {
            return false;
        }
        let (mut buffer, mut contents) = (Chain::default(), Vec::new());
        loop {
            let mut offered = true;
            while offered && self.accelerator.faults_waiting() > 0 {
                if lane.gives_way() {
                    return true;
                }
                // {dev-late-fault}
                lane.pass(Point::FaultRaised, About::default);
                // {dev-order-faults}
                if self.lateness().swaps(Point::FaultRaised, About::default()) {
                    self.accelerator.swap_faults();
                }
                match lane.take(&self.accelerator, 0, &mut buffer) {
                    None => offered = false,
                    Some(()) if buffer.room() < MIN_BUFFER as u64 => {
                        lane.drop_chain(&self.accelerator, Some(buffer.head()), NO_ROOM);
                    }
                    Some(()) => {
                        // {dev-fault-batch}
                        let records = self.accelerator.report_faults(capacity(&buffer));
                        if records.is_empty() {
                            // Their jobs were cancelled in the meantime.
                            lane.untake();
                            break;
                        }
                        contents.clear();
                        command::encode_faults(&records, &mut contents);
                        lane.answer(&buffer, &mut contents, Seen::Soon);
                        self.accelerator.count_fault_buffer();
                    }
                }
            }
            lane.signal();
            // Without a waiting fault, no kick is needed: the next fault looks for a buffer itself.
            let waiting = self.accelerator.faults_waiting() > 0;
            if !waiting || (!offered && !lane.ask_for_kicks()) {
                lane.end_taking();
                return false;
            }
        }
    }
}

const NO_ROOM: &str = "has no room for a reply";

fn raw(chain: &Chain) -> Raw<'_> {
    Raw {
        bytes: chain.request(),
        length: chain.length(),
        room: chain.room(),
    }
}

/// The number of records that a fault buffer can take.
fn capacity(buffer: &Chain) -> usize {
    let room = usize::try_from(buffer.room()).unwrap_or(usize::MAX);
    room.saturating_sub(size_of::<FaultHeader>()) / size_of::<FaultRecord>()
}

impl Listener for Backend {
    // Called by engines and the control queue, which these queues must not block.

    fn jobs_ended(&self) {
        use Point::{SubmitAnswered, SubmitEnded, SubmitPublished};
        let [courier, _] = &self.couriers;
        let late = [SubmitEnded, SubmitAnswered, SubmitPublished];
        if !self.lateness().concerns_any(&late) || !courier.call() {
            self.return_ended(Patience::Prompt);
        }
    }

    // {dev-fault-prompt}
    fn faults_raised(&self) {
        use Point::{FaultFilled, FaultPublished, FaultRaised, FaultReported, FaultTaken};
        let [_, courier] = &self.couriers;
        let late = [
            FaultRaised,
            FaultTaken,
            FaultReported,
            FaultFilled,
            FaultPublished,
        ];
        if !self.lateness().concerns_any(&late) || !courier.call() {
            self.deliver_faults(Patience::Prompt);
        }
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        QUEUE_COUNT
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    // {dev-version-1}, {dev-transport-features}
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let region = match self.region {
            None => VhostUserProtocolFeatures::empty(),
            Some(_) => VhostUserProtocolFeatures::BACKEND_REQ | VhostUserProtocolFeatures::SHMEM,
        };
        // Not CONFIGURE_MEM_SLOTS, which would allow more than eight pieces of guest memory. With
        // it, QEMU 11.1 crashes when it starts a device and a piece of memory has gone since the
        // device was stopped. Each reset of a coherent device removes a piece from the memory of
        // all other devices.
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | region
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        let region = self.region.as_ref();
        Ok(region.map_or_else(VhostUserShMemConfig::default, |region| region.offer()))
    }

    fn set_backend_req_fd(&self, front_end: FrontEnd) {
        let Some(region) = &self.region else { return };
        let this = Weak::clone(&self.this);
        let asking = region.ask(front_end, move || {
            if let Some(backend) = this.upgrade() {
                backend.serve_control();
            }
        });
        if let Err(error) = asking {
            log::error!("cannot start a thread for requests to the front end: {error}");
        }
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The framework has told the queues already.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let to_usize = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        let end = to_usize(offset).saturating_add(to_usize(size));
        self.config()
            .get(to_usize(offset)..end)
            .unwrap_or_default()
            .to_vec()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        // An error would end the connection, and the guest with it. {dev-config-writes}
        log::debug!(
            "write of {} bytes to the configuration at {offset} ignored",
            bytes.len()
        );
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemoryHandle) -> io::Result<()> {
        let system = SystemMemory::new(memory.memory().into_inner());
        if let Err(error) = system.check_files() {
            // The front end may already have put the rings into this memory.
            log::error!("{error}");
            self.give_up();
            return Err(error);
        }
        sigbus::guest_memory_is_at(system.host_pieces());
        if let Some(region) = &self.region {
            region.memory_changed(&system);
        }
        self.accelerator.set_system_memory(system);
        for lane in &self.lanes {
            // A thread that is delayed by a rule would continue with the old memory.
            self.lateness().stop(Some(lane.queue));
        }
        for lane in &self.lanes {
            // A thread that takes the lane afterwards looks the memory up again.
            let moves = lane.quiet();
            if !matches!(moves.state, State::Stopped(_)) {
                self.lateness().start(Some(lane.queue));
            }
        }
        Ok(())
    }

    // {dev-control-not-behind-copy}
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..QUEUE_COUNT).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let (consumer, notifier) = new_event_consumer_and_notifier(flags)
            .inspect_err(|error| log::error!("cannot make an event: {error}"))
            .ok()?;
        self.exits.lock().push(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        let queue = u16::try_from(index).ok().and_then(Queue::from_raw);
        let Some(queue) = queue else { return Ok(()) };
        let lane = self.lane(queue);
        // Chains are moved only under this lock. {dev-stopped-quiet}
        let mut moves = lane.stopping();
        let position = match moves.state {
            State::Stopped(position) => position,
            State::Broken => None,
            State::Running => lane
                .vring
                .get()
                .map(|vring| queue::position(vring.get_ref().get_queue())),
        };
        moves.state = State::Stopped(position);
        drop(moves);
        log::debug!("{} queue stops at {position:?}", queue.name());
        if queue == Queue::Submit {
            self.accelerator.pause();
        }
        Ok(())
    }

    fn handle_event(
        &self,
        device_event: u16,
        events: EventSet,
        vrings: &[Ring],
        thread_id: usize,
    ) -> io::Result<()> {
        let thread = QueueThread(self);
        // Each thread has one queue, so `device_event` is zero.
        let queue = u16::try_from(thread_id).ok().and_then(Queue::from_raw);
        match (queue, vrings) {
            (Some(queue), [ring]) if device_event == 0 => match ring.deaf() {
                None => self.serve(queue, ring.plain()),
                Some(error) => {
                    log::error!("the {} queue cannot be kicked: {error}", queue.name());
                    self.give_up();
                    // Otherwise the thread would get the same event again and again.
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            },
            _ => log::error!("unexpected event {device_event} ({events:?}) on thread {thread_id}"),
        }
        drop(thread);
        Ok(())
    }
}

/// Reports that a queue's thread has panicked, which the framework does not report.
struct QueueThread<'a>(&'a Backend);

impl Drop for QueueThread<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("a queue is not served any more");
            self.0.give_up();
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        for exit in self.exits.lock().drain(..) {
            // SAFETY: the descriptor was made in `exit_event` and handed to the framework, which
            // turns it into a number that it never closes. The framework's threads, which wait for
            // it, own this backend, so they have ended. Nothing else uses the number.
            drop(unsafe { OwnedFd::from_raw_fd(exit) });
        }
    }
}
