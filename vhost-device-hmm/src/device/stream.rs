//! Copies of many bytes, past the caches.
//!
//! Whole pages that are copied from one memory to another one are rarely used again before
//! other ones are. An ordinary store reads its line first; one that goes past the caches does
//! not, and several pages at a time keep more of the memory's banks at work than one does. For
//! what the C library copies at once it does the same, but only from sizes on that are beyond
//! a page's. See `docs/benchmarks.md` for what it brings.

use vm_memory::VolatileSlice;

/// How many pages are copied side by side, and so many bytes of each.
const LANES: usize = 4;
const LANE_BYTES: usize = 4096;

/// Shorter runs are left to the caches.
const BLOCK_BYTES: usize = LANES * LANE_BYTES;

/// Copies all bytes of a slice to another one of the same length, which may overlap with it.
/// Whoever reads or writes them meanwhile finds, or leaves, old bytes and new ones.
pub(super) fn copy(from: &VolatileSlice<'_>, to: &VolatileSlice<'_>) {
    let done = streamed(from, to);
    // Within both: no more was done than there is.
    if let (Ok(from), Ok(to)) = (from.offset(done), to.offset(done)) {
        from.copy_to_volatile_slice(to);
    }
}

/// Copies as many blocks as there are, and says how many bytes that were.
#[cfg(target_arch = "x86_64")]
fn streamed(from: &VolatileSlice<'_>, to: &VolatileSlice<'_>) -> usize {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    const LINE: usize = 64;
    const PART: usize = size_of::<__m128i>();

    let bytes = from.len().min(to.len()) / BLOCK_BYTES * BLOCK_BYTES;
    let (source, destination) = (from.ptr_guard(), to.ptr_guard_mut());
    let (source, destination) = (source.as_ptr(), destination.as_ptr());
    // Of the whole: the rest must be as it was until it is copied, too.
    let overlap = source.addr().abs_diff(destination.addr()) < from.len();
    if overlap || destination.align_offset(PART) != 0 {
        return 0;
    }
    for block in (0..bytes).step_by(BLOCK_BYTES) {
        for line in (block..block + LANE_BYTES).step_by(LINE) {
            for lane in (line..line + BLOCK_BYTES).step_by(LANE_BYTES) {
                for part in (lane..lane + LINE).step_by(PART) {
                    // SAFETY:
                    // - `part` and the bytes behind it are within the last whole block of both
                    //   slices, which are mapped, one to be read and one to be written, for as
                    //   long as the slices live; the guards hold on to that.
                    // - A load may be unaligned; `destination` is aligned to what is stored, and
                    //   `part` is a multiple of that.
                    // - Nobody has references to the bytes, as they are handed out only as
                    //   volatile slices and atomics. That somebody may use them meanwhile makes
                    //   this what each copy between volatile slices is.
                    // - Every x86-64 processor has these instructions.
                    unsafe {
                        let value = _mm_loadu_si128(source.add(part).cast());
                        _mm_stream_si128(destination.add(part).cast(), value);
                    }
                }
            }
        }
    }
    // Such stores are not ordered with others: who is told of the copy must find it done.
    //
    // SAFETY: every x86-64 processor has this instruction, which does nothing else.
    unsafe { _mm_sfence() };
    bytes
}

/// No other processor is known to gain by it.
#[cfg(not(target_arch = "x86_64"))]
fn streamed(_from: &VolatileSlice<'_>, _to: &VolatileSlice<'_>) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::Bytes;

    proptest! {
        #[test]
        fn every_byte_is_copied_and_no_other_one(
            from in 0..200_usize,
            to in 0..200_usize,
            apart in prop_oneof![Just(1 << 18), 0..100_000_usize],
            bytes in prop_oneof![0..BLOCK_BYTES, 0..5 * BLOCK_BYTES],
        ) {
            let byte = |place: usize| (place * 31 + place / 251).to_le_bytes()[0];
            let mut memory: Vec<u8> = (0..1 << 19).map(byte).collect();
            let (from, to) = (from * 16, to * 8 + apart);
            let mut expected = memory.clone();
            expected.copy_within(from..from + bytes, to);
            let slice = VolatileSlice::from(&mut memory[..]);
            copy(
                &slice.subslice(from, bytes).unwrap(),
                &slice.subslice(to, bytes).unwrap(),
            );
            let mut found = vec![0; slice.len()];
            slice.read_slice(&mut found, 0).unwrap();
            prop_assert!(found == expected);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn whole_blocks_go_past_the_caches_where_they_may() {
        let mut memory = vec![0_u128; 4 * BLOCK_BYTES / 16];
        let bytes = memory.as_mut_slice();
        let slice = VolatileSlice::from(zerocopy::IntoBytes::as_mut_bytes(bytes));
        let run = |at: usize, bytes: usize| slice.subslice(at, bytes).unwrap();
        let most = 2 * BLOCK_BYTES;
        assert_eq!(streamed(&run(0, most), &run(most, most)), most);
        assert_eq!(
            streamed(&run(1, BLOCK_BYTES), &run(most, BLOCK_BYTES)),
            BLOCK_BYTES
        );
        assert_eq!(
            streamed(&run(0, most - 1), &run(most, most - 1)),
            BLOCK_BYTES
        );
        assert_eq!(streamed(&run(0, most), &run(BLOCK_BYTES, most)), 0);
        assert_eq!(
            streamed(&run(0, BLOCK_BYTES), &run(most + 8, BLOCK_BYTES)),
            0
        );
    }
}
