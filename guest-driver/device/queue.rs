// SPDX-License-Identifier: GPL-2.0

//! Sends a request and receives its reply.
//!
//! A [`Message`] is a request of one kind, with the memory for its reply; `command` defines the
//! kinds. Knows neither processes nor their memory.

use crate::{
    late,
    virtio::{Chain, Draft, Handler, Queues, ReservedSlot, Written},
    wire::{
        command::{ReplyHeader, Request, RequestHeader, Status},
        Queue,
    },
};
use core::marker::PhantomData;
use kernel::{
    alloc::Flags,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A kind of request.
pub(crate) trait Command {
    /// Its code.
    const OPERATION: Request;
    /// The queue that it goes to.
    const QUEUE: Queue = Queue::Control;
    /// The type of its entries.
    type Entry: IntoBytes + Immutable;
    /// The type of its results.
    type Output: FromBytes;
}

/// Why a request failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    /// The device has been given up or removed.
    Device(Error),
    /// The device refused the request.
    Refused(Status),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Device(error) => error,
            Failure::Refused(Status::NoMemory) => ENOMEM,
            // The space has ended between the call's check and the request.
            Failure::Refused(Status::NoSpace) => ESRCH,
            // The driver keeps to the limits, so the device has violated the protocol.
            Failure::Refused(_) => EIO,
        }
    }
}

/// The link to the device.
pub(crate) struct Link {
    queues: Arc<Queues>,
    control_requests: Atomic<u64>,
    dma_requests: Atomic<u64>,
}

impl Link {
    /// The link to the device behind `queues`.
    pub(crate) fn new(queues: Arc<Queues>) -> Self {
        Self {
            queues,
            control_requests: Atomic::new(0),
            dma_requests: Atomic::new(0),
        }
    }

    /// The queues themselves.
    pub(crate) fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    /// Requests sent on the control queue and on the dma queue.
    pub(crate) fn requests(&self) -> (u64, u64) {
        (
            self.control_requests.load(Relaxed),
            self.dma_requests.load(Relaxed),
        )
    }

    /// The number of the device's life.
    pub(crate) fn life(&self) -> u32 {
        self.queues.life()
    }

    /// Sends the first request of a life and waits for the reply; after that, others may be sent.
    /// {drv-init-first}
    pub(crate) fn send_first<C: Command>(&self, message: Message<C>) -> Result<(), Failure> {
        let slot = self.queues.reserve_first_slot(C::QUEUE.raw());
        let sent = self.post(slot.map_err(Failure::Device)?, message);
        self.kick::<C>();
        sent.wait(self)?;
        self.queues.open();
        Ok(())
    }

    /// Reserves a slot for a message. May sleep.
    pub(crate) fn reserve_slot<C: Command>(&self) -> Result<ReservedSlot<'_>> {
        self.queues.reserve_slot(C::QUEUE.raw())
    }

    /// Reserves slots for two messages on the queue of `C`: both or none. May sleep.
    pub(crate) fn reserve_two_slots<C: Command>(&self) -> Result<[ReservedSlot<'_>; 2]> {
        self.queues.reserve_two_slots(C::QUEUE.raw())
    }

    /// The same if two slots are free now; otherwise fails with `EAGAIN`. Does not sleep.
    pub(crate) fn try_reserve_two_slots<C: Command>(&self) -> Result<[ReservedSlot<'_>; 2]> {
        self.queues.try_reserve_two_slots(C::QUEUE.raw())
    }

    /// Adds a message to its queue without kicking the device. Does not sleep.
    pub(crate) fn post<C: Command>(&self, slot: ReservedSlot<'_>, message: Message<C>) -> Sent<C> {
        let counter = match C::QUEUE {
            Queue::Dma => &self.dma_requests,
            _ => &self.control_requests,
        };
        counter.fetch_add(1, Relaxed);
        let life = message.life.unwrap_or(slot.life());
        Sent {
            capacity: message.capacity,
            chain: slot.post_in(life, message.seal()),
            _command: PhantomData,
        }
    }

    /// Whether the device is known to have carried out all requests up to one, on a queue whose
    /// requests take effect in order: it has answered that request or a later one. Checks the queue
    /// at most once; does not sleep.
    pub(crate) fn has_carried_out(&self, position: Position) -> bool {
        let Position { queue, number } = position;
        self.queues.has_returned(queue.raw(), number)
    }

    /// Notifies the device of the messages posted on the queue of `C`. May sleep.
    pub(crate) fn kick<C: Command>(&self) {
        self.kick_queue(C::QUEUE);
    }

    /// Notifies the device of everything posted on a queue.
    pub(crate) fn kick_queue(&self, queue: Queue) {
        late::before_kick(queue);
        self.queues.kick(queue.raw());
    }

    /// Posts a message and kicks the device. May sleep until there is a slot.
    pub(crate) fn submit<C: Command>(&self, message: Message<C>) -> Result<Sent<C>, Failure> {
        let slot = self.reserve_slot::<C>().map_err(Failure::Device)?;
        let sent = self.post(slot, message);
        self.kick::<C>();
        Ok(sent)
    }

    /// Sends a message and waits for the reply.
    pub(crate) fn send<C: Command>(&self, message: Message<C>) -> Result<Reply<C>, Failure> {
        self.submit(message)?.wait(self)
    }
}

