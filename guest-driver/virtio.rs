// SPDX-License-Identifier: GPL-2.0

//! The virtio bus: drivers and devices.
//!
//! Written as the kernel crate writes its other buses, so that it could live there.
//! Knows nothing of what a device does.

use crate::sys as bindings;
use core::{marker::PhantomData, mem::offset_of, ops::Range, pin::Pin};
use kernel::{
    device,
    device_id::RawDeviceId,
    driver,
    error::{from_result, to_result},
    prelude::*,
    types::Opaque,
    ThisModule,
};

mod chain;
mod polling;
mod queue;
mod ring;

pub(crate) use chain::{Chain, Draft, Handler};
pub(crate) use queue::{Plan, Queues, RunningQueues};
pub(crate) use ring::{Interrupts, Room};

/// A driver of virtio devices.
pub(crate) trait Driver {
    /// What the driver keeps for a device that it is bound to.
    type Data: Send + 'static;

    /// The devices that the driver handles.
    const ID_TABLE: IdTable;

    /// Called when a device appears.
    fn probe(device: &Device<device::Core<'_>>) -> impl PinInit<Self::Data, Error>;

    /// Called when the device goes. Must leave the device reset and without queues.
    fn unbind(device: &Device<device::Core<'_>>, data: Pin<&Self::Data>);
}

/// Identifies devices by the number of their kind, whoever made them.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct DeviceId(bindings::virtio_device_id);

impl DeviceId {
    /// All devices with this number.
    pub(crate) const fn new(device: u32) -> Self {
        const ANY_VENDOR: u32 = u32::MAX;
        Self(bindings::virtio_device_id {
            device,
            vendor: ANY_VENDOR,
        })
    }
}

// SAFETY: `DeviceId` is a transparent wrapper of the raw type.
unsafe impl RawDeviceId for DeviceId {
    type RawType = bindings::virtio_device_id;
}

/// A table of device ids.
pub(crate) type IdTable = &'static dyn kernel::device_id::IdTable<DeviceId, ()>;

/// Connects a [`Driver`] with the bus.
pub(crate) struct Adapter<T: Driver>(PhantomData<T>);

// SAFETY:
// - `struct virtio_driver` is declared `repr(C)`.
// - `T::Data` is what `probe_callback` stores as private data of the device.
// - `driver` is the embedded `struct device_driver`, at the offset given.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::virtio_driver;
    type DriverData<'bound> = T::Data;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: `unregister` may be called exactly after `register` has succeeded.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        driver: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        let raw = driver.get();
        // SAFETY: The driver is being set up; nobody else uses it.
        unsafe { (*raw).driver.name = name.as_char_ptr() };
        // SAFETY: As above.
        unsafe { (*raw).id_table = T::ID_TABLE.as_ptr() };
        // SAFETY: As above.
        unsafe { (*raw).probe = Some(Self::probe_callback) };
        // SAFETY: As above.
        unsafe { (*raw).remove = Some(Self::remove_callback) };
        // SAFETY: `raw` is a complete driver without features, which stays where it is
        // until it is unregistered.
        to_result(unsafe { bindings::__register_virtio_driver(raw, module.as_ptr()) })
    }

    unsafe fn unregister(driver: &Opaque<Self::DriverType>) {
        // SAFETY: The caller promises that the driver is registered.
        unsafe { bindings::unregister_virtio_driver(driver.get()) };
    }
}

impl<T: Driver> Adapter<T> {
    extern "C" fn probe_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The bus calls with a valid device, which stays valid during the call.
        let device = unsafe { &*vdev.cast::<Device<device::Core<'_>>>() };
        // SAFETY: As above, so that its generic part is valid too; and the bus is in
        // the middle of binding it.
        let generic = unsafe {
            device::Device::<device::CoreInternal<'_>>::from_raw(bindings::virtio_hmm_device(vdev))
        };
        from_result(|| {
            generic.set_drvdata(T::probe(device))?;
            Ok(0)
        })
    }

    extern "C" fn remove_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The bus calls with a valid device, which stays valid during the call.
        let device = unsafe { &*vdev.cast::<Device<device::Core<'_>>>() };
        // SAFETY: As above, so that its generic part is valid too; and the bus is in
        // the middle of unbinding it.
        let generic = unsafe {
            device::Device::<device::CoreInternal<'_>>::from_raw(bindings::virtio_hmm_device(vdev))
        };
        // SAFETY: The bus calls this only after `probe_callback` has succeeded, which
        // has stored a `T::Data`; it is dropped after this call.
        let data = unsafe { generic.drvdata_borrow::<T::Data>() };
        T::unbind(device, data);
    }
}

/// A virtio device.
///
/// # Invariants
///
/// The wrapped `struct virtio_device` is valid as long as there is a reference.
#[repr(transparent)]
pub(crate) struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::virtio_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    fn as_raw(&self) -> *mut bindings::virtio_device {
        self.0.get()
    }

    /// Reads 32 bits of the configuration space at `offset`, a multiple of four.
    pub(crate) fn read_config(&self, offset: u32) -> u32 {
        // SAFETY: By the invariants the device is valid.
        unsafe { bindings::virtio_hmm_read_config(self.as_raw(), offset) }
    }

    /// The physical addresses of a shared memory region, if the device has one of this id
    /// and the transport can tell where it is.
    pub(crate) fn shared_memory(&self, id: u8) -> Option<Range<u64>> {
        let (mut start, mut bytes) = (0, 0);
        // SAFETY: By the invariants the device is valid.
        let found = unsafe {
            bindings::virtio_hmm_get_shm_region(self.as_raw(), id, &mut start, &mut bytes)
        };
        let end = start.checked_add(bytes)?;
        found.then_some(start..end)
    }

    /// Whether the device follows version 1 of virtio, not an earlier draft.
    pub(crate) fn is_modern(&self) -> bool {
        // SAFETY: By the invariants the device is valid. This bit belongs to the
        // transport, which every driver accepts, so the core does not object.
        unsafe { bindings::virtio_hmm_has_version_1(self.as_raw()) }
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the invariants the device is valid, so its generic part is for as
        // long, and in the same state.
        unsafe { device::Device::from_raw(bindings::virtio_hmm_device(self.as_raw())) }
    }
}
