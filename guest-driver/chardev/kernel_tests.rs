// SPDX-License-Identifier: GPL-2.0

//! What the ioctls of the kernel's own HMM tests have in common on any device.
//!
//! Does not know what any of these ioctls does.

use crate::{
    chardev::ioctl,
    mm::{hmm::HmmPage, pages_in, HPAGE_PMD_ORDER},
    uapi::dmirror::{protection, DmirrorCommand, MAX_MAPPED_PAGES},
};
use core::ops::Range;
use kernel::{
    alloc::flags::{__GFP_ZERO, GFP_KERNEL_ACCOUNT},
    mm::virt::VmaNew,
    page::Page,
    page::PAGE_SIZE,
    prelude::*,
};

/// log2 of the pages that an entry of a page upper directory maps.
const HUGE_ORDER: u32 = 2 * HPAGE_PMD_ORDER;

/// The range of addresses that an ioctl is about.
pub(crate) fn range_of(command: &DmirrorCommand) -> Result<Range<usize>> {
    let bytes = command.npages.checked_mul(PAGE_SIZE as u64).ok_or(EINVAL)?;
    if bytes == 0 {
        return Err(EINVAL);
    }
    ioctl::page_range(command.addr, bytes)
}

/// Maps pages of zeros from a node.
pub(crate) fn map_pages(vma: &VmaNew) -> Result {
    let addresses = vma.start()..vma.end();
    if pages_in(&addresses) as u64 > MAX_MAPPED_PAGES {
        return Err(EINVAL);
    }
    let area = vma.set_mixedmap();
    for address in addresses.step_by(PAGE_SIZE) {
        let page = Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        area.vm_insert_page(address, &page)?;
    }
    Ok(())
}

/// The state of a page in its process, as a snapshot reports it. `is_local` returns whether a page
/// frame number belongs to the device's own memory.
pub(crate) fn protection_of(page: HmmPage<'_>, is_local: impl Fn(usize) -> bool) -> u8 {
    if page.is_error() {
        return protection::ERROR;
    }
    let Some(pfn) = page.pfn() else {
        return protection::NONE;
    };
    let is_local = is_local(pfn);
    let mut found = if page.is_device_coherent() {
        if is_local {
            protection::DEVICE_COHERENT_LOCAL
        } else {
            protection::DEVICE_COHERENT_REMOTE
        }
    } else if is_local {
        protection::DEVICE_PRIVATE_LOCAL
    } else if page.is_zero() {
        protection::ZERO
    } else {
        protection::NONE
    };
    found |= if page.is_writable() {
        protection::WRITE
    } else {
        protection::READ
    };
    match page.order() {
        HPAGE_PMD_ORDER => found | protection::PMD,
        HUGE_ORDER => found | protection::PUD,
        _ => found,
    }
}
