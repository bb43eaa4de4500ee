// SPDX-License-Identifier: GPL-2.0

//! A device as the rest of the driver sees it: its capabilities, the link to it, and its memory.
//!
//! Knows neither buses, processes nor files, nor how faults are resolved.

pub(crate) mod command;
pub(crate) mod core;
pub(crate) mod counters;
pub(crate) mod frames;
pub(crate) mod inject;
pub(crate) mod limits;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod shares;

use crate::{
    device::core::Core,
    mm::memremap::{
        CpuFault, DevPagemap, DevPagemapOps, FreedFolio, MemoryId, MemoryType, UnusedFrames,
        VmFaultError,
    },
    quirks::split_fault,
};
use kernel::{prelude::*, sync::Arc};

/// Resolves faults of CPUs on pages in device memory.
pub(crate) trait CpuFaults: Send + Sync {
    /// Moves the page of a fault back to system memory; see [`DevPagemapOps::migrate_to_ram`].
    fn migrate_to_ram(
        &self,
        core: &Core,
        pagemap: &DevPagemap<Store>,
        fault: CpuFault<'_>,
    ) -> Result<(), VmFaultError>;
}

/// The memory of a device, as the page map sees it.
pub(crate) struct Store {
    core: Arc<Core>,
    faults: Arc<dyn CpuFaults>,
}

impl DevPagemapOps for Store {
    fn id(&self) -> MemoryId {
        self.core.frames.id()
    }

    fn revive(&self, folio: &FreedFolio<'_>) -> bool {
        split_fault::revive(folio)
    }

    fn folio_free(&self, frames: UnusedFrames) {
        self.core.free_frames(frames);
    }

    fn migrate_to_ram(
        &self,
        pagemap: &DevPagemap<Self>,
        fault: CpuFault<'_>,
    ) -> Result<(), VmFaultError> {
        self.faults.migrate_to_ram(&self.core, pagemap, fault)
    }
}

/// A device.
#[pin_data]
pub(crate) struct Device {
    pub(crate) core: Arc<Core>,
    #[pin]
    pub(crate) pagemap: DevPagemap<Store>,
}

impl Device {
    /// The device with this core. Its memory, which is of this kind, gets pages. `faults` handles
    /// CPU faults on them.
    pub(crate) fn new(
        core: Arc<Core>,
        kind: MemoryType,
        faults: Arc<dyn CpuFaults>,
    ) -> Result<Arc<Self>> {
        let store = Store {
            core: core.clone(),
            faults,
        };
        let pagemap = DevPagemap::new(core.frames.total(), kind, c"virtio-hmm", store)?;
        Arc::pin_init(
            try_pin_init!(Self {
                core,
                pagemap <- pagemap,
            }),
            GFP_KERNEL,
        )
    }
}
