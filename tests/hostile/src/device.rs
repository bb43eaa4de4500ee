//! The device, used by a driver that keeps the rules.
//!
//! It owns transport, memory and rings. It sends chains and checks every one that comes back: only
//! chains that were sent, each only once, and no byte beyond those that the device says it wrote.
//! An attack takes the parts, breaks the rules with them, and restarts the device afterwards. It
//! knows nothing of requests.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use hmm_cli::remark;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_hmm_spec::wire::config::{Config, MAGIC, VERSION};
use virtio_hmm_spec::wire::{Queue, DEVICE_ID, QUEUE_COUNT};
use zerocopy::{FromZeros, IntoBytes};

use crate::memory::{Arena, HUGE};
use crate::ring::{flags, Descriptor, Ring, SIZE, STRIDE};
use crate::transport::{Doorbell, Transport};

/// How long the device may take for an answer.
///
/// It answers in microseconds; only an emulated machine on a busy host takes longer.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// The pause between two polls of the used ring.
///
/// Interrupts are off, so there is no event to wait for. The pause leaves the host's processors to
/// the device.
const REST: Duration = Duration::from_micros(50);

/// The buffers of requests and replies.
const BUFFERS: Range<usize> = HUGE..2 * HUGE;

/// The start of the memory that attacks and checks may map and copy.
pub(crate) const DATA: usize = 2 * HUGE;

/// Huge pages of memory to map and copy.
pub(crate) const DATA_PAGES: usize = 2;

/// Untouched bytes between two buffers.
const GAP: usize = 64;

/// The value of a byte of a reply that the device has not written.
const BLANK: u8 = 0x5c;

/// Every queue in the order of its number.
pub(crate) const QUEUES: [Queue; QUEUE_COUNT] =
    [Queue::Control, Queue::Dma, Queue::Submit, Queue::Fault];

/// One descriptor of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    /// Bytes for the device to read.
    Read(&'a [u8]),
    /// Room for this many bytes of the device.
    Write(usize),
}

/// A chain that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    queue: Queue,
    serial: u64,
}

/// A chain that the device has.
#[derive(Debug)]
struct InFlight {
    serial: u64,
    descriptors: Vec<u16>,
    /// Its memory, so that it is not used again meanwhile.
    buffers: Vec<Range<usize>>,
    /// The parts of it that the device may write, in the order of the chain.
    writable: Vec<Range<usize>>,
}

/// One queue and what is in flight on it.
#[derive(Debug)]
struct Channel {
    ring: Ring,
    doorbell: Doorbell,
    free: Vec<u16>,
    in_flight: HashMap<u32, InFlight>,
}

/// The device and everything needed to talk to it.
#[derive(Debug)]
pub(crate) struct Device {
    /// The registers.
    pub(crate) transport: Transport,
    /// The memory that the device can reach.
    pub(crate) arena: Arena,
    /// The device's description of itself.
    pub(crate) config: Config,
    channels: Vec<Channel>,
    /// The next free byte of [`BUFFERS`].
    cursor: usize,
    serial: u64,
    returned: HashMap<Ticket, Vec<u8>>,
}

impl Device {
    /// Takes the device and starts it.
    ///
    /// # Errors
    ///
    /// When the machine has no such device, or it does not start.
    pub(crate) fn open() -> Result<Self> {
        let transport = Transport::open(DEVICE_ID)?;
        let mut config = Config::new_zeroed();
        transport.read_config(config.as_mut_bytes())?;
        ensure!(
            config.magic.get() == MAGIC && config.version.get() == VERSION,
            "{} is not a virtio-hmm accelerator of version {VERSION}",
            transport.name()
        );
        let mut device = Self {
            transport,
            arena: Arena::new(DATA / HUGE + DATA_PAGES)?,
            config,
            channels: Vec::new(),
            cursor: BUFFERS.start,
            serial: 0,
            returned: HashMap::new(),
        };
        device.restart()?;
        Ok(device)
    }

