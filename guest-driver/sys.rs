// SPDX-License-Identifier: GPL-2.0

//! The raw C interface: what the kernel crate binds, and what it does not.
//!
//! Only `virtio`, `wait`, the modules of `mm` and those of `quirks` may use it. It does not know
//! what any of it is for. Names that both would define are those of the kernel crate, so a
//! `struct page` here is the kernel crate's.

#![allow(clippy::all)]
#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks
)]

use kernel::ffi;
use pin_init::MaybeZeroable;

// One page for each item of the bindings would be 40,000 pages.
#[doc(no_inline)]
pub(crate) use kernel::bindings::*;

include!(concat!(env!("VIRTIO_HMM_OBJ"), "/bindings_generated.rs"));
