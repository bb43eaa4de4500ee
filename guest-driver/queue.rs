// SPDX-License-Identifier: GPL-2.0

//! Sends a request and receives its reply.
//!
//! A [`Message`] is a request of one kind, with the memory for its reply; what can be
//! said is in `command`. Knows nothing of processes or of their memory.

use crate::{
    virtio::{Chain, Draft, Handler, Queues, Room},
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
    /// What its entries are.
    type Entry: IntoBytes + Immutable;
    /// What its results are.
    type Output: FromBytes;
}

/// Why a request did not do what it asks for.
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
            // It has ended between the call's check and the request.
            Failure::Refused(Status::NoSpace) => ESRCH,
            // The driver keeps to the limits, so the device does not keep to the protocol.
            Failure::Refused(_) => EIO,
        }
    }
}

/// The way to the device.
pub(crate) struct Link {
    queues: Arc<Queues>,
    control_requests: Atomic<u64>,
    dma_requests: Atomic<u64>,
}

impl Link {
    /// The way to the device behind `queues`.
    pub(crate) fn new(queues: Arc<Queues>) -> Self {
        Self {
            queues,
            control_requests: Atomic::new(0),
            dma_requests: Atomic::new(0),
        }
    }

    /// The queues themselves.
    pub(crate) fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Requests sent on the control queue and on the dma queue.
    pub(crate) fn requests(&self) -> (u64, u64) {
        (
            self.control_requests.load(Relaxed),
            self.dma_requests.load(Relaxed),
        )
    }

    /// A place for a message. May sleep.
    pub(crate) fn room<C: Command>(&self) -> Result<Room<'_>> {
        self.queues.room(C::QUEUE.raw())
    }

    /// Hands a message over without telling the device yet; does not sleep.
    pub(crate) fn post<C: Command>(&self, room: Room<'_>, message: Message<C>) -> Sent<C> {
        let counter = match C::QUEUE {
            Queue::Dma => &self.dma_requests,
            _ => &self.control_requests,
        };
        counter.fetch_add(1, Relaxed);
        Sent {
            capacity: message.capacity,
            chain: room.post(message.seal()),
            _command: PhantomData,
        }
    }

    /// Tells the device of the messages that have been posted; does not sleep.
    pub(crate) fn kick<C: Command>(&self) {
        self.queues.kick(C::QUEUE.raw());
    }

    /// Hands a message over and tells the device. May sleep until there is room.
    pub(crate) fn submit<C: Command>(&self, message: Message<C>) -> Result<Sent<C>, Failure> {
        let room = self.room::<C>().map_err(Failure::Device)?;
        let sent = self.post(room, message);
        self.kick::<C>();
        Ok(sent)
    }

    /// Sends a message and waits for the reply.
    pub(crate) fn send<C: Command>(&self, message: Message<C>) -> Result<Reply<C>, Failure> {
        self.submit(message)?.wait(self)
    }
}

/// A request that is being written.
///
/// # Invariants
///
/// The draft begins with a [`RequestHeader`], which `count` entries follow.
pub(crate) struct Message<C: Command> {
    draft: Draft,
    count: u32,
    capacity: usize,
    _command: PhantomData<C>,
}

impl<C: Command> Message<C> {
    /// A request about `space`, zero if about none, with memory for `capacity` entries
    /// and `results` results.
    pub(crate) fn new(space: u32, capacity: usize, results: usize) -> Result<Self> {
        Self::with_handler(space, capacity, results, None, GFP_KERNEL)
    }

