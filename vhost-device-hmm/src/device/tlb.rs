//! An engine's TLB: translations that it has used, with their host addresses.
//!
//! An entry is tagged with the *epoch* of its space. Epochs are unique among all spaces and are
//! never reused. A space takes a new epoch whenever it takes a right back. This invalidates all
//! older entries at once, without a visit to any of them. The caller decides which epoch is valid:
//! it holds the space's lock, so that the epoch does not change until the access is over.

use super::memory::{DeviceMemory, SystemMemory, FRAME_BYTES, LARGE_BYTES};
use super::mmu::{PageRange, Place, Translation};
use std::sync::Arc;
use virtio_hmm_spec::wire::{rights, LARGE_ORDER, LARGE_PAGES, PAGE_BYTES, PAGE_SHIFT};
use vm_memory::VolatileSlice;

/// Entries for single pages: with 4 KiB pages they span 8 MiB.
const SMALL_ENTRIES: usize = 2048;

/// Entries for large leaves: they span 512 MiB.
const LARGE_ENTRIES: usize = 256;

/// The offset added to an entry's index for each table's worth of page numbers.
///
/// A job often goes through several arrays in parallel that lie a power of two apart. Without the
/// offset their pages would evict each other. With it they are dozens of entries apart, up to 2^10
/// tables' worth of single pages and 2^7 of large leaves. Consecutive numbers still have distinct
/// entries, also where one table's worth ends and the next one begins.
const SKEW: u64 = 933;

/// The most pages that one look-up may join. That many consecutive pages have distinct entries in
/// the TLB.
pub const JOINED_PAGES: usize = 64;

/// One translation.
///
/// Invariant: unless the entry's epoch is zero, which no space has, `host` points to the first
/// byte of a leaf's worth of bytes in the memories that the TLB holds, and the `following` pages
/// behind them are part of the same mapping.
#[derive(Clone, Copy, Debug)]
struct Entry {
    epoch: u64,
    /// The leaf's first page.
    first: u64,
    host: *mut u8,
    rights: u32,
    following: u16,
    place: Place,
    /// The table already records that the leaf has been written through.
    dirty: bool,
}

impl Entry {
    const NONE: Self = Self {
        epoch: 0,
        first: 0,
        host: std::ptr::null_mut(),
        rights: 0,
        following: 0,
        place: Place::System,
        dirty: false,
    };

    /// Whether this is the translation of the leaf that starts with page `first`, and allows an
    /// access.
    #[inline]
    fn allows(&self, epoch: u64, first: u64, access: u32) -> bool {
        self.epoch == epoch
            && self.first == first
            && self.rights & access == access
            && (self.dirty || access & (rights::WRITE | rights::ATOMIC) == 0)
    }
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

// SAFETY: the pointers in the entries lead to memory that is shared by nature and is mapped for the
// whole process. The TLB keeps it mapped through `device` and `system`, which are `Send`
// themselves. Nothing in it belongs to a thread.
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

    /// Switches to this view of the guest's memory: entries of another view are dropped.
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
        let index = slot(page, SMALL_ENTRIES);
        if self
            .small
            .get(index)
            .is_some_and(|entry| entry.allows(epoch, page, access))
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
            .is_some_and(|entry| entry.allows(epoch, first, access))
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

    /// The bytes from the address of a hit to the end of its leaf, and their memory.
    #[inline]
    pub fn bytes(&self, hit: Hit) -> (VolatileSlice<'_>, Place) {
        self.bytes_of(hit, 0)
    }

    /// The same, extended over the following leaves, up to `bytes` bytes. It ends before the first
    /// leaf that is missing, is not contiguous in the host, or does not allow the access.
    #[inline]
    pub fn joined(&self, hit: Hit, access: u32, bytes: usize) -> (VolatileSlice<'_>, Place) {
        let mut joined = 0;
        if let (false, Some(start)) = (hit.large, self.small.get(hit.index)) {
            let wanted = (hit.offset + bytes - 1) / FRAME_BYTES;
            let most = wanted.min(start.following.into());
            joined = (1..=most)
                .take_while(|pages| {
                    let page = start.first + *pages as u64;
                    let host = start.host.wrapping_add(pages * FRAME_BYTES);
                    self.small
                        .get(slot(page, SMALL_ENTRIES))
                        .is_some_and(|next| {
                            next.allows(start.epoch, page, access) && next.host == host
                        })
                })
                .count();
        }
        self.bytes_of(hit, joined)
    }

