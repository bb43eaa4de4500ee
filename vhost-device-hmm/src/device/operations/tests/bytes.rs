//! Fill, copy, compare and checksum.

use super::layout::Layout;
use proptest::prelude::*;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{Checksum, Compare, Copy, Fill};

/// Bytes that do not repeat soon.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    (0..count as u64)
        .map(|i| (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7])
        .collect()
}

/// CRC-32C bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fill_writes_the_pattern_and_nothing_else(
        bytes in 0_usize..50_000, pattern: u64, seed: u64,
    ) {
        let mut layout = Layout::default();
        let destination = layout.put(&noise(seed, bytes));
        layout.put(&[1_u8]);
        let mut expected = layout.clone();
        let filled: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(bytes).collect();
        expected.set(destination, &filled);
        let operation = Fill { destination, bytes: bytes as u64, pattern };
        layout.expect(operation, seed, Status::Ok, &[], &expected);
    }

    #[test]
    fn copy_moves_bytes_apart(bytes in 0_usize..60_000, seed: u64) {
        let mut layout = Layout::default();
        let data = noise(seed, bytes);
        let source = layout.put(&data);
        let destination = layout.put(&vec![0_u8; bytes]);
        layout.put(&[1_u8]);
        let mut expected = layout.clone();
        expected.set(destination, &data);
        let operation = Copy { source, destination, bytes: bytes as u64 };
        layout.expect(operation, seed, Status::Ok, &[], &expected);
    }

    #[test]
    fn copy_moves_bytes_over_themselves(
        bytes in 0_usize..60_000, distance in 0_usize..40_000, up: bool, seed: u64,
    ) {
        let mut layout = Layout::default();
        let low = layout.put(&noise(seed, bytes + distance));
        layout.put(&[1_u8]);
        let high = low + distance as u64;
        let (source, destination) = if up { (low, high) } else { (high, low) };
        let data = layout.bytes(source, bytes).to_vec();
        let mut expected = layout.clone();
        expected.set(destination, &data);
        let operation = Copy { source, destination, bytes: bytes as u64 };
        layout.expect(operation, seed, Status::Ok, &[], &expected);
    }

    #[test]
    fn compare_finds_the_first_difference(
        bytes in 1_usize..30_000, at in prop::collection::vec(0_usize..30_000, 0..3), seed: u64,
    ) {
        let mut layout = Layout::default();
        let mut data = noise(seed, bytes);
        let left = layout.put(&data);
        let mut first = bytes;
        for at in at.into_iter().filter(|at| *at < bytes) {
            data[at] = !layout.bytes(left, bytes)[at];
            first = first.min(at);
        }
        let right = layout.put(&data);
        let operation = Compare { left, right, bytes: bytes as u64 };
        layout.expect(operation, seed, Status::Ok, &[first as u64], &layout);
    }

    #[test]
    fn checksum_is_crc32c(bytes in 0_usize..50_000, seed: u64) {
        let mut layout = Layout::default();
        let data = noise(seed, bytes);
        let source = layout.put(&data);
        let operation = Checksum { source, bytes: bytes as u64 };
        layout.expect(operation, seed, Status::Ok, &[crc32c(&data).into()], &layout);
    }
}

#[test]
fn checksum_of_the_check_string_is_the_published_one() {
    let mut layout = Layout::default();
    let source = layout.put(b"123456789");
    let operation = Checksum { source, bytes: 9 };
    layout.expect(operation, 1, Status::Ok, &[0xe306_9283], &layout);
}
