//! The vhost-user skin: four queues, the configuration space, the guest's memory.
//!
//! Each queue has a thread of its own, so that none waits for another one. This module
//! moves chains between rings and the accelerator; it knows neither what a request
//! means nor how it is carried out.
//!
//! Lock order: the control lane, the dma lane, the submit lane, the fault lane. Engines
//! take the last two, one at a time and without holding anything of the accelerator.

mod lane;
mod region;
mod window;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use vhost::vhost_user::Backend as FrontEnd;
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::config::{capability, VERSION};
use virtio_hmm_spec::wire::fault::{FaultHeader, FaultRecord, MIN_BUFFER};
use virtio_hmm_spec::wire::{Queue, QUEUE_COUNT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier,
};
use zerocopy::little_endian::U64;
use zerocopy::IntoBytes;

use crate::command::{self, Raw};
use crate::device::job::{Ended, Ticket};
use crate::device::memory::SystemMemory;
use crate::device::request::{Command, Outcome};
use crate::device::{Accelerator, Listener};
use crate::queue::{self, Chain};
use lane::{Lane, Moving, Seen, State};
use region::Region;

/// The largest ring that a driver may ask for.
const QUEUE_SIZE: usize = 1024;

/// The size of the configuration space in bytes, padding included.
const CONFIG_BYTES: usize = 64;

/// vhost-user's own feature bit.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the vhost-user side of a device is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The guest's CPUs can address device memory.
    pub coherent: bool,
    /// How long at most to look for the next control request before sleeping.
    pub poll: Duration,
}

impl Default for Options {
    /// Private memory; and who looks for requests takes no processor away from anybody: a
    /// processor of the guest, the thread for copies and an engine may run at the same time.
    fn default() -> Self {
        let few = std::thread::available_parallelism().is_ok_and(|count| count.get() < 4);
        Self {
            coherent: false,
            poll: if few { Duration::ZERO } else { window::MOST },
        }
    }
}

/// The guest's memory, as it may change at any time.
pub type GuestMemoryHandle = GuestMemoryAtomic<GuestMemoryMmap>;

/// The device as one front end sees it.
pub struct Backend {
    /// Itself, for threads that must not keep it alive.
    this: Weak<Self>,
    accelerator: Accelerator,
    /// Where the guest's CPUs see device memory, if it is coherent.
    region: Option<Arc<Region>>,
    memory: GuestMemoryHandle,
    lanes: [Lane; QUEUE_COUNT],
    /// The chains of jobs that have not ended.
    held: Mutex<HashMap<Ticket, Chain>>,
    next_ticket: AtomicU64,
    exits: Mutex<Vec<RawFd>>,
}

