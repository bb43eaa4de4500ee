//! The memory that a test lays out, and its expected contents afterwards.

use super::memory::{Arena, Temper, BASE};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::Operation;
use zerocopy::{Immutable, IntoBytes};

/// Pieces of data at addresses without alignment, with gaps that must stay as they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    bytes: Vec<u8>,
}

/// The contents of the gaps.
const GAP: u8 = 0xa5;

impl Layout {
    /// Appends data after a gap, and returns its address.
    pub(super) fn put<T: IntoBytes + Immutable>(&mut self, data: &[T]) -> u64 {
        let gap = 1 + (self.bytes.len() * 7 + data.len()) % 13;
        self.bytes.resize(self.bytes.len() + gap, GAP);
        self.append(data)
    }

    /// Appends data at an address that is a multiple of eight.
    pub(super) fn put_aligned<T: IntoBytes + Immutable>(&mut self, data: &[T]) -> u64 {
        self.bytes.push(GAP);
        while (BASE + self.bytes.len() as u64) % 8 != 0 {
            self.bytes.push(GAP);
        }
        self.append(data)
    }

    fn append<T: IntoBytes + Immutable>(&mut self, data: &[T]) -> u64 {
        let address = self.end();
        self.bytes.extend_from_slice(data.as_bytes());
        address
    }

    /// The first address behind everything.
    pub(super) fn end(&self) -> u64 {
        BASE + self.bytes.len() as u64
    }

    /// Replaces the bytes at an address.
    pub(super) fn set<T: IntoBytes + Immutable>(&mut self, address: u64, data: &[T]) {
        let start = usize::try_from(address - BASE).unwrap();
        let data = data.as_bytes();
        self.bytes[start..start + data.len()].copy_from_slice(data);
    }

    /// The bytes at an address.
    pub(super) fn bytes(&self, address: u64, bytes: usize) -> &[u8] {
        &self.bytes[usize::try_from(address - BASE).unwrap()..][..bytes]
    }

    /// Runs an operation on this layout; returns the result and how it ended.
    pub(super) fn run(
        &self,
        operation: impl Into<Operation>,
        temper: Temper,
    ) -> (Status, [u64; 4], Layout) {
        let mut bytes = self.bytes.clone();
        bytes.push(GAP);
        let mut arena = Arena::new(bytes, temper);
        let (status, results) = arena.run(operation.into()).expect("everything is mapped");
        assert_eq!(arena.bytes.pop(), Some(GAP));
        (status, results, Layout { bytes: arena.bytes })
    }

    /// Asserts that an operation ends like this and leaves exactly `expected` behind, with any
    /// behaviour of pages. {dev-ok-means-done}, {dev-operation-bounds}
    #[track_caller]
    pub(super) fn expect<O: Into<Operation>>(
        &self,
        operation: O,
        seed: u64,
        status: Status,
        results: &[u64],
        expected: &Layout,
    ) {
        self.expect_but(operation, seed, status, results, expected, 0..0);
    }

    /// The same, except that anything may be left in the addresses of `room`.
    #[track_caller]
    pub(super) fn expect_but<O: Into<Operation>>(
        &self,
        operation: O,
        seed: u64,
        status: Status,
        results: &[u64],
        expected: &Layout,
        room: std::ops::Range<u64>,
    ) {
        let operation = operation.into();
        for temper in [Temper::Kind, Temper::Lazy, Temper::Forgetful(seed | 1)] {
            let (found, values, after) = self.run(operation, temper);
            assert_eq!(found, status, "{operation:?} in {temper:?} memory");
            let mut wanted = [0; 4];
            wanted[..results.len()].copy_from_slice(results);
            assert_eq!(values, wanted, "{operation:?} in {temper:?} memory");
            assert_eq!(after.bytes.len(), expected.bytes.len());
            let wrong = (BASE..)
                .zip(after.bytes.iter().zip(&expected.bytes))
                .find(|(address, (left, right))| left != right && !room.contains(address));
            assert_eq!(
                wrong, None,
                "{operation:?} in {temper:?} memory: first wrong byte"
            );
        }
    }
}
