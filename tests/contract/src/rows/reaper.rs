//! Processes that the OOM killer ends while their pages are on the device. The kernel frees their
//! memory, in the OOM reaper's thread if they do not get to it themselves, and that thread may not
//! block.
//!
//! That thread starts two seconds after the kill, and has no work if the process is gone by then.
//! Rows about it hold the victim's address space, as a debugger may do.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use hmm::Place;

use crate::area::{Area, LARGE_PAGES, PAGE};
use crate::bound::{add, Bound};
use crate::child::Child;
use crate::kernel::{self, Group, Log, Setting};
use crate::machine;
use crate::row::{cannot_run, Chapter, Row};
use crate::rows::limits::limited;
use crate::sys::{self, End, Userfault};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Out of memory",
    rows: &[
        Row {
            name: "a-process-killed-for-memory-is-reaped",
            duty: "of a process that was killed for its memory, and whose address space another \
                   process holds, everything comes free at once, in system memory and on the \
                   device, small and huge pages; no other process's pages do",
            source: "mm/oom_kill.c: oom_reap_task_mm; mm/memory.c: zap_vma_for_reaping",
            run: a_process_killed_for_memory_is_reaped,
        },
        Row {
            name: "what-the-device-uses-is-not-reaped",
            duty:
                "where the device goes on using such a process's pages, the kernel's thread does \
                   not wait for it: these pages stay, mapped as they were, all other ones come \
                   free, and none is brought in any more",
            source: "include/linux/mmu_notifier.h: mmu_notifier_range_blockable; \
                     mm/mmu_notifier.c: mn_itree_invalidate (EAGAIN); mm/hmm.c: \
                     check_stable_address_space",
            run: what_the_device_uses_is_not_reaped,
        },
        Row {
            name: "killed-when-all-memory-is-gone",
            duty: "when the whole machine has no memory left, a process that is killed for it \
                   gives its frames of the device back, no other process is killed, and other \
                   processes' pages, in system memory and there, are as they were",
            source: "mm/oom_kill.c: out_of_memory, __oom_kill_process (no control group \
                     concerned)",
            run: killed_when_all_memory_is_gone,
        },
    ],
};

const MIB: usize = (1 << 20) / PAGE;

/// What a dead process still costs its control group, in bytes: page tables and the like.
const REST: u64 = 2 << 20;

/// Pages of a process that only watches.
struct Bystander {
    bound: Bound,
    small: Area,
    large: Area,
    frames: u64,
}

impl Bystander {
    fn new() -> Result<Self> {
        let bound = Bound::new()?;
        let (small, large) = (Area::small(16)?, Area::large(1)?);
        small.write(small.all(), 1);
        large.write(large.all(), 1);
        bound.move_to_device(&small, 0..8)?;
        bound.move_to_device(&large, large.all())?;
        let frames = bound.counters()?.driver.used_frames;
        Ok(Self {
            bound,
            small,
            large,
            frames,
        })
    }

    /// Frames of the device that other processes use.
    fn others(&self) -> Result<u64> {
        let used = self.bound.counters()?.driver.used_frames;
        used.checked_sub(self.frames)
            .context("the device has lost some of the bystander's pages")
    }

    /// How many pages are mapped on the device, by all processes.
    fn mapped(&self) -> Result<u64> {
        Ok(self.bound.counters()?.device.mapped_pages.get())
    }

    /// Checks that nothing has happened to its pages.
    fn is_undisturbed(&self) -> Result<()> {
        self.bound.expect_place(&self.small, 0..8, Place::Device)?;
        self.bound
            .expect_place(&self.large, self.large.all(), Place::Device)?;
        self.bound.expect(&self.small, self.small.all(), 1)?;
        self.bound.expect(&self.large, self.large.all(), 1)?;
        self.small.expect(self.small.all(), 1)?;
        self.large.expect(self.large.all(), 1)
    }
}

