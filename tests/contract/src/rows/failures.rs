//! Memory that is refused at the worst moment: nothing may be lost by it.
//!
//! The kernel refuses memory on demand (`fail_page_alloc`, `failslab`) if it was built for it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use hmm::{Destination, Device, Place, Reason};

use super::copies::can_be_read;
use super::poison::cpu_is_told;
use crate::area::{Area, LARGE_PAGES};
use crate::bound::Bound;
use crate::kernel::{self, until, Setting};
use crate::machine;
use crate::row::{cannot_run, Chapter, Row};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Failures",
    rows: &[
        Row {
            name: "no-memory-to-come-back-to",
            duty:
                "pages for which there is no memory in system memory stay on the device, intact, \
                 and come when there is some",
            source: "hmm.rst: Migration, step 3 (a page may be skipped); mm/page_alloc.c: \
                     should_fail_alloc_page",
            run: no_memory_to_come_back_to,
        },
        Row {
            name: "no-memory-for-a-touched-page",
            duty: "a CPU that accesses such a page waits or tries again; its page is not lost",
            source: "mm/memory.c: do_swap_page (VM_FAULT_OOM from migrate_to_ram)",
            run: no_memory_for_a_touched_page,
        },
        Row {
            name: "no-huge-page-to-come-back-to",
            duty: "a huge page comes back in pieces when there are only pieces, by request and \
                   by touch",
            source: "mm/migrate_device.c: migrate_vma_split_unmapped_folio",
            run: no_huge_page_to_come_back_to,
        },
        Row {
            name: "no-huge-page-for-the-last-file",
            duty: "the same when the last file is closed and no process asks for the pages",
            source: "mm/migrate_device.c: migrate_device_range (does not split)",
            run: no_huge_page_for_the_last_file,
        },
        Row {
            name: "no-memory-for-the-move-itself",
            duty: "a request to move pages that finds no memory for its own work fails or moves \
                   some, and loses none",
            source: "mm/failslab.c: should_failslab; mm/migrate_device.c: migrate_vma_finalize",
            run: no_memory_for_the_move_itself,
        },
        Row {
            name: "no-memory-to-bind",
            duty: "binding to a device without memory fails as a whole and leaves nothing",
            source: "mm/mmu_notifier.c: mmu_interval_notifier_insert (ENOMEM)",
            run: no_memory_to_bind,
        },
        Row {
            name: "no-memory-to-let-go",
            duty: "a file is closed without memory as with it: the device forgets the space, and \
                   is not given up for want of a request that says so",
            source: "mm/failslab.c: should_failslab; fs/file_table.c: __fput (cannot fail)",
            run: no_memory_to_let_go,
        },
        Row {
            name: "no-memory-when-the-device-goes",
            duty: "a device goes though there is no memory for any page on it: in the end its \
                   owners lose those pages, and are told by SIGBUS; other pages stay",
            source: "mm/memremap.c: memunmap_pages (waits for all pages); mm/memory.c: \
                     handle_pte_marker (PTE_MARKER_POISONED)",
            run: no_memory_when_the_device_goes,
        },
    ],
};

/// Refuses memory to this thread alone, or to all, as long as this exists.
struct Refusals {
    _settings: Vec<Setting>,
}

const DEBUG: &str = "/sys/kernel/debug";

impl Refusals {
    fn new(kind: &str, settings: &[(&str, &str)], mine_only: bool) -> Result<Self> {
        let directory = PathBuf::from(format!("{DEBUG}/{kind}"));
        if !directory.exists() {
            return Err(cannot_run(format!(
                "the kernel has no fault injection ({kind})"
            )));
        }
        let filter = if mine_only { "Y" } else { "N" };
        let mut all = vec![
            ("verbose", "0"),
            ("interval", "1"),
            ("space", "0"),
            ("times", "-1"),
            ("task-filter", filter),
            ("ignore-gfp-wait", "N"),
        ];
        all.extend(settings);
        // The probability comes last: it starts the refusals.
        all.sort_by_key(|(name, _)| *name == "probability");
        let mut made = Vec::new();
        for (name, value) in all {
            made.push(Setting::change(directory.join(name), value)?);
        }
        if mine_only {
            made.push(Setting::change("/proc/self/make-it-fail", "1")?);
        }
        // And the probability is restored first.
        made.reverse();
        Ok(Self { _settings: made })
    }

    /// Refuses pages of at least this order, this many times.
    fn pages(order: u32, times: &str, mine_only: bool) -> Result<Self> {
        let order = order.to_string();
        let settings = [
            ("min-order", order.as_str()),
            ("ignore-gfp-highmem", "N"),
            ("times", times),
            ("probability", "100"),
        ];
        Self::new("fail_page_alloc", &settings, mine_only)
    }

    /// Refuses small objects with this probability, in percent.
    fn objects(probability: &str) -> Result<Self> {
        let settings = [("cache-filter", "N"), ("probability", probability)];
        Self::new("failslab", &settings, true)
    }
}

fn no_memory_to_come_back_to() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(64)?, Area::large(1)?] {
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        let refusals = Refusals::pages(0, "-1", true)?;
        let result = bound.migrate(&area, area.all(), Destination::System);
        drop(refusals);
        if let Ok(moved) = result {
            ensure!(moved.moved == 0, "there was no memory: {moved:?}");
        }
        bound.expect_place(&area, area.all(), Place::Device)?;
        bound.expect(&area, area.all(), 1)?;
        bound.move_to_system(&area, area.all())?;
        area.expect(area.all(), 1)?;
    }
    Ok(())
}

