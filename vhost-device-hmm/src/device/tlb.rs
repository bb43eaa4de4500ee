//! An engine's TLB: translations it has used, with the host address behind them.
//!
//! An entry is tagged with the *epoch* of its space. Epochs are unique among all
//! spaces and are never used again; a space takes a new one whenever something that
//! it allowed is so no more. All entries made before are dead at that moment, without
//! anyone having to touch them. Who may use an epoch is up to the caller: it holds the
//! space's lock, so that the epoch stays what it is until the access is over.

use super::memory::{DeviceMemory, SystemMemory, FRAME_BYTES, LARGE_BYTES};
use super::mmu::{PageRange, Place, Translation};
use std::sync::Arc;
use virtio_hmm_spec::wire::{rights, LARGE_ORDER, LARGE_PAGES, PAGE_BYTES, PAGE_SHIFT};
use vm_memory::VolatileSlice;

/// Entries for single pages: with 4 KiB pages they span 8 MiB.
const SMALL_ENTRIES: usize = 2048;

/// Entries for large leaves: they span 512 MiB.
const LARGE_ENTRIES: usize = 256;

/// One translation.
///
/// Invariant: `host` points to the first byte of a leaf's worth of bytes in the
/// memories that the TLB holds, or the entry's epoch is zero, which no space has.
#[derive(Clone, Copy, Debug)]
struct Entry {
    epoch: u64,
    /// The leaf's first page.
    first: u64,
    host: *mut u8,
    rights: u32,
    place: Place,
    /// The table already says that the leaf has been written through.
    dirty: bool,
}

impl Entry {
    const NONE: Self = Self {
        epoch: 0,
        first: 0,
        host: std::ptr::null_mut(),
        rights: 0,
        place: Place::System,
        dirty: false,
    };
}

/// An entry that was found for an address.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    index: usize,
    large: bool,
    offset: usize,
}

impl Hit {
    /// Whether the leaf is a large one.
    pub fn is_large(&self) -> bool {
        self.large
    }
}

/// The translations that one engine has used last.
#[derive(Debug)]
pub struct Tlb {
    device: Arc<DeviceMemory>,
    system: Arc<SystemMemory>,
    small: Box<[Entry]>,
    large: Box<[Entry]>,
}

// SAFETY: the pointers in the entries lead to memory that is shared by nature and is
// mapped for the whole process; the TLB keeps it mapped through `device` and `system`,
// which can be sent themselves. Nothing in it belongs to a thread.
unsafe impl Send for Tlb {}

impl Tlb {
    /// An empty TLB.
    pub fn new(device: Arc<DeviceMemory>, system: Arc<SystemMemory>) -> Self {
        Self {
            device,
            system,
            small: vec![Entry::NONE; SMALL_ENTRIES].into(),
            large: vec![Entry::NONE; LARGE_ENTRIES].into(),
        }
    }

    /// Makes sure that what is found leads into this view of the guest's memory.
    pub fn follow(&mut self, system: &Arc<SystemMemory>) {
        if !Arc::ptr_eq(&self.system, system) {
            self.small.fill(Entry::NONE);
            self.large.fill(Entry::NONE);
            self.system = Arc::clone(system);
        }
    }

    /// Finds the translation of an address for an access with these rights.
    #[inline]
    pub fn find(&self, epoch: u64, address: u64, access: u32) -> Option<Hit> {
        let page = address >> PAGE_SHIFT;
        let usable = |entry: &Entry, first: u64| {
            entry.epoch == epoch
                && entry.first == first
                && entry.rights & access == access
                && (entry.dirty || access & (rights::WRITE | rights::ATOMIC) == 0)
        };
        let index = slot(page, SMALL_ENTRIES);
        if self
            .small
            .get(index)
            .is_some_and(|entry| usable(entry, page))
        {
            return Some(Hit {
                index,
                large: false,
                offset: offset_in(address, PAGE_BYTES),
            });
        }
        let first = page & !(LARGE_PAGES - 1);
        let index = slot(page >> LARGE_ORDER, LARGE_ENTRIES);
        if self
            .large
            .get(index)
            .is_some_and(|entry| usable(entry, first))
        {
            let offset = offset_in(address, LARGE_PAGES * PAGE_BYTES);
            return Some(Hit {
                index,
                large: true,
                offset,
            });
        }
        None
    }

