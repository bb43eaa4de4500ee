// SPDX-License-Identifier: GPL-2.0

//! What the kernel crate does not provide yet about processes: the calling one, and others as far
//! as the caller may inspect or change them.

use crate::sys;
use core::{ffi::c_void, ptr::NonNull};
use kernel::{
    error::from_err_ptr,
    mm::{MmWithUser, MmWithUserAsync},
    prelude::*,
    sync::aref::ARef,
    task::Kuid,
    types::NotThreadSafe,
};

/// The user that the resources of a process are accounted to.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    user: u32,
    effective: Kuid,
    is_privileged: bool,
}

impl Owner {
    /// The owner that `fill` describes.
    fn described<T>(fill: impl FnOnce(&mut sys::virtio_hmm_owner) -> T) -> (Self, T) {
        let mut raw = sys::virtio_hmm_owner {
            user: 0,
            effective: 0,
            is_privileged: false,
        };
        let result = fill(&mut raw);
        let owner = Self {
            user: raw.user,
            effective: Kuid::from_raw(sys::kuid_t { val: raw.effective }),
            is_privileged: raw.is_privileged,
        };
        (owner, result)
    }

    /// The owner of the calling process.
    pub(crate) fn caller() -> Self {
        // SAFETY: `owner` is valid for writes; the function may be called by any process.
        Self::described(|owner| unsafe { sys::virtio_hmm_caller(owner) }).0
    }

    /// The ID of the user that the process's resources count for. Users within the namespaces of an
    /// unprivileged user count as that user.
    pub(crate) fn user(self) -> u32 {
        self.user
    }

    /// The effective user of the process.
    pub(crate) fn effective(self) -> Kuid {
        self.effective
    }

    /// Whether the process may exceed limits.
    pub(crate) fn may_exceed_limits(self) -> bool {
        self.is_privileged
    }
}

/// The address space and the owner of the process behind the descriptor `pidfd`, whose memory the
/// caller may write. `memory` is a descriptor of the process's `mem` file in `/proc`, which proves
/// that.
///
/// # Errors
///
/// - `EBADF` if a descriptor is not open or not of its kind.
/// - `ESRCH` if the process has ended, or executes another program than when `memory` was opened.
/// - `EACCES` if the caller may not write the process's memory, or not give advice about it.
/// - `EINTR` if the caller is being killed.
pub(crate) fn traced(pidfd: i32, memory: i32) -> Result<(ARef<MmWithUserAsync>, Owner)> {
    // SAFETY: `owner` is valid for writes; the function takes any numbers.
    let traced = |owner: &mut _| unsafe { sys::virtio_hmm_traced_mm(pidfd, memory, owner) };
    let (owner, mm) = Owner::described(traced);
    let mm = NonNull::new(from_err_ptr(mm)?).ok_or(ESRCH)?;
    // SAFETY: The reference that the function has taken is ours.
    Ok((unsafe { ARef::from_raw(mm.cast()) }, owner))
}

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
    // Not by this thread, if it is the last reference: see `mm::observed`.
    //
    // SAFETY: The reference is ours.
    unsafe { sys::mmput_async(mm) };
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

/// The first address that no process can have.
pub(crate) fn end_of_addresses() -> usize {
    // SAFETY: The function may be called by any process.
    unsafe { sys::virtio_hmm_task_size() }
}

/// Whether the caller is being killed.
pub(crate) fn is_being_killed() -> bool {
    // SAFETY: Always safe to call.
    unsafe { sys::virtio_hmm_is_being_killed() }
}
