//! Kinds of memory: in each the device finds what a CPU would, and no more.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Place, Reason};
use rustix::fs::{fcntl_add_seals, memfd_create, MemfdFlags, SealFlags};

use crate::area::{words, Area, LARGE, LARGE_PAGES, PAGE, ZERO};
use crate::bound::Bound;
use crate::child::Child;
use crate::kernel::{self, Setting};
use crate::row::{cannot_run, Chapter, Row};
use crate::sys::{self, Userfault};

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Kinds of memory",
    rows: &[
        Row {
            name: "userfaultfd-fills-for-the-device",
            duty: "a device access to a missing page of a userfaultfd range waits for the thread \
                   that serves it, and finds what was put there",
            source:
                "mm/userfaultfd.c: handle_userfault; mm/hmm.c: hmm_range_fault_unlocked_timeout",
            run: userfaultfd_fills_for_the_device,
        },
        Row {
            name: "userfaultfd-sees-device-writes",
            duty: "a write-protected page of a userfaultfd range is written by the device only \
                   after it was unprotected; its reads need no answer",
            source: "mm/userfaultfd.c: UFFDIO_WRITEPROTECT; mm/memory.c: do_wp_page",
            run: userfaultfd_sees_device_writes,
        },
        Row {
            name: "userfaultfd-protection-moves-along",
            duty: "a page that is write-protected by userfaultfd is so still after it was on the \
                   device, and there",
            source: "mm/migrate_device.c: pte_uffd_wp, pte_swp_mkuffd_wp",
            run: userfaultfd_protection_moves_along,
        },
        Row {
            name: "userfaultfd-moves-or-refuses",
            duty: "userfaultfd moves a page that is on the device to another address, or refuses \
                   and leaves it as it is; it moves the page that a CPU has taken back",
            source: "mm/userfaultfd.c: move_pages_ptes; mm/huge_memory.c: move_pages_huge_pmd",
            run: userfaultfd_moves_or_refuses,
        },
        Row {
            name: "hugetlb-is-mirrored",
            duty: "pages of hugetlbfs, private and shared, are read and written where they are, \
                   and never moved",
            source: "mm/hmm.c: hmm_vma_walk_hugetlb_entry; mm/migrate_device.c: migrate_vma_setup \
                     (refuses hugetlb)",
            run: hugetlb_is_mirrored,
        },
        Row {
            name: "shared-memory-is-shared",
            duty: "what one process's device writes to shared anonymous memory, another process \
                   reads, on both sides",
            source: "mm/memory.c: do_shared_fault",
            run: shared_memory_is_shared,
        },
        Row {
            name: "shared-files-are-written",
            duty: "device writes to a shared mapping of a file are what read(2) returns, and what \
                   write(2) puts there the device reads",
            source: "mm/shmem.c; mm/filemap.c",
            run: shared_files_are_written,
        },
        Row {
            name: "private-files-are-not-written",
            duty: "device writes to a private mapping of a file stay in the process",
            source: "mm/memory.c: do_cow_fault, do_wp_page",
            run: private_files_are_not_written,
        },
        Row {
            name: "beyond-the-end-of-a-file",
            duty: "a page of a mapping beyond its file's end is refused, after a truncation too",
            source: "mm/filemap.c: filemap_fault (SIGBUS); mm/truncate.c: unmap_mapping_range",
            run: beyond_the_end_of_a_file,
        },
        Row {
            name: "a-seal-holds-for-the-device",
            duty:
                "a memfd that is sealed against writing is not written by the device, through no \
                   mapping",
            source: "mm/memfd.c: F_SEAL_WRITE; mm/mmap.c: check_write_seal",
            run: a_seal_holds_for_the_device,
        },
        Row {
            name: "secret-memory-is-not-for-devices",
            duty: "memory of memfd_secret(2), which no other process can read even if it traces \
                   the owner, is not read or written by the device",
            source: "mm/gup.c: check_vma_flags (vma_is_secretmem); memfd_secret(2)",
            run: secret_memory_is_not_for_devices,
        },
        Row {
            name: "guard-regions-guard",
            duty:
                "a guard region refuses the device as it kills a CPU's thread, whatever was there \
                   before; without the guard there are zeros",
            source: "mm/madvise.c: guard_install_set_pte (PTE_MARKER_GUARD)",
            run: guard_regions_guard,
        },
        Row {
            name: "merged-pages-part",
            duty: "a device write to a page that KSM has merged changes that page alone",
            source: "mm/ksm.c: write_protect_page, replace_page",
            run: merged_pages_part,
        },
        Row {
            name: "merged-pages-may-be-asked-to-move",
            duty: "pages that KSM has merged never get into device memory, where ksmd would read \
                   them by CPU, and asking for it changes none of them",
            source:
                "mm/ksm.c: folio_migrate_ksm, stable_tree_search; mm/migrate_device.c does not \
                     tell KSM pages apart",
            run: merged_pages_may_be_asked_to_move,
        },
        Row {
            name: "the-kernels-own-mappings",
            duty: "memory that is no memory of the kernel's page allocator (VM_PFNMAP, VM_IO) is \
                   never given to the device",
            source: "mm/hmm.c: hmm_vma_walk_test (VM_IO, VM_PFNMAP); pte_special",
            run: the_kernels_own_mappings,
        },
        Row {
            name: "below-a-stack-only-cpus-grow-it",
            duty: "a page below a VMA that grows downwards cannot be used by the device until a \
                   CPU has accessed it; then it is as any other page",
            source: "mm/mmap_lock.c: lock_mm_and_find_vma (the CPUs' faults alone grow an area); \
                     mm/hmm.c: hmm_vma_walk_hole",
            run: below_a_stack_only_cpus_grow_it,
        },
        Row {
            name: "code-is-only-read",
            duty: "the program's own code can be read by the device, and not written",
            source: "mm/hmm.c: hmm_vma_fault (VM_WRITE)",
            run: code_is_only_read,
        },
    ],
};

