//! A vhost-user device with the virtual accelerator behind it.
//!
//! ```text
//! main → args → server → backend → queue        the guest's rings
//!                           │        command    bytes ⇄ requests
//!                           └──────→ device     what requests do
//!                              lateness          late, and wrong, on purpose
//!                              trace             what happens, moment by moment
//! ```
//!
//! Dependencies point to the right and down. Nothing in [`device`] knows the parts before it, and
//! only [`backend`] and [`server`] know vhost-user.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod args;
pub mod backend;
pub mod command;
pub mod control_socket;
pub mod device;
pub mod last_words;
pub mod lateness;
pub mod misreport;
pub mod outlet;
pub mod queue;
pub mod report;
pub mod sandbox;
pub mod scheduling;
pub mod server;
pub mod service;
pub mod sigbus;
pub mod trace;
