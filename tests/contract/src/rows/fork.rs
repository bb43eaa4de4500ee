//! Both sides after fork: no process sees the other's writes.
//!
//! Parent or child writes first, on the CPU or on the device, and the other writes second.
//! Afterwards each side reads its own contents, on both. The pages are small or large, in system
//! memory or on the device at the moment of the fork. The critical case is a device's write to a
//! page in device memory that a fork has shared: range faults return such a page as present but not
//! writable even when a write was asked for.

use std::thread;

use anyhow::{bail, ensure, Result};
use hmm::Place;

use crate::area::{Area, Tag, ZERO};
use crate::bound::Bound;
use crate::child::{Child, Turns};
use crate::kernel::Late;
use crate::rounds::rounds;
use crate::row::{Chapter, Row};
use crate::sys::{self, End};

/// Which side writes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Parent,
    Child,
}

/// Which hardware writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Cpu,
    Device,
}

/// The pages at the moment of the fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    System,
    Moved,
    LargeSystem,
    LargeMoved,
}

const SOURCE: &str = "mm/memory.c: copy_nonpresent_pte (device-private entries become read-only); \
                      mm/hmm.c: hmm_vma_handle_pte";
const SOURCE_LARGE: &str =
    "mm/huge_memory.c: copy_huge_non_present_pmd; mm/hmm.c: hmm_vma_handle_absent_pmd";
const SOURCE_SYSTEM: &str = "mm/memory.c: copy_present_ptes, do_wp_page; include/linux/hmm.h: \
                           HMM_PFN_WRITE";

macro_rules! order {
    ($name:literal, $pages:ident, $first:ident, $with:ident, $source:ident, $duty:literal) => {
        Row {
            name: $name,
            duty: $duty,
            source: $source,
            run: || after_fork(Pages::$pages, First::$first, With::$with),
        }
    };
}

#[rustfmt::skip] // A table.
pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Both sides after fork",
    rows: &[
        order!("fork-parent-cpu", System, Parent, Cpu, SOURCE_SYSTEM,
            "pages in system memory: the parent's CPU writes first, then \
             the child's CPU or device"),
        order!("fork-parent-device", System, Parent, Device, SOURCE_SYSTEM,
            "pages in system memory: the parent's device writes first, then the child's CPU or \
             device"),
        order!("fork-child-cpu", System, Child, Cpu, SOURCE_SYSTEM,
            "pages in system memory: the child's CPU writes first, then \
             the parent's CPU or device"),
        order!("fork-child-device", System, Child, Device, SOURCE_SYSTEM,
            "pages in system memory: the child's device writes first, then the parent's CPU or \
             device"),
        order!("fork-moved-parent-cpu", Moved, Parent, Cpu, SOURCE,
            "pages on the device: the parent's CPU writes first, then \
             the child's CPU or device"),
        order!("fork-moved-parent-device", Moved, Parent, Device, SOURCE,
            "pages on the device: the parent's device writes first, then \
             the child's CPU or device"),
        order!("fork-moved-child-cpu", Moved, Child, Cpu, SOURCE,
            "pages on the device: the child's CPU writes first, then \
             the parent's CPU or device"),
        order!("fork-moved-child-device", Moved, Child, Device, SOURCE,
            "pages on the device: the child's device writes first, then \
             the parent's CPU or device"),
        order!("fork-huge-parent-cpu", LargeSystem, Parent, Cpu, SOURCE_SYSTEM,
            "huge pages in system memory: the parent's CPU writes first"),
        order!("fork-huge-parent-device", LargeSystem, Parent, Device, SOURCE_SYSTEM,
            "huge pages in system memory: the parent's device writes first"),
        order!("fork-huge-child-cpu", LargeSystem, Child, Cpu, SOURCE_SYSTEM,
            "huge pages in system memory: the child's CPU writes first"),
        order!("fork-huge-child-device", LargeSystem, Child, Device, SOURCE_SYSTEM,
            "huge pages in system memory: the child's device writes first"),
        order!("fork-huge-moved-parent-cpu", LargeMoved, Parent, Cpu, SOURCE_LARGE,
            "huge pages on the device: the parent's CPU writes first"),
        order!("fork-huge-moved-parent-device", LargeMoved, Parent, Device, SOURCE_LARGE,
            "huge pages on the device: the parent's device writes first"),
        order!("fork-huge-moved-child-cpu", LargeMoved, Child, Cpu, SOURCE_LARGE,
            "huge pages on the device: the child's CPU writes first"),
        order!("fork-huge-moved-child-device", LargeMoved, Child, Device, SOURCE_LARGE,
            "huge pages on the device: the child's device writes first"),
        Row {
            name: "fork-while-mapped-for-writing",
            duty: "a page that the device has mapped for writing is mapped so no longer when fork \
                   returns",
            source: "mm/memory.c: copy_page_range (MMU_NOTIFY_PROTECTION_PAGE)",
            run: fork_while_mapped_for_writing,
        },
        Row {
            name: "fork-and-a-child-that-ends",
            duty: "a child that never writes and ends leaves its parent's pages as they were, on \
                   the device and in system memory",
            source: "mm/memory.c: copy_nonpresent_pte, zap_nonpresent_ptes",
            run: fork_and_a_child_that_ends,
        },
        Row {
            name: "fork-and-a-parent-that-ends",
            duty: "pages on the device outlive the process that moved them, in its child",
            source: "mm/memory.c: do_swap_page (migrate_to_ram without the mover)",
            run: fork_and_a_parent_that_ends,
        },
        Row {
            name: "fork-and-a-sharer-that-ends-in-a-touch",
            duty: "a huge page on the device that two processes share survives that one of them \
                   ends while a CPU of the other one accesses it",
            source: "mm/huge_memory.c: zap_huge_pmd_folio, do_huge_pmd_device_private",
            run: fork_and_a_sharer_that_ends_in_a_touch,
        },
        Row {
            name: "fork-and-all-sharers-let-go-in-a-touch",
            duty: "a huge page on the device that three processes share stays that of a CPU that \
                   accesses it, though meanwhile one process discards it and the others end: its \
                   frames are free once, when the access is over",
            source: "mm/memremap.c: free_zone_device_folio; mm/huge_memory.c: \
                     do_huge_pmd_device_private",
            run: fork_and_all_sharers_let_go_in_a_touch,
        },
        Row {
            name: "fork-and-both-touch-at-once",
            duty: "two processes that share huge pages on the device and use it both may access \
                   them at the same time: neither holds up the other one",
            source: "mm/huge_memory.c: do_huge_pmd_device_private, split_folio",
            run: fork_and_both_touch_at_once,
        },
        Row {
            name: "fork-and-move-again",
            duty: "pages that are shared since a fork may be moved by either process, in any \
                   order, and both keep what they hold",
            source: "mm/migrate_device.c: migrate_vma_collect_pmd; mm/rmap.c: try_to_migrate",
            run: fork_and_move_again,
        },
        Row {
            name: "vfork-shares",
            duty: "a child of vfork, which has the same memory, and its end change nothing",
            source: "kernel/fork.c: copy_mm (CLONE_VM)",
            run: vfork_shares,
        },
    ],
};