fn userfaultfd_fills_for_the_device() -> Result<()> {
    let bound = Bound::new()?;
    let (area, source) = (Area::small(16)?, Area::small(16)?);
    source.write(source.all(), 5);
    let handler =
        Userfault::new().map_err(|error| cannot_run(format!("userfaultfd is refused: {error}")))?;
    handler.register_missing(area.address(0), 16 * PAGE)?;
    let served = AtomicUsize::new(0);
    thread::scope(|scope| -> Result<()> {
        let server = scope.spawn(|| -> Result<()> {
            while served.load(Ordering::Relaxed) < 16 {
                let address = handler.next_fault().context("waiting for a fault")?;
                let page = (address - area.address(0)) / PAGE;
                // Counted before the copy, because the device may go on before this thread does.
                served.fetch_add(1, Ordering::Relaxed);
                handler
                    .copy(area.address(page), source.address(page), PAGE)
                    .context("serving a fault")?;
            }
            Ok(())
        });
        for page in 0..8 {
            bound.expect(&area, page..page + 1, 5)?;
            let count = served.load(Ordering::Relaxed);
            ensure!(count > page, "page {page} came without being served");
        }
        bound.expect(&area, area.all(), 5)?;
        match server.join() {
            Ok(result) => result,
            Err(_) => bail!("the server broke down"),
        }
    })?;
    bound.write(&area, 3..4, 6)?;
    area.expect(0..3, 5)?;
    area.expect(3..4, 6)?;
    area.expect(4..16, 5)
}

/// Serves write faults. Returns the pages that had one, each once.
fn unprotect_on_write(
    handler: &Userfault,
    area: &Area,
    count: usize,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<usize>> {
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<Vec<usize>> {
            let mut pages = Vec::new();
            while pages.len() < count {
                let address = handler.next_fault().context("waiting for a fault")?;
                let page = (address - area.address(0)) / PAGE;
                ensure!(
                    area.read_word(page, 0) == area.word(page, 1),
                    "written too early"
                );
                if !pages.contains(&page) {
                    pages.push(page);
                }
                handler
                    .protect(area.address(page), PAGE, false)
                    .context("unprotecting")?;
            }
            pages.sort_unstable();
            Ok(pages)
        });
        work()?;
        match server.join() {
            Ok(result) => result,
            Err(_) => bail!("the server broke down"),
        }
    })
}

fn watch_writes(area: &Area) -> Result<Userfault> {
    let handler =
        Userfault::new().map_err(|error| cannot_run(format!("userfaultfd is refused: {error}")))?;
    handler
        .register_write_protection(area.address(0), area.pages() * PAGE)
        .map_err(|error| cannot_run(format!("write protection by userfaultfd: {error}")))?;
    handler
        .protect(area.address(0), area.pages() * PAGE, true)
        .context("protecting")?;
    Ok(handler)
}

