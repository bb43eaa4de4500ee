//! The registers of a virtio PCI device (virtio 1.3, 4.1).
//!
//! The only file that accesses a BAR. It writes what it is told, in the given order: the caller
//! decides whether that is the right order of initialisation.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

use crate::pci::Function;

const VENDOR: u16 = 0x1af4;
/// PCI device ids of modern devices begin here (4.1.2).
const FIRST_DEVICE: u16 = 0x1040;
const VENDOR_CAPABILITY: u8 = 0x09;

// Kinds of virtio capabilities (4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;

/// A register's offset.
macro_rules! register {
    ($field:ident) => {
        std::mem::offset_of!(Common, $field)
    };
}

/// How long the device may take to reset: it first ends its work.
const RESET_DEADLINE: Duration = Duration::from_secs(30);

/// The common configuration (4.1.4.3). Every register is accessed in its own size, and 64-bit
/// registers in two halves.
#[allow(
    dead_code,
    reason = "it is never made: its layout gives the registers' offsets"
)]
#[repr(C)]
struct Common {
    device_feature_select: u32,
    device_feature: u32,
    driver_feature_select: u32,
    driver_feature: u32,
    config_msix_vector: u16,
    num_queues: u16,
    device_status: u8,
    config_generation: u8,
    queue_select: u16,
    queue_size: u16,
    queue_msix_vector: u16,
    queue_enable: u16,
    queue_notify_off: u16,
    queue_desc: u64,
    queue_driver: u64,
    queue_device: u64,
}

/// Where the three parts of a queue are, as guest physical addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueAddresses {
    /// Number of descriptors.
    pub(crate) size: u16,
    /// The descriptor table.
    pub(crate) descriptors: u64,
    /// The available ring.
    pub(crate) available: u64,
    /// The used ring.
    pub(crate) used: u64,
}

/// A structure that a capability points to.
#[derive(Clone, Copy, Debug)]
struct Window {
    bar: u8,
    offset: usize,
    length: usize,
}

/// The device's registers.
#[derive(Debug)]
pub(crate) struct Transport {
    name: String,
    bar: MmapRegion,
    common: Window,
    notify: Window,
    notify_multiplier: usize,
    device: Window,
}

impl Transport {
    /// Takes the virtio device with this id.
    ///
    /// # Errors
    ///
    /// When the machine has no such device, or it is not a modern one with all structures in one
    /// BAR.
    pub(crate) fn open(device_id: u32) -> Result<Self> {
        let id = FIRST_DEVICE + u16::try_from(device_id)?;
        let function = Function::take(VENDOR, id)?;
        function.enable()?;
        let mut windows = BTreeMap::new();
        for capability in function.capabilities()? {
            if capability.id == VENDOR_CAPABILITY {
                let kind = function.read_u8(capability.at + 3)?;
                // The first one of a kind is the one to use (4.1.4.1).
                windows.entry(kind).or_insert(capability.at);
            }
        }
        let window = |kind| {
            let at = *windows
                .get(&kind)
                .with_context(|| format!("the device has no structure of kind {kind}"))?;
            anyhow::Ok(Window {
                bar: function.read_u8(at + 4)?,
                offset: usize::try_from(function.read_u32(at + 8)?)?,
                length: usize::try_from(function.read_u32(at + 12)?)?,
            })
        };
        let (common, notify, device) = (window(COMMON)?, window(NOTIFY)?, window(DEVICE)?);
        ensure!(
            common.bar == notify.bar && common.bar == device.bar,
            "the registers of {} are spread over several BARs",
            function.name()
        );
        Ok(Self {
            name: function.name(),
            bar: function.map_bar(common.bar)?,
            notify_multiplier: usize::try_from(function.read_u32(windows[&NOTIFY] + 16)?)?,
            common,
            notify,
            device,
        })
    }

