//! Limits: pages on the device are charged to their process and its control group, and the OOM
//! killer finds processes that take too much.

use anyhow::{ensure, Result};
use hmm::{Destination, Place};

use crate::area::{Area, PAGE};
use crate::bound::{add, Bound};
use crate::child::Child;
use crate::kernel::Group;
use crate::row::{Chapter, Row};
use crate::sys::{self, End};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Limits",
    rows: &[
        Row {
            name: "a-control-group-pays-as-before",
            duty: "a page on the device is charged to its control group as it was in system \
                   memory, and uncharged when it is freed there",
            source: "hmm.rst: Memory cgroup (memcg) and rss accounting; mm/memcontrol.c: \
                     mem_cgroup_migrate",
            run: a_control_group_pays_as_before,
        },
        Row {
            name: "holes-on-the-device-are-charged",
            duty: "pages that begin their life on the device are charged too",
            source: "mm/migrate_device.c: migrate_vma_insert_page (mem_cgroup_charge)",
            run: holes_on_the_device_are_charged,
        },
        Row {
            name: "pages-on-the-device-count-for-the-limit",
            duty:
                "a group that has used up its limit on the device gets no more in system memory, \
                   and is killed if it insists; its frames come free, and no other process is \
                   disturbed",
            source: "mm/oom_kill.c: oom_reap_task_mm (non-blockable notifiers); mm/memcontrol.c",
            run: pages_on_the_device_count_for_the_limit,
        },
        Row {
            name: "killed-for-memory-in-the-middle-of-jobs",
            duty: "the same while the device's engines write the victim's memory",
            source: "mm/oom_kill.c: __oom_reap_task_mm; include/linux/mmu_notifier.h: \
                     mmu_notifier_range_blockable",
            run: killed_for_memory_in_the_middle_of_jobs,
        },
        Row {
            name: "a-control-group-pays-for-what-the-driver-keeps",
            duty:
                "what the driver keeps for a process, and grows as that wishes, is charged to its \
                   control group: for mappings, made by workers of the driver, and for jobs",
            source: "Documentation/core-api/memory-allocation.rst: GFP_KERNEL_ACCOUNT; \
                     include/linux/sched/mm.h: set_active_memcg",
            run: a_control_group_pays_for_what_the_driver_keeps,
        },
        Row {
            name: "pages-come-back-at-the-limit",
            duty: "a group at its limit can bring its pages back: they are charged already",
            source: "mm/memcontrol.c: mem_cgroup_migrate (no new charge)",
            run: pages_come_back_at_the_limit,
        },
    ],
};

const MIB: usize = (1 << 20) / PAGE;

/// The difference that the kernel's own batches and page tables may make.
const SLACK: u64 = 1 << 20;

/// Runs `body` in a child process in this control group.
fn in_group(group: &Group, body: impl FnOnce(&Group) -> Result<()>) -> Result<()> {
    Child::fork(|_| {
        group.join()?;
        body(group)
    })?
    .end()
}

fn a_control_group_pays_as_before() -> Result<()> {
    let group = Group::new()?;
    in_group(&group, |group| {
        let bound = Bound::new()?;
        for area in [Area::small(8 * MIB)?, Area::large(4)?] {
            let before = group.number("memory.current")?;
            area.write(area.all(), 1);
            let system = group.number("memory.current")?;
            ensure!(
                system >= before + (8 << 20) - SLACK,
                "8 MiB: {before}, then {system}"
            );
            bound.move_to_device(&area, area.all())?;
            let there = group.number("memory.current")?;
            ensure!(
                system.abs_diff(there) <= SLACK,
                "{system} in system memory, {there} on the device"
            );
            bound.move_to_system(&area, area.all())?;
            let back = group.number("memory.current")?;
            ensure!(
                system.abs_diff(back) <= SLACK,
                "{system} at first, {back} when back"
            );
            bound.move_to_device(&area, area.all())?;
            area.unmap(area.all())?;
            let gone = group.number("memory.current")?;
            ensure!(gone <= before + SLACK, "{before} before, {gone} when freed");
        }
        Ok(())
    })
}

fn holes_on_the_device_are_charged() -> Result<()> {
    let group = Group::new()?;
    in_group(&group, |group| {
        let bound = Bound::new()?;
        for area in [Area::small(8 * MIB)?, Area::large(4)?] {
            let before = group.number("memory.current")?;
            bound.populate(&area, area.all())?;
            let there = group.number("memory.current")?;
            ensure!(
                there >= before + (8 << 20) - SLACK,
                "{before}, then {there}"
            );
            area.unmap(area.all())?;
            let gone = group.number("memory.current")?;
            ensure!(gone <= before + SLACK, "{before} before, {gone} when freed");
        }
        Ok(())
    })
}