/// The tags before the fork, of the parent's write, and of the child's write.
const BEFORE: Tag = 1;
const OF_PARENT: Tag = 2;
const OF_CHILD: Tag = 3;

/// The pages that are written. The others must not change.
const WRITTEN: std::ops::Range<usize> = 3..9;

fn area(bound: &Bound, pages: Pages) -> Result<Area> {
    let area = match pages {
        Pages::System | Pages::Moved => Area::small(24)?,
        Pages::LargeSystem | Pages::LargeMoved => Area::large(1)?,
    };
    area.write(area.all(), BEFORE);
    if matches!(pages, Pages::Moved | Pages::LargeMoved) {
        bound.move_to_device(&area, area.all())?;
    }
    // The device has them mapped for writing, which must not outlive the fork.
    bound.write(&area, WRITTEN, BEFORE)?;
    Ok(area)
}

fn write(bound: &Bound, area: &Area, with: With, tag: Tag) -> Result<()> {
    match with {
        With::Cpu => area.write(WRITTEN, tag),
        With::Device => bound.write(area, WRITTEN, tag)?,
    }
    Ok(())
}

/// Checks that CPU and device read the same. The device reads first, so that it does not find all
/// pages in system memory.
fn expect(bound: &Bound, area: &Area, tag: Tag) -> Result<()> {
    let rest = WRITTEN.end..area.pages();
    bound.expect(area, WRITTEN, tag)?;
    bound.expect(area, 0..WRITTEN.start, BEFORE)?;
    bound.expect(area, rest.clone(), BEFORE)?;
    area.expect(WRITTEN, tag)?;
    area.expect(0..WRITTEN.start, BEFORE)?;
    area.expect(rest, BEFORE)
}

