//! Mappings made by drivers: pages that belong to no file and to no anonymous area, and addresses
//! that are no memory.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{bail, ensure, Context, Result};
use hmm::{Destination, Place, Reason};

use crate::area::{Area, PAGE, ZERO};
use crate::bound::{add, Bound};
use crate::child::Child;
use crate::kernel;
use crate::row::{cannot_run, Chapter, Row};
use crate::sys;

pub(crate) const CHAPTER: Chapter = Chapter {
    title: "Mappings of drivers",
    rows: &[
        Row {
            name: "a-mixed-map-is-mirrored",
            duty: "pages that a driver has put into a shared mapping (VM_MIXEDMAP) are read and \
                   written by the device where they are, never moved, and forgotten with their \
                   mapping",
            source: "mm/hmm.c: hmm_vma_handle_pte (pte_special); mm/migrate_device.c: \
                     migrate_vma_setup (VM_SPECIAL)",
            run: a_mixed_map_is_mirrored,
        },
        Row {
            name: "a-private-mixed-map-is-copied",
            duty: "the same in a private mapping: what the device writes is a copy of the \
                   process's own, in system memory, which other mappings do not see and which fork \
                   shares",
            source: "mm/memory.c: do_wp_page (vm_normal_page); mm/migrate_device.c: \
                     migrate_vma_setup (VM_SPECIAL)",
            run: a_private_mixed_map_is_copied,
        },
        Row {
            name: "addresses-of-the-bus-are-refused",
            duty: "registers of a device that a process has mapped (VM_PFNMAP, VM_IO) are neither \
                   read, written, nor moved by the accelerator, and memory beside them is used as \
                   ever",
            source: "mm/hmm.c: hmm_vma_walk_test (VM_IO, VM_PFNMAP); mm/migrate_device.c: \
                     migrate_vma_setup (VM_SPECIAL)",
            run: addresses_of_the_bus_are_refused,
        },
    ],
};

/// A node with such mappings, which the driver offers with `dmirror=1`.
const NODE: &str = "/dev/hmm_dmirror0";

const PAGES: usize = 16;

fn node() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(NODE)
        .map_err(|error| cannot_run(format!("{NODE} cannot be opened: {error}")))
}

fn mixed(file: &File, flags: i32) -> Result<Area> {
    let area = Area::map(
        PAGES * PAGE,
        sys::READ_WRITE,
        flags,
        Some((file.as_fd(), 0)),
    )?;
    let flags = kernel::smaps(&area, "VmFlags")?;
    ensure!(
        flags.split_whitespace().any(|flag| flag == "mm"),
        "the mapping is VM_MIXEDMAP: {flags}"
    );
    Ok(area)
}

fn stays(bound: &Bound, area: &Area) -> Result<()> {
    for destination in [Destination::Device, Destination::System] {
        let moved = bound.migrate(area, area.all(), destination)?;
        ensure!(moved.moved == 0, "{destination:?}: {moved:?}");
    }
    bound.expect_place(area, area.all(), Place::System)
}

fn a_mixed_map_is_mirrored() -> Result<()> {
    let (bound, file) = (Bound::new()?, node()?);
    let area = mixed(&file, libc::MAP_SHARED)?;
    bound.expect(&area, area.all(), ZERO)?;
    bound.write(&area, 0..8, 1)?;
    area.expect(0..8, 1)?;
    area.write(8..PAGES, 2);
    bound.expect(&area, 8..PAGES, 2)?;
    let frames: Vec<u64> = frames(&area)?;
    stays(&bound, &area)?;
    ensure!(frames == self::frames(&area)?, "they are the same pages");
    let counted = bound.run(add(&area, 3, 0, 1, 5))?;
    ensure!(counted.is_ok(), "additions: {counted:?}");
    ensure!(
        area.read_word(3, 0) == area.word(3, 1) + 5,
        "they are all there"
    );
    area.protect(0..4, sys::READ)?;
    bound.refuse_write(&area, 1, Reason::Denied)?;
    bound.expect(&area, 0..3, 1)?;
    // A child has the same pages, not copies.
    Child::fork(|_| {
        area.expect(8..PAGES, 2)?;
        area.write(8..12, 3);
        Ok(())
    })?
    .end()?;
    bound.expect(&area, 8..12, 3)?;
    area.unmap(area.all())?;
    bound.refuse_read(&area, 0, Reason::Unmapped)?;
    bound.refuse_write(&area, 9, Reason::Unmapped)
}