    /// The bytes from the address of a hit to the end of its leaf, and of `more` pages that follow
    /// it in the host, as far as they are of the same mapping.
    #[inline]
    fn bytes_of(&self, hit: Hit, more: usize) -> (VolatileSlice<'_>, Place) {
        let (entries, leaf_bytes) = match hit.large {
            false => (&self.small, FRAME_BYTES),
            true => (&self.large, LARGE_BYTES),
        };
        match entries.get(hit.index) {
            Some(entry) if entry.epoch != 0 && hit.offset < leaf_bytes => {
                let bytes = leaf_bytes + more.min(entry.following.into()) * FRAME_BYTES;
                // SAFETY: by the entry's invariant `host` points to `leaf_bytes` bytes, and the
                // offset is smaller than that, so the result stays inside.
                let start = unsafe { entry.host.add(hit.offset) };
                // SAFETY: `bytes` is a leaf and at most `following` pages, which by the entry's
                // invariant are one mapping from `host` on. So two mappings that happen to be
                // adjacent are never made one slice. The TLB keeps the mapping for as long as the
                // slice borrows it.
                let slice = unsafe { VolatileSlice::new(start, bytes - hit.offset) };
                (slice, entry.place)
            }
            // The hit was found before the memories changed.
            _ => (VolatileSlice::from(&mut [][..]), Place::System),
        }
    }

    /// Inserts the translation of an address; `None` if its frame is not backed.
    pub fn fill(
        &mut self,
        epoch: u64,
        address: u64,
        translation: &Translation<'_>,
        dirty: bool,
    ) -> Option<Hit> {
        let page = address >> PAGE_SHIFT;
        let leaf = &translation.leaf;
        let mapping_from = |frame| match leaf.place {
            Place::Device => self.device.mapping_from(frame),
            Place::System => self.system.mapping_from(frame),
        };
        // A large leaf whose bytes are not contiguous in the host is used page by page.
        let whole = (translation.order == LARGE_ORDER)
            .then(|| mapping_from(leaf.frame))
            .flatten()
            .filter(|mapping| mapping.len() >= LARGE_BYTES);
        let (mapping, large) = match whole {
            Some(mapping) => (mapping, true),
            None => (mapping_from(translation.frame_of(page))?, false),
        };
        let leaf_bytes = if large { LARGE_BYTES } else { FRAME_BYTES };
        let following = mapping.len().checked_sub(leaf_bytes)? / FRAME_BYTES;
        let entry = Entry {
            epoch,
            first: if large { translation.first } else { page },
            host: mapping.ptr_guard_mut().as_ptr(),
            rights: leaf.rights,
            following: u16::try_from(following).unwrap_or(u16::MAX),
            place: leaf.place,
            dirty,
        };
        let (entries, index) = match large {
            false => (&mut self.small, slot(page, SMALL_ENTRIES)),
            true => (&mut self.large, slot(page >> LARGE_ORDER, LARGE_ENTRIES)),
        };
        *entries.get_mut(index)? = entry;
        Some(Hit {
            index,
            large,
            offset: offset_in(address, leaf_bytes as u64),
        })
    }

    /// The host address of a frame, if it is backed.
    pub fn host_of(&self, place: Place, frame: u64) -> Option<usize> {
        let slice = match place {
            Place::Device => self.device.slice(frame, 1),
            Place::System => self.system.slice(frame, 1),
        };
        slice.map(|slice| slice.ptr_guard().as_ptr() as usize)
    }

    /// Whether an entry for any page of a range would still be found.
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

    /// Makes a stale translation look valid.
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
    let entries = entries as u64;
    let skewed = number.wrapping_add((number / entries).wrapping_mul(SKEW));
    // Less than the number of entries: the cast loses nothing.
    #[expect(clippy::cast_possible_truncation)]
    let index = (skewed % entries) as usize;
    index
}

#[inline]
fn offset_in(address: u64, bytes: u64) -> usize {
    // At most 2 MiB.
    #[expect(clippy::cast_possible_truncation)]
    let offset = (address % bytes) as usize;
    offset
}

