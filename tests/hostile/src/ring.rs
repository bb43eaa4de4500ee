//! A split virtqueue (virtio 1.3, 2.7) into which anything can be written.
//!
//! It knows the layout of the three parts and the position of the next entry, and keeps no rule.
//! The caller decides which descriptors are free, whether a chain makes sense and whether the
//! device may see it.

use anyhow::Result;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::Arena;
use crate::transport::QueueAddresses;

/// Descriptors in each queue; the device's own maximum.
pub(crate) const SIZE: u16 = 256;

/// The distance between rings in the arena, in bytes.
pub(crate) const STRIDE: usize = 0x1_0000;

const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x4000;
const USED: usize = 0x8000;

const DESCRIPTOR_BYTES: usize = size_of::<RawDescriptor>();
const USED_BYTES: usize = size_of::<RawUsed>();

/// A descriptor's flags.
pub(crate) mod flags {
    use virtio_bindings::virtio_ring::{
        VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    };

    /// Another descriptor follows.
    pub(crate) const NEXT: u16 = low_half(VRING_DESC_F_NEXT);
    /// The device may write.
    pub(crate) const WRITE: u16 = low_half(VRING_DESC_F_WRITE);
    /// The descriptor points to a table of descriptors.
    pub(crate) const INDIRECT: u16 = low_half(VRING_DESC_F_INDIRECT);

    /// The generated constants are wider than the field.
    const fn low_half(value: u32) -> u16 {
        let [low, high, ..] = value.to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

/// A descriptor; every value is allowed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    /// Guest physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) length: u32,
    /// `VRING_DESC_F_*`.
    pub(crate) flags: u16,
    /// The next descriptor of the chain.
    pub(crate) next: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawDescriptor {
    address: U64,
    length: U32,
    flags: U16,
    next: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawUsed {
    id: U32,
    length: U32,
}

/// The device's entry for a chain that it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// The chain's head.
    pub(crate) id: u32,
    /// Bytes that the device wrote into it.
    pub(crate) length: u32,
}

impl Descriptor {
    /// The descriptor as it lies in a table.
    pub(crate) fn bytes(self) -> [u8; DESCRIPTOR_BYTES] {
        let raw = RawDescriptor {
            address: U64::new(self.address),
            length: U32::new(self.length),
            flags: U16::new(self.flags),
            next: U16::new(self.next),
        };
        zerocopy::transmute!(raw)
    }
}

/// One queue's rings, at a place of the arena.
#[derive(Debug)]
pub(crate) struct Ring {
    base: usize,
    next_available: u16,
    next_used: u16,
}

impl Ring {
    /// Rings at this offset of the arena; they must not be in use.
    ///
    /// # Errors
    ///
    /// When they do not fit there.
    pub(crate) fn place(arena: &mut Arena, base: usize) -> Result<Self> {
        arena.write(base + DESCRIPTORS, &[0; DESCRIPTOR_BYTES * SIZE as usize])?;
        // Flags, index, and one entry for each descriptor. Without EVENT_IDX the last two bytes
        // stay paint. The first flag turns interrupts off.
        let mut available = [0; 4 + 2 * SIZE as usize];
        available[0] = 1;
        arena.write(base + AVAILABLE, &available)?;
        let used = 4 + USED_BYTES * usize::from(SIZE);
        arena.write(base + USED, &vec![0; used])?;
        // Behind the entries the device may also write when it wants to be notified.
        arena.offer(base + USED..base + USED + used + 2);
        Ok(Self {
            base,
            next_available: 0,
            next_used: 0,
        })
    }

    /// The addresses of the parts, for the device.
    pub(crate) fn addresses(&self, arena: &Arena) -> QueueAddresses {
        QueueAddresses {
            size: SIZE,
            descriptors: arena.physical(self.base + DESCRIPTORS),
            available: arena.physical(self.base + AVAILABLE),
            used: arena.physical(self.base + USED),
        }
    }

    /// Writes an entry of the descriptor table.
    ///
    /// # Errors
    ///
    /// When the index is beyond the table.
    pub(crate) fn describe(
        &self,
        arena: &mut Arena,
        index: u16,
        descriptor: Descriptor,
    ) -> Result<()> {
        anyhow::ensure!(index < SIZE, "no descriptor {index}");
        let at = self.base + DESCRIPTORS + usize::from(index) * DESCRIPTOR_BYTES;
        arena.write(at, &descriptor.bytes())
    }

    /// Makes a head available.
    ///
    /// # Errors
    ///
    /// When the rings are not in the arena.
    pub(crate) fn make_available(&mut self, arena: &mut Arena, head: u16) -> Result<()> {
        self.write_available(arena, head)?;
        self.advance(arena, 1)
    }

    /// Writes the next entry of the available ring without showing it to the device.
    ///
    /// # Errors
    ///
    /// When the rings are not in the arena.
    pub(crate) fn write_available(&self, arena: &mut Arena, head: u16) -> Result<()> {
        let slot = usize::from(self.next_available % SIZE);
        arena.write(self.base + AVAILABLE + 4 + 2 * slot, &head.to_le_bytes())
    }

    /// Shows the device this many more entries of the available ring.
    ///
    /// # Errors
    ///
    /// When the rings are not in the arena.
    pub(crate) fn advance(&mut self, arena: &mut Arena, by: u16) -> Result<()> {
        self.next_available = self.next_available.wrapping_add(by);
        arena.publish(self.base + AVAILABLE + 2, self.next_available)
    }

    /// Takes the next entry of the used ring, if there is one.
    ///
    /// # Errors
    ///
    /// When the device's index has run further ahead than the ring is long.
    pub(crate) fn take_used(&mut self, arena: &Arena) -> Result<Option<Used>> {
        let index = arena.observe(self.base + USED + 2)?;
        let waiting = index.wrapping_sub(self.next_used);
        anyhow::ensure!(
            waiting <= SIZE,
            "the device's used index jumped from {} to {index}",
            self.next_used
        );
        if waiting == 0 {
            return Ok(None);
        }
        let slot = usize::from(self.next_used % SIZE);
        let bytes = arena.read(self.base + USED + 4 + USED_BYTES * slot, USED_BYTES)?;
        self.next_used = self.next_used.wrapping_add(1);
        let raw = RawUsed::read_from_bytes(&bytes)
            .map_err(|_| anyhow::anyhow!("a used entry has {USED_BYTES} bytes"))?;
        Ok(Some(Used {
            id: raw.id.get(),
            length: raw.length.get(),
        }))
    }
}