/// Runs `body` while a system call holds the address space of another process, which must have
/// `readable` too.
fn holding(id: i32, readable: &Area, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let (into, source) = (Area::small(1)?, Area::small(1)?);
    source.write(source.all(), 1);
    let handler =
        Userfault::new().map_err(|error| cannot_run(format!("userfaultfd is refused: {error}")))?;
    handler.register_missing(into.address(0), PAGE)?;
    let mut memory = File::open(format!("/proc/{id}/mem")).context("opening its memory")?;
    memory.seek(SeekFrom::Start(readable.address(0) as u64))?;
    thread::scope(|scope| {
        // SAFETY: the range lies in the area.
        let reader =
            scope.spawn(|| unsafe { sys::read_into(memory.as_fd(), into.address(0), PAGE) });
        // The call has read the page, and blocks on the fault at its destination.
        handler.next_fault().context("waiting for the call")?;
        let result = body();
        let holds = !reader.is_finished();
        handler.copy(into.address(0), source.address(0), PAGE)?;
        match reader.join() {
            Ok(count) => ensure!(count.context("the call")? == PAGE, "a page is read"),
            Err(_) => bail!("the reader broke down"),
        }
        result?;
        ensure!(holds, "the address space was held all the time");
        Ok(())
    })
}

/// Has the device read, and so map, all pages of an area. In parts, because the memory that they
/// are compared with is as large.
fn is_mapped(bound: &Bound, area: &Area) -> Result<()> {
    for first in area.all().step_by(64) {
        bound.expect(area, first..area.pages().min(first + 64), 1)?;
    }
    let count = bound.mapped(area, area.all())?;
    ensure!(count == area.pages(), "{count} pages are mapped");
    Ok(())
}

/// Uses more memory than the process may have.
fn insist(pages: usize) -> Result<()> {
    // Without a reservation: it is more than the kernel would promise.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let more = Area::map(pages * PAGE, sys::READ_WRITE, flags, None)?;
    for page in more.all() {
        more.write_word(page, 0, 1);
    }
    Ok(())
}

/// Lets the child go on until the kernel kills it.
fn is_killed(mut child: Child) -> Result<()> {
    child.pass()?;
    let end = child.status()?;
    ensure!(
        end == End::Signalled(libc::SIGKILL),
        "it was killed: {end:?}"
    );
    Ok(())
}

fn was_for_memory(group: &Group) -> Result<()> {
    let kills = group.counter("memory.events", "oom_kill")?;
    ensure!(kills == 1, "the kernel killed {kills} for memory");
    Ok(())
}

fn a_process_killed_for_memory_is_reaped() -> Result<()> {
    const THERE: usize = 6 * MIB;
    let group = limited(32)?;
    let bystander = Bystander::new()?;
    let shared = Area::small(1)?;
    shared.write(shared.all(), 1);
    let mut child = Child::fork(|turns| {
        group.join()?;
        let bound = Bound::new()?;
        let (small, large) = (Area::small(THERE - 2 * LARGE_PAGES)?, Area::large(2)?);
        let here = Area::small(6 * MIB)?;
        for area in [&small, &large, &here] {
            area.write(area.all(), 1);
        }
        bound.move_to_device(&small, small.all())?;
        bound.move_to_device(&large, large.all())?;
        // All of it stays mapped on the device until the file is closed.
        for area in [&small, &large, &here] {
            is_mapped(&bound, area)?;
        }
        turns.pass_and_wait()?;
        insist(32 * MIB)
    })?;
    child.wait()?;
    let others = bystander.others()?;
    ensure!(others == THERE as u64, "{others} frames are in use");
    holding(child.id(), &shared, || {
        is_killed(child)?;
        was_for_memory(&group)?;
        // The process cannot free anything while its address space is held.
        kernel::until("it is reaped", || {
            Ok(bystander.others()? == 0 && group.number("memory.current")? < REST)
        })
    })?;
    bystander.is_undisturbed()
}