fn userfaultfd_sees_device_writes() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(16)?;
    area.write(area.all(), 1);
    // So that the device has the pages mapped for writing when the protection comes.
    bound.write(&area, area.all(), 1)?;
    let handler = watch_writes(&area)?;
    bound.expect(&area, area.all(), 1)?;
    let pages = unprotect_on_write(&handler, &area, 2, || {
        bound.write(&area, 7..9, 2)?;
        bound.expect(&area, 0..7, 1)
    })?;
    ensure!(pages == [7, 8], "writes were seen on pages {pages:?}");
    area.expect(7..9, 2)?;
    area.expect(9..16, 1)
}

fn userfaultfd_protection_moves_along() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::small(16)?;
    area.write(area.all(), 1);
    let handler = watch_writes(&area)?;
    let _ = bound.migrate(&area, area.all(), Destination::Device)?;
    bound.expect(&area, area.all(), 1)?;
    // First by the device where the page is, then by a CPU when it is back in system memory.
    let pages = unprotect_on_write(&handler, &area, 1, || bound.write(&area, 3..4, 2))?;
    ensure!(
        pages == [3],
        "the device's write was seen on pages {pages:?}"
    );
    let _ = bound.migrate(&area, area.all(), Destination::Device)?;
    let pages = unprotect_on_write(&handler, &area, 1, || {
        area.write(5..6, 2);
        Ok(())
    })?;
    ensure!(pages == [5], "the CPU's write was seen on pages {pages:?}");
    for page in 0..16 {
        let tag = if page == 3 || page == 5 { 2 } else { 1 };
        area.expect(page..page + 1, tag)?;
    }
    Ok(())
}

fn userfaultfd_moves_or_refuses() -> Result<()> {
    let bound = Bound::new()?;
    let handler =
        Userfault::new().map_err(|error| cannot_run(format!("userfaultfd is refused: {error}")))?;
    for is_large in [false, true] {
        let area = || {
            if is_large {
                Area::large(1)
            } else {
                Area::small(4)
            }
        };
        // What Linux 7.3 says of a device page: docs/kernel-findings.md.
        let refusal = if is_large { libc::ENOENT } else { libc::EFAULT };
        let (source, target) = (area()?, area()?);
        let bytes = source.pages() * PAGE;
        source.write(source.all(), 1);
        bound.move_to_device(&source, source.all())?;
        handler.register_missing(target.address(0), bytes)?;
        let take = || handler.take(target.address(0), source.address(0), bytes);
        if let Err(error) = take() {
            ensure!(
                error.raw_os_error() == Some(refusal),
                "large {is_large}: refused with {error}"
            );
            bound.expect_place(&source, source.all(), Place::Device)?;
            bound.expect(&source, source.all(), 1)?;
            source.expect(source.all(), 1)?;
            take().with_context(|| format!("large {is_large}: of system memory"))?;
        }
        target.expect(target.all(), 1)?;
        bound.expect(&target, target.all(), 1)?;
        let left = bound.states(&source, source.all())?;
        ensure!(
            left.iter().all(|state| state.place() == Place::None),
            "large {is_large}: left behind were {left:?}"
        );
    }
    Ok(())
}

fn hugetlb_is_mirrored() -> Result<()> {
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let _pool = Setting::change(pool, "6")?;
    let got = kernel::read(pool)?;
    if got.trim() != "6" {
        return Err(cannot_run(format!(
            "the kernel reserved {} of 6 huge pages",
            got.trim()
        )));
    }
    let bound = Bound::new()?;
    for kind in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
        let flags = kind | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        let area = Area::map(2 * LARGE, sys::READ_WRITE, flags, None)?;
        bound.expect(&area, 0..LARGE_PAGES, ZERO)?;
        area.write(area.all(), 1);
        bound.expect(&area, area.all(), 1)?;
        bound.write(&area, 500..530, 2)?;
        let moved = bound.migrate(&area, area.all(), Destination::Device)?;
        ensure!(moved.moved == 0, "{moved:?}");
        bound.expect_place(&area, area.all(), Place::System)?;
        area.expect(0..500, 1)?;
        area.expect(500..530, 2)?;
        area.expect(530..area.pages(), 1)?;
        // Private pages are shared by the fork, shared ones for good.
        let mut child = Child::fork(|turns| {
            turns.wait()?;
            let tag = if kind == libc::MAP_SHARED { 3 } else { 2 };
            area.expect(510..512, tag)
        })?;
        bound.write(&area, 510..512, 3)?;
        child.pass()?;
        child.end()?;
        area.protect(0..LARGE_PAGES, sys::READ)?;
        bound.refuse_write(&area, 0, Reason::Denied)?;
        bound.expect(&area, 0..500, 1)?;
    }
    Ok(())
}