fn after_fork(pages: Pages, first: First, with: With) -> Result<()> {
    for second in [With::Cpu, With::Device] {
        let bound = Bound::new()?;
        let area = area(&bound, pages)?;
        let of_child = if first == First::Child { with } else { second };
        let of_parent = if first == First::Child { second } else { with };
        let mut child = Child::fork(|turns| {
            let bound = Bound::new()?;
            turns.wait()?;
            if first == First::Parent {
                // The parent has written: the child must not see it.
                bound.expect(&area, WRITTEN, BEFORE)?;
            }
            write(&bound, &area, of_child, OF_CHILD)?;
            turns.pass_and_wait()?;
            expect(&bound, &area, OF_CHILD)
        })?;
        if first == First::Parent {
            write(&bound, &area, of_parent, OF_PARENT)?;
        }
        child.pass_and_wait()?;
        if first == First::Child {
            bound.expect(&area, WRITTEN, BEFORE)?;
            write(&bound, &area, of_parent, OF_PARENT)?;
        }
        expect(&bound, &area, OF_PARENT)?;
        child.pass_and_end()?;
        expect(&bound, &area, OF_PARENT)?;
    }
    Ok(())
}

fn fork_while_mapped_for_writing() -> Result<()> {
    let bound = Bound::new()?;
    for pages in [
        Pages::System,
        Pages::Moved,
        Pages::LargeSystem,
        Pages::LargeMoved,
    ] {
        let area = area(&bound, pages)?;
        ensure!(bound.mapped(&area, WRITTEN)? == WRITTEN.len(), "{pages:?}");
        let child = Child::fork(|turns| {
            turns.wait()?;
            area.expect(area.all(), BEFORE)
        })?;
        let states = bound.states(&area, WRITTEN)?;
        ensure!(
            states.iter().all(|state| !state.is_writable()),
            "{pages:?}: shared pages cannot be written without a fault"
        );
        bound.write(&area, WRITTEN, OF_PARENT)?;
        child.pass_and_end()?;
    }
    Ok(())
}

fn fork_and_a_child_that_ends() -> Result<()> {
    let bound = Bound::new()?;
    for pages in [
        Pages::System,
        Pages::Moved,
        Pages::LargeSystem,
        Pages::LargeMoved,
    ] {
        let area = area(&bound, pages)?;
        for round in 0..4 {
            Child::fork(|_| Ok(()))?.end()?;
            bound.expect(&area, area.all(), BEFORE)?;
            bound.write(&area, WRITTEN, OF_PARENT)?;
            expect(&bound, &area, OF_PARENT)?;
            area.write(WRITTEN, BEFORE);
            if round % 2 == 0 {
                bound.move_to_device(&area, area.all())?;
            }
        }
    }
    Ok(())
}

fn fork_and_a_parent_that_ends() -> Result<()> {
    for pages in [Pages::Moved, Pages::LargeMoved] {
        // A process that ends before its parent and its child.
        let (read, write) = sys::pipe()?;
        let mut middle = Child::fork(|turns| {
            let bound = Bound::new()?;
            let area = area(&bound, pages)?;
            bound.write(&area, WRITTEN, OF_PARENT)?;
            let last = Child::fork(|turns| {
                turns.wait()?;
                let bound = Bound::new()?;
                expect(&bound, &area, OF_PARENT)?;
                bound.write(&area, WRITTEN, OF_CHILD)?;
                expect(&bound, &area, OF_CHILD)?;
                rustix::io::write(&write, b"!")?;
                Ok(())
            })?;
            turns.pass_and_wait()?;
            let mut last = last;
            last.pass()?;
            // It must not be killed when this process ends.
            std::mem::forget(last);
            Ok(())
        })?;
        drop(write);
        middle.wait()?;
        middle.pass_and_end()?;
        let mut byte = [0; 2];
        let count = rustix::io::read(&read, &mut byte)?;
        ensure!(
            count == 1,
            "{pages:?}: the child found its pages as they were"
        );
    }
    Ok(())
}

fn fork_and_a_sharer_that_ends_in_a_touch() -> Result<()> {
    let bound = Bound::new()?;
    let used = || -> Result<u64> { Ok(bound.counters()?.driver.used_frames) };
    let before = used()?;
    for round in rounds(160) {
        let area = area(&bound, Pages::LargeMoved)?;
        let mut child = Child::fork(|turns| turns.wait())?;
        child.pass()?;
        // So that its end meets another part of the CPU fault each time.
        for _ in 0..round % 16 * 1000 {
            std::hint::spin_loop();
        }
        area.expect(0..1, BEFORE)?;
        child.end()?;
        area.expect(area.all(), BEFORE)?;
    }
    let used = used()?;
    ensure!(used == before, "{used} frames are in use, {before} were");
    Ok(())
}

