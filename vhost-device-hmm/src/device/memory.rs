//! What frames are backed by: device memory, and the view of the guest's memory.
//!
//! Both hand out volatile slices, because the guest, an engine and a copy may touch
//! the same bytes at a time. Neither knows of spaces, mappings or rights.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use nix::fcntl::{fallocate, fcntl, FallocateFlags, FcntlArg, SealFlag};
use nix::libc;
use nix::sys::memfd::{memfd_create, MFdFlags};
use std::fs::File;
use virtio_hmm_spec::wire::{LARGE_ORDER, PAGE_BYTES, PAGE_SHIFT};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MmapRegion, Permissions, VolatileMemory, VolatileSlice,
};

/// The bytes of a frame in the host's memory.
pub const FRAME_BYTES: usize = 1 << PAGE_SHIFT;

/// The bytes of a large leaf's frames in the host's memory.
pub const LARGE_BYTES: usize = FRAME_BYTES << LARGE_ORDER;

/// Why device memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No file for it.
    #[error("cannot create the file behind device memory")]
    Create(#[source] io::Error),
    /// The file cannot be that large.
    #[error("cannot set the size of device memory to {0} bytes")]
    Size(u64, #[source] io::Error),
    /// The file's size cannot be made to stay.
    #[error("cannot seal the file behind device memory")]
    Seal(#[source] io::Error),
    /// The file cannot be mapped.
    #[error("cannot map {0} bytes of device memory")]
    Map(u64, #[source] vm_memory::mmap::MmapRegionError),
}

/// The device's own memory: frames for engines and copies, and for whomever its file is
/// given to.
///
/// Frames take host memory from the first write on until it is given back, some time after they
/// have been discarded. A frame without any reads as zeros.
#[derive(Debug)]
pub struct DeviceMemory {
    file: File,
    region: MmapRegion<()>,
    frames: u64,
    live: FrameSet,
}

impl DeviceMemory {
    /// Makes so many bytes of device memory, a multiple of a page.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] when the host cannot provide for it.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let file = File::from(
            memfd_create(
                c"hmm-device-memory",
                MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
            )
            .map_err(|errno| MemoryError::Create(errno.into()))?,
        );
        file.set_len(bytes)
            .map_err(|error| MemoryError::Size(bytes, error))?;
        // Who is given the file could else cut it off, and end us with a SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| MemoryError::Seal(errno.into()))?;
        let size = usize::try_from(bytes)
            .map_err(|_| MemoryError::Size(bytes, io::ErrorKind::InvalidInput.into()))?;
        let clone = file.try_clone().map_err(MemoryError::Create)?;
        let region = MmapRegionBuilder::new(size)
            .with_file_offset(FileOffset::new(clone, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| MemoryError::Map(bytes, error))?;
        let frames = bytes >> PAGE_SHIFT;
        Ok(Self {
            file,
            region,
            frames,
            live: FrameSet::new(frames),
        })
    }

    /// How many frames there are.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The file behind the frames, in which frame N is the page N.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The frames that hold something: written and not discarded.
    pub fn live(&self) -> &FrameSet {
        &self.live
    }

    /// Whether all frames of a run exist.
    pub fn contains(&self, frame: u64, pages: u64) -> bool {
        frame
            .checked_add(pages)
            .is_some_and(|end| end <= self.frames)
    }

    /// The bytes of a run of frames, if all exist.
    pub fn slice(&self, frame: u64, pages: u64) -> Option<VolatileSlice<'_>> {
        if !self.contains(frame, pages) {
            return None;
        }
        let (start, bytes) = bytes_of(frame, pages)?;
        self.region
            .get_slice(usize::try_from(start).ok()?, bytes)
            .ok()
    }

    /// The bytes from a frame to the end of all, if it exists.
    pub fn mapping_from(&self, frame: u64) -> Option<VolatileSlice<'_>> {
        self.slice(frame, self.frames.checked_sub(frame)?)
    }

    /// Gives the host memory of a run of frames back; they read as zeros from now on.
    ///
    /// # Errors
    ///
    /// When the host refuses; the frames then still hold what they held.
    pub fn release(&self, frame: u64, pages: u64) -> io::Result<()> {
        let (start, bytes) =
            bytes_of(frame, pages).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let offset = |value: u64| i64::try_from(value).map_err(io::Error::other);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, flags, offset(start)?, offset(bytes as u64)?)?;
        Ok(())
    }
}