fn no_memory_for_a_touched_page() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(64)?, Area::large(1)?] {
        area.write(area.all(), 1);
        for page in [0, 7, 33] {
            bound.move_to_device(&area, area.all())?;
            let refusals = Refusals::pages(0, "6", true)?;
            let found = area.read_word(page, 3);
            drop(refusals);
            ensure!(found == area.word(page, 1), "page {page} holds {found:#x}");
        }
        area.expect(area.all(), 1)?;
    }
    Ok(())
}

fn no_huge_page_to_come_back_to() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    // Lists for the request itself need small pages, which are not refused.
    let refusals = Refusals::pages(9, "-1", true)?;
    bound.move_to_system(&area, 0..LARGE_PAGES)?;
    let page = LARGE_PAGES + 100;
    let found = area.read_word(page, 3);
    drop(refusals);
    ensure!(found == area.word(page, 1), "page {page} holds {found:#x}");
    let large = bound.states(&area, 0..LARGE_PAGES)?;
    ensure!(
        !large.iter().any(|state| state.is_large()),
        "it came in pieces"
    );
    bound.expect(&area, area.all(), 1)?;
    area.expect(area.all(), 1)
}

fn no_huge_page_for_the_last_file() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    bound.move_to_device(&area, area.all())?;
    let refusals = Refusals::pages(9, "-1", false)?;
    drop(bound);
    drop(refusals);
    area.expect(area.all(), 1)?;
    let again = Bound::new()?;
    again.expect(&area, area.all(), 1)
}

fn no_memory_for_the_move_itself() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(64)?;
    area.write(area.all(), 1);
    let mut failed = 0;
    for round in 0..60 {
        let to = [Destination::Device, Destination::System][round % 2];
        let refusals = Refusals::objects("30")?;
        let result = bound.migrate(&area, area.all(), to);
        drop(refusals);
        failed += usize::from(result.is_err());
        if round % 10 == 0 {
            bound.expect(&area, area.all(), 1)?;
        }
    }
    ensure!(failed > 0, "nothing was refused");
    bound.move_to_device(&area, area.all())?;
    bound.expect(&area, area.all(), 1)?;
    area.expect(area.all(), 1)
}

fn no_memory_to_bind() -> Result<()> {
    let mut failed = 0;
    for _ in 0..40 {
        let refusals = Refusals::objects("20")?;
        let result = Bound::new();
        drop(refusals);
        match result {
            Err(_) => failed += 1,
            Ok(bound) => {
                let area = Area::small(1)?;
                bound.write(&area, 0..1, 1)?;
                area.expect(0..1, 1)?;
            }
        }
    }
    ensure!(failed > 0, "nothing was refused");
    kernel::read("/proc/self/status")?;
    Ok(())
}

fn no_memory_to_let_go() -> Result<()> {
    let device = Device::open("/dev/hmm0")?;
    let resets = device.info()?.resets;
    let area = Area::small(4)?;
    for round in 0..20 {
        let bound = Bound::new()?;
        bound.write(&area, area.all(), round)?;
        let refusals = Refusals::objects("50")?;
        drop(bound);
        drop(refusals);
        area.expect(area.all(), round)?;
    }
    ensure!(device.info()?.resets == resets, "it was given up");
    ensure!(device.counters()?.device.spaces.get() == 0, "all are gone");
    Ok(())
}

/// The kernel lists the devices bound to our driver here.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_hmm";

/// The first device's name on its bus.
fn first_device() -> Result<String> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(DRIVER)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("virtio"));
        numbers.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    let first = numbers.into_iter().min().context("no device is bound")?;
    Ok(format!("virtio{first}"))
}

fn no_memory_when_the_device_goes() -> Result<()> {
    // Other programs that use the device would lose it.
    machine::may_be_exhausted()?;
    let bound = Bound::new()?;
    let (kept, small, large) = (Area::small(4)?, Area::small(4)?, Area::large(1)?);
    for area in [&kept, &small, &large] {
        area.write(area.all(), 1);
    }
    bound.write(&kept, kept.all(), 1)?;
    bound.move_to_device(&small, small.all())?;
    bound.move_to_device(&large, large.all())?;
    let name = first_device()?;
    let file = File::options()
        .write(true)
        .open(format!("{DRIVER}/unbind"))?;
    let let_go = || {
        let _refusals = Refusals::pages(0, "-1", true)?;
        match (&file).write(name.as_bytes()) {
            // The kernel had no memory for the write itself.
            Err(error) if error.kind() == ErrorKind::OutOfMemory => Ok(false),
            other => other.map(|_| true).context("letting go of the device"),
        }
    };
    until("the kernel takes the request", let_go)?;

    let info = bound.space().device().info();
    ensure!(info.is_err(), "it is gone: {info:?}");
    kept.expect(kept.all(), 1)?;
    for area in [&small, &large] {
        for page in area.all() {
            ensure!(!can_be_read(area, page, 1)?, "page {page} has come back");
        }
        cpu_is_told(area, 1)?;
        // The address works again with new memory.
        area.renew(1..2)?;
        area.write(1..2, 2);
    }
    drop(bound);
    fs::write(format!("{DRIVER}/bind"), &name).context("taking it again")?;
    let again = Bound::new()?;
    ensure!(again.counters()?.driver.used_frames == 0, "nothing is left");
    again.expect(&kept, kept.all(), 1)?;
    for area in [&small, &large] {
        again.refuse_read(area, 0, Reason::Denied)?;
        again.move_to_device(area, 1..2)?;
        again.expect(area, 1..2, 2)?;
        area.expect(1..2, 2)?;
    }
    Ok(())
}