fn fork_and_both_touch_at_once() -> Result<()> {
    const LARGE: usize = 12;
    let bound = Bound::new()?;
    for _ in 0..4 {
        let area = Area::large(LARGE)?;
        area.write(area.all(), BEFORE);
        bound.move_to_device(&area, area.all())?;
        let firsts = || (0..area.pages()).step_by(area.pages() / LARGE);
        let mut child = Child::fork(|turns| {
            let _bound = Bound::new()?;
            turns.pass_and_wait()?;
            for page in firsts().rev() {
                area.expect(page..page + 1, BEFORE)?;
            }
            area.expect(area.all(), BEFORE)
        })?;
        child.wait()?;
        child.pass()?;
        for page in firsts() {
            area.expect(page..page + 1, BEFORE)?;
        }
        child.end()?;
        area.expect(area.all(), BEFORE)?;
    }
    Ok(())
}

fn fork_and_all_sharers_let_go_in_a_touch() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::large(1)?;
    area.write(area.all(), BEFORE);
    bound.move_to_device(&area, area.all())?;
    let children = [Child::fork(Turns::wait)?, Child::fork(Turns::wait)?];
    bound.expect(&area, area.all(), BEFORE)?;
    // The access begins while the entry is there, and gets to the split when it is gone. If other
    // rules are in force, they decide.
    let late = Late::by("delay=500ms@change-begins;delay=1s@split")?;
    let reached = |point| late.as_ref().map_or(Ok(()), |late| late.reached(point));
    thread::scope(|scope| {
        let discard = scope.spawn(|| area.advise(area.all(), libc::MADV_DONTNEED));
        reached("change-begins")?;
        let access = scope.spawn(|| area.read_word(0, 0));
        reached("split")?;
        children.into_iter().try_for_each(Child::pass_and_end)?;
        let (Ok(discarded), Ok(word)) = (discard.join(), access.join()) else {
            bail!("a thread broke down");
        };
        discarded?;
        ensure!(
            word == area.word(0, ZERO) || (late.is_none() && word == area.word(0, BEFORE)),
            "the access read {word:#x}"
        );
        Ok(())
    })?;
    // The frames have one owner afterwards.
    let areas = [(Area::large(1)?, OF_PARENT), (Area::large(1)?, OF_CHILD)];
    for (area, tag) in &areas {
        area.write(area.all(), *tag);
        bound.move_to_device(area, area.all())?;
    }
    let mut areas = areas.iter();
    areas.try_for_each(|(area, tag)| area.expect(area.all(), *tag))
}

fn fork_and_move_again() -> Result<()> {
    for large in [false, true] {
        let bound = Bound::new()?;
        let area = if large {
            Area::large(1)?
        } else {
            Area::small(24)?
        };
        area.write(area.all(), BEFORE);
        let mut child = Child::fork(|turns| {
            let bound = Bound::new()?;
            for _ in 0..3 {
                turns.wait()?;
                let _ = bound.migrate(&area, area.all(), hmm::Destination::Device)?;
                bound.expect(&area, area.all(), BEFORE)?;
                turns.pass()?;
            }
            turns.wait()?;
            bound.write(&area, WRITTEN, OF_CHILD)?;
            turns.pass_and_wait()?;
            expect(&bound, &area, OF_CHILD)
        })?;
        for _ in 0..3 {
            child.pass_and_wait()?;
            bound.expect(&area, area.all(), BEFORE)?;
            let _ = bound.migrate(&area, area.all(), hmm::Destination::Device)?;
            bound.expect(&area, area.all(), BEFORE)?;
            let _ = bound.migrate(&area, 0..12, hmm::Destination::System)?;
            area.expect(6..18, BEFORE)?;
        }
        child.pass_and_wait()?;
        bound.write(&area, WRITTEN, OF_PARENT)?;
        expect(&bound, &area, OF_PARENT)?;
        child.pass_and_end()?;
    }
    Ok(())
}

fn vfork_shares() -> Result<()> {
    let bound = Bound::new()?;
    let area = area(&bound, Pages::Moved)?;
    for number in 0..8 {
        ensure!(
            sys::vfork_and_exit(number)? == End::Exited(number),
            "the child ended as it should"
        );
        bound.expect_place(&area, area.all(), Place::Device)?;
        bound.write(&area, WRITTEN, OF_PARENT)?;
        expect(&bound, &area, OF_PARENT)?;
        area.write(WRITTEN, BEFORE);
        bound.move_to_device(&area, area.all())?;
    }
    Ok(())
}