fn what_the_device_uses_is_not_reaped() -> Result<()> {
    const THERE: usize = 2 * MIB;
    const IDLE: usize = 6 * MIB;
    let group = limited(16)?;
    let bystander = Bystander::new()?;
    let shared = Area::small(1)?;
    shared.write(shared.all(), 1);
    let (there, idle) = (Area::small(THERE)?, Area::small(IDLE)?);
    // Another process keeps the victim's file open until this end is closed.
    let (read, end) = sys::pipe()?;
    let mut ends = Some((read, end));
    let mut child = Child::fork(|turns| {
        let bound = Bound::new()?;
        let read = ends.take().map(|(read, _)| read);
        let _keeper = Child::fork(|_| wait_for_end(read))?;
        group.join()?;
        there.write(there.all(), 1);
        idle.write(idle.all(), 1);
        bound.move_to_device(&there, there.all())?;
        is_mapped(&bound, &there)?;
        let _job = std::mem::ManuallyDrop::new(bound.start(add(&there, 7, 0, 1, 1 << 40))?);
        turns.pass_and_wait()?;
        insist(16 * MIB)
    })?;
    child.wait()?;
    let mapped = bystander.mapped()?;
    let id = child.id();
    let mut log = Log::from_now()?;
    holding(id, &shared, || {
        is_killed(child)?;
        was_for_memory(&group)?;
        let given_up = format!("oom_reaper: unable to reap pid:{id} ");
        kernel::until("the kernel has tried", || log.says(&given_up))?;
        let others = bystander.others()?;
        ensure!(
            others == THERE as u64,
            "of {THERE} frames that the device was using, {others} are in use"
        );
        let now = bystander.mapped()?;
        ensure!(now == mapped, "{mapped} pages were mapped, and {now} are");
        let current = group.number("memory.current")?;
        ensure!(
            current < (THERE * PAGE) as u64 + REST,
            "{current} bytes are charged still"
        );
        // The driver neither reports nor faults in pages of an address space that the kernel has
        // reaped.
        let device = bystander.bound.space().device();
        let states = device.residency_of(id, there.range(0..1));
        let error = states.as_ref().err().and_then(hmm::Error::errno);
        ensure!(error == Some(libc::ESRCH), "its pages are told: {states:?}");
        Ok(())
    })?;
    drop(ends);
    kernel::until("its frames come free", || Ok(bystander.others()? == 0))?;
    bystander.is_undisturbed()
}

/// Waits until all other ends of a pipe are closed.
fn wait_for_end(read: Option<OwnedFd>) -> Result<()> {
    let mut read = File::from(read.context("there is a pipe")?);
    read.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// How many processes the kernel has killed for lack of memory.
fn kills() -> Result<u64> {
    let text = kernel::read("/proc/vmstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Ok(line.context("vmstat counts kills")?.parse()?)
}

fn killed_when_all_memory_is_gone() -> Result<()> {
    const THERE: usize = 8 * MIB;
    machine::may_be_exhausted()?;
    // The kernel must pick the child: not this process, nor its parent that waits for it.
    let parent = rustix::process::getppid().context("a row has a parent")?;
    let parent = parent.as_raw_nonzero();
    let _spared = [
        Setting::change("/proc/self/oom_score_adj", "-1000")?,
        Setting::change(format!("/proc/{parent}/oom_score_adj"), "-1000")?,
    ];
    let bystander = Bystander::new()?;
    // If the kernel kills a second process, it is this one, and that is noticed.
    let mut next = Child::fork(|turns| {
        kernel::write("/proc/self/oom_score_adj", "0")?;
        turns.pass_and_wait()
    })?;
    next.wait()?;
    let before = kills()?;
    let all = usize::try_from(kernel::meminfo("MemTotal")?)? / PAGE;
    let mut child = Child::fork(|turns| {
        kernel::write("/proc/self/oom_score_adj", "1000")?;
        let bound = Bound::new()?;
        let (there, here) = (Area::small(THERE)?, Area::small(16)?);
        for area in [&there, &here] {
            area.write(area.all(), 1);
        }
        bound.move_to_device(&there, there.all())?;
        // No job may run meanwhile: a worker that serves its faults would hold the memory.
        is_mapped(&bound, &there)?;
        is_mapped(&bound, &here)?;
        turns.pass_and_wait()?;
        insist(all)
    })?;
    child.wait()?;
    let others = bystander.others()?;
    ensure!(others >= THERE as u64, "{others} frames are in use");
    is_killed(child)?;
    kernel::until("its frames come free", || Ok(bystander.others()? == 0))?;
    let kills = kills()? - before;
    ensure!(kills == 1, "the kernel killed {kills}");
    next.pass_and_end()?;
    bystander.is_undisturbed()
}