/// Makes all bytes of a slice the same.
///
/// A copy of a pattern, over and over, reads as much as it writes.
pub fn fill(slice: &VolatileSlice<'_>, value: u8) {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice is that many bytes that are mapped and may be written for as long as
    // it lives, and the guard holds on to that; any address is aligned for bytes. Nobody has
    // a reference to them, as they are handed out only as volatile slices and atomics. That
    // somebody may use them at the same time makes this what each copy into a
    // volatile slice is, which `vm-memory` makes by `copy_nonoverlapping`: whoever reads
    // meanwhile finds old bytes and new ones.
    unsafe { std::ptr::write_bytes(guard.as_ptr(), value, slice.len()) }
}

/// A set of frames that several threads may change at a time.
#[derive(Debug)]
pub struct FrameSet {
    words: Box<[AtomicU64]>,
    count: AtomicU64,
}

impl FrameSet {
    /// An empty set of some of so many frames.
    pub fn new(frames: u64) -> Self {
        let words = (0..frames.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        Self {
            words,
            count: AtomicU64::new(0),
        }
    }

    /// How many frames are in the set.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Puts a run of frames into the set.
    pub fn insert(&self, frame: u64, pages: u64) {
        self.each_word(frame, pages, |word, mask| {
            // Most runs are live already: do not take the cache line for nothing.
            if word.load(Ordering::Relaxed) & mask != mask {
                let old = word.fetch_or(mask, Ordering::Relaxed);
                self.count
                    .fetch_add(u64::from((mask & !old).count_ones()), Ordering::Relaxed);
            }
        });
    }

    /// Takes a run of frames out of the set and returns how many were in it.
    pub fn remove(&self, frame: u64, pages: u64) -> u64 {
        let mut removed = 0;
        self.each_word(frame, pages, |word, mask| {
            let old = word.fetch_and(!mask, Ordering::Relaxed);
            removed += u64::from((mask & old).count_ones());
        });
        self.count.fetch_sub(removed, Ordering::Relaxed);
        removed
    }

    /// The first frame of a run that is not in the set.
    pub fn first_missing(&self, frame: u64, pages: u64) -> Option<u64> {
        (frame..frame.saturating_add(pages)).find(|frame| !self.contains(*frame))
    }

    /// Takes the first run of frames at or behind `from` out of the set, as far as it is no
    /// longer than `limit`, and returns its first frame and its length.
    pub fn take_run(&self, from: u64, limit: u64) -> Option<(u64, u64)> {
        if self.count() == 0 {
            return None;
        }
        let begin = usize::try_from(from / 64).ok()?;
        let words = self.words.get(begin..)?;
        let first = (from / 64..).zip(words).find_map(|(index, word)| {
            let base = index * 64;
            let before = from.saturating_sub(base);
            let bits = word.load(Ordering::Relaxed) & (u64::MAX << before);
            (bits != 0).then(|| base + u64::from(bits.trailing_zeros()))
        })?;
        let run = first..first.saturating_add(limit);
        let pages = run.take_while(|frame| self.contains(*frame)).count() as u64;
        self.remove(first, pages);
        Some((first, pages))
    }

    fn contains(&self, frame: u64) -> bool {
        let bit = 1_u64 << (frame % 64);
        usize::try_from(frame / 64)
            .ok()
            .and_then(|index| self.words.get(index))
            .is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn each_word(&self, frame: u64, pages: u64, mut visit: impl FnMut(&AtomicU64, u64)) {
        let (mut next, end) = (frame, frame.saturating_add(pages));
        while next < end {
            let first_bit = next % 64;
            let bits = (end - next).min(64 - first_bit);
            let mask = (u64::MAX >> (64 - bits)) << first_bit;
            let Some(word) = usize::try_from(next / 64)
                .ok()
                .and_then(|i| self.words.get(i))
            else {
                return;
            };
            visit(word, mask);
            next += bits;
        }
    }
}

/// The guest's memory as the front end has last described it.
///
/// A snapshot: what it maps stays mapped as long as it lives, whatever becomes of the
/// guest's memory in the meantime.
#[derive(Debug, Default)]
pub struct SystemMemory {
    map: Arc<GuestMemoryMmap>,
}

impl SystemMemory {
    /// The guest's memory as a front end describes it.
    pub fn new(map: Arc<GuestMemoryMmap>) -> Self {
        Self { map }
    }

    /// The guest-physical address at which the guest sees all of a device memory, if it
    /// does.
    pub fn address_of(&self, device: &DeviceMemory) -> Option<u64> {
        let identity = |file: &File| file.metadata().map(|file| (file.dev(), file.ino()));
        let wanted = identity(device.file()).ok()?;
        self.map.iter().find_map(|region| {
            let behind = region.file_offset()?;
            let is_whole = behind.start() == 0 && region.len() >= device.frames() * PAGE_BYTES;
            let shows = is_whole && identity(behind.file()).is_ok_and(|found| found == wanted);
            shows.then(|| region.start_addr().0)
        })
    }

    /// Whether all frames of a run are backed.
    pub fn contains(&self, frame: u64, pages: u64) -> bool {
        place_of(frame, pages).is_some_and(|(start, bytes)| {
            GuestMemory::check_range(&*self.map, start, bytes, Permissions::ReadWrite)
        })
    }

    /// The bytes of a run of frames, if they lie side by side.
    pub fn slice(&self, frame: u64, pages: u64) -> Option<VolatileSlice<'_>> {
        let (start, bytes) = place_of(frame, pages)?;
        GuestMemoryBackend::get_slice(&*self.map, start, bytes).ok()
    }

    /// The bytes from a frame to the end of the region that it is in, which is one mapping.
    pub fn mapping_from(&self, frame: u64) -> Option<VolatileSlice<'_>> {
        let (start, _) = place_of(frame, 0)?;
        let (region, offset) = self.map.to_region_addr(start)?;
        let bytes = region.len().checked_sub(offset.0)?;
        region.get_slice(offset, usize::try_from(bytes).ok()?).ok()
    }

