//! The guest's memory for many small accesses that lie near each other.

use std::cell::Cell;
use std::iter::FusedIterator;

use vm_memory::guest_memory::{self, GuestMemoryBackendSliceIterator, GuestMemorySliceIterator};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, Permissions, VolatileSlice,
};

/// The guest's memory for `virtio-queue`, with a cache of the last region.
///
/// A chain takes a dozen accesses of a few bytes each. Nearly all are in the one region where the
/// driver's kernel has its data. Finding the region again costs more than the access.
#[derive(Debug)]
pub struct Nearby<'a> {
    memory: &'a GuestMemoryMmap,
    /// The start of the region, and all of it.
    last: Cell<(GuestAddress, VolatileSlice<'a>)>,
}

impl<'a> Nearby<'a> {
    /// A view of the guest's memory.
    pub fn new(memory: &'a GuestMemoryMmap) -> Self {
        let nothing = VolatileSlice::from(&mut [][..]);
        Self {
            memory,
            last: Cell::new((GuestAddress(0), nothing)),
        }
    }

    /// The bytes of a range, if all are in the region that was used last.
    #[inline]
    fn near(&self, address: GuestAddress, count: usize) -> Option<VolatileSlice<'a>> {
        let (start, region) = self.last.get();
        let offset = usize::try_from(address.0.checked_sub(start.0)?).ok()?;
        region.subslice(offset, count).ok()
    }

    /// Caches the region of an address. Returns the bytes of the range, if all are in the region.
    #[cold]
    fn find(&self, address: GuestAddress, count: usize) -> Option<VolatileSlice<'a>> {
        let region = self.memory.find_region(address)?;
        let length = usize::try_from(region.len()).ok()?;
        let slice = region.get_slice(MemoryRegionAddress(0), length).ok()?;
        self.last.set((region.start_addr(), slice));
        self.near(address, count)
    }
}

impl GuestMemory for Nearby<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    #[inline]
    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.near(address, count).is_some()
            || GuestMemory::check_range(self.memory, address, count, access)
    }

    #[inline]
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> guest_memory::Result<impl GuestMemorySliceIterator<'a, ()>> {
        let near = self.near(address, count);
        Ok(match near.or_else(|| self.find(address, count)) {
            // An empty range has no slices.
            Some(slice) => Slices::Near((count > 0).then_some(slice)),
            None => Slices::Across(GuestMemoryBackend::get_slices(self.memory, address, count)),
        })
    }

    fn physical_memory(&self) -> Option<&GuestMemoryMmap> {
        Some(self.memory)
    }
}

/// The slices of a range.
enum Slices<'a> {
    /// One slice, or none left.
    Near(Option<VolatileSlice<'a>>),
    /// Slices in several regions, or with a hole.
    Across(GuestMemoryBackendSliceIterator<'a, GuestMemoryMmap>),
}

impl<'a> Iterator for Slices<'a> {
    type Item = guest_memory::Result<VolatileSlice<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Near(slice) => slice.take().map(Ok),
            Self::Across(slices) => slices.next(),
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    /// Two regions side by side, a hole, and one more.
    fn memory() -> GuestMemoryMmap {
        let regions = [(0x1000, 0x1000), (0x2000, 0x1000), (0x4000, 0x1000)];
        let regions = regions.map(|(start, bytes)| (GuestAddress(start), bytes));
        GuestMemoryMmap::from_ranges(&regions).unwrap()
    }

    #[test]
    fn every_range_is_where_the_guest_has_it_whatever_was_used_before() {
        let memory = memory();
        for (address, byte) in (0x1000..0x5000).zip((0..251_u8).cycle()) {
            let _ = memory.write_obj(byte, GuestAddress(address));
        }
        let nearby = Nearby::new(&memory);
        let edges = [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, u64::MAX - 7];
        let around =
            |edge: u64| (0..9).flat_map(move |by| [edge.saturating_sub(by), edge + by.min(7)]);
        for address in edges.into_iter().flat_map(around).map(GuestAddress) {
            for count in [0, 1, 2, 7, 8, 4096, 4097, 0x2000, 0x2001] {
                for before in [0x1000, 0x2000, 0x4000] {
                    let _ = nearby.read_obj::<u8>(GuestAddress(before));
                    let access = Permissions::Read;
                    assert_eq!(
                        nearby.check_range(address, count, access),
                        GuestMemory::check_range(&memory, address, count, access),
                        "{count} bytes at {address:?}",
                    );
                    let (mut ours, mut theirs) = (vec![0; count], vec![0; count]);
                    let read = nearby.read(&mut ours, address).ok();
                    assert_eq!(read, memory.read(&mut theirs, address).ok());
                    assert_eq!(ours, theirs);
                }
            }
        }
    }
}
