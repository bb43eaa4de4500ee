//! Access by the kernel for another process: a reader or writer of a page on the device gets its
//! contents.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hmm::Place;

use crate::area::{Area, Tag, PAGE};
use crate::bound::Bound;
use crate::child::{Child, Turns};
use crate::kernel::{RamDisk, Setting};
use crate::row::{cannot_run, Chapter, Row};
use crate::sys::{self, End};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Access by the kernel",
    rows: &[
        Row {
            name: "system-calls-reach-moved-pages",
            duty: "read(2) into and write(2) from pages on the device",
            source: "arch/x86/mm/fault.c; mm/memory.c: do_swap_page",
            run: system_calls_reach_moved_pages,
        },
        Row {
            name: "direct-io-reaches-moved-pages",
            duty: "O_DIRECT transfers to and from pages on the device, which come back and are \
                   pinned meanwhile",
            source: "mm/gup.c: follow_page_pte (device-private entries are faulted in)",
            run: direct_io_reaches_moved_pages,
        },
        Row {
            name: "spliced-pages-are-the-pages",
            duty: "vmsplice of pages on the device hands on what the device wrote",
            source: "mm/gup.c: pin_user_pages_fast",
            run: spliced_pages_are_the_pages,
        },
        Row {
            name: "another-process-reads-and-writes",
            duty: "process_vm_readv and process_vm_writev on another process's pages on the device",
            source: "mm/process_vm_access.c; mm/gup.c: pin_user_pages_remote",
            run: another_process_reads_and_writes,
        },
        Row {
            name: "proc-mem-reads-and-writes",
            duty: "/proc/PID/mem of pages on the device; a forced write to read-only memory makes \
                   a copy and leaves other processes alone",
            source: "fs/proc/base.c: mem_rw; mm/gup.c (FOLL_FORCE)",
            run: proc_mem_reads_and_writes,
        },
        Row {
            name: "a-debugger-peeks-and-pokes",
            duty: "ptrace reads and writes words of pages on the device, and the device sees it",
            source: "kernel/ptrace.c: ptrace_access_vm",
            run: a_debugger_peeks_and_pokes,
        },
        Row {
            name: "a-futex-on-a-moved-page",
            duty: "a futex word keeps its meaning while its page moves",
            source: "kernel/futex/core.c: get_futex_key",
            run: a_futex_on_a_moved_page,
        },
        Row {
            name: "a-core-dump-of-moved-pages",
            duty: "a core dump has what the device wrote, of pages in system memory and of small \
                 pages on the device; of huge pages there it has zeros, which is the kernel's \
                 mistake",
            source: "fs/coredump.c: dump_user_range; mm/gup.c: no_page_table (FOLL_DUMP), \
                     docs/kernel-findings.md",
            run: a_core_dump_of_moved_pages,
        },
    ],
};

const PAGES: usize = 16;

/// Pages on the device that the device has written.
fn written(bound: &Bound, tag: Tag) -> Result<Area> {
    let area = Area::small(PAGES)?;
    area.write(area.all(), 99);
    bound.move_to_device(&area, area.all())?;
    bound.write(&area, area.all(), tag)?;
    Ok(area)
}

/// The path of a process's core file, and the file that sets it.
const CORE: &str = "/tmp/contract.core";
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

fn a_core_dump_of_moved_pages() -> Result<()> {
    let _pattern = Setting::change(CORE_PATTERN, &format!("{CORE}.%p"))?;
    let (small, large, system) = (Area::small(64)?, Area::large(2)?, Area::large(1)?);
    let mut child = Child::fork(|turns| {
        sys::allow_core_dump()?;
        let bound = Bound::new()?;
        for area in [&small, &large, &system] {
            area.write(area.all(), 1);
        }
        for area in [&small, &large] {
            bound.move_to_device(area, area.all())?;
        }
        for area in [&small, &large, &system] {
            bound.write(area, area.all(), 2)?;
        }
        let states = bound.states(&large, large.all())?;
        let is_whole = |state: &hmm::PageState| state.place() == Place::Device && state.is_large();
        ensure!(states.iter().all(is_whole), "huge pages on the device");
        turns.pass()?;
        std::process::abort()
    })?;
    child.wait()?;
    let path = format!("{CORE}.{}", child.id());
    let end = child.status()?;
    ensure!(end == End::Signalled(libc::SIGABRT), "{end:?}");
    let core = fs::read(&path);
    let _ = fs::remove_file(&path);
    let core = core.map_err(|error| cannot_run(format!("there is no core dump: {error}")))?;
    for (what, area) in [
        ("in system memory", &system),
        ("small, on the device", &small),
    ] {
        let found = dumped(&core, area)?;
        ensure!(found == bytes_of(area, 2), "pages {what} are in the dump");
    }
    // If this fails because the dump is right, the kernel has been fixed: the finding can go.
    let found = dumped(&core, &large)?;
    let zeros = found.iter().filter(|byte| **byte == 0).count();
    ensure!(
        zeros == found.len(),
        "of huge pages on the device {zeros} of {} bytes are zeros",
        found.len()
    );
    Ok(())
}

