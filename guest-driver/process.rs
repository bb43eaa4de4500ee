// SPDX-License-Identifier: GPL-2.0

//! What the kernel crate does not tell of the calling process yet.

use crate::sys;

/// Whether the caller may look into other processes.
pub(crate) fn may_trace_others() -> bool {
    // SAFETY: The function may be called by any process; the capability exists.
    unsafe { sys::capable(sys::CAP_SYS_PTRACE as i32) }
}
