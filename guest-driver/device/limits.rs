// SPDX-License-Identifier: GPL-2.0

//! What a device reports about itself, checked.
//!
//! Does not know how it is accessed.

use crate::{
    mm::{HPAGE_PMD_NR, HPAGE_PMD_ORDER},
    wire::{
        self,
        config::{capability, Config, MAGIC, VERSION},
    },
};
use kernel::{page::PAGE_SHIFT, prelude::*};

// The device's pages are the kernel's.
const _: () = assert!(PAGE_SHIFT == wire::PAGE_SHIFT as usize);
const _: () = assert!(HPAGE_PMD_ORDER == wire::LARGE_ORDER);

/// What the device can do, checked.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) device_memory: u64,
    pub(crate) capabilities: u64,
    pub(crate) max_spaces: u32,
    pub(crate) max_jobs: u32,
    /// The number of pages that one migration may move: the minimum of several limits.
    pub(crate) max_move: usize,
    pub(crate) max_discard: u32,
    pub(crate) engines: u32,
    pub(crate) address_bits: u32,
}

impl Limits {
    /// The maximum number of pages moved by one request: 4 MiB. The device copies that many about
    /// as fast as the driver allocates memory for as many, and a request costs little in
    /// comparison.
    const MAX_MOVE: u32 = 1024;

    /// The maximum number of spaces used, whatever the device offers. Each may occupy one of the
    /// workers that the kernel runs at a time (`WQ_DFL_ACTIVE`, 1024) for as long as a program
    /// makes it wait for a page, and some must be left for everything else.
    const MOST_SPACES: u32 = 1000;

    /// Checks what a device reports about itself.
    ///
    /// # Errors
    ///
    /// `ENODEV` if it is another device, or one that this driver cannot use.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        // {drv-magic}
        if config.magic.get() != MAGIC {
            pr_err!("a device of this id that is not an HMM device\n");
            return Err(ENODEV);
        }
        // {drv-version}
        if config.version.get() != VERSION {
            pr_err!(
                "the device speaks version {}, this driver version {}\n",
                config.version.get(),
                VERSION,
            );
            return Err(ENODEV);
        }
        let max_items = config.max_items.get();
        let max_copy_pages = config.max_copy_pages.get();
        let large = HPAGE_PMD_NR as u32;
        if max_items < large || max_copy_pages < large || config.max_entries.get() < large {
            pr_err!("the device takes less than a huge page in one request\n");
            return Err(ENODEV);
        }
        if !(PAGE_SHIFT as u32..usize::BITS).contains(&config.address_bits.get()) {
            pr_err!(
                "the device's addresses have {} bits\n",
                config.address_bits.get()
            );
            return Err(ENODEV);
        }
        let max_move = max_items.min(max_copy_pages).min(Self::MAX_MOVE);
        Ok(Self {
            device_memory: config.device_memory.get(),
            // {drv-capability-unknown}
            capabilities: config.capabilities.get(),
            max_spaces: config.max_spaces.get(),
            max_jobs: config.max_jobs.get(),
            max_move: (max_move - max_move % large) as usize,
            max_discard: max_copy_pages,
            engines: config.engines.get(),
            address_bits: config.address_bits.get(),
        })
    }

    /// The number of spaces used.
    pub(crate) fn spaces(&self) -> u32 {
        self.max_spaces.min(Self::MOST_SPACES)
    }

    /// Whether CPUs can address device memory.
    pub(crate) fn is_coherent(&self) -> bool {
        self.capabilities & capability::COHERENT != 0
    }

    /// Whether frames must be discarded as soon as they are free.
    pub(crate) fn is_checked(&self) -> bool {
        self.capabilities & capability::CHECK != 0
    }
}