/// A request under construction.
///
/// # Invariants
///
/// The draft begins with a [`RequestHeader`], which `count` entries follow.
pub(crate) struct Message<C: Command> {
    draft: Draft,
    count: u32,
    capacity: usize,
    /// The only life of the device in which it is valid, if it is not valid in all.
    life: Option<u32>,
    _command: PhantomData<C>,
}

impl<C: Command> Message<C> {
    /// A request about `space`, zero for none, with memory for `capacity` entries and `results`
    /// results. {drv-no-space}
    pub(crate) fn new(space: u32, capacity: usize, results: usize) -> Result<Self> {
        Self::with_handler(space, capacity, results, None, GFP_KERNEL)
    }

    /// The same, with a handler for the reply.
    pub(crate) fn with_handler(
        space: u32,
        capacity: usize,
        results: usize,
        handler: Option<Arc<dyn Handler>>,
        flags: Flags,
    ) -> Result<Self> {
        let mut draft = Draft::new(
            bytes::<RequestHeader, C::Entry>(capacity)?,
            // {drv-reply-room}
            bytes::<ReplyHeader, C::Output>(results)?,
            handler,
            flags,
        )?;
        // {drv-flags}, {drv-reserved}
        let header = RequestHeader {
            operation: C::OPERATION.raw().into(),
            flags: 0.into(),
            space: space.into(),
            count: 0.into(),
            reserved: 0.into(),
        };
        draft
            .request()
            .extend_from_slice(header.as_bytes(), flags)?;
        // INVARIANT: There are no entries yet.
        Ok(Self {
            draft,
            count: 0,
            capacity,
            life: None,
            _command: PhantomData,
        })
    }

    /// Makes the request valid in this life of the device only. In any other life it fails.
    pub(crate) fn only_in(mut self, life: u32) -> Self {
        self.life = Some(life);
        self
    }

    /// Reuses a request that was answered, or lost with the life of the device it was posted in; it
    /// has no entries. Does not allocate. `None` if the chain has another owner.
    fn again(chain: Arc<Chain>, capacity: usize) -> Option<Self> {
        let mut message = Self {
            draft: Draft::again(chain)?,
            count: 0,
            capacity,
            life: None,
            _command: PhantomData,
        };
        message.clear();
        Some(message)
    }

    /// Removes all entries.
    pub(crate) fn clear(&mut self) {
        self.draft.request().truncate(size_of::<RequestHeader>());
        // INVARIANT: The header is left and no entry.
        self.count = 0;
    }

    /// Makes the request about another space; zero for none.
    pub(crate) fn set_space(&mut self, space: u32) {
        self.header(|header| header.space = space.into());
    }

    fn header(&mut self, change: impl FnOnce(&mut RequestHeader)) {
        // By the invariants there is a header.
        if let Ok((header, _)) = RequestHeader::mut_from_prefix(self.draft.request()) {
            change(header);
        }
    }

    /// The number of entries.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Adds an entry; does not allocate.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the capacity is exhausted.
    pub(crate) fn push(&mut self, entry: &C::Entry) -> Result {
        if self.count as usize == self.capacity {
            return Err(ENOSPC);
        }
        // Within the capacity this does not allocate.
        self.draft
            .request()
            .extend_from_slice(entry.as_bytes(), GFP_NOWAIT)?;
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    fn seal(mut self) -> Draft {
        let count = self.count;
        self.header(|header| header.count = count.into());
        self.draft
    }
}

/// The size of a header and `count` entries.
fn bytes<H, E>(count: usize) -> Result<usize> {
    let entries = count.checked_mul(size_of::<E>()).ok_or(ENOMEM)?;
    size_of::<H>().checked_add(entries).ok_or(ENOMEM)
}

/// The position of a request in its queue.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    queue: Queue,
    number: u64,
}

impl Position {
    /// The later of two positions in the same queue.
    pub(crate) fn later(self, other: Self) -> Self {
        if self.number < other.number {
            other
        } else {
            self
        }
    }
}

