//! Pages: moving them, and where they are.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use hmm::{calls, Destination, Migration, PageRange};
use virtio_hmm_spec::uapi::migrate_flags;

use crate::{negative, HmmDevice};

/// struct hmm_migration - The result of moving pages
#[derive(Debug)]
#[repr(C)]
pub struct HmmMigration {
    /// @moved: pages that were moved to the destination
    pub moved: u64,
    /// @skipped: other pages of the range: they were there already, cannot
    /// move, or are not mapped
    pub skipped: u64,
    /// @no_memory: those of @skipped for which the destination had no memory
    pub no_memory: u64,
}

impl From<Migration> for HmmMigration {
    fn from(migration: Migration) -> Self {
        let Migration {
            moved,
            skipped,
            no_memory,
        } = migration;
        Self {
            moved,
            skipped,
            no_memory,
        }
    }
}

/// hmm_migrate() - Moves the pages that hold some bytes to the device or back.
///
/// @device: the device, bound to this process
/// @start: the first byte
/// @bytes: how many bytes
/// @destination: an &enum virtio_hmm_destination
/// @flags: a set of VIRTIO_HMM_MIGRATE_*; %VIRTIO_HMM_MIGRATE_POPULATE is for
///     moves to the device
/// @migration: receives how many pages moved; may be NULL
///
/// Whole pages move, which may hold other data too; that changes no contents.
/// Pages that cannot move stay and are counted, which is no error. A page on
/// the device returns by itself when a CPU touches it.
///
/// Return: zero; -EINVAL for an unknown destination or flag, or a range beyond
/// the end of all addresses; -EPERM when the device is not bound to this
/// process, -ENOMEM when the guest is out of memory, -ENODEV or -EIO when the
/// device is removed or broken.
#[no_mangle]
pub unsafe extern "C" fn hmm_migrate(
    device: *const HmmDevice,
    start: *const c_void,
    bytes: usize,
    destination: u32,
    flags: u32,
    migration: *mut HmmMigration,
) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    let Some(device) = (unsafe { device.as_ref() }) else {
        return -libc::EFAULT;
    };
    let (Some(range), Some(destination)) =
        (pages(start, bytes), Destination::from_raw(destination))
    else {
        return -libc::EINVAL;
    };
    if flags & !migrate_flags::POPULATE != 0 {
        return -libc::EINVAL;
    }
    match calls::migrate(&device.0, range, destination, flags) {
        Err(error) => negative(&error),
        Ok(moved) => {
            if !migration.is_null() {
                // SAFETY: it is not null, and the header asks for a place to write to.
                unsafe { migration.write(moved.into()) };
            }
            0
        }
    }
}

/// hmm_residency() - Reports where the pages are that hold some bytes, without
///     touching them.
///
/// @device: the device
/// @pid: zero for this process, else the id of another one that is bound to the
///     device, which needs CAP_SYS_PTRACE
/// @start: the first byte
/// @bytes: how many bytes
/// @states: receives one byte for each page: %VIRTIO_HMM_PAGE_PLACE of it is the
///     place, and VIRTIO_HMM_PAGE_* has the other bits
/// @room: how many bytes @states has room for
///
/// Return: the number of pages. It is more than @room if there is not enough
/// room, and nothing is written then; so @room zero asks for the number alone.
/// -EINVAL for a range beyond the end of all addresses, -ESRCH when no such
/// process is bound to the device, -EACCES when the caller may not look at it,
/// -EPERM when the device is not bound to this process, -ENODEV when the device
/// is removed.
#[no_mangle]
pub unsafe extern "C" fn hmm_residency(
    device: *const HmmDevice,
    pid: i32,
    start: *const c_void,
    bytes: usize,
    states: *mut u8,
    room: usize,
) -> i64 {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    let Some(device) = (unsafe { device.as_ref() }) else {
        return (-libc::EFAULT).into();
    };
    let Some(range) = pages(start, bytes) else {
        return (-libc::EINVAL).into();
    };
    let count = i64::try_from(range.pages()).unwrap_or(i64::MAX);
    if range.pages() > room || range.pages() == 0 {
        return count;
    }
    if states.is_null() {
        return (-libc::EFAULT).into();
    }
    match device.0.residency_of(pid, range) {
        Err(error) => negative(&error).into(),
        Ok(found) => {
            for (index, state) in found.iter().enumerate() {
                // SAFETY: there are no more states than `room`, for which the header asks.
                let place = unsafe { states.add(index) };
                // SAFETY: as above.
                unsafe { place.write(state.raw()) };
            }
            count
        }
    }
}

/// The pages that hold these bytes. `None` if they go beyond the last address.
fn pages(start: *const c_void, bytes: usize) -> Option<PageRange> {
    let start = start.addr();
    // Room for the rest of the last page, too.
    let last = start.checked_add(bytes)?;
    last.checked_add(hmm::page_size())?;
    Some(PageRange::around(Range { start, end: last }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_wraps_has_no_pages() {
        let page = hmm::page_size();
        let at = |address: usize| std::ptr::without_provenance(address);
        assert_eq!(pages(at(page + 1), page).unwrap().pages(), 2);
        assert_eq!(pages(at(page), 0).unwrap().pages(), 0);
        assert!(pages(at(usize::MAX), 2).is_none());
        assert!(pages(at(page), usize::MAX - page).is_none());
    }
}
