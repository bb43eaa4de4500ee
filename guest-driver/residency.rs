// SPDX-License-Identifier: GPL-2.0

//! Where the pages of a process are.
//!
//! Combines what the process's page table says with what the device says. Changes
//! nothing and makes no page present.

use crate::{
    command::{range_entry, Query},
    device::Device,
    mm::{
        hmm::{HmmPage, Pages},
        LockedMm, LARGE_ORDER, PAGE_SHIFT,
    },
    queue::Message,
    space::Space,
    uapi::page_state,
    wire::command::{query_flags, MAX_QUERY_PAGES},
};
use core::ops::Range;
use kernel::{current, mm::MmWithUser, prelude::*};

/// How many pages are looked at in one go.
pub(crate) const STEP: usize = MAX_QUERY_PAGES as usize;

/// How long the kernel may wait for changes by others, in milliseconds.
const PATIENCE: u32 = 1000;

/// Looks at address spaces.
pub(crate) struct Looker<'a> {
    device: &'a Device,
    space: &'a Space,
    mm: &'a MmWithUser,
    pages: Pages,
}

impl<'a> Looker<'a> {
    /// For looking at the process of a space.
    pub(crate) fn new(device: &'a Device, space: &'a Space, mm: &'a MmWithUser) -> Result<Self> {
        Ok(Self {
            device,
            space,
            mm,
            pages: Pages::new(STEP)?,
        })
    }

    /// Calls `see` with what the process's page table says of each page of `range`, which
    /// has at most [`STEP`], and with the page's index. All of it is true at one moment, and
    /// stays true until the last call returns, which must not sleep.
    ///
    /// # Errors
    ///
    /// - `EINTR` if a signal arrived while the process kept changing its mappings.
    /// - `ESRCH` if the space has ended, or if the process was killed for its memory.
    /// - `ENOMEM` if there is no memory.
    pub(crate) fn see(
        &mut self,
        range: &Range<usize>,
        mut see: impl FnMut(usize, HmmPage<'_>),
    ) -> Result {
        loop {
            let snapshot = self.space.interval.snapshot(
                self.mm,
                range.clone(),
                self.device.pagemap.owner(),
                PATIENCE,
                &mut self.pages,
            );
            let committed = match snapshot {
                Ok(snapshot) => snapshot.commit().ok(),
                Err(error) if error == EBUSY => None,
                // It is dead, whoever still holds what is left of it.
                Err(error) if error == EFAULT => return Err(ESRCH),
                Err(error) => return Err(error),
            };
            if let Some(mut committed) = committed {
                if committed.state().is_ended() {
                    return Err(ESRCH);
                }
                for index in 0..committed.len() {
                    if let Some(page) = committed.page(index) {
                        see(index, page);
                    }
                }
                return Ok(());
            }
            if current!().signal_pending() {
                return Err(EINTR);
            }
        }
    }

    /// Fills in the [`page_state`] of each page of `range`, which has at most [`STEP`].
    ///
    /// # Errors
    ///
    /// As [`Self::see`]; `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn look(&mut self, range: &Range<usize>, states: &mut [u8]) -> Result {
        let device = self.device;
        self.see(range, |index, page| {
            if let Some(state) = states.get_mut(index) {
                *state = state_of(device, page);
            }
        })?;

        // The kernel does not tell places where nothing is mapped from those that can
        // never be shared.
        let locked = LockedMm::new(self.mm);
        for (index, state) in states.iter_mut().enumerate() {
            let address = range.start + (index << PAGE_SHIFT);
            if *state == page_state::OTHER && locked.lookup(address).is_none() {
                *state = page_state::NONE;
            }
        }
        drop(locked);

        let addresses = 1u64 << self.device.core.limits.address_bits;
        if range.end as u64 > addresses {
            // Beyond what the device can address there are no mappings.
            return Ok(());
        }
        let mut message = Message::<Query>::new(self.space.id(), 1, range.len() >> PAGE_SHIFT)?;
        message.push(&range_entry(range))?;
        let reply = self.device.core.link.send(message)?;
        for (index, state) in states.iter_mut().enumerate() {
            let result = reply
                .output(index)
                .ok_or_else(|| self.device.core.link.violated())?;
            if result.flags.get() & query_flags::PRESENT != 0 {
                *state |= page_state::MAPPED;
            }
        }
        Ok(())
    }
}

/// What the process's page table says of a page.
fn state_of(device: &Device, page: HmmPage<'_>) -> u8 {
    let Some(pfn) = page.pfn() else {
        return if page.is_error() {
            page_state::OTHER
        } else {
            page_state::NONE
        };
    };
    let mut state = match device.pagemap.frame(pfn) {
        Some(_) => page_state::DEVICE,
        None => page_state::SYSTEM,
    };
    if page.is_writable() {
        state |= page_state::WRITABLE;
    }
    if page.order() >= LARGE_ORDER {
        state |= page_state::LARGE;
    }
    state
}
