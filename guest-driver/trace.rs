// SPDX-License-Identifier: GPL-2.0

//! The driver's tracepoints. `trace.h` defines them, and docs/tracing.md has their meaning.
//!
//! Each function here is a static branch, which costs nothing while there is no trace. The event is made
//! by a closure, which is called only while there is one. `kernel::declare_trace!` does the same for
//! tracepoints of the kernel itself; it does not find those of a module.
//!
//! Does not know what the events are about.

use crate::sys as bindings;
pub(crate) use crate::sys::{
    virtio_hmm_trace_change as Change, virtio_hmm_trace_complete as Complete,
    virtio_hmm_trace_fault as Fault, virtio_hmm_trace_invalidate as Invalidate,
    virtio_hmm_trace_migrate as Migrate, virtio_hmm_trace_resolve as Resolve,
    virtio_hmm_trace_submit as Submit,
};

macro_rules! tracepoints {
    ($($(#[$meta:meta])* $name:ident: $event:ident, $tracepoint:ident, $call:ident;)+) => { $(
        $(#[$meta])*
        #[inline(always)]
        pub(crate) fn $name(event: impl FnOnce() -> $event) {
            #[cfg(CONFIG_TRACEPOINTS)]
            {
                // SAFETY: C defines the tracepoint, whose key is a static key.
                let is_on = unsafe {
                    kernel::jump_label::static_branch_unlikely!(
                        bindings::$tracepoint,
                        bindings::tracepoint,
                        key
                    )
                };
                if is_on {
                    let event = event();
                    // SAFETY: The event is valid, and is not used after the call.
                    unsafe { bindings::$call(&raw const event) };
                }
            }
            #[cfg(not(CONFIG_TRACEPOINTS))]
            drop(event);
        }
    )+ };
}

tracepoints! {
    /// A fault of the device has arrived.
    fault: Fault, __tracepoint_virtio_hmm_fault, rust_do_trace_virtio_hmm_fault;
    /// Pages of a region have been mapped, or could not be.
    resolve: Resolve, __tracepoint_virtio_hmm_resolve, rust_do_trace_virtio_hmm_resolve;
    /// Pages of a range have moved, or none of them could.
    migrate: Migrate, __tracepoint_virtio_hmm_migrate, rust_do_trace_virtio_hmm_migrate;
    /// A process is about to change its address space.
    change: Change, __tracepoint_virtio_hmm_change, rust_do_trace_virtio_hmm_change;
    /// The device has acknowledged an `Unmap` that a change waited for.
    invalidate: Invalidate, __tracepoint_virtio_hmm_invalidate, rust_do_trace_virtio_hmm_invalidate;
    /// A job has been put into the submit queue.
    submit: Submit, __tracepoint_virtio_hmm_submit, rust_do_trace_virtio_hmm_submit;
    /// The device has returned a job, or was reset.
    complete: Complete, __tracepoint_virtio_hmm_complete, rust_do_trace_virtio_hmm_complete;
}
