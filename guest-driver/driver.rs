// SPDX-License-Identifier: GPL-2.0
//! Probe and remove.
use crate::{virtio, wire};
use core::pin::Pin;
use kernel::{device::Core, prelude::*};

pub(crate) struct HmmDriver;

kernel::module_device_table!("virtio", virtio::DeviceId, DEVICES, @none, [
    virtio::DeviceId::new(wire::DEVICE_ID)
]);

#[pin_data]
pub(crate) struct Data { a: u32 }

impl virtio::Driver for HmmDriver {
    type Data = Data;
    const ID_TABLE: virtio::IdTable = &DEVICES;
    fn probe(device: &virtio::Device<Core<'_>>) -> impl PinInit<Self::Data, Error> {
        let magic = device.read_config(0);
        let ok = device.is_modern();
        dev_info!(device, "magic {:#x} {}\n", magic, ok);
        try_pin_init!(Data { a: magic })
    }
    fn unbind(_device: &virtio::Device<Core<'_>>, _data: Pin<&Self::Data>) {}
}