/// A request that has been posted. A caller that drops it does not wait for the reply.
pub(crate) struct Sent<C: Command> {
    chain: Arc<Chain>,
    capacity: usize,
    _command: PhantomData<C>,
}

impl<C: Command> Sent<C> {
    /// Its position in its queue.
    pub(crate) fn position(&self) -> Position {
        Position {
            queue: C::QUEUE,
            number: self.chain.number(),
        }
    }

    /// Waits for the reply.
    pub(crate) fn wait(self, link: &Link) -> Result<Reply<C>, Failure> {
        let queue = C::QUEUE.raw();
        let reply = link
            .queues
            .wait(queue, &self.chain)
            .map_err(Failure::Device)?;
        match parse(reply) {
            Some((Status::Ok, _)) => Ok(Reply {
                chain: self.chain,
                capacity: self.capacity,
                _command: PhantomData,
            }),
            Some((status, _)) => Err(Failure::Refused(status)),
            None => Err(Failure::Device(link.violated_in(self.chain.life()))),
        }
    }

    /// Waits until the device has stopped everything that the request forbids, and prepares the
    /// same request for reuse, without entries. Does not allocate.
    ///
    /// A device that refuses is given up, unless it replies that the space is gone: then it uses
    /// nothing of the space. Without a reply the device has been reset and does nothing at all. A
    /// space that survives the reset needs the request again.
    ///
    /// Returns `None` only if the request has another owner, which does not happen.
    pub(crate) fn wait_and_reuse(self, link: &Link) -> Option<Message<C>> {
        if let Ok(reply) = link.queues.wait(C::QUEUE.raw(), &self.chain) {
            match parse(reply) {
                Some((Status::Ok | Status::NoSpace, _)) => {}
                _ => {
                    link.violated_in(self.chain.life());
                }
            }
        }
        Message::again(self.chain, self.capacity)
    }
}

impl Link {
    /// Gives up a device that has violated the protocol. May sleep.
    pub(crate) fn violated(&self) -> Error {
        self.queues.give_up(c"it broke the protocol");
        self.queues.error()
    }

    /// The same for a violation in this life of the device, if that has not ended. May sleep.
    pub(crate) fn violated_in(&self, life: u32) -> Error {
        self.queues.give_up_in(life, c"it broke the protocol");
        self.queues.error()
    }
}

/// A reply with the status `Ok`.
pub(crate) struct Reply<C: Command> {
    chain: Arc<Chain>,
    capacity: usize,
    _command: PhantomData<C>,
}

impl<C: Command> Reply<C> {
    /// The result with this index, which must be below the number requested.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device returned fewer results; then it is given up, and this may
    /// sleep.
    pub(crate) fn output(&self, link: &Link, index: usize) -> Result<C::Output> {
        self.find_output(index)
            .ok_or_else(|| link.violated_in(self.chain.life()))
    }

    fn find_output(&self, index: usize) -> Option<C::Output> {
        let size = size_of::<C::Output>();
        let start = size_of::<ReplyHeader>().checked_add(index.checked_mul(size)?)?;
        self.chain.reply()?.read(start)
    }

    /// Prepares the same request for reuse, without entries. Does not allocate.
    pub(crate) fn reuse(self) -> Option<Message<C>> {
        Message::again(self.chain, self.capacity)
    }
}

/// The status and the detail of a reply; `None` if it is too short. {drv-unknown-status}
pub(crate) fn parse(reply: Written<'_>) -> Option<(Status, u32)> {
    let header: ReplyHeader = reply.read(0)?;
    let status = Status::from_raw(header.status.get()).unwrap_or(Status::DeviceError);
    Some((status, header.detail.get()))
}

/// Checks replies that no thread waits for.
pub(crate) struct Watch {
    refused: Atomic<bool>,
}

impl Watch {
    /// Nothing has been refused yet.
    pub(crate) const fn new() -> Self {
        Self {
            refused: Atomic::new(false),
        }
    }

    /// Whether the device has ever refused a mapping. Then fewer pages may be mapped than are
    /// recorded.
    pub(crate) fn has_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }
}

impl Handler for Watch {
    fn completed(&self, chain: Arc<Chain>) {
        // Without a reply the device has been given up, which has already been logged.
        let Some(reply) = chain.reply() else {
            return;
        };
        match parse(reply) {
            // A space may be ended while requests about it are in flight.
            Some((Status::Ok | Status::NoSpace, _)) => {}
            other => {
                self.refused.store(true, Relaxed);
                let status = other.map(|(status, _)| status);
                pr_warn_once!("the device refused a mapping or an answer: {:?}\n", status);
            }
        }
    }
}
