// SPDX-License-Identifier: GPL-2.0

//! Driver of the virtio HMM device.
//!
//! See README.md for the layers.

#[path = "../spec/src/wire/mod.rs"]
#[macro_use]
pub mod wire;
#[path = "../spec/src/uapi/mod.rs"]
pub mod uapi;

mod driver;
mod sys;
mod virtio;
mod wait;

virtio::module_virtio_driver! {
    type: driver::HmmDriver,
    name: "virtio_hmm",
    authors: ["The virtio-hmm developers"],
    description: "virtio HMM device: shares a process's addresses with an accelerator",
    license: "GPL",
}
