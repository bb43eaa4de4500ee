//! Copies of many bytes, past the caches.
//!
//! Data moved to device memory is rarely used before more has moved than caches hold. An ordinary
//! store reads its line first; a non-temporal store does not. Copying several pages in parallel
//! keeps more of the memory's banks busy than copying one. The C library does the same, but only
//! for sizes beyond a huge page. See `docs/benchmarks.md` for the gain. If the destination is in a
//! processor's caches already, it takes longer instead.

use vm_memory::VolatileSlice;

/// The number of pages copied in parallel, and the bytes of each per block.
const LANES: usize = 4;
const LANE_BYTES: usize = 4096;

/// Shorter runs are copied through the caches.
const BLOCK_BYTES: usize = LANES * LANE_BYTES;

/// Copies all bytes of a slice to another one of the same length, which may overlap with it.
/// Concurrent readers and writers find, or leave, old bytes and new ones.
pub(super) fn copy(from: &VolatileSlice<'_>, to: &VolatileSlice<'_>) {
    let done = streamed(from, to);
    // Within both: no more was copied than they hold.
    if let (Ok(from), Ok(to)) = (from.offset(done), to.offset(done)) {
        from.copy_to_volatile_slice(to);
    }
}

/// Copies as many blocks as there are, and returns the number of bytes.
#[cfg(target_arch = "x86_64")]
fn streamed(from: &VolatileSlice<'_>, to: &VolatileSlice<'_>) -> usize {
    const LINE: usize = 64;

    let bytes = from.len().min(to.len()) / BLOCK_BYTES * BLOCK_BYTES;
    let (source, destination) = (from.ptr_guard(), to.ptr_guard_mut());
    let (source, destination) = (source.as_ptr(), destination.as_ptr());
    // Checked for the whole slices: the rest, too, must not change until it is copied.
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
                    // slices. These are mapped, one for reading and one for writing, for as long as
                    // they live, and the guards keep them alive. The destination is aligned, and
                    // `at` is a multiple of that. There are no references to the bytes, as they are
                    // handed out only as volatile slices and atomics. Other threads may use them
                    // meanwhile; in this the copy equals any copy between such slices.
                    unsafe { part::copy(source, destination) };
                }
            }
        }
    }
    part::settle();
    bytes
}

/// The unit that is loaded and stored at a time.
#[cfg(target_arch = "x86_64")]
mod part {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// Its size, and the alignment of a destination.
    pub(super) const BYTES: usize = size_of::<__m128i>();

    /// Copies it past the caches.
    ///
    /// # Safety
    ///
    /// [`BYTES`] bytes must be mapped at `from`, for reading, and at `to`, for writing, without any
    /// reference to the latter; `to` must be aligned to [`BYTES`].
    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8) {
        // SAFETY: the caller guarantees that the bytes can be read; the load need not be aligned,
        // and every x86-64 processor has it.
        let value = unsafe { _mm_loadu_si128(from.cast()) };
        // SAFETY: the caller guarantees that the bytes can be written and are aligned; every x86-64
        // processor has this store.
        unsafe { _mm_stream_si128(to.cast(), value) };
    }

    /// Non-temporal stores are not ordered with others. They must be done before another thread is
    /// told of them.
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
            let byte = |index: usize| (index * 31 + index / 251).to_le_bytes()[0];
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