impl Backend {
    /// A device for a front end whose memory will be known by this handle.
    pub fn new(accelerator: Accelerator, options: Options, memory: GuestMemoryHandle) -> Arc<Self> {
        let region = options
            .coherent
            .then(|| Region::new(Arc::clone(accelerator.device_memory())));
        let backend = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            region,
            memory,
            lanes: [Queue::Control, Queue::Dma, Queue::Submit, Queue::Fault]
                .map(|queue| Lane::new(queue, accelerator.injector(), options.poll)),
            accelerator,
            held: Mutex::default(),
            next_ticket: AtomicU64::new(0),
            exits: Mutex::default(),
        });
        let listener: Weak<dyn Listener> = Arc::downgrade(&backend) as Weak<dyn Listener>;
        backend.accelerator.listen(listener);
        backend
    }

    /// Ends the device: no engine runs any more, and nothing is written to the guest.
    pub fn shut_down(&self) {
        if let Some(region) = &self.region {
            region.close();
        }
        for lane in &self.lanes {
            lane.moves.lock().state = State::Stopped(None);
        }
        self.accelerator.shut_down();
    }

    /// The configuration space. It is read when the front end has said what it can do.
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut space = self.accelerator.config_space();
        if self
            .region
            .as_ref()
            .is_some_and(|region| region.is_offered())
        {
            space.capabilities |= U64::new(capability::COHERENT);
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
            Queue::Fault => self.deliver_faults(),
        }
    }

    /// Notes that a queue moves, if it did not.
    fn start(&self, lane: &Lane, vring: &VringRwLock) {
        let position = {
            let ring = vring.get_ref();
            if !ring.is_enabled() || !queue::is_ready(ring.get_queue()) {
                return;
            }
            queue::position(ring.get_queue())
        };
        let mut moves = lane.moves.lock();
        let State::Stopped(before) = moves.state else {
            return;
        };
        moves.state = State::Running;
        moves.returned.told = position.1;
        drop(moves);
        log::debug!("{} queue starts at {position:?}", lane.queue.name());
        if let (Queue::Control, Some(region)) = (lane.queue, &self.region) {
            region.rings_started();
        }
        if lane.queue == Queue::Submit {
            // A ring that goes on where it stopped belongs to a guest that was paused. Any
            // other one belongs to a driver that has started anew, and that knows nothing
            // of the chains that are still held: a ring with chains that are held does not
            // stand at one and the same number on both sides, as a new one does.
            if before != Some(position) {
                self.held.lock().clear();
                self.accelerator.abandon_jobs();
            }
            self.accelerator.resume();
            self.return_ended();
        }
    }

    fn serve_control(&self) {
        if self
            .region
            .as_ref()
            .is_some_and(|region| region.is_pending())
        {
            // When it is settled the queue is served, whoever has kicked it meanwhile.
            return;
        }
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Control).running(&memory) else {
            return;
        };
        let mut reply = Vec::new();
        lane.drain(&self.accelerator, command::MAX_CONTROL, |lane, chain| {
            if chain.room() < command::MIN_REPLY as u64 {
                lane.drop_chain(&self.accelerator, Some(chain.head()), NO_ROOM);
                return;
            }
            let request = command::decode_control(raw(chain));
            let resets = matches!(request, Ok(Command::Init { version: VERSION }));
            // These tell the driver nothing that it has not known when it asked for them.
            let seen = match request {
                Ok(Command::Map { .. } | Command::Answer(_) | Command::Cancel(_)) => Seen::Together,
                _ => Seen::Soon,
            };
            if resets {
                self.refuse_what_is_queued();
            }
            let in_order = |region: &Arc<Region>| region.is_in_order();
            let outcome = if resets && !self.region.as_ref().is_none_or(in_order) {
                log::error!("the guest does not see device memory: the device is not started");
                Outcome::Refused(Status::DeviceError.into())
            } else {
                self.accelerator.execute(request)
            };
            if resets {
                // A fault of the time before may be on its way to the ring.
                drop(self.lane(Queue::Fault).moves.lock());
            }
            reply.clear();
            command::encode_outcome(&outcome, &mut reply);
            lane.answer(chain, &mut reply, seen);
        });
    }

    /// Answers everything in the dma and submit queues with "not ready", because what was
    /// made available before a reset must not be carried out after it.
    fn refuse_what_is_queued(&self) {
        self.accelerator.close();
        self.serve_copies();
        self.serve_jobs();
    }

    fn serve_copies(&self) {
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Dma).running(&memory) else {
            return;
        };
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
        });
    }

    fn serve_jobs(&self) {
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Submit).running(&memory) else {
            return;
        };
        lane.drain(&self.accelerator, command::MAX_JOB, |lane, chain| {
            if chain.room() < command::JOB_REPLY as u64 {
                lane.drop_chain(&self.accelerator, Some(chain.head()), NO_ROOM);
                return;
            }
            let submission = command::decode_job(raw(chain));
            let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
            // First, because the job may have ended before it is handed in.
            self.held.lock().insert(ticket, std::mem::take(chain));
            if let Err(refused) = self.accelerator.submit(submission, ticket) {
                self.return_jobs(lane, &[refused]);
            }
        });
    }

    /// Returns the chains of jobs that have ended, with one interrupt.
    fn return_ended(&self) {
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Submit).running(&memory) else {
            return;
        };
        let ended = self.accelerator.take_ended();
        if !ended.is_empty() {
            self.return_jobs(&mut lane, &ended);
            lane.signal();
        }
    }

    fn return_jobs(&self, lane: &mut Moving<'_>, ended: &[Ended]) {
        for ended in ended {
            // None when its driver is gone.
            let Some(chain) = self.held.lock().remove(&ended.ticket) else {
                continue;
            };
            let mut reply = command::encode_ended(ended);
            lane.answer(&chain, reply.as_mut_bytes(), Seen::Together);
        }
    }

    /// Fills the buffers that the driver has offered with the faults that wait.
    fn deliver_faults(&self) {
        let memory = self.memory.memory();
        let Some(mut lane) = self.lane(Queue::Fault).running(&memory) else {
            return;
        };
        let (mut buffer, mut contents) = (Chain::default(), Vec::new());
        loop {
            let mut offered = true;
            while offered && self.accelerator.faults_waiting() > 0 {
                match lane.take(&self.accelerator, 0, &mut buffer) {
                    None => offered = false,
                    Some(()) if buffer.room() < MIN_BUFFER as u64 => {
                        lane.drop_chain(&self.accelerator, Some(buffer.head()), NO_ROOM);
                    }
                    Some(()) => {
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
            // Without a fault that waits there is nothing to be kicked for: the next fault
            // will look for a buffer itself.
            if offered || !lane.ask_for_kicks() {
                return;
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

/// How many records a fault buffer can take.
fn capacity(buffer: &Chain) -> usize {
    let room = usize::try_from(buffer.room()).unwrap_or(usize::MAX);
    room.saturating_sub(size_of::<FaultHeader>()) / size_of::<FaultRecord>()
}

impl Listener for Backend {
    fn jobs_ended(&self) {
        self.return_ended();
    }

    fn faults_raised(&self) {
        self.deliver_faults();
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUE_COUNT
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

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
        // Not CONFIGURE_MEM_SLOTS, with which the guest's memory could have more than eight
        // pieces: QEMU 11.1 crashes when it starts a device that has it and a piece is gone
        // that was there when the device was stopped. Each reset of a coherent device takes
        // away a piece of the memory of all the others.
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
        // The queues themselves have been told.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let place = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        let end = place(offset).saturating_add(place(size));
        self.config()
            .get(place(offset)..end)
            .unwrap_or_default()
            .to_vec()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        // An error would end the connection, and the guest with it.
        log::debug!(
            "write of {} bytes to the configuration at {offset} ignored",
            bytes.len()
        );
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemoryHandle) -> io::Result<()> {
        let system = SystemMemory::new(memory.memory().into_inner());
        if let Some(region) = &self.region {
            region.memory_changed(&system);
        }
        self.accelerator.set_system_memory(system);
        Ok(())
    }

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
        // Whoever moves chains does so under this lock.
        let mut moves = lane.moves.lock();
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
        vrings: &[VringRwLock],
        thread_id: usize,
    ) -> io::Result<()> {
        // One queue for each thread, whose index is then zero.
        let queue = u16::try_from(thread_id).ok().and_then(Queue::from_raw);
        match (queue, vrings) {
            (Some(queue), [vring]) if device_event == 0 && events.contains(EventSet::IN) => {
                self.serve(queue, vring);
            }
            // An error would end the thread, and the queue with it.
            _ => log::error!("unexpected event {device_event} ({events:?}) on thread {thread_id}"),
        }
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        for exit in self.exits.lock().drain(..) {
            // SAFETY: the descriptor was made in `exit_event` and handed to the framework,
            // which turns it into a number that it never closes. Its threads, which wait
            // for it, own this backend and so have ended: nobody else uses the number.
            drop(unsafe { OwnedFd::from_raw_fd(exit) });
        }
    }
}
