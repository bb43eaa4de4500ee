//! Poison: memory that the hardware has given up is not used any more.

use anyhow::{bail, ensure, Result};
use hmm::{Destination, Place, Reason};

use crate::area::{Area, PAGE};
use crate::bound::Bound;
use crate::child::Child;
use crate::kernel;
use crate::row::{cannot_run, Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Poison",
    rows: &[
        Row {
            name: "a-poisoned-page-is-refused",
            duty: "a page whose memory failed is refused to the device, its CPU's \
                   thread is told by SIGBUS, and its neighbours are as they were",
            source: "mm/memory-failure.c: hwpoison_user_mappings; mm/hmm.c: hmm_vma_handle_pte \
                     (hwpoison entries)",
            run: a_poisoned_page_is_refused,
        },
        Row {
            name: "a-page-that-was-on-the-device-can-fail",
            duty: "the same when the page had been on the device: it comes back to fail",
            source: "mm/madvise.c: madvise_inject_error (pins the page)",
            run: a_page_that_was_on_the_device_can_fail,
        },
        Row {
            name: "device-memory-does-not-fail-so",
            duty:
                "a failure that the kernel is told of a frame of device memory is the driver's to \
                   answer: it is refused and harms no page",
            source:
                "mm/memory-failure.c: memory_failure_dev_pagemap (dev_pagemap_ops.memory_failure)",
            run: device_memory_does_not_fail_so,
        },
        Row {
            name: "a-page-is-taken-offline-softly",
            duty: "a page that the device has mapped and that the kernel replaces by another one \
                   (soft offline) keeps its contents, and the device follows",
            source: "mm/memory-failure.c: soft_offline_in_use_page (migrate_pages)",
            run: a_page_is_taken_offline_softly,
        },
    ],
};

const SOFT_OFFLINE: i32 = 101;

fn inject(area: &Area, page: usize, advice: i32) -> Result<()> {
    area.try_advise(page..page + 1, advice)
        .map_err(|error| cannot_run(format!("failures cannot be injected (madvise): {error}")))
}

/// Checks that the CPU cannot read this page, and that the kernel reports it by SIGBUS.
pub(super) fn cpu_is_told(area: &Area, page: usize) -> Result<()> {
    let end = Child::fork(|_| {
        std::hint::black_box(area.read_word(page, 0));
        Ok(())
    })?
    .status()?;
    ensure!(end == sys::End::Signalled(libc::SIGBUS), "{end:?}");
    Ok(())
}

fn poisoned(area: &Area, bound: &Bound) -> Result<()> {
    inject(area, 5, libc::MADV_HWPOISON)?;
    // A range fault does not distinguish poison from other refusals: it returns EFAULT for all.
    bound.refuse_read(area, 5, Reason::Denied)?;
    bound.refuse_write(area, 5, Reason::Denied)?;
    cpu_is_told(area, 5)?;
    bound.expect(area, 0..5, 1)?;
    bound.expect(area, 6..16, 1)?;
    let moved = bound.migrate(area, area.all(), Destination::Device)?;
    ensure!(moved.moved <= 15, "poison does not move: {moved:?}");
    bound.refuse_read(area, 5, Reason::Denied)?;
    area.expect(0..5, 1)?;
    area.expect(6..16, 1)?;
    // The address works again with new memory.
    area.renew(5..6)?;
    bound.write(area, 5..6, 2)?;
    area.expect(5..6, 2)
}

fn a_poisoned_page_is_refused() -> Result<()> {
    let (area, bound) = (Area::small(16)?, Bound::new()?);
    area.write(area.all(), 1);
    bound.write(&area, area.all(), 1)?;
    poisoned(&area, &bound)
}

fn a_page_that_was_on_the_device_can_fail() -> Result<()> {
    let (area, bound) = (Area::small(16)?, Bound::new()?);
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    bound.expect(&area, area.all(), 1)?;
    poisoned(&area, &bound)
}

fn device_memory_does_not_fail_so() -> Result<()> {
    let (area, bound) = (Area::small(16)?, Bound::new()?);
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    let frame = kernel::entries(&area)?[5].frame();
    let path = "/sys/devices/system/memory/hard_offline_page";
    if !std::path::Path::new(path).exists() {
        return Err(cannot_run(format!("there is no {path}")));
    }
    let result = std::fs::write(path, format!("{:#x}", frame * PAGE as u64));
    if result.is_ok() {
        bail!("the kernel took a failure of device memory");
    }
    bound.expect_place(&area, area.all(), Place::Device)?;
    bound.expect(&area, area.all(), 1)?;
    bound.write(&area, 5..6, 2)?;
    area.expect(0..5, 1)?;
    area.expect(5..6, 2)?;
    area.expect(6..16, 1)
}

fn a_page_is_taken_offline_softly() -> Result<()> {
    let (area, bound) = (Area::small(16)?, Bound::new()?);
    area.write(area.all(), 1);
    bound.write(&area, area.all(), 1)?;
    let before = kernel::entries(&area)?[5].frame();
    inject(&area, 5, SOFT_OFFLINE)?;
    let after = kernel::entries(&area)?[5].frame();
    ensure!(before != after, "it is in another frame");
    bound.expect(&area, area.all(), 1)?;
    bound.write(&area, 5..6, 2)?;
    area.expect(0..5, 1)?;
    area.expect(5..6, 2)?;
    area.expect(6..16, 1)
}
