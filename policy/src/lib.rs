//! Which memory lies on the device: policies as plain data, without anything that carries them out.
//!
//! [`placement`] has no dependency, allocates nothing and cannot panic, so that a kernel module can
//! include `placement/mod.rs` by its path and decide exactly as `hmm replay` does on the host.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::float_arithmetic,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod placement;
