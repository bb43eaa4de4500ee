//! Chains of a virtqueue ⇄ bytes, and the indices of a ring.
//!
//! The bytes of a request are copied out of the guest's memory once, so that they cannot change
//! after they were checked. This module does not know what the bytes mean.

use std::sync::atomic::{fence, Ordering};
use std::time::Instant;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

mod nearby;

pub use nearby::Nearby;

/// The most descriptors of a chain that are read. A chain may have as many as an indirect table
/// holds, 65,535; the largest request takes some hundred pages.
const MAX_DESCRIPTORS: usize = 1024;

/// The offset of the index in either ring, in bytes.
const INDEX: u64 = 2;
/// Bytes before the elements of the used ring, and bytes per element.
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
/// The same for the available ring, which is followed by its `used_event`.
const AVAILABLE_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;

/// A ring that can no longer be used.
#[derive(Debug, thiserror::Error)]
#[error("the ring cannot be used: {0}")]
pub struct Broken(#[from] virtio_queue::Error);

impl From<GuestMemoryError> for Broken {
    fn from(error: GuestMemoryError) -> Self {
        virtio_queue::Error::GuestMemory(error).into()
    }
}

/// What the driver has made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Available {
    /// Nothing.
    Nothing,
    /// A chain.
    Chain,
    /// An unusable chain. It can be returned if it has a head.
    Unusable(Option<u16>),
}

/// A chain that the device holds.
///
/// It can be reused for many chains, to save allocations.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    request: Vec<u8>,
    length: u64,
    room: u64,
    writable: Vec<(GuestAddress, usize)>,
    /// When it was taken, if that is of interest.
    taken: Option<Instant>,
}

impl Chain {
    /// Resets it to the chain with this head, without any descriptors yet.
    fn start(&mut self, head: u16) {
        self.head = head;
        self.request.clear();
        self.length = 0;
        self.room = 0;
        self.writable.clear();
        self.taken = None;
    }

    /// Notes when it was taken.
    pub fn set_taken(&mut self, taken: Option<Instant>) {
        self.taken = taken;
    }

    /// When it was taken, if that was noted.
    pub fn taken(&self) -> Option<Instant> {
        self.taken
    }

    /// The head, by which the chain is returned.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The bytes to read, as many as were asked for.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// The number of bytes that the device may read.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The number of bytes that the device may write.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Writes a reply and returns its length, or zero when there is no room for it.
    /// {dev-used-length}
    pub fn reply(&self, memory: &impl GuestMemory, reply: &[u8]) -> u32 {
        if reply.len() as u64 > self.room {
            return 0;
        }
        let mut rest = reply;
        for (address, length) in &self.writable {
            let (part, next) = rest.split_at(rest.len().min(*length));
            // The range existed when the chain was taken. If the front end has removed the memory
            // since, no driver is left to read the reply.
            if memory.write_slice(part, *address).is_err() {
                return 0;
            }
            rest = next;
        }
        u32::try_from(reply.len()).unwrap_or(0)
    }
}

/// Takes the next chain into `chain` and copies up to `most` bytes of its request. {dev-read-once}
///
/// # Errors
///
/// [`Broken`] when the ring itself is invalid.
pub fn take(
    queue: &mut Queue,
    memory: &impl GuestMemory,
    most: usize,
    chain: &mut Chain,
) -> Result<Available, Broken> {
    if !has_more(queue, memory)? {
        return Ok(Available::Nothing);
    }
    let Some(descriptors) = queue.iter(memory)?.next() else {
        return Err(virtio_queue::Error::InvalidAvailRingIndex.into());
    };
    let head = descriptors.head_index();
    if head >= queue.size() {
        return Ok(Available::Unusable(None));
    }
    chain.start(head);
    let mut complete = false;
    for (index, descriptor) in descriptors.enumerate() {
        let (address, length) = (descriptor.addr(), u64::from(descriptor.len()));
        let access = if descriptor.is_write_only() {
            Permissions::Write
        } else {
            Permissions::Read
        };
        let Ok(bytes) = usize::try_from(length) else {
            return Ok(Available::Unusable(Some(head)));
        };
        // {dev-check-guest}
        if index >= MAX_DESCRIPTORS
            || (bytes != 0 && !memory.check_range(address, bytes, access))
            || (!descriptor.is_write_only() && !chain.writable.is_empty())
        {
            return Ok(Available::Unusable(Some(head)));
        }
        if descriptor.is_write_only() {
            chain.room += length;
            chain.writable.push((address, bytes));
        } else {
            chain.length += length;
            if !read(memory, address, bytes, most, &mut chain.request) {
                return Ok(Available::Unusable(Some(head)));
            }
        }
        complete = !descriptor.has_next();
    }
    // The iterator ends silently at a loop, at an index out of bounds, and at an indirect table
    // that cannot be used.
    Ok(if complete {
        Available::Chain
    } else {
        Available::Unusable(Some(head))
    })
}

