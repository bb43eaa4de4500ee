// SPDX-License-Identifier: GPL-2.0

//! The kernel's test driver for HMM, `lib/test_hmm.c`, in Rust. See README.md.

#[path = "../../spec/src/wire/mod.rs"]
#[macro_use]
#[allow(dead_code)]
pub mod wire;
#[path = "../../spec/src/uapi/mod.rs"]
#[allow(dead_code)]
pub mod uapi;

/// Sources shared with the driver of the virtio device.
#[path = "../../guest-driver"]
#[allow(dead_code)]
mod shared {
    pub(crate) mod mm;
    pub(crate) mod poll;
    pub(crate) mod process;
    pub(crate) mod quirks;
    pub(crate) mod sys;
    pub(crate) mod wait;
    pub(crate) mod chardev {
        pub(crate) mod ioctl;
        pub(crate) mod kernel_tests;
    }
}

mod device_memory;
mod dmirror;
mod mirror;

use device_memory::{Device, DeviceMemory};
use kernel::{prelude::*, sync::Arc};
use shared::{chardev, mm, poll, process, quirks, sys, wait};

/// The nodes; the kernel's tests open two devices with private memory.
const NODES: [&CStr; 2] = [c"hmm_dmirror0", c"hmm_dmirror1"];

/// The module.
struct Module {
    devices: KVec<Arc<Device>>,
    _nodes: KVec<Pin<KBox<poll::Registration<dmirror::Dmirror>>>>,
    // Dropped after the nodes: no file can be opened any more.
    _remains: mm::turn::Remains,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let (mut devices, mut nodes) = (KVec::new(), KVec::new());
        for name in NODES {
            let device = device_memory::new()?;
            devices.push(device.clone(), GFP_KERNEL)?;
            let node = poll::Registration::new(name, device);
            nodes.push(KBox::pin_init(node, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self {
            devices,
            _nodes: nodes,
            _remains: mm::turn::Remains,
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // There are no open files any more.
        self.devices
            .iter()
            .for_each(|device| DeviceMemory::remove(device));
    }
}

module! {
    type: Module,
    name: "rust_test_hmm",
    authors: ["The virtio-hmm developers"],
    description: "Test of heterogeneous memory management, after lib/test_hmm.c",
    license: "GPL",
}
