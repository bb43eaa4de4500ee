// SPDX-License-Identifier: GPL-2.0

//! Nodes in `/dev`: which device is behind which name.
//!
//! Knows nothing of what is done with an open node.
//!
//! Lock order: [`DEVICES`] is taken before any other lock of the driver.

use crate::{
    device::Device,
    uapi::{dmirror, MAX_DEVICES},
};
use core::{ops::Range, pin::Pin};
use kernel::{
    miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration},
    prelude::*,
    sync::{global_lock, Arc},
};

/// How many nodes there can be.
const COUNT: usize = (MAX_DEVICES + dmirror::MAX_NODES) as usize;

/// Their names.
const NAMES: [&CStr; COUNT] = [
    c"hmm0",
    c"hmm1",
    c"hmm2",
    c"hmm3",
    c"hmm4",
    c"hmm5",
    c"hmm6",
    c"hmm7",
    c"hmm8",
    c"hmm9",
    c"hmm10",
    c"hmm11",
    c"hmm12",
    c"hmm13",
    c"hmm14",
    c"hmm15",
    c"hmm_dmirror0",
    c"hmm_dmirror1",
    c"hmm_dmirror2",
    c"hmm_dmirror3",
];

global_lock! {
    // SAFETY: `init` is called before the driver is registered.
    unsafe(uninit) static DEVICES: Mutex<[Option<Arc<Device>>; COUNT]> = [const { None }; COUNT];
}

/// Prepares what all nodes share.
///
/// # Safety
///
/// Must be called exactly once, before any [`Node`] is made.
pub(crate) unsafe fn init() {
    // SAFETY: The caller promises that this is the only call.
    unsafe { DEVICES.init() };
}

/// Names of nodes of one kind.
#[derive(Clone)]
pub(crate) struct Names(Range<usize>);

impl Names {
    /// For programs.
    pub(crate) const PROGRAMS: Self = Self(0..MAX_DEVICES as usize);

    /// For the kernel's tests of a device with memory of this kind.
    pub(crate) fn of_tests(coherent: bool) -> Self {
        let kind = dmirror::MAX_NODES as usize / 2;
        let first = MAX_DEVICES as usize + if coherent { kind } else { 0 };
        Self(first..first + kind)
    }
}

/// The node of a device, until it is dropped. An open node is a `T`.
pub(crate) struct Node<T: MiscDevice> {
    number: usize,
    registration: Option<Pin<KBox<MiscDeviceRegistration<T>>>>,
}

impl<T: MiscDevice> Node<T> {
    /// Makes the device available under the first of these names that is free.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is none.
    pub(crate) fn new(device: &Arc<Device>, names: Names) -> Result<Self> {
        let number = {
            let mut devices = DEVICES.lock();
            let mut numbers = names.0;
            let number = numbers
                .find(|&number| devices[number].is_none())
                .ok_or(ENOSPC)?;
            devices[number] = Some(device.clone());
            number
        };
        let mut node = Self {
            number,
            registration: None,
        };
        let options = MiscDeviceOptions {
            name: NAMES[number],
        };
        let registration = MiscDeviceRegistration::register(options);
        node.registration = Some(KBox::pin_init(registration, GFP_KERNEL)?);
        Ok(node)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static CStr {
        NAMES[self.number]
    }
}

impl<T: MiscDevice> Drop for Node<T> {
    fn drop(&mut self) {
        // Nobody opens it after this.
        self.registration = None;
        let device = DEVICES.lock()[self.number].take();
        drop(device);
    }
}

/// The device whose node is being opened.
///
/// # Errors
///
/// `ENODEV` if it has just been removed.
pub(crate) fn device<T: MiscDevice>(node: &MiscDeviceRegistration<T>) -> Result<Arc<Device>> {
    let name = node.device().name();
    let number = NAMES
        .iter()
        .position(|other| *other == name)
        .ok_or(ENODEV)?;
    DEVICES.lock()[number].clone().ok_or(ENODEV)
}
