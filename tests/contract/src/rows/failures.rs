//! Failures: memory that is refused at the worst moment. Nothing is lost by it.
//!
//! The kernel refuses on demand (`fail_page_alloc`, `failslab`) when it was built to.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use hmm::{Destination, Place};

use crate::area::{Area, LARGE_PAGES};
use crate::bound::Bound;
use crate::kernel::{self, Setting};
use crate::row::{cannot_run, Chapter, Row};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Failures",
    rows: &[
        Row {
            name: "no-memory-to-come-home-to",
            duty:
                "pages for which there is no memory at home stay on the device, intact, and come \
                   when there is some",
            source: "hmm.rst: Migration, step 3 (a page may be skipped); mm/page_alloc.c: \
                     should_fail_alloc_page",
            run: no_memory_to_come_home_to,
        },
        Row {
            name: "no-memory-for-a-touched-page",
            duty: "a CPU that touches such a page waits or tries again; its page is not lost",
            source: "mm/memory.c: do_swap_page (VM_FAULT_OOM from migrate_to_ram)",
            run: no_memory_for_a_touched_page,
        },
        Row {
            name: "no-large-page-to-come-home-to",
            duty: "a large page comes home in pieces when there are only pieces, by request and \
                   by touch",
            source: "mm/migrate_device.c: migrate_vma_split_unmapped_folio",
            run: no_large_page_to_come_home_to,
        },
        Row {
            name: "no-large-page-for-the-last-file",
            duty: "the same when the last file is closed and nobody asks for the pages",
            source: "mm/migrate_device.c: migrate_device_range (does not split)",
            run: no_large_page_for_the_last_file,
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
    ],
};

/// Refuses memory to this thread alone, or to all, as long as it exists.
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
        // The probability comes last: with it, it begins.
        all.sort_by_key(|(name, _)| *name == "probability");
        let mut made = Vec::new();
        for (name, value) in all {
            made.push(Setting::change(directory.join(name), value)?);
        }
        if mine_only {
            made.push(Setting::change("/proc/self/make-it-fail", "1")?);
        }
        // And ends with it.
        made.reverse();
        Ok(Self { _settings: made })
    }

    /// Refuses pages of at least this order, this often.
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

    /// Refuses small objects, in so many cases of a hundred.
    fn objects(probability: &str) -> Result<Self> {
        let settings = [("cache-filter", "N"), ("probability", probability)];
        Self::new("failslab", &settings, true)
    }
}

fn no_memory_to_come_home_to() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(64)?, Area::large(1)?] {
        area.write(area.all(), 1);
        bound.move_there(&area, area.all())?;
        let refusals = Refusals::pages(0, "-1", true)?;
        let result = bound.migrate(&area, area.all(), Destination::System);
        drop(refusals);
        if let Ok(moved) = result {
            ensure!(moved.moved == 0, "there was no memory: {moved:?}");
        }
        bound.expect_place(&area, area.all(), Place::Device)?;
        bound.expect(&area, area.all(), 1)?;
        bound.move_home(&area, area.all())?;
        area.expect(area.all(), 1)?;
    }
    Ok(())
}

fn no_memory_for_a_touched_page() -> Result<()> {
    let bound = Bound::new()?;
    for area in [Area::small(64)?, Area::large(1)?] {
        area.write(area.all(), 1);
        for page in [0, 7, 33] {
            bound.move_there(&area, area.all())?;
            let refusals = Refusals::pages(0, "6", true)?;
            let found = area.read_word(page, 3);
            drop(refusals);
            ensure!(found == area.word(page, 1), "page {page} holds {found:#x}");
        }
        area.expect(area.all(), 1)?;
    }
    Ok(())
}

fn no_large_page_to_come_home_to() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    bound.move_there(&area, area.all())?;
    // Lists for the request itself need pages too, but no large one.
    let refusals = Refusals::pages(9, "-1", true)?;
    bound.move_home(&area, 0..LARGE_PAGES)?;
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

fn no_large_page_for_the_last_file() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(2)?;
    area.write(area.all(), 1);
    bound.move_there(&area, area.all())?;
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
    bound.move_there(&area, area.all())?;
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
