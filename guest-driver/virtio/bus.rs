// SPDX-License-Identifier: GPL-2.0

//! The virtio bus: drivers and devices.
//!
//! Written like the other buses of the kernel crate, so that it could live there. Does not know
//! what a device does.

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

/// A driver of virtio devices.
pub(crate) trait Driver {
    /// The driver's data for a device that it is bound to.
    type Data: Send + 'static;

    /// The devices that the driver handles.
    const ID_TABLE: IdTable;

    /// Called when a device appears.
    fn probe(device: &Device<device::Core<'_>>) -> impl PinInit<Self::Data, Error>;

    /// Called when the device is removed. Must leave the device reset and without queues.
    fn unbind(device: &Device<device::Core<'_>>, data: Pin<&Self::Data>);

    /// Called before the system sleeps or makes an image of its memory, when no program runs.
    /// Memory can still be allocated without restriction.
    fn prepare(device: &Device<device::Core<'_>>, data: Pin<&Self::Data>);

    /// Called after `prepare`. Must leave the device reset and without queues. If it fails,
    /// everything must be as before, and the system stays awake.
    fn freeze(device: &Device<device::Core<'_>>, data: Pin<&Self::Data>) -> Result;

    /// Called when the system wakes up, for a device that was reset and whose features have been
    /// negotiated again.
    fn restore(device: &Device<device::Core<'_>>, data: Pin<&Self::Data>) -> Result;
}

/// Identifies devices by the number of their kind, for any vendor.
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
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).driver.name = name.as_char_ptr() };
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).id_table = T::ID_TABLE.as_ptr() };
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).driver.pm = Self::PM };
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).validate = Some(Self::validate_callback) };
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).probe = Some(Self::probe_callback) };
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).remove = Some(Self::remove_callback) };
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).freeze = Some(Self::freeze_callback) };
        // SAFETY: The driver is being set up; nothing else uses it.
        unsafe { (*raw).restore = Some(Self::restore_callback) };
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
    /// The bus itself handles everything else about power management.
    const PM: &'static bindings::dev_pm_ops = &bindings::dev_pm_ops {
        prepare: Some(Self::prepare_callback),
        ..pin_init::zeroed()
    };

    /// Refuses `VIRTIO_F_ACCESS_PLATFORM`, which the core would accept for every driver: a driver
    /// that tells a device frame numbers cannot use the addresses of an IOMMU. {drv-event-idx}
    extern "C" fn validate_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The bus calls with a valid device whose features are being negotiated.
        unsafe { bindings::virtio_hmm_refuse_platform_access(vdev) };
        0
    }

    extern "C" fn probe_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The bus calls with a valid device, which stays valid during the call.
        let device = unsafe { &*vdev.cast::<Device<device::Core<'_>>>() };
        // SAFETY: The device is valid during the call, and its generic part with it. The bus is in
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
        // SAFETY: The bus calls this only after `probe_callback` has succeeded, with a valid
        // device, which stays valid during the call.
        unsafe { Self::with_data(vdev, T::unbind) };
    }

    extern "C" fn prepare_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: The kernel calls this for a device that the driver is bound to: `dev` is the
        // generic part of a virtio device.
        let vdev = unsafe { bindings::virtio_hmm_from_device(dev) };
        // SAFETY: The kernel holds the device with its lock, as the bus does. The driver is only
        // bound after `probe_callback` has succeeded.
        unsafe { Self::with_data(vdev, T::prepare) };
        0
    }

    extern "C" fn freeze_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The bus calls this only after `probe_callback` has succeeded, with a valid
        // device, which stays valid during the call.
        from_result(|| unsafe { Self::with_data(vdev, T::freeze) }.map(|()| 0))
    }

    extern "C" fn restore_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The bus calls this only after `probe_callback` has succeeded, with a valid
        // device, which stays valid during the call.
        from_result(|| unsafe { Self::with_data(vdev, T::restore) }.map(|()| 0))
    }

    /// Calls `act` with the device and the driver's data for it.
    ///
    /// # Safety
    ///
    /// The device must be valid during the call, `probe_callback` must have succeeded for it,
    /// and the bus must be in the middle of a callback.
    unsafe fn with_data<R>(
        vdev: *mut bindings::virtio_device,
        act: impl FnOnce(&Device<device::Core<'_>>, Pin<&T::Data>) -> R,
    ) -> R {
        // SAFETY: The caller promises that the device is valid.
        let device = unsafe { &*vdev.cast::<Device<device::Core<'_>>>() };
        // SAFETY: The caller promises that the device is valid, and its generic part with it, and
        // that the bus is in the middle of a callback.
        let generic = unsafe {
            device::Device::<device::CoreInternal<'_>>::from_raw(bindings::virtio_hmm_device(vdev))
        };
        // SAFETY: The caller promises that `probe_callback` has succeeded, which has stored a
        // `T::Data`; it is dropped after the last callback.
        let data = unsafe { generic.drvdata_borrow::<T::Data>() };
        act(device, data)
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
    pub(super) fn as_raw(&self) -> *mut bindings::virtio_device {
        self.0.get()
    }

    /// Reads 32 bits of the configuration space at `offset`, a multiple of four.
    /// {drv-config-read-only}
    pub(crate) fn read_config(&self, offset: u32) -> u32 {
        // SAFETY: By the invariants the device is valid.
        unsafe { bindings::virtio_hmm_read_config(self.as_raw(), offset) }
    }

    /// The physical addresses of the shared memory region with this id, if the device has one and
    /// the transport knows where it is.
    pub(crate) fn shared_memory(&self, id: u8) -> Option<Range<u64>> {
        let (mut start, mut bytes) = (0, 0);
        // SAFETY: By the invariants the device is valid.
        let found = unsafe {
            bindings::virtio_hmm_get_shm_region(self.as_raw(), id, &mut start, &mut bytes)
        };
        let end = start.checked_add(bytes)?;
        found.then_some(start..end)
    }

    /// Whether the device implements virtio version 1, not an earlier draft.
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