    /// The same, with somebody who is told of the reply.
    pub(crate) fn with_handler(
        space: u32,
        capacity: usize,
        results: usize,
        handler: Option<Arc<dyn Handler>>,
        flags: Flags,
    ) -> Result<Self> {
        let mut draft = Draft::new(
            size_of::<RequestHeader>() + capacity * size_of::<C::Entry>(),
            size_of::<ReplyHeader>() + results * size_of::<C::Output>(),
            handler,
            flags,
        )?;
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
            _command: PhantomData,
        })
    }

    /// A request that was answered, without entries. Does not allocate. `None` if somebody else
    /// still holds it.
    fn again(chain: Arc<Chain>, capacity: usize) -> Option<Self> {
        let mut draft = Draft::again(chain)?;
        draft.request().truncate(size_of::<RequestHeader>());
        // INVARIANT: The header is left and no entry.
        Some(Self {
            draft,
            count: 0,
            capacity,
            _command: PhantomData,
        })
    }

    /// Makes it a request about another space, zero if about none.
    pub(crate) fn set_space(&mut self, space: u32) {
        self.header(|header| header.space = space.into());
    }

    fn header(&mut self, change: impl FnOnce(&mut RequestHeader)) {
        // By the invariants there is one.
        if let Ok((header, _)) = RequestHeader::mut_from_prefix(self.draft.request()) {
            change(header);
        }
    }

    /// How many entries there are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Adds an entry; does not allocate.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there are as many as there is memory for.
    pub(crate) fn push(&mut self, entry: &C::Entry) -> Result {
        if self.count as usize == self.capacity {
            return Err(ENOSPC);
        }
        // Within the capacity this does not allocate.
        self.draft
            .request()
            .extend_from_slice(entry.as_bytes(), GFP_NOWAIT)?;
        self.count += 1;
        Ok(())
    }

    fn seal(mut self) -> Draft {
        let count = self.count;
        self.header(|header| header.count = count.into());
        self.draft
    }
}

/// A request that has been handed over. Dropping it means not to wait for the reply.
pub(crate) struct Sent<C: Command> {
    chain: Arc<Chain>,
    capacity: usize,
    _command: PhantomData<C>,
}

impl<C: Command> Sent<C> {
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
            None => Err(Failure::Device(link.violated())),
        }
    }

    /// Waits until nothing that the request forbids happens any more, and makes the same
    /// request ready to be written again, without entries. Does not allocate.
    ///
    /// A device that refuses is given up, unless the space is gone, which forbids all.
    /// Returns `None` only if the device is given up.
    pub(crate) fn wait_and_reuse(self, link: &Link) -> Option<Message<C>> {
        // With an error the device has been reset and does nothing at all.
        let reply = link.queues.wait(C::QUEUE.raw(), &self.chain).ok()?;
        match parse(reply) {
            Some((Status::Ok | Status::NoSpace, _)) => {}
            _ => {
                link.violated();
            }
        }
        let message = Message::again(self.chain, self.capacity);
        if message.is_none() {
            // Nobody else holds it; but rather no device than one that cannot be told.
            link.violated();
        }
        message
    }
}

impl Link {
    /// Gives up a device that has broken the protocol. May sleep.
    pub(crate) fn violated(&self) -> Error {
        self.queues.give_up(c"it broke the protocol");
        self.queues.error()
    }
}

/// A reply that says `Ok`.
pub(crate) struct Reply<C: Command> {
    chain: Arc<Chain>,
    capacity: usize,
    _command: PhantomData<C>,
}

impl<C: Command> Reply<C> {
    /// The result with this index, or `None` if the device gave fewer.
    pub(crate) fn output(&self, index: usize) -> Option<C::Output> {
        let size = size_of::<C::Output>();
        let start = size_of::<ReplyHeader>().checked_add(index.checked_mul(size)?)?;
        let bytes = self.chain.reply()?.get(start..)?;
        C::Output::read_from_prefix(bytes)
            .ok()
            .map(|(output, _)| output)
    }

    /// Makes the same request ready to be written again, without entries. Does not allocate.
    pub(crate) fn reuse(self) -> Option<Message<C>> {
        Message::again(self.chain, self.capacity)
    }
}

/// The status and the detail of a reply, or `None` if it is none.
pub(crate) fn parse(reply: &[u8]) -> Option<(Status, u32)> {
    let (header, _) = ReplyHeader::read_from_prefix(reply).ok()?;
    Some((Status::from_raw(header.status.get())?, header.detail.get()))
}

/// Looks at replies that nobody waits for.
pub(crate) struct Watch;

impl Handler for Watch {
    fn completed(&self, chain: Arc<Chain>) {
        // Without a reply the device has been given up, which has been told already.
        let Some(reply) = chain.reply() else {
            return;
        };
        match parse(reply) {
            // A space may be ended while requests about it are on their way.
            Some((Status::Ok | Status::NoSpace, _)) => {}
            other => {
                let status = other.map(|(status, _)| status);
                pr_warn_once!("the device refused a mapping or an answer: {:?}\n", status);
            }
        }
    }
}