fn frames(area: &Area) -> Result<Vec<u64>> {
    let entries = kernel::entries(area)?;
    Ok(entries.iter().map(|entry| entry.frame()).collect())
}

fn a_private_mixed_map_is_copied() -> Result<()> {
    let (bound, file) = (Bound::new()?, node()?);
    let area = mixed(&file, libc::MAP_PRIVATE)?;
    bound.expect(&area, area.all(), ZERO)?;
    let before = frames(&area)?;
    bound.write(&area, 0..4, 1)?;
    area.write(4..8, 1);
    let after = frames(&area)?;
    for page in area.all() {
        let copied = before[page] != after[page];
        ensure!(copied == (page < 8), "page {page} was copied: {copied}");
    }
    area.expect(0..8, 1)?;
    bound.expect(&area, 0..8, 1)?;
    bound.expect(&area, 8..PAGES, ZERO)?;
    // Nothing moves, not even the pages that are anonymous memory now.
    stays(&bound, &area)?;
    let mut child = Child::fork(|turns| {
        let bound = Bound::new()?;
        bound.write(&area, 0..8, 2)?;
        area.expect(0..8, 2)?;
        turns.pass_and_wait()?;
        area.expect(0..8, 2)
    })?;
    child.wait()?;
    bound.expect(&area, 0..8, 1)?;
    bound.write(&area, 0..8, 3)?;
    child.pass_and_end()?;
    area.expect(0..8, 3)
}

/// Registers of any device on the PCI bus.
fn registers() -> Result<PathBuf> {
    let devices = fs::read_dir("/sys/bus/pci/devices")
        .map_err(|error| cannot_run(format!("there is no PCI bus: {error}")))?;
    for device in devices.flatten() {
        for number in 0..6 {
            let path = device.path().join(format!("resource{number}"));
            // A resource that is smaller than a page, or no memory, cannot be mapped.
            if fs::metadata(&path).is_ok_and(|data| data.len() >= PAGE as u64) {
                return Ok(path);
            }
        }
    }
    Err(cannot_run(
        "no device on the PCI bus has registers that can be mapped",
    ))
}

fn addresses_of_the_bus_are_refused() -> Result<()> {
    let bound = Bound::new()?;
    let path = registers()?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    // In the middle of ordinary memory.
    let area = Area::small(3)?;
    area.write(area.all(), 1);
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let registers = Some((file.as_fd(), 0));
    // SAFETY: the page lies in the area.
    let mapped = unsafe { sys::map(area.address(1), PAGE, sys::READ_WRITE, flags, registers) };
    mapped.map_err(|error| {
        cannot_run(format!(
            "the kernel does not let {} be mapped: {error}",
            path.display()
        ))
    })?;
    let special = kernel::mappings_with("pf")?;
    ensure!(
        special.iter().any(|(start, _)| *start == area.address(1)),
        "the mapping is VM_PFNMAP"
    );
    bound.refuse_read(&area, 1, Reason::Denied)?;
    bound.refuse_write(&area, 1, Reason::Denied)?;
    if let Ok(values) = bound.run(add(&area, 1, 0, 1, 1))? {
        bail!("the device added to a register: {values:?}");
    }
    let moved = bound.migrate(&area, area.all(), Destination::Device)?;
    ensure!(
        moved.moved == 2,
        "memory moves, registers do not: {moved:?}"
    );
    let states = bound.states(&area, area.all())?;
    ensure!(
        states[0].place() == Place::Device && states[2].place() == Place::Device,
        "{states:?}"
    );
    ensure!(
        states[1].place() != Place::Device && !states[1].is_mapped(),
        "{states:?}"
    );
    bound.expect(&area, 0..1, 1)?;
    bound.expect(&area, 2..3, 1)?;
    bound.write(&area, 0..1, 2)?;
    area.expect(0..1, 2)?;
    area.expect(2..3, 1)
}
