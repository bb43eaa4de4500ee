// SPDX-License-Identifier: GPL-2.0

//! Where the pages of a process are.
//!
//! Combines the process's page table with the device's. Changes nothing and makes no page present.

use crate::{
    clients::Clients,
    device::{
        command::{range_entry, Query},
        queue::Message,
        Device,
    },
    mm::{
        address_at,
        hmm::{HmmPage, HmmPfns, HmmRange},
        LockedMm, HPAGE_PMD_ORDER,
    },
    space::Space,
    uapi::page_state,
    wire::command::{query_flags, MAX_QUERY_PAGES},
};
use core::ops::Range;
use kernel::{current, mm::MmWithUser, page::PAGE_SHIFT, prelude::*, time::Delta};

/// How many pages one step looks at.
pub(crate) const STEP: usize = MAX_QUERY_PAGES as usize;

/// How long the kernel may wait for changes by other threads.
const TIMEOUT: Delta = Delta::from_secs(1);

/// Reads the page table of the process of a space.
pub(crate) struct PageWalker<'a> {
    clients: &'a Clients,
    space: &'a Space,
    mm: &'a MmWithUser,
    pfns: HmmPfns,
}

impl<'a> PageWalker<'a> {
    /// For the process of a space, whose address space is `mm`.
    pub(crate) fn new(clients: &'a Clients, space: &'a Space, mm: &'a MmWithUser) -> Result<Self> {
        Ok(Self {
            clients,
            space,
            mm,
            pfns: HmmPfns::new(STEP)?,
        })
    }

    /// Calls `visit` with the page table entry and the index of each page of `range`, which has at
    /// most [`STEP`] pages. All entries are valid at the same moment, and stay valid until the last
    /// call returns. `visit` must not sleep.
    ///
    /// # Errors
    ///
    /// - `EINTR` if a signal arrived while the process kept changing its mappings, `ENODEV` if
    ///   the device was removed meanwhile.
    /// - `ESRCH` if the space has ended, or if the OOM killer has killed the process.
    /// - `ENOMEM` if there is no memory.
    pub(crate) fn for_each_page(
        &mut self,
        range: &Range<usize>,
        mut visit: impl FnMut(usize, HmmPage<'_>),
    ) -> Result {
        loop {
            let owner = self.clients.device.pagemap.owner();
            let wanted = HmmRange::new(&self.space.notifier, range.clone(), owner);
            let snapshot = wanted.snapshot(self.mm, TIMEOUT, &mut self.pfns);
            let committed = match snapshot {
                Ok(snapshot) => snapshot.commit().ok(),
                Err(error) if error == EBUSY => None,
                // The process is dead, even if its address space is still referenced.
                Err(error) if error == EFAULT => return Err(ESRCH),
                Err(error) => return Err(error),
            };
            if let Some(mut committed) = committed {
                if committed.state().is_ended() {
                    return Err(ESRCH);
                }
                for index in 0..committed.len() {
                    if let Some(page) = committed.page(index) {
                        visit(index, page);
                    }
                }
                return Ok(());
            }
            if current!().signal_pending() {
                return Err(EINTR);
            }
            if self.clients.is_removed() {
                return Err(ENODEV);
            }
        }
    }

    /// Fills in the [`page_state`] of each page of `range`, which has at most [`STEP`] pages.
    ///
    /// # Errors
    ///
    /// As [`Self::for_each_page`]; `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn page_states(&mut self, range: &Range<usize>, states: &mut [u8]) -> Result {
        let device = &*self.clients.device;
        self.for_each_page(range, |index, page| {
            if let Some(state) = states.get_mut(index) {
                *state = state_of(device, page);
            }
        })?;

        // The kernel does not distinguish addresses where nothing is mapped from those that can
        // never be shared.
        let locked = LockedMm::killable(self.mm)?;
        for (index, state) in states.iter_mut().enumerate() {
            let address = address_at(range.start, index);
            if *state == page_state::OTHER && locked.lookup(address).is_none() {
                *state = page_state::NONE;
            }
        }
        drop(locked);

        let bits = self.clients.device.core.limits.address_bits;
        let addresses = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
        if range.end as u64 > addresses {
            // There are no mappings beyond what the device can address.
            return Ok(());
        }
        let mut message = Message::<Query>::new(self.space.id(), 1, range.len() >> PAGE_SHIFT)?;
        message.push(&range_entry(range))?;
        let link = &self.clients.device.core.link;
        let reply = link.send(message)?;
        for (index, state) in states.iter_mut().enumerate() {
            let result = reply.output(link, index)?;
            if result.flags.get() & query_flags::PRESENT != 0 {
                *state |= page_state::MAPPED;
            }
        }
        Ok(())
    }
}

/// The state of a page according to the process's page table.
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
    if page.order() >= HPAGE_PMD_ORDER {
        state |= page_state::HUGE;
    }
    state
}
