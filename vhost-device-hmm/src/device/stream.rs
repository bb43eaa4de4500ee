//! Copies of many bytes, past the caches.
//!
//! What moves to device memory is rarely used before more has moved than caches hold. An
//! ordinary store reads its line first; one that goes past the caches does not, and several pages
//! at a time keep more of the memory's banks at work than one does. The C library does the same,
//! but only from sizes on that are beyond a large page's. See `docs/benchmarks.md` for what it
//! brings. Where the destination is in a processor's caches already, it takes longer instead.

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
    const LINE: usize = 64;

    let bytes = from.len().min(to.len()) / BLOCK_BYTES * BLOCK_BYTES;
    let (source, destination) = (from.ptr_guard(), to.ptr_guard_mut());
    let (source, destination) = (source.as_ptr(), destination.as_ptr());
    // Of the whole: the rest must be as it was until it is copied, too.
    let overlap = source.addr().abs_diff(destination.addr()) < from.len();
    if overlap || destination.align_offset(part::BYTES) != 0 {
        return 0;
    }
    for block in (0..bytes).step_by(BLOCK_BYTES) {
        for line in (block..block + LANE_BYTES).step_by(LINE) {
            for lane in (line..line + BLOCK_BYTES).step_by(LANE_BYTES) {
                for at in (lane..lane + LINE).step_by(part::BYTES) {
                    let (source, destination) =
                        (source.wrapping_add(at), destination.wrapping_add(at));
                    // SAFETY: `at` and the bytes behind it are within the last whole block of both
                    // slices, which are mapped, one to be read and one to be written, for as long
                    // as the slices live, and the guards hold on to that. The destination is
                    // aligned, and `at` a multiple of that. Nobody has references to the bytes, as
                    // they are handed out only as volatile slices and atomics; that somebody may
                    // use them meanwhile makes this what each copy between such slices is.
                    unsafe { part::copy(source, destination) };
                }
            }
        }
    }
    part::settle();
    bytes
}

/// What is loaded and stored at a time.
#[cfg(target_arch = "x86_64")]
mod part {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// Its size, and what a destination is aligned to.
    pub(super) const BYTES: usize = size_of::<__m128i>();

    /// Copies it past the caches.
    ///
    /// # Safety
    ///
    /// So many bytes must be mapped at `from`, to be read, and at `to`, to be written, without
    /// any reference to the latter; `to` must be aligned to their number.
    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8) {
        // SAFETY: the caller promises that the bytes can be read; the load need not be aligned,
        // and every x86-64 processor has it.
        let value = unsafe { _mm_loadu_si128(from.cast()) };
        // SAFETY: the caller promises that the bytes can be written and are aligned; every x86-64
        // processor has this store.
        unsafe { _mm_stream_si128(to.cast(), value) };
    }

    /// Such stores are not ordered with others: who is told of them must find them done.
    #[inline]
    pub(super) fn settle() {
        // SAFETY: every x86-64 processor has this instruction, which does nothing else.
        unsafe { _mm_sfence() };
    }
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