/// Appends bytes to a request, up to a length of `most`.
fn read(
    memory: &impl GuestMemory,
    address: GuestAddress,
    bytes: usize,
    most: usize,
    request: &mut Vec<u8>,
) -> bool {
    let start = request.len();
    let count = bytes.min(most.saturating_sub(start));
    request.resize(start + count, 0);
    request
        .get_mut(start..)
        .is_some_and(|into| memory.read_slice(into, address).is_ok())
}

/// Moves the ring back by the chain that was taken last.
pub fn untake(queue: &mut Queue) {
    queue.set_next_avail(queue.next_avail().wrapping_sub(1));
}

/// Returns chains by their heads, with the number of bytes written to each. The driver sees all of
/// them at once, when the ring's index is written.
///
/// # Errors
///
/// [`Broken`] when the ring cannot be written.
pub fn put_back(
    queue: &mut Queue,
    memory: &impl GuestMemory,
    used: &[(u16, u32)],
) -> Result<(), Broken> {
    if used.is_empty() {
        return Ok(());
    }
    let mut index = queue.next_used();
    for &(head, written) in used {
        if head >= queue.size() {
            return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
        }
        let slot = u64::from(index % queue.size());
        let element = [u32::from(head).to_le(), written.to_le()];
        let address = within(queue.used_ring(), USED_HEADER + slot * USED_ELEMENT)?;
        memory.write_obj(element, address)?;
        index = index.wrapping_add(1);
    }
    queue.set_next_used(index);
    let address = within(queue.used_ring(), INDEX)?;
    // {dev-promise-visible}
    Ok(memory.store(index.to_le(), address, Ordering::Release)?)
}

/// Whether the driver wants an interrupt for chains returned since the used index was `told`.
///
/// # Errors
///
/// [`Broken`] when the ring cannot be read.
pub fn wants_interrupt(
    queue: &Queue,
    memory: &impl GuestMemory,
    told: u16,
) -> Result<bool, Broken> {
    // The used index must be visible before the driver's event is read: the driver does the two in
    // the other order.
    fence(Ordering::SeqCst);
    let load = |offset| -> Result<u16, Broken> {
        let address = within(queue.avail_ring(), offset)?;
        Ok(u16::from_le(memory.load(address, Ordering::Relaxed)?))
    };
    if !queue.event_idx_enabled() {
        return Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    let event = load(AVAILABLE_HEADER + u64::from(queue.size()) * AVAILABLE_ELEMENT)?;
    let now = queue.next_used();
    // virtio 1.3, 2.7.7.1: whether the used index has passed the driver's event.
    Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(told))
}

/// An address within a ring.
fn within(ring: u64, offset: u64) -> Result<GuestAddress, Broken> {
    let address = GuestAddress(ring).checked_add(offset);
    Ok(address.ok_or(virtio_queue::Error::AddressOverflow)?)
}

/// Whether the driver has made a chain available that was not taken yet.
///
/// # Errors
///
/// [`Broken`] when the ring cannot be read.
pub fn has_more(queue: &Queue, memory: &impl GuestMemory) -> Result<bool, Broken> {
    Ok(queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail())
}

/// Asks the driver not to send kicks, as far as it can.
///
/// # Errors
///
/// [`Broken`] when the ring cannot be written.
pub fn refuse_kicks(queue: &mut Queue, memory: &impl GuestMemory) -> Result<(), Broken> {
    Ok(queue.disable_notification(memory)?)
}

/// Asks the driver to kick from now on. Returns whether a chain is available already; the driver
/// will not kick for it.
///
/// # Errors
///
/// [`Broken`] when the ring cannot be used.
pub fn ask_for_kicks(queue: &mut Queue, memory: &impl GuestMemory) -> Result<bool, Broken> {
    Ok(queue.enable_notification(memory)?)
}

/// Whether the ring has been set up.
pub fn is_ready(queue: &Queue) -> bool {
    queue.ready()
}

/// The device's position: how many chains it has taken and returned, modulo 2^16.
pub fn position(queue: &Queue) -> (u16, u16) {
    (queue.next_avail(), queue.next_used())
}
