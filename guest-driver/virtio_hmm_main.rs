// SPDX-License-Identifier: GPL-2.0

//! Driver of the virtio HMM device.
//!
//! See README.md for the layers.

// Definitions shared with the device and with programs. The macros must come first.
#[path = "../spec/src/wire/mod.rs"]
#[macro_use]
#[allow(dead_code)]
pub mod wire;
#[path = "../spec/src/uapi/mod.rs"]
#[allow(dead_code)]
pub mod uapi;

mod chardev;
mod clients;
mod device;
mod driver;
mod ends;
mod eventfd;
mod fault;
mod job;
mod late;
mod lifecycle;
mod migrate;
mod mm;
mod poll;
mod process;
mod quirks;
mod space;
mod sys;
mod trace;
mod virtio;
mod wait;
mod watchdog;

use kernel::{driver::Registration, prelude::*};

/// The module: a registered driver.
#[pin_data]
struct Module {
    _late: late::File,
    #[pin]
    _driver: Registration<virtio::Adapter<driver::HmmDriver>>,
    // After the driver: dropped when there are no devices any more.
    _remains: mm::turn::Remains,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: A module is initialised once, and no device is probed before the driver
        // is registered below.
        unsafe { chardev::node::init() };
        // SAFETY: A module is initialised once, and no code that can be late runs before this.
        unsafe { late::init() };
        try_pin_init!(Self {
            _late: late::File::new()?,
            _driver <- Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
            _remains: mm::turn::Remains,
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
        user_share: u32 {
            default: 75,
            description: "What one user may hold of a device, in percent of what others leave",
        },
        process_share: u32 {
            default: 90,
            description: "What one process may hold of its user's jobs, in percent of what others leave",
        },
    },
}
