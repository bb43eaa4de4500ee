//! An operation's own buffer for the elements that it works on.
//!
//! Data pass through a block so that they need no alignment in the job's memory and cannot change
//! while they are used. This module knows nothing of addresses.

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::Element;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(target_endian = "big")]
compile_error!("elements are little-endian in memory and are used as they are");

/// The usual size of a block: two of them fit into the first-level cache, and looking up their
/// pages costs little. Half and a quarter of this size were slower.
pub(super) const BLOCK_BYTES: usize = 16 << 10;

/// What a block can hold.
pub(super) trait Value:
    FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Default + PartialEq + PartialOrd
{
}

impl Value for u8 {}
impl Value for u32 {}
impl Value for u64 {}
impl Value for i64 {}
impl Value for f32 {}
impl Value for f64 {}

/// A cache line. Blocks consist of whole lines because vectors that straddle two lines cost twice.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

/// Elements of one type at a time, aligned for all types.
#[derive(Debug)]
pub(super) struct Block {
    lines: Vec<Line>,
}

impl Block {
    /// A block of `bytes` bytes, rounded up to lines.
    ///
    /// # Errors
    ///
    /// [`Status::NoMemory`].
    pub(super) fn new(bytes: usize) -> Result<Self, Status> {
        Ok(Self {
            lines: filled(bytes.div_ceil(LINE_BYTES), Line([0; LINE_BYTES]))?,
        })
    }

    /// The first `count` elements.
    pub(super) fn get<T: Value>(&self, count: usize) -> &[T] {
        let bytes = &self.lines.as_bytes()[..count * size_of::<T>()];
        <[T]>::ref_from_bytes(bytes).expect("lines are aligned for every element")
    }

    /// The first `count` elements, to be changed.
    pub(super) fn get_mut<T: Value>(&mut self, count: usize) -> &mut [T] {
        let bytes = &mut self.lines.as_mut_bytes()[..count * size_of::<T>()];
        <[T]>::mut_from_bytes(bytes).expect("lines are aligned for every element")
    }
}

/// A vector of `count` equal values.
///
/// # Errors
///
/// [`Status::NoMemory`].
pub(super) fn filled<T: Clone>(count: usize, value: T) -> Result<Vec<T>, Status> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(count)
        .map_err(|_| Status::NoMemory)?;
    values.resize(count, value);
    Ok(values)
}

/// The size of an element, for indexing.
pub(super) const fn size(element: Element) -> usize {
    match element {
        Element::U32 | Element::F32 => 4,
        Element::U64 | Element::I64 | Element::F64 => 8,
    }
}
