//! A job's addresses as its operation sees them, for the length of one step.
//!
//! The view exists only while the space's read lock is held, for which an invalidation waits. It
//! translates through the engine's TLB and the space's table, and copies directly from or to the
//! memory behind a leaf.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_hmm_spec::wire::{rights, LARGE_PAGES, PAGE_BYTES, PAGE_SHIFT};
use vm_memory::{VolatileMemory, VolatileSlice};

use super::check::Check;
use super::memory::{DeviceMemory, FRAME_BYTES};
use super::mmu::Place;
use super::operations::{Fault, Memory, Width};
use super::space::Mappings;
use super::statistics::Tally;
use super::tlb::{Hit, Tlb, JOINED_PAGES};

/// The most bytes whose pages are looked up first and then used: at any start address, no page of
/// theirs evicts another one from the TLB.
const JOINED_BYTES: usize = (JOINED_PAGES - 1) * FRAME_BYTES;

/// The number of announcements that are kept: as many as an operation has operands.
const EXPECTATIONS: usize = 4;

/// One step's view of a space.
#[derive(Debug)]
pub struct View<'a> {
    space: u32,
    mappings: &'a Mappings,
    tlb: &'a mut Tlb,
    device: &'a DeviceMemory,
    check: Option<&'a Check>,
    tally: &'a mut Tally,
    expected: [Expectation; EXPECTATIONS],
    announced: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Expectation {
    address: u64,
    bytes: u64,
    access: u32,
}

impl<'a> View<'a> {
    /// A view of a space whose read lock the caller holds.
    pub fn new(
        space: u32,
        mappings: &'a Mappings,
        tlb: &'a mut Tlb,
        device: &'a DeviceMemory,
        check: Option<&'a Check>,
        tally: &'a mut Tally,
    ) -> Self {
        let expected = [Expectation::default(); EXPECTATIONS];
        Self {
            space,
            mappings,
            tlb,
            device,
            check,
            tally,
            expected,
            announced: 0,
        }
    }

    /// The number of pages from a fault's page on that the job has announced to use in the same
    /// way; at least one.
    pub fn expected_pages(&self, fault: &Fault) -> u32 {
        let bytes = self
            .expected
            .iter()
            .filter(|range| range.access == fault.access)
            .filter_map(|range| {
                let offset = fault.address.checked_sub(range.address)?;
                range.bytes.checked_sub(offset).filter(|rest| *rest > 0)
            })
            .max()
            .unwrap_or(1);
        let pages = (fault.address % PAGE_BYTES)
            .saturating_add(bytes)
            .div_ceil(PAGE_BYTES);
        u32::try_from(pages).unwrap_or(u32::MAX)
    }

    /// Finds the memory behind an address.
    #[inline]
    fn resolve(&mut self, address: u64, access: u32) -> Result<Hit, Fault> {
        match self.tlb.find(self.mappings.epoch, address, access) {
            Some(hit) => {
                self.tally.hits += 1;
                if let Some(check) = self.check {
                    self.verify(check, hit, address, access);
                }
                Ok(hit)
            }
            None => self.walk(address, access),
        }
    }

    /// Looks an address up in the table and inserts it into the TLB.
    #[cold]
    fn walk(&mut self, address: u64, access: u32) -> Result<Hit, Fault> {
        self.tally.misses += 1;
        let fault = Fault { address, access };
        let page = address >> PAGE_SHIFT;
        let translation = self.mappings.table.find(page).ok_or(fault)?;
        // {dev-rights}
        if translation.leaf.rights & access != access {
            return Err(fault);
        }
        let writes = access & (rights::WRITE | rights::ATOMIC) != 0;
        let epoch = self.mappings.epoch;
        // A frame that is no longer backed counts as unmapped: the driver will find that it cannot
        // map it either.
        let dirty = writes || translation.leaf.dirty;
        let hit = self.tlb.fill(epoch, address, &translation, dirty);
        let hit = hit.ok_or(fault)?;
        translation.mark(writes);
        if translation.leaf.place == Place::Device {
            if let Some(check) = self.check {
                let frame = translation.frame_of(page);
                check.used(
                    frame,
                    1,
                    format_args!("used by a job in space {}", self.space),
                );
            } else if writes {
                self.device
                    .live()
                    .insert(translation.leaf.frame, 1 << translation.order);
            }
        }
        Ok(hit)
    }

