//! The checking mode: finds uses of translations and frames that were given back.
//!
//! The checking mode is told of each event and compares it with what is allowed. It changes only
//! counters and the log, so that the device behaves as without it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use super::memory::{DeviceMemory, FrameSet, FRAME_BYTES};
use super::mmu::{Change, Leaf, Place};
use super::statistics::Counters;

/// Discarded frames are filled with this byte, so that a read of one is noticed.
pub const POISON: u8 = 0xdb;

/// The state of the checking mode.
#[derive(Debug)]
pub struct Check {
    device: Arc<DeviceMemory>,
    counters: Arc<Counters>,
    /// The number of leaves that map each frame of device memory.
    maps: Box<[AtomicU32]>,
    /// Frames that hold only poison, unless the guest's CPUs have written to them, which the device
    /// does not see.
    poisoned: FrameSet,
}

impl Check {
    /// Checks for a device memory without mappings.
    pub fn new(device: Arc<DeviceMemory>, counters: Arc<Counters>) -> Self {
        let maps = (0..device.frames()).map(|_| AtomicU32::new(0)).collect();
        Self {
            poisoned: FrameSet::new(device.frames()),
            device,
            counters,
            maps,
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

    /// A run of device frames is used in a way that requires data in them.
    pub fn used(&self, frame: u64, pages: u64, how: std::fmt::Arguments<'_>) {
        if let Some(free) = self.device.live().first_missing(frame, pages) {
            self.counters.freed_frame_uses.add(1);
            log::error!("device frame {free:#x} is free and yet {how}");
        }
    }

    /// A run of device frames is about to be written by a copy, or poisoned again: the free frames
    /// among them must still hold the poison.
    pub fn overwrites(&self, frame: u64, pages: u64) {
        for frame in frame..frame.saturating_add(pages) {
            if self.poisoned.remove(frame, 1) == 0 {
                continue;
            }
            let mut bytes = [POISON; FRAME_BYTES];
            if let Some(slice) = self.device.slice(frame, 1) {
                slice.copy_to(&mut bytes);
            }
            if bytes != [POISON; FRAME_BYTES] {
                self.counters.freed_frame_uses.add(1);
                log::error!("device frame {frame:#x} was written while it was free");
            }
        }
    }

    /// A run of device frames has been filled with poison.
    pub fn poisoned(&self, frame: u64, pages: u64) {
        self.poisoned.insert(frame, pages);
    }

    /// All device frames have been cleared.
    pub fn cleared(&self) {
        self.poisoned.remove(0, self.device.frames());
    }

    /// A run of device frames is about to be discarded.
    pub fn discards(&self, frame: u64, pages: u64) {
        let mut mapped = false;
        self.each_map(frame, pages, |count| {
            mapped |= count.load(Ordering::Relaxed) != 0
        });
        if mapped {
            self.counters.freed_frame_uses.add(1);
            log::error!("device frames {frame:#x}+{pages} are discarded while mapped");
        }
    }

    /// A stale translation was used, or could be.
    pub fn found_stale(&self, space: u32, what: std::fmt::Arguments<'_>) {
        self.counters.stale_accesses.add(1);
        log::error!("space {space}: {what} through a translation that was taken back");
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
