// SPDX-License-Identifier: GPL-2.0

//! The virtio bus, and queues of its devices.
//!
//! Does not know what a device does.

mod bus;
mod chain;
mod polling;
mod queue;
mod ring;

pub(crate) use bus::{Adapter, Device, DeviceId, Driver, IdTable};
pub(crate) use chain::{Chain, Draft, Handler, Written};
pub(crate) use queue::{BoundQueues, Plan, Queues, ReservedSlot, Watcher};
pub(crate) use ring::Interrupts;