    /// Resets the device, checks that it has written only to offered memory, and starts it with
    /// empty queues.
    ///
    /// # Errors
    ///
    /// When it wrote anywhere else or does not start.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.transport.reset()?;
        self.arena.verify()?;
        self.negotiate()?;
        self.channels.clear();
        self.returned.clear();
        self.cursor = BUFFERS.start;
        ensure!(
            usize::from(self.transport.queue_count()?) >= QUEUE_COUNT,
            "the machine has not given the device {QUEUE_COUNT} queues"
        );
        for (index, queue) in QUEUES.into_iter().enumerate() {
            let proposed = self.transport.queue_size(queue.raw())?;
            ensure!(
                proposed >= SIZE,
                "queue {index} has only {proposed} descriptors, {SIZE} are needed"
            );
            let ring = Ring::place(&mut self.arena, index * STRIDE)?;
            self.transport
                .enable_queue(queue.raw(), ring.addresses(&self.arena))?;
            self.channels.push(Channel {
                ring,
                doorbell: self.transport.doorbell(queue.raw())?,
                free: (0..SIZE).rev().collect(),
                in_flight: HashMap::new(),
            });
        }
        self.say(VIRTIO_CONFIG_S_DRIVER_OK)
    }

    /// Does all that precedes the setup of the queues (virtio 1.3, 3.1.1).
    ///
    /// # Errors
    ///
    /// When the device does not take the features.
    pub(crate) fn negotiate(&self) -> Result<()> {
        self.say(VIRTIO_CONFIG_S_ACKNOWLEDGE)?;
        self.say(VIRTIO_CONFIG_S_DRIVER)?;
        let wanted = 1u64 << VIRTIO_F_VERSION_1 | 1u64 << VIRTIO_RING_F_INDIRECT_DESC;
        ensure!(
            self.transport.offered_features()? & wanted == wanted,
            "the device does not offer what every driver uses"
        );
        self.transport.accept_features(wanted)?;
        self.say(VIRTIO_CONFIG_S_FEATURES_OK)?;
        let status = u32::from(self.transport.status()?);
        ensure!(
            status & VIRTIO_CONFIG_S_FEATURES_OK != 0,
            "the device refused the features"
        );
        Ok(())
    }

    /// Adds a bit to the device status.
    ///
    /// # Errors
    ///
    /// When the register cannot be accessed.
    pub(crate) fn say(&self, bit: u32) -> Result<()> {
        let status = self.transport.status()? | u8::try_from(bit)?;
        self.transport.set_status(status)
    }

    /// Sends a chain that keeps the rules and notifies the device.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub(crate) fn send(&mut self, queue: Queue, parts: &[Part<'_>]) -> Result<Ticket> {
        let ticket = self.queue(queue, parts)?;
        self.kick(queue)?;
        Ok(ticket)
    }

    /// As [`Self::send`], but does not notify the device.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub(crate) fn queue(&mut self, queue: Queue, parts: &[Part<'_>]) -> Result<Ticket> {
        ensure!(!parts.is_empty(), "a chain has at least one descriptor");
        let free = &mut self.channels[usize::from(queue.raw())].free;
        ensure!(
            free.len() >= parts.len(),
            "the {} queue is full",
            queue.name()
        );
        let descriptors = free.split_off(free.len() - parts.len());
        let mut buffers = Vec::new();
        let mut writable = Vec::new();
        for (position, part) in parts.iter().enumerate() {
            let last = position + 1 == parts.len();
            let (at, length, direction) = match *part {
                Part::Read(bytes) => (self.buffer(bytes)?, bytes.len(), 0),
                Part::Write(length) => {
                    let at = self.room(length)?;
                    writable.push(at..at + length);
                    (at, length, flags::WRITE)
                }
            };
            buffers.push(at..at + length);
            let descriptor = Descriptor {
                address: self.arena.physical(at),
                length: u32::try_from(length)?,
                flags: direction | if last { 0 } else { flags::NEXT },
                next: descriptors.get(position + 1).copied().unwrap_or(0),
            };
            let (arena, ring) = self.parts(queue);
            ring.describe(arena, descriptors[position], descriptor)?;
        }
        self.make_available(queue, descriptors, buffers, writable)
    }

    /// Makes a chain available that may break every rule of chains, and notifies the device.
    ///
    /// `build` gets as many free descriptors as asked for, the first of which is the head, and
    /// returns what to write into each. `writable` is the memory that the device may write through
    /// them.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub(crate) fn send_chain(
        &mut self,
        queue: Queue,
        count: usize,
        writable: Range<usize>,
        build: impl FnOnce(&[u16]) -> Vec<(u16, Descriptor)>,
    ) -> Result<Ticket> {
        let free = &mut self.channels[usize::from(queue.raw())].free;
        ensure!(
            count > 0 && free.len() >= count,
            "the {} queue is full",
            queue.name()
        );
        let descriptors = free.split_off(free.len() - count);
        let table = build(&descriptors);
        let (arena, ring) = self.parts(queue);
        for (index, descriptor) in table {
            ring.describe(arena, index, descriptor)?;
        }
        let ticket =
            self.make_available(queue, descriptors, vec![writable.clone()], vec![writable])?;
        self.kick(queue)?;
        Ok(ticket)
    }

    fn make_available(
        &mut self,
        queue: Queue,
        descriptors: Vec<u16>,
        buffers: Vec<Range<usize>>,
        writable: Vec<Range<usize>>,
    ) -> Result<Ticket> {
        let head = descriptors[0];
        self.serial += 1;
        let serial = self.serial;
        let channel = &mut self.channels[usize::from(queue.raw())];
        channel.in_flight.insert(
            u32::from(head),
            InFlight {
                serial,
                descriptors,
                buffers,
                writable,
            },
        );
        channel.ring.make_available(&mut self.arena, head)?;
        Ok(Ticket { queue, serial })
    }

    /// Reserves this many bytes for the device to write.
    ///
    /// # Errors
    ///
    /// When so much is in flight that there is no room.
    pub(crate) fn room(&mut self, length: usize) -> Result<usize> {
        let at = self.buffer(&vec![BLANK; length])?;
        self.arena.offer(at..at + length);
        Ok(at)
    }

    /// Notifies the device of a queue.
    ///
    /// # Errors
    ///
    /// When the register cannot be accessed.
    pub(crate) fn kick(&self, queue: Queue) -> Result<()> {
        self.transport
            .ring(self.channels[usize::from(queue.raw())].doorbell)
    }

    /// The first part of a chain that the device still has.
    pub(crate) fn request_of(&self, ticket: Ticket) -> Option<Range<usize>> {
        self.channels[usize::from(ticket.queue.raw())]
            .in_flight
            .values()
            .find(|chain| chain.serial == ticket.serial)
            .and_then(|chain| chain.buffers.first().cloned())
    }

    /// Memory and rings of a queue, for any use. The device must be restarted before anything is
    /// sent again.
    pub(crate) fn parts(&mut self, queue: Queue) -> (&mut Arena, &mut Ring) {
        let channel = &mut self.channels[usize::from(queue.raw())];
        (&mut self.arena, &mut channel.ring)
    }

    /// Puts bytes where the device can read them and returns their place.
    ///
    /// # Errors
    ///
    /// When so much is in flight that there is no room.
    pub(crate) fn buffer(&mut self, bytes: &[u8]) -> Result<usize> {
        // Aligned as a table of descriptors must be.
        let room = (bytes.len() + GAP).next_multiple_of(16);
        let mut at = self.cursor;
        let mut wrapped = false;
        loop {
            if at + room > BUFFERS.end {
                ensure!(!wrapped, "there is no room for another buffer");
                wrapped = true;
                at = BUFFERS.start;
            }
            // Skips memory that the device still has.
            let taken = self
                .channels
                .iter()
                .flat_map(|channel| channel.in_flight.values())
                .flat_map(|chain| &chain.buffers)
                .find(|taken| taken.start < at + room && at < taken.end);
            match taken {
                Some(taken) => at = taken.end.next_multiple_of(16),
                None => break,
            }
        }
        self.arena.write(at, bytes)?;
        self.cursor = at + room;
        Ok(at)
    }

    /// The bytes that the device wrote into the chain, if it has come back.
    ///
    /// # Errors
    ///
    /// When the device broke a rule of the queues.
    pub(crate) fn poll(&mut self, ticket: Ticket) -> Result<Option<Vec<u8>>> {
        for queue in QUEUES {
            self.collect(queue)
                .with_context(|| format!("on the {} queue", queue.name()))?;
        }
        Ok(self.returned.remove(&ticket))
    }

    /// Waits for the chain and returns the bytes that the device wrote into it.
    ///
    /// # Errors
    ///
    /// When it does not come back in time or the device broke a rule of the queues.
    pub(crate) fn wait(&mut self, ticket: Ticket) -> Result<Vec<u8>> {
        self.wait_for(ticket, ANSWER_DEADLINE)?
            .with_context(|| format!("no answer on the {} queue", ticket.queue.name()))
    }

    /// As [`Self::wait`] for a chain that may never come back.
    ///
    /// # Errors
    ///
    /// When the device broke a rule of the queues.
    pub(crate) fn wait_for(
        &mut self,
        ticket: Ticket,
        patience: Duration,
    ) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        loop {
            // The clock is read before the ring, so that a late poll still finds an answer that is
            // there.
            let late = Instant::now() > deadline;
            let answer = self.poll(ticket)?;
            if answer.is_some() || late {
                return Ok(answer);
            }
            std::thread::sleep(REST);
        }
    }

    /// Sends a chain and waits for it.
    ///
    /// # Errors
    ///
    /// As [`Self::send`] and [`Self::wait`].
    pub(crate) fn exchange(&mut self, queue: Queue, parts: &[Part<'_>]) -> Result<Vec<u8>> {
        let ticket = self.send(queue, parts)?;
        self.wait(ticket)
    }

    fn collect(&mut self, queue: Queue) -> Result<()> {
        let channel = &mut self.channels[usize::from(queue.raw())];
        while let Some(used) = channel.ring.take_used(&self.arena)? {
            let Some(chain) = channel.in_flight.remove(&used.id) else {
                bail!(
                    "the device returned chain {}, which it did not have",
                    used.id
                );
            };
            let reply = gather(&self.arena, &chain.writable, usize::try_from(used.length)?)?;
            for range in &chain.writable {
                self.arena.take_back(range)?;
            }
            channel.free.extend(chain.descriptors);
            let serial = chain.serial;
            self.returned.insert(Ticket { queue, serial }, reply);
        }
        Ok(())
    }
}

/// The reset makes the device release this memory before it is freed.
impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.transport.reset() {
            remark!("hmm-hostile: leaving the device as it is: {error:#}");
        }
    }
}

/// Collects what the device wrote: the first `length` bytes of the writable parts. The others must
/// be unchanged.
fn gather(arena: &Arena, writable: &[Range<usize>], length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for range in writable {
        bytes.extend(arena.read(range.start, range.len())?);
    }
    ensure!(
        length <= bytes.len(),
        "the device says it wrote {length} bytes where only {} were offered",
        bytes.len()
    );
    let rest = bytes.split_off(length);
    ensure!(
        rest.iter().all(|&byte| byte == BLANK),
        "the device wrote more than the {length} bytes that it says"
    );
    Ok(bytes)
}
