//! The door between a front end and the framework that serves it: passes whole messages, in the
//! order in which they came.
//!
//! The framework waits without limit for the rest of a message, does not check which features a
//! front end was offered, and does not release a channel that it waits at. Messages are therefore
//! read here first. Of the protocol this module knows the header of a message and three requests.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use parking_lot::Mutex;
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use vhost::vhost_user::Listener;

use super::passage::Passage;

/// How long a front end may take to finish a message.
const PATIENCE: Duration = Duration::from_secs(1);

/// The length of a message's header: the request, flags, and the size of the payload.
const HEADER: usize = 12;

/// The largest payload in bytes.
const MOST: usize = 4096;

/// The most descriptors in a message: one for each piece of memory.
const DESCRIPTORS: usize = 32;

const SET_FEATURES: u32 = 2;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;

/// The features that a front end is offered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    /// Features of the device and of the transport.
    pub(super) features: u64,
    /// Features of the protocol.
    pub(super) protocol: u64,
}

/// Why no more messages pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    /// The front end has gone, or the framework has.
    #[error("it has gone")]
    Gone,
    #[error("it began a message and did not go on with it for {PATIENCE:?}")]
    Unfinished,
    #[error("it sent a message of {0} bytes")]
    TooLong(usize),
    #[error("it sent too many descriptors with a message")]
    TooManyDescriptors,
    #[error("it asked for features that it was not offered: {0:#x}")]
    NotOffered(u64),
    #[error("its message cannot be passed on: {0}")]
    Failed(#[from] io::Error),
}

/// A message, as it came.
#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// The door of one front end.
#[derive(Debug)]
pub(super) struct Door {
    outside: UnixStream,
    inside: UnixStream,
    offer: Offer,
    /// The other end of the channel on which the front end takes requests.
    channel: Mutex<Option<UnixStream>>,
}

impl Door {
    /// A door for a front end that has connected, and the listener where the framework takes its
    /// connection. Another process may connect there too, unless [`is_alone`] returns true.
    pub(super) fn new(outside: UnixStream, offer: Offer, passage: Passage) -> (Self, Listener) {
        let Passage { listener, inside } = passage;
        let door = Self {
            outside,
            inside,
            offer,
            channel: Mutex::default(),
        };
        (door, Listener::from(listener))
    }