/// The contents of an area in a core file.
fn dumped(core: &[u8], area: &Area) -> Result<Vec<u8>> {
    /// A number of the file's format, ELF of 64 bits.
    fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Result<usize> {
        let field = bytes
            .get(at..at + BYTES)
            .context("the core file is short")?;
        let mut wide = [0; 8];
        wide[..BYTES].copy_from_slice(field);
        Ok(usize::try_from(u64::from_le_bytes(wide))?)
    }
    let (table, size) = (number::<8>(core, 32)?, number::<2>(core, 54)?);
    let (start, end) = (area.address(0), area.address(area.pages()));
    let mut found = vec![0; end - start];
    let mut covered = 0;
    for index in 0..number::<2>(core, 56)? {
        let header = core.get(table + index * size..).context("a header")?;
        let (offset, address) = (number::<8>(header, 8)?, number::<8>(header, 16)?);
        let (from, to) = (
            address.max(start),
            (address + number::<8>(header, 32)?).min(end),
        );
        if number::<4>(header, 0)? == LOADED && from < to {
            let part = core
                .get(offset + from - address..offset + to - address)
                .context("the core file is cut")?;
            found[from - start..to - start].copy_from_slice(part);
            covered += to - from;
        }
    }
    ensure!(covered == found.len(), "{covered} bytes are in the dump");
    Ok(found)
}

/// The type of a header that describes memory.
const LOADED: usize = 1;

fn bytes_of(area: &Area, tag: Tag) -> Vec<u8> {
    area.words(area.all(), tag)
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect()
}

fn system_calls_reach_moved_pages() -> Result<()> {
    let bound = Bound::new()?;
    let area = written(&bound, 1)?;
    let (read, write) = sys::pipe()?;
    for page in 0..8 {
        let count = sys::write_from(write.as_fd(), area.address(page), PAGE).context("write(2)")?;
        ensure!(count == PAGE, "{count} bytes of a page were written");
        let page = page + 8;
        // SAFETY: the page lies in the area.
        let count = unsafe { sys::read_into(read.as_fd(), area.address(page), PAGE) };
        ensure!(count.context("read(2)")? == PAGE, "a page is read");
    }
    for page in 0..8 {
        let wanted = area.word(page, 1);
        ensure!(
            area.read_word(page, 5) == wanted,
            "page {page} is as it was"
        );
        let found = area.read_word(page + 8, 5);
        ensure!(found == wanted, "page {page} arrived as {found:#x}");
    }
    Ok(())
}

fn direct_io_reaches_moved_pages() -> Result<()> {
    let bound = Bound::new()?;
    let disk = RamDisk::new(1 << 20)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk.node())
        .context("opening the disk")?;
    let area = written(&bound, 1)?;
    let bytes = PAGES * PAGE;
    let count = sys::write_from(file.as_fd(), area.address(0), bytes).context("writing")?;
    ensure!(count == bytes, "{count} bytes were written");
    bound.expect(&area, area.all(), 1)?;
    bound.write(&area, area.all(), 2)?;
    bound.move_to_device(&area, area.all())?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    // SAFETY: the range lies in the area.
    let count = unsafe { sys::read_into(file.as_fd(), area.address(0), bytes) };
    ensure!(count.context("reading")? == bytes, "all bytes are read");
    bound.expect(&area, area.all(), 1)?;
    area.expect(area.all(), 1)
}

