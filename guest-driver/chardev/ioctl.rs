// SPDX-License-Identifier: GPL-2.0

//! Checks that all ioctls have in common.
//!
//! Does not know what any of them does.

use crate::process;
use core::ops::Range;
use kernel::{
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Copies a call's structure in and, if the call succeeds, out.
pub(crate) fn call<T: FromBytes + IntoBytes + Immutable>(
    arg: usize,
    carry_out: impl FnOnce(&mut T) -> Result,
) -> Result<isize> {
    let (mut reader, mut writer) =
        UserSlice::new(UserPtr::from_addr(arg), size_of::<T>()).reader_writer();
    let mut value = T::new_zeroed();
    reader.read_slice(value.as_mut_bytes())?;
    carry_out(&mut value)?;
    writer.write_slice(value.as_bytes())?;
    Ok(0)
}

/// Fails if a field that must be zero is not.
pub(crate) fn zero(field: u32) -> Result {
    if field == 0 {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// A range of addresses of whole pages.
///
/// # Errors
///
/// `EINVAL` if it is not aligned, or if it wraps.
pub(crate) fn page_range(address: u64, bytes: u64) -> Result<Range<usize>> {
    let end = address.checked_add(bytes).ok_or(EINVAL)?;
    let page = PAGE_SIZE as u64;
    if address % page != 0 || bytes % page != 0 {
        return Err(EINVAL);
    }
    Ok(usize::try_from(address)?..usize::try_from(end)?)
}

/// The same for a range that is valid for a process, mapped or not.
///
/// # Errors
///
/// `EINVAL` if it is not aligned, wraps, or has an address that no process can have.
pub(crate) fn process_range(address: u64, bytes: u64) -> Result<Range<usize>> {
    let range = page_range(address, bytes)?;
    if range.end > process::end_of_addresses() {
        return Err(EINVAL);
    }
    Ok(range)
}

/// Fills an array of a program with one byte for each page of a range; calls `fill` for up to
/// `pages` pages at a time.
///
/// # Errors
///
/// `EFAULT` if the array cannot be written, `ENOMEM` if there is no memory, or what `fill`
/// returns.
pub(crate) fn fill_bytes(
    range: &Range<usize>,
    array: u64,
    pages: usize,
    mut fill: impl FnMut(&Range<usize>, &mut [u8]) -> Result,
) -> Result {
    let address = UserPtr::from_addr(usize::try_from(array)?);
    let mut writer = UserSlice::new(address, range.len() >> PAGE_SHIFT).writer();
    let mut all = KVec::from_elem(0, pages, GFP_KERNEL)?;
    let mut start = range.start;
    while start < range.end {
        let step = start..range.end.min(start.saturating_add(pages << PAGE_SHIFT));
        let bytes = all.get_mut(..step.len() >> PAGE_SHIFT).ok_or(EINVAL)?;
        fill(&step, bytes)?;
        writer.write_slice(bytes)?;
        start = step.end;
    }
    Ok(())
}