    /// Closes the door: nothing passes afterwards, and no thread waits here or at the front end's
    /// channel.
    pub(super) fn close(&self) {
        let channel = self.channel.lock();
        let ends = [Some(&self.outside), Some(&self.inside), channel.as_ref()];
        for end in ends.into_iter().flatten() {
            // It fails if the other side has gone, which is as good.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Lets messages of the front end pass until there are no more.
    pub(super) fn pass_in(&self) -> Closed {
        loop {
            match self.read().and_then(|message| self.pass(message)) {
                Ok(()) => {}
                Err(closed) => return closed,
            }
        }
    }

    /// Lets replies of the framework pass until there are no more.
    pub(super) fn pass_out(&self) {
        let mut bytes = [0; HEADER + MOST];
        loop {
            let passed = match (&self.inside).read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => {
                    let reply = bytes.get(..count).unwrap_or_default();
                    (&self.outside).write_all(reply)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                Err(error) => Err(error),
            };
            if passed.is_err() {
                return;
            }
        }
    }

    /// Reads a message. Waits without limit for its start, and at most [`PATIENCE`] for the rest.
    fn read(&self) -> Result<Message, Closed> {
        let mut message = Message::default();
        self.wait(None)?;
        let deadline = Instant::now() + PATIENCE;
        self.read_to(&mut message, HEADER, deadline)?;
        let more = usize::try_from(word(&message.bytes, 8)).unwrap_or(usize::MAX);
        if more > MOST {
            return Err(Closed::TooLong(more));
        }
        self.read_to(&mut message, HEADER + more, deadline)?;
        Ok(message)
    }

    /// Reads until the message has `length` bytes.
    fn read_to(&self, message: &mut Message, length: usize, end: Instant) -> Result<(), Closed> {
        let mut bytes = [0; HEADER + MOST];
        while message.bytes.len() < length {
            self.wait(Some(end))?;
            let room = length - message.bytes.len();
            let room = bytes.get_mut(..room).unwrap_or_default();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(room)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&self.outside, &mut pieces, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::CONNRESET) => return Err(Closed::Gone),
                Err(errno) => return Err(Closed::Failed(errno.into())),
                Ok(received) => received,
            };
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                    message.descriptors.extend(descriptors);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC)
                || message.descriptors.len() > DESCRIPTORS
            {
                return Err(Closed::TooManyDescriptors);
            }
            if received.bytes == 0 {
                return Err(Closed::Gone);
            }
            let received = bytes.get(..received.bytes).unwrap_or_default();
            message.bytes.extend_from_slice(received);
        }
        Ok(())
    }

    /// Waits for something to read, until `end` if given.
    fn wait(&self, end: Option<Instant>) -> Result<(), Closed> {
        loop {
            let timeout = match end {
                None => PollTimeout::NONE,
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)
                }
            };
            let mut events = [PollFd::new(self.outside.as_fd(), PollFlags::POLLIN)];
            match poll(&mut events, timeout) {
                Ok(0) => return Err(Closed::Unfinished),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Closed::Failed(errno.into())),
            }
        }
    }

    /// Passes a message on if it is allowed.
    fn pass(&self, message: Message) -> Result<(), Closed> {
        let number = |at| u64::from(word(&message.bytes, at));
        let asked_for = number(HEADER) | number(HEADER + 4) << 32;
        let unknown = match word(&message.bytes, 0) {
            SET_FEATURES => asked_for & !self.offer.features,
            SET_PROTOCOL_FEATURES => asked_for & !self.offer.protocol,
            SET_BACKEND_REQ_FD => {
                self.remember_channel(&message)?;
                0
            }
            _ => 0,
        };
        if unknown != 0 {
            return Err(Closed::NotOffered(unknown));
        }
        self.write(&message)
    }

    /// Remembers the channel on which the front end takes requests. There is room for one.
    fn remember_channel(&self, message: &Message) -> io::Result<()> {
        let mut channel = self.channel.lock();
        if let (None, [descriptor]) = (&*channel, &*message.descriptors) {
            // The descriptor may be of any kind of file: it is only ever shut down.
            *channel = Some(UnixStream::from(descriptor.try_clone()?));
        }
        Ok(())
    }

    fn write(&self, message: &Message) -> Result<(), Closed> {
        let descriptors: Vec<_> = message.descriptors.iter().map(AsFd::as_fd).collect();
        let mut rest = &*message.bytes;
        let mut first = true;
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if first && !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            let pieces = [IoSlice::new(rest)];
            match sendmsg(&self.inside, &pieces, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => continue,
                // The framework reports why it no longer listens.
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                    return Err(Closed::Gone);
                }
                Err(errno) => return Err(Closed::Failed(errno.into())),
            }
            first = false;
        }
        Ok(())
    }
}

/// Whether no other process has connected to the listener from which the framework has just taken
/// its connection. If so, the connection that it took is the door's.
pub(super) fn is_alone(listener: &impl std::os::fd::AsRawFd) -> io::Result<bool> {
    // SAFETY: the descriptor is open as long as its owner lives, which is borrowed here.
    let listener = unsafe { std::os::fd::BorrowedFd::borrow_raw(listener.as_raw_fd()) };
    let mut events = [PollFd::new(listener, PollFlags::POLLIN)];
    Ok(poll(&mut events, PollTimeout::ZERO)? == 0)
}

/// A 32-bit number in the host's byte order, or zero if it is out of bounds.
fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}
