//! Long-term pins of pages, as RDMA and VFIO take them, by the kernel's own test of them
//! (`mm/gup_test.c`).
//!
//! It knows nothing of the device.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::area::{Area, PAGE};
use crate::row::cannot_run;
use crate::sys;

const NODE: &str = "/sys/kernel/debug/gup_test";

/// The calls of `mm/gup_test.h`.
const START: u32 = 0x4018_6707;
const READ: u32 = 0x4008_6709;

/// The bit of `flags` that asks for the right to write.
const WRITE: u32 = 1;
/// The bit of `flags` that asks for the way without locks.
const FAST: u32 = 2;

/// `struct pin_longterm_test`.
#[repr(C)]
struct PinLongterm {
    address: u64,
    bytes: u64,
    flags: u32,
    unused: u32,
}

/// The purpose of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    Reading,
    Writing,
    /// Writing, by the fast path, which takes no lock of the address space unless it must.
    FastWriting,
}

/// Pages that are pinned as long as this exists.
#[derive(Debug)]
pub(crate) struct Pin {
    file: File,
    pages: usize,
}

impl Pin {
    /// Pins pages.
    pub(crate) fn new(area: &Area, pages: Range<usize>, purpose: For) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(NODE)
            .map_err(|error| cannot_run(format!("{NODE} cannot be opened: {error}")))?;
        let mut request = PinLongterm {
            address: area.address(pages.start) as u64,
            bytes: (pages.len() * PAGE) as u64,
            flags: match purpose {
                For::Reading => 0,
                For::Writing => WRITE,
                For::FastWriting => WRITE | FAST,
            },
            unused: 0,
        };
        // SAFETY: the call reads this structure; the kernel checks the range that it describes.
        unsafe { sys::control(file.as_fd(), START, &mut request) }.context("pinning pages")?;
        Ok(Self {
            file,
            pages: pages.len(),
        })
    }

    /// The contents of the pinned pages, whatever the process has at their addresses now.
    pub(crate) fn contents(&self) -> Result<Area> {
        let copy = Area::small(self.pages)?;
        let mut address = copy.address(0) as u64;
        // SAFETY: the call reads the address, and writes as many pages there as are pinned,
        // which are the area's.
        unsafe { sys::control(self.file.as_fd(), READ, &mut address) }
            .context("reading pinned pages")?;
        Ok(copy)
    }
}