/// Another page that shares its entry with `page`. Their neighbours share entries, too.
#[cfg(test)]
pub(crate) fn page_with_the_entry_of(page: u64) -> u64 {
    let entry = slot(page, SMALL_ENTRIES);
    let mut others = (page + 1..).filter(|other| slot(*other, SMALL_ENTRIES) == entry);
    others.next().unwrap_or(page)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

    use super::*;
    use crate::device::mmu::{Budget, Leaf, Run};
    use crate::device::space::{Epochs, Space};

    const ACCESS: u32 = rights::READ;

    /// The number of bytes found at once from page 0 on, of eight pages with these mappings.
    fn joined(tlb: &mut Tlb, runs: &[(u64, Leaf)]) -> usize {
        let space = Space::new(1, &Budget::new(1 << 20), &Epochs::new()).unwrap();
        for (page, leaf) in runs {
            let range = PageRange::new(page * PAGE_BYTES, 8 - page).unwrap();
            let (leaf, large) = (*leaf, false);
            space.map(&[Run { range, leaf, large }], None).unwrap();
        }
        let mappings = space.read();
        for page in 0..8 {
            let translation = mappings.table.find(page).unwrap();
            let address = page * PAGE_BYTES;
            tlb.fill(mappings.epoch, address, &translation, false)
                .unwrap();
        }
        let hit = tlb.find(mappings.epoch, 5, ACCESS).unwrap();
        tlb.joined(hit, ACCESS, 8 * FRAME_BYTES - 5).0.len() + 5
    }

    fn tlb(memory: GuestMemoryMmap) -> Tlb {
        let device = Arc::new(DeviceMemory::new(16 * PAGE_BYTES).unwrap());
        Tlb::new(device, Arc::new(SystemMemory::new(Arc::new(memory))))
    }

    #[test]
    fn leaves_are_joined_as_far_as_their_frames_follow_each_other_and_allow_the_same() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 * FRAME_BYTES)]).unwrap();
        let mut tlb = tlb(memory);
        let leaf = |place, frame| Leaf::new(place, frame, rights::ALL);
        for place in [Place::System, Place::Device] {
            let all = joined(&mut tlb, &[(0, leaf(place, 8))]);
            assert_eq!(all, 8 * FRAME_BYTES);
            let gap = joined(&mut tlb, &[(0, leaf(place, 0)), (3, leaf(place, 4))]);
            assert_eq!(gap, 3 * FRAME_BYTES);
            let backwards = joined(&mut tlb, &[(0, leaf(place, 5)), (1, leaf(place, 4))]);
            assert_eq!(backwards, FRAME_BYTES);
            let unreadable = Leaf::new(place, 2, 0);
            let denied = joined(&mut tlb, &[(0, leaf(place, 0)), (2, unreadable)]);
            assert_eq!(denied, 2 * FRAME_BYTES);
        }
    }

    #[test]
    fn two_mappings_that_lie_side_by_side_in_the_host_are_not_joined() {
        let half = 8 * FRAME_BYTES;
        let whole = MmapRegion::<()>::new(2 * half).unwrap();
        let region = |offset: usize| {
            let host = whole.as_ptr().wrapping_add(offset);
            // SAFETY: the half is within `whole`, which lives until the end of the test and is not
            // used otherwise.
            let builder = unsafe { MmapRegionBuilder::new(half).with_raw_mmap_pointer(host) };
            let region = builder.build().unwrap();
            GuestRegionMmap::new(region, GuestAddress(offset as u64)).unwrap()
        };
        let regions = vec![region(0), region(half)];
        let mut tlb = tlb(GuestMemoryMmap::from_regions(regions).unwrap());
        let leaf = |frame| Leaf::new(Place::System, frame, rights::ALL);
        let across = joined(&mut tlb, &[(0, leaf(5))]);
        assert_eq!(across, 3 * FRAME_BYTES);
        let within = joined(&mut tlb, &[(0, leaf(8))]);
        assert_eq!(within, 8 * FRAME_BYTES);
    }

    #[test]
    fn pages_that_are_used_together_do_not_push_each_other_out() {
        for (entries, powers) in [(SMALL_ENTRIES, 11), (LARGE_ENTRIES, 8)] {
            let table = entries as u64;
            for first in (0..4 * table).chain((1 << 36) - table..1 << 36) {
                let slots =
                    (first..first + JOINED_PAGES as u64).map(|number| slot(number, entries));
                assert_eq!(slots.collect::<HashSet<_>>().len(), JOINED_PAGES);
            }
            for distance in (0..powers).map(|power| table << power) {
                let apart = (slot(distance, entries) + entries - slot(0, entries)) % entries;
                let nearest = apart.min(entries - apart);
                assert!(nearest >= 40, "{distance}: {nearest}");
            }
        }
    }
}