    /// The bytes of a run of frames piece by piece; ends with `None` where a frame is
    /// not backed.
    pub fn pieces(
        &self,
        frame: u64,
        pages: u64,
    ) -> impl Iterator<Item = Option<VolatileSlice<'_>>> {
        let slices = place_of(frame, pages).and_then(|(start, bytes)| {
            GuestMemory::get_slices(&*self.map, start, bytes, Permissions::ReadWrite).ok()
        });
        let missing = slices.is_none().then_some(None);
        slices.into_iter().flatten().map(Result::ok).chain(missing)
    }
}

/// Where a run of frames starts, and its length, in bytes.
fn bytes_of(frame: u64, pages: u64) -> Option<(u64, usize)> {
    let start = frame.checked_mul(PAGE_BYTES)?;
    let bytes = pages.checked_mul(PAGE_BYTES)?;
    start.checked_add(bytes)?;
    Some((start, usize::try_from(bytes).ok()?))
}

fn place_of(frame: u64, pages: u64) -> Option<(GuestAddress, usize)> {
    bytes_of(frame, pages).map(|(start, bytes)| (GuestAddress(start), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discarded_frames_read_as_zeros() {
        let memory = DeviceMemory::new(1 << 21).unwrap();
        let frames = memory.slice(3, 2).unwrap();
        frames.copy_from(&[0x5a_u8; 2 * FRAME_BYTES]);
        memory.release(3, 1).unwrap();
        let mut bytes = [0xff_u8; 2 * FRAME_BYTES];
        frames.copy_to(&mut bytes);
        let (first, second) = bytes.split_at(FRAME_BYTES);
        assert!(first.iter().all(|byte| *byte == 0));
        assert!(second.iter().all(|byte| *byte == 0x5a));
    }

    #[test]
    fn a_slice_is_filled_to_its_ends_and_no_further() {
        let memory = DeviceMemory::new(4 << PAGE_SHIFT).unwrap();
        fill(&memory.slice(0, 4).unwrap(), 1);
        fill(&memory.slice(1, 2).unwrap(), 2);
        fill(&memory.slice(1, 0).unwrap(), 3);
        let mut bytes = [0_u8; 4 * FRAME_BYTES];
        memory.slice(0, 4).unwrap().copy_to(&mut bytes);
        let frames = bytes.chunks(FRAME_BYTES).zip([1, 2, 2, 1]);
        for (frame, value) in frames {
            assert!(frame.iter().all(|byte| *byte == value));
        }
    }

    #[test]
    fn runs_are_taken_out_of_a_set_one_by_one() {
        let set = FrameSet::new(1000);
        for (frame, pages) in [(3, 2), (60, 200), (999, 1)] {
            set.insert(frame, pages);
        }
        assert_eq!(set.take_run(4, 128), Some((4, 1)));
        assert_eq!(set.take_run(5, 128), Some((60, 128)));
        assert_eq!(set.take_run(188, 128), Some((188, 72)));
        assert_eq!(set.take_run(260, 128), Some((999, 1)));
        assert_eq!(set.take_run(1000, 128), None);
        assert_eq!(set.take_run(0, 128), Some((3, 1)));
        assert_eq!((set.count(), set.take_run(0, 128)), (0, None));
    }

    #[test]
    fn the_file_of_device_memory_keeps_its_size() {
        let memory = DeviceMemory::new(1 << 21).unwrap();
        let handed_out = memory.file().try_clone().unwrap();
        assert!(handed_out.set_len(0).is_err());
        assert!(handed_out.set_len(1 << 22).is_err());
        // Discarding goes on all the same.
        memory.release(0, 512).unwrap();
    }

    #[test]
    fn device_memory_that_the_guest_sees_is_found_among_its_memory() {
        let device = DeviceMemory::new(1 << 21).unwrap();
        let other = DeviceMemory::new(1 << 21).unwrap();
        let guest = |parts: &[(u64, &DeviceMemory, u64, usize)]| {
            let ranges = parts.iter().map(|&(address, memory, offset, bytes)| {
                let file = memory.file().try_clone().unwrap();
                (
                    GuestAddress(address),
                    bytes,
                    Some(FileOffset::new(file, offset)),
                )
            });
            let map = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
            SystemMemory::new(Arc::new(map))
        };
        let (whole, part) = (1 << 21, 1 << 20);
        let both = guest(&[(0, &other, 0, whole), (1 << 30, &device, 0, whole)]);
        assert_eq!(both.address_of(&device), Some(1 << 30));
        assert_eq!(both.address_of(&other), Some(0));
        for wrong in [
            guest(&[(0, &other, 0, whole)]),
            guest(&[(0, &device, 0, part)]),
            guest(&[(0, &device, 1 << 20, part)]),
            SystemMemory::default(),
        ] {
            assert_eq!(wrong.address_of(&device), None);
        }
    }

    #[test]
    fn runs_outside_of_device_memory_have_no_bytes() {
        let memory = DeviceMemory::new(1 << 21).unwrap();
        assert!(memory.slice(0, 512).is_some());
        for (frame, pages) in [(0, 513), (512, 1), (511, 2), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(memory.slice(frame, pages).is_none(), "{frame} {pages}");
        }
    }

    #[test]
    fn a_set_of_frames_counts_each_frame_once() {
        let set = FrameSet::new(1000);
        set.insert(60, 200);
        set.insert(100, 10);
        assert_eq!(set.count(), 200);
        assert_eq!(set.first_missing(60, 200), None);
        assert_eq!(set.first_missing(60, 201), Some(260));
        assert_eq!(set.remove(0, 64), 4);
        assert_eq!(set.count(), 196);
        assert_eq!(set.first_missing(60, 1), Some(60));
    }

    #[test]
    fn guest_memory_is_found_across_regions_and_holes() {
        let ranges = [
            (GuestAddress(0), 2 << PAGE_SHIFT),
            (GuestAddress(2 << PAGE_SHIFT), 2 << PAGE_SHIFT),
            (GuestAddress(6 << PAGE_SHIFT), 1 << PAGE_SHIFT),
        ];
        let memory = SystemMemory::new(Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()));
        assert!(memory.contains(0, 4));
        assert!(!memory.contains(3, 2));
        assert!(memory.slice(0, 2).is_some());
        assert!(memory.slice(1, 2).is_none());
        let pieces: Vec<_> = memory
            .pieces(1, 2)
            .map(|piece| piece.map(|p| p.len()))
            .collect();
        assert_eq!(pieces, [Some(4096), Some(4096)]);
        assert_eq!(memory.pieces(u64::MAX, 1).count(), 1);
        assert!(memory.pieces(3, 2).any(|piece| piece.is_none()));
    }
}