    /// The bytes from the address of a hit to the end of its leaf, and whose they are.
    #[inline]
    pub fn bytes(&self, hit: Hit) -> (VolatileSlice<'_>, Place) {
        let (entries, leaf_bytes) = match hit.large {
            false => (&self.small, FRAME_BYTES),
            true => (&self.large, LARGE_BYTES),
        };
        match entries.get(hit.index) {
            Some(entry) if entry.epoch != 0 && hit.offset < leaf_bytes => {
                // SAFETY: by the entry's invariant `host` points to `leaf_bytes` bytes,
                // and the offset is smaller than that, so the result stays inside.
                let start = unsafe { entry.host.add(hit.offset) };
                // SAFETY: the rest of the leaf from there on lies within the memories
                // that the TLB keeps mapped for as long as the slice borrows it.
                let slice = unsafe { VolatileSlice::new(start, leaf_bytes - hit.offset) };
                (slice, entry.place)
            }
            // A hit that was found before the memories changed.
            _ => (VolatileSlice::from(&mut [][..]), Place::System),
        }
    }

    /// Takes in the translation of a page; `None` when its frame is not backed.
    pub fn fill(
        &mut self,
        epoch: u64,
        page: u64,
        translation: &Translation<'_>,
        dirty: bool,
    ) -> Option<()> {
        let leaf = &translation.leaf;
        let slice_of = |frame, pages| match leaf.place {
            Place::Device => self.device.slice(frame, pages),
            Place::System => self.system.slice(frame, pages),
        };
        // A large leaf whose bytes do not lie side by side in the host is used page by
        // page.
        let whole = (translation.order == LARGE_ORDER)
            .then(|| slice_of(leaf.frame, LARGE_PAGES))
            .flatten();
        let (slice, large) = match whole {
            Some(slice) => (slice, true),
            None => (slice_of(translation.frame_of(page), 1)?, false),
        };
        let entry = Entry {
            epoch,
            first: if large { translation.first } else { page },
            host: slice.ptr_guard_mut().as_ptr(),
            rights: leaf.rights,
            place: leaf.place,
            dirty,
        };
        let slot = match large {
            false => self.small.get_mut(slot(page, SMALL_ENTRIES)),
            true => self.large.get_mut(slot(page >> LARGE_ORDER, LARGE_ENTRIES)),
        };
        *slot? = entry;
        Some(())
    }

    /// The host address of a frame, if it is backed.
    pub fn host_of(&self, place: Place, frame: u64) -> Option<usize> {
        let slice = match place {
            Place::Device => self.device.slice(frame, 1),
            Place::System => self.system.slice(frame, 1),
        };
        slice.map(|slice| slice.ptr_guard().as_ptr() as usize)
    }

    /// Whether an entry would still be found for any page of a range.
    pub fn yields(&self, epoch: u64, range: &PageRange, access: u32) -> bool {
        let within = |entry: &Entry, pages: u64| {
            entry.epoch == epoch
                && entry.rights & access != 0
                && entry.first < range.end()
                && entry.first + pages > range.start()
        };
        self.small.iter().any(|entry| within(entry, 1))
            || self.large.iter().any(|entry| within(entry, LARGE_PAGES))
    }

    /// Makes a translation that was taken back appear as if it were in force.
    #[cfg(test)]
    pub(crate) fn revive(&mut self, from: u64, to: u64) {
        for entry in self.small.iter_mut().chain(self.large.iter_mut()) {
            if entry.epoch == from {
                entry.epoch = to;
            }
        }
    }
}

#[inline]
fn slot(number: u64, entries: usize) -> usize {
    // Less than the number of entries: the cast loses nothing that matters.
    #[expect(clippy::cast_possible_truncation)]
    let low = number as usize;
    low % entries
}

#[inline]
fn offset_in(address: u64, bytes: u64) -> usize {
    // At most 2 MiB.
    #[expect(clippy::cast_possible_truncation)]
    let offset = (address % bytes) as usize;
    offset
}