    /// The device's name on the bus.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Resets the device and waits until it confirms the reset.
    ///
    /// # Errors
    ///
    /// When it does not within [`RESET_DEADLINE`].
    pub(crate) fn reset(&self) -> Result<()> {
        self.set_status(0)?;
        let deadline = Instant::now() + RESET_DEADLINE;
        while self.status()? != 0 {
            if Instant::now() > deadline {
                bail!("the device has not reset itself within {RESET_DEADLINE:?}");
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The device status.
    ///
    /// # Errors
    ///
    /// When the register lies outside the BAR.
    pub(crate) fn status(&self) -> Result<u8> {
        self.load(register!(device_status))
    }

    /// Writes the device status.
    ///
    /// # Errors
    ///
    /// When the register lies outside the BAR.
    pub(crate) fn set_status(&self, status: u8) -> Result<()> {
        self.store(register!(device_status), status)
    }

    /// The features that the device offers.
    ///
    /// # Errors
    ///
    /// When a register lies outside the BAR.
    pub(crate) fn offered_features(&self) -> Result<u64> {
        let half = |select: u32| -> Result<u64> {
            self.store(register!(device_feature_select), select)?;
            Ok(u64::from(self.load::<u32>(register!(device_feature))?))
        };
        Ok(half(0)? | half(1)? << 32)
    }

    /// Accepts features.
    ///
    /// # Errors
    ///
    /// When a register lies outside the BAR.
    pub(crate) fn accept_features(&self, features: u64) -> Result<()> {
        let [low, high] = halves(features);
        for (select, half) in [(0u32, low), (1, high)] {
            self.store(register!(driver_feature_select), select)?;
            self.store(register!(driver_feature), half)?;
        }
        Ok(())
    }

    /// How many queues the device has.
    ///
    /// # Errors
    ///
    /// When the register lies outside the BAR.
    pub(crate) fn queue_count(&self) -> Result<u16> {
        self.load(register!(num_queues))
    }

    /// The size that the device proposes for a queue; zero when there is no such queue.
    ///
    /// # Errors
    ///
    /// When a register lies outside the BAR.
    pub(crate) fn queue_size(&self, queue: u16) -> Result<u16> {
        self.store(register!(queue_select), queue)?;
        self.load(register!(queue_size))
    }

    /// Sets up and enables a queue.
    ///
    /// # Errors
    ///
    /// When a register lies outside the BAR.
    pub(crate) fn enable_queue(&self, queue: u16, at: QueueAddresses) -> Result<()> {
        self.store(register!(queue_select), queue)?;
        self.store(register!(queue_size), at.size)?;
        self.store_halves(register!(queue_desc), at.descriptors)?;
        self.store_halves(register!(queue_driver), at.available)?;
        self.store_halves(register!(queue_device), at.used)?;
        self.store(register!(queue_enable), 1u16)
    }

    /// Where notifications of a queue are written.
    ///
    /// # Errors
    ///
    /// When a register lies outside the BAR.
    pub(crate) fn doorbell(&self, queue: u16) -> Result<Doorbell> {
        self.store(register!(queue_select), queue)?;
        let index: u16 = self.load(register!(queue_notify_off))?;
        let offset = usize::from(index) * self.notify_multiplier;
        ensure!(
            offset + size_of::<u16>() <= self.notify.length,
            "the notification of queue {queue} lies outside its structure"
        );
        Ok(Doorbell {
            at: self.notify.offset + offset,
            queue,
        })
    }

    /// Notifies the device that a queue has new buffers.
    ///
    /// # Errors
    ///
    /// When the doorbell belongs to another device.
    pub(crate) fn ring(&self, doorbell: Doorbell) -> Result<()> {
        self.bar
            .as_volatile_slice()
            .store(doorbell.queue, doorbell.at, Ordering::Release)
            .context("notifying the device")
    }

    /// Reads the device's own configuration space, as many bytes as `into` has.
    ///
    /// # Errors
    ///
    /// When it is shorter.
    pub(crate) fn read_config(&self, into: &mut [u8]) -> Result<()> {
        ensure!(
            into.len() <= self.device.length,
            "the device configuration has only {} bytes",
            self.device.length
        );
        for (index, byte) in into.iter_mut().enumerate() {
            *byte = self
                .bar
                .as_volatile_slice()
                .load(self.device.offset + index, Ordering::Acquire)?;
        }
        Ok(())
    }

    /// Writes a byte of the device's own configuration space.
    ///
    /// # Errors
    ///
    /// When it is shorter.
    pub(crate) fn write_config(&self, at: usize, byte: u8) -> Result<()> {
        ensure!(at < self.device.length, "outside the device configuration");
        self.bar
            .as_volatile_slice()
            .store(byte, self.device.offset + at, Ordering::Release)
            .context("writing the device configuration")
    }

    fn store_halves(&self, at: usize, value: u64) -> Result<()> {
        let [low, high] = halves(value);
        self.store(at, low)?;
        self.store(at + size_of::<u32>(), high)
    }

    // Release and acquire are plain moves of the register's size. A sequentially consistent store
    // would be a locked exchange, which registers do not take.
    fn store<T: AtomicAccess>(&self, at: usize, value: T) -> Result<()> {
        ensure!(
            at + size_of::<T>() <= self.common.length,
            "no such register"
        );
        self.bar
            .as_volatile_slice()
            .store(value, self.common.offset + at, Ordering::Release)
            .context("writing a register")
    }

    fn load<T: AtomicAccess>(&self, at: usize) -> Result<T> {
        ensure!(
            at + size_of::<T>() <= self.common.length,
            "no such register"
        );
        self.bar
            .as_volatile_slice()
            .load(self.common.offset + at, Ordering::Acquire)
            .context("reading a register")
    }
}

/// Where notifications of one queue are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doorbell {
    at: usize,
    queue: u16,
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}