fn shared_memory_is_shared() -> Result<()> {
    let bound = Bound::new()?;
    let area = Area::shared(32)?;
    let mut child = Child::fork(|turns| {
        let bound = Bound::new()?;
        turns.wait()?;
        bound.expect(&area, area.all(), 1)?;
        area.expect(area.all(), 1)?;
        bound.write(&area, 0..16, 2)?;
        turns.pass_and_wait()?;
        bound.expect(&area, 16..32, 3)
    })?;
    bound.write(&area, area.all(), 1)?;
    child.pass_and_wait()?;
    bound.expect(&area, 0..16, 2)?;
    area.expect(0..16, 2)?;
    area.write(16..32, 3);
    child.pass_and_end()
}

/// A new file in the guest's own memory.
fn file(pages: usize) -> Result<File> {
    let path = format!("/tmp/contract-{}", std::process::id());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .context("making a file")?;
    std::fs::remove_file(&path)?;
    file.set_len((pages * PAGE) as u64)?;
    Ok(file)
}

fn bytes_of(tag: crate::area::Tag, pages: std::ops::Range<usize>) -> Vec<u8> {
    words(tag, pages)
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect()
}

fn contents(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn shared_files_are_written() -> Result<()> {
    let bound = Bound::new()?;
    let mut file = file(32)?;
    let area = Area::map(
        32 * PAGE,
        sys::READ_WRITE,
        libc::MAP_SHARED,
        Some((file.as_fd(), 0)),
    )?;
    for tag in 1..4 {
        bound.write(&area, area.all(), tag)?;
        ensure!(
            contents(&mut file)? == bytes_of(tag, 0..32),
            "read(2) of {tag}"
        );
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&bytes_of(10 + tag, 0..16))?;
        bound.expect(&area, 0..16, 10 + tag)?;
        bound.expect(&area, 16..32, tag)?;
    }
    Ok(())
}

fn private_files_are_not_written() -> Result<()> {
    let bound = Bound::new()?;
    let mut file = file(32)?;
    file.write_all(&bytes_of(1, 0..32))?;
    let of_file = Some((file.as_fd(), 0));
    let one = Area::map(32 * PAGE, sys::READ_WRITE, libc::MAP_PRIVATE, of_file)?;
    let other = Area::map(32 * PAGE, sys::READ_WRITE, libc::MAP_PRIVATE, of_file)?;
    let shared = Area::map(32 * PAGE, sys::READ, libc::MAP_SHARED, of_file)?;
    for area in [&one, &other, &shared] {
        bound.expect(area, area.all(), 1)?;
    }
    bound.write(&one, 0..16, 2)?;
    other.write(8..24, 3);
    bound.expect(&one, 0..16, 2)?;
    bound.expect(&one, 16..32, 1)?;
    bound.expect(&other, 0..8, 1)?;
    bound.expect(&other, 8..24, 3)?;
    bound.expect(&shared, shared.all(), 1)?;
    ensure!(
        contents(&mut file)? == bytes_of(1, 0..32),
        "the file has not changed"
    );
    Ok(())
}

fn beyond_the_end_of_a_file() -> Result<()> {
    let bound = Bound::new()?;
    let file = file(8)?;
    let area = Area::map(
        16 * PAGE,
        sys::READ_WRITE,
        libc::MAP_SHARED,
        Some((file.as_fd(), 0)),
    )?;
    bound.write(&area, 0..8, 1)?;
    bound.refuse_read(&area, 8, Reason::Denied)?;
    bound.refuse_write(&area, 15, Reason::Denied)?;
    file.set_len(4 * PAGE as u64)?;
    bound.refuse_read(&area, 4, Reason::Denied)?;
    bound.expect(&area, 0..4, 1)?;
    file.set_len(16 * PAGE as u64)?;
    bound.expect(&area, 4..16, ZERO)
}

