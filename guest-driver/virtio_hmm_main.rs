// SPDX-License-Identifier: GPL-2.0

//! Driver of the virtio HMM device.
//!
//! See README.md for the layers.

// What the driver shares with the device and with programs. Its macros come first.
#[path = "../spec/src/wire/mod.rs"]
#[macro_use]
#[allow(dead_code)]
pub mod wire;
#[path = "../spec/src/uapi/mod.rs"]
#[allow(dead_code)]
pub mod uapi;

mod command;
mod counters;
mod device;
mod dmirror;
mod driver;
mod fault;
mod file;
mod ioctl;
mod job;
mod mapped;
mod mapping;
mod migrate;
mod mm;
mod node;
mod pages;
mod pipeline;
mod process;
mod queue;
mod residency;
mod space;
mod sys;
mod touch;
mod transfer;
mod virtio;
mod wait;
mod wish;

use kernel::{driver::Registration, prelude::*};

/// The module: a registered driver.
#[pin_data]
struct Module {
    #[pin]
    _driver: Registration<virtio::Adapter<driver::HmmDriver>>,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: A module is initialised once, and no device is probed before the driver
        // is registered below.
        unsafe { node::init() };
        try_pin_init!(Self {
            _driver <- Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
        })
    }
}

module! {
    type: Module,
    name: "virtio_hmm",
    authors: ["The virtio-hmm developers"],
    description: "virtio HMM device: shares a process's addresses with an accelerator",
    license: "GPL",
    params: {
        dmirror: bool {
            default: false,
            description: "Make /dev/hmm_dmirrorN, for the kernel's own tests of HMM",
        },
    },
}
