// SPDX-License-Identifier: GPL-2.0

//! What the kernel crate does not provide yet about processes: the calling one, and others as far
//! as the caller may inspect them.

use crate::sys;
use core::ffi::c_void;
use kernel::{error::from_err_ptr, mm::MmWithUser, prelude::*, types::NotThreadSafe};

/// Calls `look` with the address space of the process with this number, for comparison only.
///
/// # Errors
///
/// - `ESRCH` if there is no such process in the caller's namespace.
/// - `EACCES` if the caller may not inspect it.
/// - `EINTR` if the caller is being killed.
pub(crate) fn with_mm_of<T>(pid: i32, look: impl FnOnce(*const sys::mm_struct) -> T) -> Result<T> {
    // SAFETY: The function takes any number.
    let mm = from_err_ptr(unsafe { sys::virtio_hmm_mm_of(pid) })?;
    let result = look(mm);
    // SAFETY: The reference is ours, and we may sleep.
    unsafe { sys::mmput(mm) };
    Ok(result)
}

/// As long as this exists, what the calling thread allocates with `__GFP_ACCOUNT` is charged to the
/// control group of a process. For threads that work on its behalf.
pub(crate) struct Charging {
    before: *mut c_void,
    group: *mut c_void,
    _not_send: NotThreadSafe,
}

impl Charging {
    /// Charges the group of the process with this address space.
    pub(crate) fn to(mm: &MmWithUser) -> Self {
        let mut group = core::ptr::null_mut();
        // SAFETY: The address space is valid; the reference to the group passes to `group`.
        let before = unsafe { sys::virtio_hmm_begin_charging(mm.as_raw(), &mut group) };
        Self {
            before,
            group,
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for Charging {
    fn drop(&mut self) {
        // SAFETY: The value cannot be sent, so this is the thread that has begun charging. Both
        // pointers come from there, and the reference to the group is ours.
        unsafe { sys::virtio_hmm_end_charging(self.before, self.group) };
    }
}

/// Whether the caller may exceed limits.
pub(crate) fn may_exceed_limits() -> bool {
    // SAFETY: The function may be called by any process; the capability exists.
    unsafe { sys::capable(sys::CAP_SYS_RESOURCE as i32) }
}

/// The ID of the user that the caller's resources are accounted to. Users within the namespaces of
/// an unprivileged user count as that user.
pub(crate) fn user() -> u32 {
    // SAFETY: The function may be called by any process.
    unsafe { sys::virtio_hmm_user() }
}

/// The first address beyond the caller's address space.
pub(crate) fn end_of_addresses() -> usize {
    // SAFETY: The function may be called by any process.
    unsafe { sys::virtio_hmm_task_size() }
}

/// Whether the caller is being killed.
pub(crate) fn is_being_killed() -> bool {
    // SAFETY: Always safe to call.
    unsafe { sys::virtio_hmm_is_being_killed() }
}
