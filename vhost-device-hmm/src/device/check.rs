//! The checking mode: finds uses of translations and frames that were given back.
//!
//! It is told what happens and compares it with what may happen. It changes nothing
//! but counters and the log, so that the device behaves as it does without it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use log::Level;

use super::memory::DeviceMemory;
use super::mmu::{Change, Leaf, Place};
use super::statistics::Counters;
use crate::report::Limited;

/// What discarded frames are filled with, so that whoever reads one notices.
pub const POISON: u8 = 0xdb;

/// The state of the checking mode.
#[derive(Debug)]
pub struct Check {
    device: Arc<DeviceMemory>,
    counters: Arc<Counters>,
    /// How many leaves lead to each frame of device memory.
    maps: Box<[AtomicU32]>,
    stale: Limited,
    freed: Limited,
}

impl Check {
    /// Checks for a device memory without mappings.
    pub fn new(device: Arc<DeviceMemory>, counters: Arc<Counters>) -> Self {
        let maps = (0..device.frames()).map(|_| AtomicU32::new(0)).collect();
        Self {
            device,
            counters,
            maps,
            stale: Limited::default(),
            freed: Limited::default(),
        }
    }

    /// A mapping has changed.
    pub fn changed(&self, space: u32, change: &Change) {
        if let Some(leaf) = device_leaf(&change.old) {
            self.each_map(leaf.frame, change.pages, |count| {
                count.fetch_sub(1, Ordering::Relaxed);
            });
        }
        if let Some(leaf) = device_leaf(&change.new) {
            self.each_map(leaf.frame, change.pages, |count| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            self.used(
                leaf.frame,
                change.pages,
                format_args!("mapped in space {space}"),
            );
        }
    }

    /// A run of device frames is used for something that needs them to hold data.
    pub fn used(&self, frame: u64, pages: u64, how: std::fmt::Arguments<'_>) {
        if let Some(free) = self.device.live().first_missing(frame, pages) {
            self.counters.freed_frame_uses.add(1);
            self.freed.log(
                Level::Error,
                format_args!("device frame {free:#x} is free and yet {how}"),
            );
        }
    }

    /// A run of device frames is about to be discarded.
    pub fn discards(&self, frame: u64, pages: u64) {
        let mut mapped = false;
        self.each_map(frame, pages, |count| {
            mapped |= count.load(Ordering::Relaxed) != 0
        });
        if mapped {
            self.counters.freed_frame_uses.add(1);
            self.freed.log(
                Level::Error,
                format_args!("device frames {frame:#x}+{pages} are discarded while mapped"),
            );
        }
    }

    /// A translation that is not in force any more was used, or could be.
    pub fn found_stale(&self, space: u32, what: std::fmt::Arguments<'_>) {
        self.counters.stale_accesses.add(1);
        self.stale.log(
            Level::Error,
            format_args!("space {space}: {what} through a translation that was taken back"),
        );
    }

    fn each_map(&self, frame: u64, pages: u64, visit: impl FnMut(&AtomicU32)) {
        let index = |frame: u64| usize::try_from(frame).unwrap_or(usize::MAX);
        self.maps
            .iter()
            .skip(index(frame))
            .take(index(pages))
            .for_each(visit);
    }
}

fn device_leaf(leaf: &Option<Leaf>) -> Option<Leaf> {
    leaf.filter(|leaf| leaf.place == Place::Device)
}