    /// Compares a hit with the table.
    #[cold]
    fn verify(&mut self, check: &Check, hit: Hit, address: u64, access: u32) {
        let page = address >> PAGE_SHIFT;
        let (bytes, place) = self.tlb.bytes(hit);
        let host = bytes.ptr_guard().as_ptr() as usize & !(FRAME_BYTES - 1);
        let in_force = self.mappings.table.find(page).filter(|translation| {
            translation.leaf.place == place
                && translation.leaf.rights & access == access
                && self.tlb.host_of(place, translation.frame_of(page)) == Some(host)
        });
        match in_force {
            None => check.found_stale(self.space, format_args!("access to {address:#x}")),
            Some(translation) if place == Place::Device => {
                let frame = translation.frame_of(page);
                check.used(
                    frame,
                    1,
                    format_args!("used by a job in space {}", self.space),
                );
            }
            Some(_) => {}
        }
    }

    /// Visits the memory behind a range piece by piece. Leaves that are contiguous in the host form
    /// one piece. Before any of the first [`JOINED_BYTES`] is visited, all their pages are looked
    /// up.
    #[inline]
    fn pieces(
        &mut self,
        address: u64,
        bytes: usize,
        access: u32,
        mut visit: impl FnMut(VolatileSlice<'_>, usize),
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < bytes {
            // A range that wraps includes addresses that cannot be mapped.
            let here = address
                .checked_add(done as u64)
                .ok_or(Fault { address, access })?;
            let hit = self.resolve(here, access)?;
            let (slice, place) = self.tlb.bytes(hit);
            let length = slice.len().min(bytes - done);
            if length == bytes - done {
                visit(first(&slice, length, here, access)?, done);
                account(self.tally, place, length);
                return Ok(());
            }
            let end = done + (bytes - done).min(JOINED_BYTES);
            let rest = address.wrapping_add((done + length) as u64);
            self.ensure_access(rest, (end - done - length) as u64, access)?;
            while done < end {
                let here = address.wrapping_add(done as u64);
                let (slice, place) = self.looked_up(here, end - done, access)?;
                let length = slice.len();
                visit(slice, done);
                account(self.tally, place, length);
                done += length;
            }
        }
        Ok(())
    }

    /// The memory behind the start of a range whose pages have just been looked up.
    #[inline]
    fn looked_up(
        &mut self,
        address: u64,
        bytes: usize,
        access: u32,
    ) -> Result<(VolatileSlice<'_>, Place), Fault> {
        let hit = match self.tlb.find(self.mappings.epoch, address, access) {
            Some(hit) => hit,
            None => self.walk(address, access)?,
        };
        let (slice, place) = self.tlb.joined(hit, access, bytes);
        let length = slice.len().min(bytes);
        Ok((first(&slice, length, address, access)?, place))
    }

    /// Copies directly between leaves, as far as both sides are contiguous. All of them have just
    /// been looked up. Returns the number of bytes, `None` if the TLB cannot hold both at the same
    /// time.
    fn copy_piece(&mut self, source: u64, destination: u64, bytes: usize) -> Option<usize> {
        let epoch = self.mappings.epoch;
        let from = self.tlb.find(epoch, source, rights::READ)?;
        let to = self.tlb.find(epoch, destination, rights::WRITE)?;
        let (from, from_place) = self.tlb.joined(from, rights::READ, bytes);
        let (to, to_place) = self.tlb.joined(to, rights::WRITE, bytes);
        let length = bytes.min(from.len()).min(to.len());
        let (from, to) = (from.subslice(0, length), to.subslice(0, length));
        let (from, to) = from.ok().zip(to.ok()).filter(|_| length > 0)?;
        from.copy_to_volatile_slice(to);
        account(self.tally, from_place, length);
        account(self.tally, to_place, length);
        Some(length)
    }

    /// The same through a buffer.
    fn bounce(&mut self, source: u64, destination: u64, bytes: usize) -> Result<usize, Fault> {
        let mut block = [0; FRAME_BYTES];
        let length = bytes.min(FRAME_BYTES);
        let block = block.get_mut(..length).unwrap_or_default();
        self.read(source, block)?;
        self.write(destination, block)?;
        Ok(length)
    }

    /// Ensures that each page of a range can be accessed.
    fn ensure_access(&mut self, address: u64, bytes: u64, access: u32) -> Result<(), Fault> {
        let mut here = address;
        let mut left = bytes;
        while left > 0 {
            let hit = self.resolve(here, access)?;
            let leaf_rest = match hit.is_large() {
                true => LARGE_PAGES * PAGE_BYTES - here % (LARGE_PAGES * PAGE_BYTES),
                false => PAGE_BYTES - here % PAGE_BYTES,
            };
            left = left.saturating_sub(leaf_rest);
            here = here.checked_add(leaf_rest).ok_or(Fault {
                address: here,
                access,
            })?;
        }
        Ok(())
    }
}

/// The first bytes of the memory behind an address. At least one byte, or the caller makes no
/// progress.
#[inline]
fn first<'a>(
    memory: &VolatileSlice<'a>,
    bytes: usize,
    address: u64,
    access: u32,
) -> Result<VolatileSlice<'a>, Fault> {
    match memory.subslice(0, bytes) {
        Ok(slice) if bytes > 0 => Ok(slice),
        _ => Err(Fault { address, access }),
    }
}

