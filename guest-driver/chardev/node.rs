// SPDX-License-Identifier: GPL-2.0

//! Nodes in `/dev`: which device has which name.
//!
//! Does not know what is done with an open node.
//!
//! Lock order: [`static@DEVICES`] is taken before any other lock of the driver.

use crate::{
    clients::Clients,
    poll::{Poll, Registration},
    uapi::{dmirror, MAX_DEVICES},
};
use core::{ops::Range, pin::Pin};
use kernel::{
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    prelude::*,
    sync::{global_lock, Arc},
};

/// The maximum number of nodes.
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
    unsafe(uninit) static DEVICES: Mutex<[Option<Arc<Clients>>; COUNT]> = [const { None }; COUNT];
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

    /// For the kernel's tests, for a device with memory of this kind.
    pub(crate) fn of_tests(coherent: bool) -> Self {
        let kind = dmirror::MAX_NODES as usize / 2;
        let first = MAX_DEVICES as usize + if coherent { kind } else { 0 };
        Self(first..first + kind)
    }
}

/// The node of a device, until it is dropped. An open node is a `T`.
pub(crate) struct Node<T: Poll<Node = ()>> {
    number: usize,
    name: &'static CStr,
    registration: Option<Pin<KBox<Registration<T>>>>,
}

impl<T: Poll<Node = ()>> Node<T> {
    /// Makes the device available under the first of these names that is free.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if none is free.
    pub(crate) fn new(clients: &Arc<Clients>, names: Names) -> Result<Self> {
        let number = {
            let mut devices = DEVICES.lock();
            let mut numbers = names.0;
            let is_free = |&number: &usize| devices.get(number).is_some_and(Option::is_none);
            let number = numbers.find(is_free).ok_or(ENOSPC)?;
            *devices.get_mut(number).ok_or(ENOSPC)? = Some(clients.clone());
            number
        };
        let name = NAMES.get(number).ok_or(ENOSPC)?;
        let mut node = Self {
            number,
            name,
            registration: None,
        };
        let registration = Registration::new(name, ());
        node.registration = Some(KBox::pin_init(registration, GFP_KERNEL)?);
        Ok(node)
    }

    /// Its number among the nodes: `N` of `/dev/hmmN`.
    pub(crate) fn number(&self) -> u32 {
        self.number as u32
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static CStr {
        self.name
    }
}

impl<T: Poll<Node = ()>> Drop for Node<T> {
    fn drop(&mut self) {
        // It cannot be opened after this.
        self.registration = None;
        let mut devices = DEVICES.lock();
        let clients = devices.get_mut(self.number).and_then(Option::take);
        drop(devices);
        drop(clients);
    }
}

/// The users of the device whose node is being opened.
///
/// # Errors
///
/// `ENODEV` if it has just been removed.
pub(crate) fn clients<T: MiscDevice>(node: &MiscDeviceRegistration<T>) -> Result<Arc<Clients>> {
    let name = node.device().name();
    let number = NAMES
        .iter()
        .position(|other| *other == name)
        .ok_or(ENODEV)?;
    let devices = DEVICES.lock();
    devices.get(number).cloned().flatten().ok_or(ENODEV)
}