fn secret_memory_is_not_for_devices() -> Result<()> {
    let file = sys::memfd_secret()
        .map_err(|error| cannot_run(format!("there is no secret memory: {error}")))?;
    rustix::fs::ftruncate(&file, 4 * PAGE as u64)?;
    let of_file = Some((file.as_fd(), 0));
    let area = Area::map(4 * PAGE, sys::READ_WRITE, libc::MAP_SHARED, of_file)?;
    area.write(area.all(), 1);
    let bound = Bound::new()?;
    bound.refuse_read(&area, 1, Reason::Denied)?;
    bound.refuse_write(&area, 2, Reason::Denied)?;
    let states = bound.states(&area, area.all())?;
    ensure!(
        states.iter().all(|state| !state.is_mapped()),
        "it is mapped on the device: {states:?}"
    );
    area.expect(area.all(), 1)
}

fn a_seal_holds_for_the_device() -> Result<()> {
    let bound = Bound::new()?;
    let file: OwnedFd = memfd_create("sealed", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(&bytes_of(1, 0..16))?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW,
    )?;
    let of_file = Some((file.as_fd(), 0));
    let writable = Area::map(16 * PAGE, sys::READ_WRITE, libc::MAP_SHARED, of_file);
    ensure!(writable.is_err(), "it cannot be mapped for writing");
    let shared = Area::map(16 * PAGE, sys::READ, libc::MAP_SHARED, of_file)?;
    let private = Area::map(16 * PAGE, sys::READ_WRITE, libc::MAP_PRIVATE, of_file)?;
    bound.expect(&shared, shared.all(), 1)?;
    bound.expect(&private, private.all(), 1)?;
    ensure!(
        shared.protect(0..16, sys::READ_WRITE).is_err(),
        "nor made writable later"
    );
    bound.refuse_write(&shared, 3, Reason::Denied)?;
    bound.write(&private, 2..6, 2)?;
    bound.expect(&private, 2..6, 2)?;
    bound.expect(&shared, shared.all(), 1)?;
    ensure!(
        contents(&mut file)? == bytes_of(1, 0..16),
        "the file has not changed"
    );
    Ok(())
}

const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;

fn guard_regions_guard() -> Result<()> {
    let bound = Bound::new()?;
    for on_device in [false, true] {
        let area = Area::small(16)?;
        area.write(area.all(), 1);
        if on_device {
            bound.move_to_device(&area, area.all())?;
        }
        bound.write(&area, area.all(), 1)?;
        area.try_advise(4..8, GUARD_INSTALL)
            .map_err(|error| cannot_run(format!("MADV_GUARD_INSTALL: {error}")))?;
        for page in 4..8 {
            bound.refuse_read(&area, page, Reason::Denied)?;
            bound.refuse_write(&area, page, Reason::Denied)?;
        }
        bound.expect(&area, 0..4, 1)?;
        let moved = bound.migrate(&area, area.all(), Destination::Device)?;
        ensure!(moved.moved <= 12, "guards do not move: {moved:?}");
        bound.refuse_read(&area, 5, Reason::Denied)?;
        bound.expect(&area, 8..16, 1)?;
        area.advise(4..8, GUARD_REMOVE)?;
        bound.expect(&area, 4..8, ZERO)?;
        bound.write(&area, 4..8, 2)?;
        area.expect(0..4, 1)?;
        area.expect(4..8, 2)?;
        area.expect(8..16, 1)?;
    }
    Ok(())
}

const KSM: &str = "/sys/kernel/mm/ksm";

/// Two areas with the same contents, merged.
fn merged() -> Result<([Area; 2], [Setting; 3])> {
    let settings = [
        Setting::change(format!("{KSM}/sleep_millisecs"), "1")?,
        Setting::change(format!("{KSM}/pages_to_scan"), "2000")?,
        Setting::change(format!("{KSM}/run"), "1")?,
    ];
    let areas = [Area::small(16)?, Area::small(16)?];
    for area in &areas {
        area.write(area.all(), 1);
        area.advise(area.all(), libc::MADV_MERGEABLE)?;
    }
    kernel::until("merging", || {
        let frames = |area: &Area| -> Result<Vec<u64>> {
            let entries = kernel::entries(area)?;
            Ok(entries.iter().map(|entry| entry.frame()).collect())
        };
        Ok(frames(&areas[0])? == frames(&areas[1])?)
    })?;
    Ok((areas, settings))
}