fn spliced_pages_are_the_pages() -> Result<()> {
    let bound = Bound::new()?;
    let area = written(&bound, 1)?;
    let (read, write) = sys::pipe()?;
    let bytes = 4 * PAGE;
    let count = sys::splice_pages(write.as_fd(), area.address(0), bytes).context("vmsplice")?;
    ensure!(count == bytes, "{count} bytes were spliced");
    // The pipe has the same pages, not copies: a later write of the device shows in it.
    bound.write(&area, 2..4, 2)?;
    let mut found = vec![0; bytes];
    File::from(read).read_exact(&mut found)?;
    let wanted = bytes_of(&area, 1);
    ensure!(
        found[..2 * PAGE] == wanted[..2 * PAGE],
        "two pages are as they were"
    );
    let wanted = bytes_of(&area, 2);
    ensure!(
        found[2 * PAGE..] == wanted[2 * PAGE..bytes],
        "and two as the device wrote them"
    );
    bound.move_to_device(&area, area.all())?;
    bound.expect(&area, 4..PAGES, 1)
}

/// A child with pages on the device that hold tag 1. Later it expects tag 2, on the device first.
fn other_process() -> Result<(Child, Area)> {
    let area = Area::small(PAGES)?;
    let body = |turns: &mut Turns| -> Result<()> {
        let bound = Bound::new()?;
        area.write(area.all(), 99);
        bound.move_to_device(&area, area.all())?;
        bound.write(&area, area.all(), 1)?;
        turns.pass_and_wait()?;
        bound.expect(&area, area.all(), 2)?;
        area.expect(area.all(), 2)
    };
    let mut child = Child::fork(body)?;
    child.wait()?;
    Ok((child, area))
}

fn another_process_reads_and_writes() -> Result<()> {
    let (child, area) = other_process()?;
    let mut found = vec![0; PAGES * PAGE];
    let count =
        sys::read_process(child.id(), area.address(0), &mut found).context("process_vm_readv")?;
    ensure!(
        count == found.len() && found == bytes_of(&area, 1),
        "what the device wrote"
    );
    let wanted = bytes_of(&area, 2);
    let count =
        sys::write_process(child.id(), area.address(0), &wanted).context("process_vm_writev")?;
    ensure!(count == wanted.len(), "all of it is written");
    child.pass_and_end()
}

fn proc_mem_reads_and_writes() -> Result<()> {
    let (child, area) = other_process()?;
    let path = format!("/proc/{}/mem", child.id());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .context("opening mem")?;
    let mut found = vec![0; PAGES * PAGE];
    file.read_exact_at(&mut found, area.address(0) as u64)
        .context("reading mem")?;
    ensure!(found == bytes_of(&area, 1), "what the device wrote");
    file.write_all_at(&bytes_of(&area, 2), area.address(0) as u64)
        .context("writing mem")?;
    child.pass_and_end()
}

fn a_debugger_peeks_and_pokes() -> Result<()> {
    let (child, area) = other_process()?;
    sys::attach(child.id()).context("attaching")?;
    let stop = sys::wait(child.id())?;
    ensure!(matches!(stop, End::Stopped(_)), "it has stopped: {stop:?}");
    for page in 0..PAGES {
        for index in 0..PAGE / 8 {
            let address = area.address(page) + index * 8;
            if index % 128 == 0 {
                let found = sys::peek(child.id(), address).context("peeking")?;
                ensure!(found == area.word(page, 1), "page {page} holds {found:#x}");
            }
            sys::poke(child.id(), address, area.word(page, 2)).context("poking")?;
        }
    }
    sys::detach(child.id()).context("detaching")?;
    child.pass_and_end()
}

fn a_futex_on_a_moved_page() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(1)?;
    area.write(0..1, 0);
    for round in 0..20 {
        std::thread::scope(|scope| -> Result<()> {
            let waiter = scope.spawn(|| {
                while area
                    .counter(0, 0)
                    .load(std::sync::atomic::Ordering::Acquire)
                    == round
                {
                    sys::futex_wait(&area, round, Duration::from_millis(200));
                }
            });
            let _ = bound.migrate(&area, 0..1, hmm::Destination::Device)?;
            bound
                .run(crate::bound::add(&area, 0, 0, 1, 1))?
                .map_err(|failure| anyhow::anyhow!("{failure}"))?;
            let woken = sys::futex_wake(&area);
            waiter
                .join()
                .map_err(|_| anyhow::anyhow!("the waiter broke down"))?;
            ensure!(woken.is_ok(), "{woken:?}");
            Ok(())
        })?;
    }
    Ok(())
}