/// A group with a limit and without swap.
pub(super) fn limited(mib: usize) -> Result<Group> {
    let group = Group::new()?;
    group.set("memory.max", &(mib << 20).to_string())?;
    // A kernel without swap has no such limit, and needs none.
    let _ = group.set("memory.swap.max", "0");
    Ok(group)
}

/// Checks that a child in a group with a limit is killed when it takes more.
fn insists(group: &Group, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let bystander = Area::small(16)?;
    bystander.write(bystander.all(), 1);
    let bound = Bound::new()?;
    bound.move_to_device(&bystander, 0..8)?;
    let child = Child::fork(|_| {
        group.join()?;
        body()
    })?;
    let end = child.status()?;
    ensure!(
        end == End::Signalled(libc::SIGKILL),
        "it was killed: {end:?}"
    );
    let kills = group.counter("memory.events", "oom_kill")?;
    ensure!(kills >= 1, "by the kernel, for its memory");
    bound.expect_place(&bystander, 0..8, Place::Device)?;
    bound.expect(&bystander, bystander.all(), 1)?;
    bystander.expect(bystander.all(), 1)
}

fn pages_on_the_device_count_for_the_limit() -> Result<()> {
    let group = limited(16)?;
    insists(&group, || {
        let bound = Bound::new()?;
        let there = Area::small(12 * MIB)?;
        there.write(there.all(), 1);
        bound.move_to_device(&there, there.all())?;
        let here = Area::small(12 * MIB)?;
        here.write(here.all(), 1);
        Ok(())
    })
}

fn killed_for_memory_in_the_middle_of_jobs() -> Result<()> {
    let group = limited(16)?;
    insists(&group, || {
        let bound = Bound::new()?;
        let (there, here) = (Area::small(6 * MIB)?, Area::small(6 * MIB)?);
        there.write(there.all(), 1);
        bound.move_to_device(&there, there.all())?;
        let endless = |area: &Area, page| bound.start(add(area, page, 0, 1, 1 << 40));
        let jobs = [endless(&there, 7)?, endless(&here, 9)?];
        here.write(here.all(), 1);
        let more = Area::small(12 * MIB)?;
        more.write(more.all(), 1);
        // The child is killed before; if not, it must not wait for its jobs.
        std::mem::forget(jobs);
        Ok(())
    })
}

fn a_control_group_pays_for_what_the_driver_keeps() -> Result<()> {
    /// Each region has a record of its own of more than a hundred bytes.
    const REGIONS: usize = 4096;
    const RECORD: u64 = 128;
    const REGION: usize = 2 << 20;
    let group = Group::new()?;
    in_group(&group, |group| {
        let bound = Bound::new()?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let area = Area::map(REGIONS * REGION, sys::READ_WRITE, flags, None)?;
        // Otherwise reads map large zero pages.
        area.advise(area.all(), libc::MADV_NOHUGEPAGE)?;
        let slab = || group.counter("memory.stat", "slab");
        for page in area.all().step_by(REGION / PAGE) {
            // Makes the process allocate its page tables and other memory of its own first.
            area.read_word(page, 0);
        }
        let before = slab()?;
        for page in area.all().step_by(REGION / PAGE) {
            bound
                .try_read(&area, page)?
                .map_err(|failure| anyhow::anyhow!("page {page}: {failure}"))?;
        }
        let after = slab()?;
        let least = before + REGIONS as u64 * RECORD;
        ensure!(after >= least, "{before} before, {after} with all mapped");
        area.unmap(area.all())?;
        let gone = slab()?;
        ensure!(
            gone < after - REGIONS as u64 * RECORD / 2,
            "{after} with all mapped, {gone} when they are gone"
        );
        Ok(())
    })
}

fn pages_come_back_at_the_limit() -> Result<()> {
    let group = Group::new()?;
    in_group(&group, |group| {
        let bound = Bound::new()?;
        let area = Area::small(8 * MIB)?;
        area.write(area.all(), 1);
        bound.move_to_device(&area, area.all())?;
        let now = group.number("memory.current")?;
        // The faults of jobs and of this program itself need a little memory.
        group.set("memory.max", &(now + SLACK).to_string())?;
        area.expect(0..4 * MIB, 1)?;
        bound.migrate(&area, 4 * MIB..8 * MIB, Destination::System)?;
        for first in area.all().step_by(32) {
            bound.expect(&area, first..first + 32, 1)?;
        }
        area.expect(area.all(), 1)
    })?;
    let kills = group.counter("memory.events", "oom_kill")?;
    ensure!(kills == 0, "no process was killed");
    Ok(())
}