#[inline]
fn account(tally: &mut Tally, place: Place, bytes: usize) {
    match place {
        Place::System => tally.system_bytes += bytes as u64,
        Place::Device => tally.device_bytes += bytes as u64,
    }
}

impl Memory for View<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.pieces(address, into.len(), rights::READ, |slice, done| {
            if let Some(into) = into.get_mut(done..) {
                slice.copy_to(into);
            }
        })
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        if from.len() > JOINED_BYTES {
            self.ensure_access(address, from.len() as u64, rights::WRITE)?;
        }
        self.pieces(address, from.len(), rights::WRITE, |slice, done| {
            if let Some(from) = from.get(done..) {
                slice.copy_from(from);
            }
        })
    }

    #[inline]
    fn load(&mut self, address: u64) -> Result<u64, Fault> {
        let hit = self.resolve(address, rights::READ)?;
        let (slice, place) = self.tlb.bytes(hit);
        if let Ok(value) = slice.get_ref::<u64>(0) {
            account(self.tally, place, 8);
            return Ok(u64::from_le(value.load()));
        }
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn copy(&mut self, source: u64, destination: u64, bytes: usize) -> Result<(), Fault> {
        let mut done = 0;
        while done < bytes {
            let at = |address: u64, done: usize| address.wrapping_add(done as u64);
            let end = done + (bytes - done).min(JOINED_BYTES);
            let wanted = (end - done) as u64;
            self.ensure_access(at(source, done), wanted, rights::READ)?;
            self.ensure_access(at(destination, done), wanted, rights::WRITE)?;
            while done < end {
                let (from, to) = (at(source, done), at(destination, done));
                done += match self.copy_piece(from, to, end - done) {
                    Some(length) => length,
                    None => self.bounce(from, to, end - done)?,
                };
            }
        }
        Ok(())
    }

    fn reserve(&mut self, address: u64, bytes: u64) -> Result<(), Fault> {
        self.ensure_access(address, bytes, rights::WRITE)
    }

    fn update(
        &mut self,
        address: u64,
        width: Width,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Fault> {
        let access = rights::ALL;
        let fault = Fault { address, access };
        let hit = self.resolve(address, access)?;
        let (slice, place) = self.tlb.bytes(hit);
        let (old, bytes) = match width {
            Width::U32 => {
                let cell: &AtomicU32 = slice.get_atomic_ref(0).map_err(|_| fault)?;
                let result = cell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                    // The element is the low half.
                    #[expect(clippy::cast_possible_truncation)]
                    update(u32::from_le(old).into()).map(|new| (new as u32).to_le())
                });
                let (Ok(old) | Err(old)) = result;
                (u32::from_le(old).into(), 4)
            }
            Width::U64 => {
                let cell: &AtomicU64 = slice.get_atomic_ref(0).map_err(|_| fault)?;
                let result = cell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                    update(u64::from_le(old)).map(u64::to_le)
                });
                let (Ok(old) | Err(old)) = result;
                (u64::from_le(old), 8)
            }
        };
        account(self.tally, place, bytes);
        Ok(old)
    }

    fn expect(&mut self, address: u64, bytes: u64, access: u32) {
        if let Some(slot) = self.expected.get_mut(self.announced % EXPECTATIONS) {
            *slot = Expectation {
                address,
                bytes,
                access,
            };
        }
        self.announced = self.announced.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