fn merged_pages_part() -> Result<()> {
    let bound = Bound::new()?;
    let ([one, other], _settings) = merged()?;
    bound.expect(&one, one.all(), 1)?;
    bound.expect(&other, other.all(), 1)?;
    bound.write(&one, 0..8, 2)?;
    bound.expect(&other, other.all(), 1)?;
    other.expect(other.all(), 1)?;
    bound.expect(&one, 8..16, 1)?;
    one.expect(0..8, 2)?;
    bound.write(&other, 8..16, 3)?;
    one.expect(8..16, 1)?;
    other.expect(8..16, 3)
}

fn merged_pages_may_be_asked_to_move() -> Result<()> {
    let bound = Bound::new()?;
    let ([one, other], _settings) = merged()?;
    let moved = bound.migrate(&one, one.all(), Destination::Device)?;
    ensure!(moved.moved + moved.skipped == 16, "{moved:?}");
    // A third area with equal contents: ksmd compares it with the pages that were to move.
    let third = Area::small(16)?;
    third.write(third.all(), 1);
    third.advise(third.all(), libc::MADV_MERGEABLE)?;
    let scans =
        || -> Result<u64> { Ok(kernel::read(format!("{KSM}/full_scans"))?.trim().parse()?) };
    let before = scans()?;
    kernel::until("ksmd looks at all of them", || Ok(scans()? >= before + 3))?;
    third.expect(third.all(), 1)?;
    bound.expect(&other, other.all(), 1)?;
    bound.expect(&one, one.all(), 1)?;
    bound.write(&one, 0..8, 2)?;
    other.expect(other.all(), 1)?;
    one.expect(0..8, 2)?;
    one.expect(8..16, 1)
}

fn the_kernels_own_mappings() -> Result<()> {
    let bound = Bound::new()?;
    let mut mappings = kernel::mappings_with("pf")?;
    mappings.extend(kernel::mappings_with("io")?);
    mappings.retain(|(_, name)| name != "[vsyscall]");
    if mappings.is_empty() {
        return Err(cannot_run(
            "no mapping of this process is VM_PFNMAP or VM_IO",
        ));
    }
    for (address, name) in mappings {
        let area = Area::foreign(address, 1);
        match bound.try_read(&area, 0)? {
            Ok(_) => bail!("the device read {name} at {address:#x}"),
            Err(failure) => ensure!(
                failure.reason == Some(Reason::Denied),
                "{name} at {address:#x}: {failure}"
            ),
        }
        let state = bound.states(&area, 0..1)?;
        ensure!(!state[0].is_mapped(), "{name} is mapped on the device");
    }
    Ok(())
}

fn below_a_stack_only_cpus_grow_it() -> Result<()> {
    let bound = Bound::new()?;
    // Below it is far more room than the gap that the kernel keeps below a stack.
    let (room, stack) = (Area::small(4096)?, 2048..2052);
    room.unmap(room.all())?;
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED_NOREPLACE;
    let (address, bytes) = (room.address(stack.start), stack.len() * PAGE);
    // SAFETY: it replaces nothing.
    unsafe { sys::map(address, bytes, sys::READ_WRITE, flags, None) }.context("mmap")?;
    bound.write(&room, stack.clone(), 1)?;
    let below = stack.start - 1;
    bound.refuse_write(&room, below, Reason::Unmapped)?;
    bound.refuse_read(&room, below, Reason::Unmapped)?;
    let log = sys::write_from(sys::pipe()?.1.as_fd(), room.address(below), 1);
    ensure!(log.is_ok(), "a CPU of the kernel grows it: {log:?}");
    bound.write(&room, below..stack.end, 2)?;
    bound.refuse_write(&room, below - 1, Reason::Unmapped)?;
    room.write(below - 1..below, 3);
    bound.expect(&room, below - 1..below, 3)?;
    room.expect(below..stack.end, 2)
}

fn code_is_only_read() -> Result<()> {
    let bound = Bound::new()?;
    let code = code_is_only_read as fn() -> Result<()>;
    let address = (code as usize) & !(PAGE - 1);
    let area = Area::foreign(address, 1);
    let words = || -> Vec<u64> {
        (0..PAGE / 8)
            .map(|index| area.read_word(0, index))
            .collect()
    };
    let before = words();
    let read = bound.try_read(&area, 0)?;
    ensure!(read.is_ok(), "it can be read: {read:?}");
    bound.refuse_write(&area, 0, Reason::Denied)?;
    ensure!(before == words(), "not a byte has changed");
    Ok(())
}
