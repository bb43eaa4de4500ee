//! Memory whose mapping changes while the device uses it.
//!
//! An [`Arena`] is a reservation of addresses with two slots. Only its methods change what is
//! mapped in them, and they remember it, so that the CPU never accesses an address without a
//! mapping. It knows nothing of the device.

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{
    madvise, mmap_anonymous, mprotect, mremap_fixed, munmap, Advice, MapFlags, MprotectFlags,
    MremapFlags, ProtFlags,
};

/// The size of a huge page. Slots are aligned to it, so that they can consist of huge pages.
const LARGE: usize = 2 << 20;

/// One of the two slots of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Where a round begins.
    Home = 0,
    /// Where its memory may be moved.
    Away = 1,
}

/// The access to a slot's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Write,
    Read,
    /// Mapped without access.
    None,
    /// Not mapped.
    Hole,
}

/// Two slots of addresses.
///
/// Invariant: `start` begins a reservation of two slots of `slot_bytes` that is this
/// value's own, except for holes; `access` says what is mapped in each.
pub(crate) struct Arena {
    start: NonNull<u8>,
    slot_bytes: usize,
    access: [Access; 2],
}

// SAFETY: the reservation belongs to the process, not to a thread, and is reached only
// through its owner.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves addresses for two slots of a multiple of 2 MiB.
    pub(crate) fn reserve(slot_bytes: usize) -> io::Result<Self> {
        assert!(slot_bytes % LARGE == 0, "a slot consists of huge pages");
        let length = 2 * slot_bytes + LARGE;
        // SAFETY: the kernel chooses the address, so nothing that exists is touched.
        let raw = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::empty(),
                Self::FLAGS,
            )
        }?;
        // The bytes before and after the aligned slots stay reserved for good, so that no other
        // mapping comes next to a slot.
        let aligned = raw.map_addr(|address| address.next_multiple_of(LARGE));
        let start = NonNull::new(aligned.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            start,
            slot_bytes,
            access: [Access::None; 2],
        })
    }

    const FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

    fn pointer(&self, slot: Slot) -> *mut c_void {
        self.start
            .as_ptr()
            .wrapping_add(slot as usize * self.slot_bytes)
            .cast()
    }

    /// The address of a slot.
    pub(crate) fn address(&self, slot: Slot) -> u64 {
        self.pointer(slot).expose_provenance() as u64
    }

    /// Maps a slot anew.
    fn map(&mut self, slot: Slot, access: Access) -> io::Result<()> {
        let rights = match access {
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
            _ => ProtFlags::empty(),
        };
        // The mapping that fills a hole must not replace another one that came there meanwhile.
        let fixed = match self.access[slot as usize] {
            Access::Hole => MapFlags::FIXED_NOREPLACE,
            _ => MapFlags::FIXED,
        };
        let flags = Self::FLAGS | fixed;
        // SAFETY: by the invariant the slot is this value's own or a hole, and borrows of
        // its words have ended, because they borrow `self`.
        unsafe { mmap_anonymous(self.pointer(slot), self.slot_bytes, rights, flags) }?;
        self.access[slot as usize] = access;
        Ok(())
    }

    /// Begins anew: zeros in the home slot, nothing in the other. `large` asks for huge pages.
    pub(crate) fn renew(&mut self, large: bool) -> io::Result<()> {
        self.map(Slot::Home, Access::Write)?;
        self.map(Slot::Away, Access::None)?;
        let advice = if large {
            Advice::LinuxHugepage
        } else {
            Advice::LinuxNoHugepage
        };
        self.advise(advice)
    }

    /// Replaces the memory of the home slot by other memory, of zeros.
    pub(crate) fn replace(&mut self) -> io::Result<()> {
        self.map(Slot::Home, Access::Write)
    }

    /// Unmaps the memory of the home slot.
    pub(crate) fn unmap(&mut self) -> io::Result<()> {
        // SAFETY: the slot is this value's own and nothing borrows its words.
        unsafe { munmap(self.pointer(Slot::Home), self.slot_bytes) }?;
        self.access[Slot::Home as usize] = Access::Hole;
        Ok(())
    }

    fn protect(&mut self, rights: MprotectFlags, access: Access) -> io::Result<()> {
        // SAFETY: the slot is this value's own and nothing borrows its words.
        unsafe { mprotect(self.pointer(Slot::Home), self.slot_bytes, rights) }?;
        self.access[Slot::Home as usize] = access;
        Ok(())
    }

    /// Forbids all access to the memory of the home slot (`PROT_NONE`).
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.protect(MprotectFlags::empty(), Access::None)
    }

    /// Forbids writes to the memory of the home slot (`PROT_READ`).
    pub(crate) fn write_protect(&mut self) -> io::Result<()> {
        self.protect(MprotectFlags::READ, Access::Read)
    }

    /// Discards the contents of the home slot (`MADV_DONTNEED`): its memory is zeros again.
    pub(crate) fn discard(&mut self) -> io::Result<()> {
        self.advise(Advice::LinuxDontNeed)
    }

    fn advise(&mut self, advice: Advice) -> io::Result<()> {
        // SAFETY: the slot is this value's own and nothing borrows its words.
        Ok(unsafe { madvise(self.pointer(Slot::Home), self.slot_bytes, advice) }?)
    }

    /// Moves the memory to the other slot. A hole stays behind, or with `leave` zeros.
    pub(crate) fn move_away(&mut self, leave: bool) -> io::Result<()> {
        let (from, to) = (self.pointer(Slot::Home), self.pointer(Slot::Away));
        let flags = if leave {
            MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP
        } else {
            MremapFlags::MAYMOVE
        };
        // SAFETY: both slots are this value's own and nothing borrows their words.
        unsafe { mremap_fixed(from, self.slot_bytes, self.slot_bytes, flags, to) }?;
        self.access[Slot::Away as usize] = self.access[Slot::Home as usize];
        if !leave {
            self.access[Slot::Home as usize] = Access::Hole;
        }
        Ok(())
    }

    /// The first words of a slot, to be read; the device may be writing them.
    pub(crate) fn words(&self, slot: Slot, count: usize) -> impl Iterator<Item = u64> + '_ {
        let access = self.access[slot as usize];
        assert!(
            matches!(access, Access::Read | Access::Write),
            "{slot:?} cannot be read"
        );
        self.atomics(slot, count)
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
    }

    /// Writes the same value to the first words of the home slot.
    pub(crate) fn fill(&mut self, count: usize, value: u64) {
        let access = self.access[Slot::Home as usize];
        assert!(access == Access::Write, "home cannot be written");
        for word in self.atomics(Slot::Home, count) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Words of a slot; the callers have checked that they are mapped as needed.
    fn atomics(&self, slot: Slot, count: usize) -> &[AtomicU64] {
        assert!(
            count * size_of::<AtomicU64>() <= self.slot_bytes,
            "more words than a slot has"
        );
        // SAFETY: by the callers' check the words are mapped, and stay so while `self` is borrowed,
        // as every change of a mapping needs it mutably. They are aligned, and all users of them,
        // the device included, access them in whole words or not at all.
        unsafe { std::slice::from_raw_parts(self.pointer(slot).cast(), count) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for slot in [Slot::Home, Slot::Away] {
            if self.access[slot as usize] != Access::Hole {
                // SAFETY: the slot is this value's own and nothing borrows its words.
                let _ = unsafe { munmap(self.pointer(slot), self.slot_bytes) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arena {
        let mut arena = Arena::reserve(LARGE).unwrap();
        arena.renew(false).unwrap();
        arena.fill(1000, 7);
        arena
    }

    fn sum(arena: &Arena, slot: Slot) -> u64 {
        arena.words(slot, 1000).sum()
    }

    #[test]
    fn memory_that_moves_away_takes_its_words_along() {
        let mut arena = arena();
        arena.move_away(true).unwrap();
        assert_eq!(
            (sum(&arena, Slot::Away), sum(&arena, Slot::Home)),
            (7000, 0)
        );
    }

    #[test]
    fn discarded_and_replaced_memory_is_zero() {
        let mut arena = arena();
        arena.discard().unwrap();
        assert_eq!(sum(&arena, Slot::Home), 0);
        arena.fill(1000, 3);
        arena.replace().unwrap();
        assert_eq!(sum(&arena, Slot::Home), 0);
    }

    #[test]
    fn a_hole_is_filled_again_unless_another_thread_was_faster() {
        let make_a_hole: [fn(&mut Arena) -> io::Result<()>; 2] =
            [Arena::unmap, |arena| arena.move_away(false)];
        for make_a_hole in make_a_hole {
            let mut arena = arena();
            make_a_hole(&mut arena).unwrap();
            match arena.renew(true) {
                Ok(()) => assert_eq!(sum(&arena, Slot::Home), 0),
                // Other tests run in this process at the same time.
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AlreadyExists),
            }
        }
    }

    #[test]
    #[should_panic(expected = "cannot be read")]
    fn what_is_closed_is_not_read() {
        let mut arena = arena();
        arena.close().unwrap();
        let _ = arena.words(Slot::Home, 1);
    }
}
