//! What frames are backed by: device memory, and the view of the guest's memory.
//!
//! Both hand out volatile slices, because the guest, an engine and a copy may access the same bytes
//! at the same time. Neither knows spaces, mappings or rights.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use nix::fcntl::{fallocate, fcntl, FallocateFlags, FcntlArg, SealFlag};
use nix::libc;
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::mman::{madvise, MmapAdvise};
use std::fs::File;
use virtio_hmm_spec::wire::{LARGE_ORDER, PAGE_BYTES, PAGE_SHIFT};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, MmapRegion, Permissions, VolatileMemory, VolatileSlice,
};

/// The bytes of a frame in the host's memory.
pub const FRAME_BYTES: usize = 1 << PAGE_SHIFT;

/// The bytes of a large leaf's frames in the host's memory.
pub const LARGE_BYTES: usize = FRAME_BYTES << LARGE_ORDER;

/// Why device memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file cannot be made.
    #[error("cannot create the file behind device memory")]
    Create(#[source] io::Error),
    /// The file cannot be that large.
    #[error("cannot set the size of device memory to {0} bytes")]
    Size(u64, #[source] io::Error),
    /// The file's size cannot be sealed.
    #[error("cannot seal the file behind device memory")]
    Seal(#[source] io::Error),
    /// The host has no memory for it.
    #[error("the host has no {0} bytes of memory for device memory")]
    Allocate(u64, #[source] io::Error),
    /// The file cannot be mapped.
    #[error("cannot map {0} bytes of device memory")]
    Map(u64, #[source] vm_memory::mmap::MmapRegionError),
}

/// The device's own memory: frames for engines and copies, and for the processes that get its file.
///
/// A frame has host memory from its first write until this is freed, some time after the frame was
/// discarded. A frame without host memory reads as zeros. {dev-no-leak}
#[derive(Debug)]
pub struct DeviceMemory {
    file: File,
    region: MmapRegion<()>,
    frames: u64,
    live: FrameSet,
    /// All frames have host memory, and keep it.
    allocated: bool,
}

impl DeviceMemory {
    /// Makes `bytes` bytes of device memory, a multiple of a page.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] when the host cannot provide it.
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
        // A process that gets the file could otherwise truncate it, and kill us with a SIGBUS.
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
        if let Ok(all) = region.get_slice(0, size) {
            leave_out_of_dumps(&all);
        }
        let frames = bytes >> PAGE_SHIFT;
        Ok(Self {
            file,
            region,
            frames,
            live: FrameSet::new(frames),
            allocated: false,
        })
    }

    /// The same, with host memory for all frames, which they keep.
    ///
    /// # Errors
    ///
    /// [`MemoryError`], also when the host does not have that much.
    pub fn allocated(bytes: u64) -> Result<Self, MemoryError> {
        let memory = Self::new(bytes)?;
        let no_memory = |error| MemoryError::Allocate(bytes, error);
        let length = i64::try_from(bytes).map_err(|error| no_memory(io::Error::other(error)))?;
        fallocate(&memory.file, FallocateFlags::empty(), 0, length)
            .map_err(|errno| no_memory(errno.into()))?;
        Ok(Self {
            allocated: true,
            ..memory
        })
    }

    /// The number of frames.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The file behind the frames; frame N is its page N.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The frames that hold data: written and not discarded.
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

    /// The bytes from a frame to the end of device memory, if the frame exists.
    pub fn mapping_from(&self, frame: u64) -> Option<VolatileSlice<'_>> {
        self.slice(frame, self.frames.checked_sub(frame)?)
    }

    /// Frees the host memory of a run of frames, if it is not preallocated. Their contents are
    /// undefined from now on: zeros, or what they held.
    ///
    /// # Errors
    ///
    /// When the host refuses; the frames then keep their contents.
    pub fn release(&self, frame: u64, pages: u64) -> io::Result<()> {
        if self.allocated {
            return Ok(());
        }
        let (start, bytes) =
            bytes_of(frame, pages).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let offset = |value: u64| i64::try_from(value).map_err(io::Error::other);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, flags, offset(start)?, offset(bytes as u64)?)?;
        Ok(())
    }
}

/// Excludes memory from core dumps: it is the guest's, and may be large.
fn leave_out_of_dumps(slice: &VolatileSlice<'_>) {
    let guard = slice.ptr_guard_mut();
    let Some(start) = NonNull::new(guard.as_ptr()) else {
        return;
    };
    // SAFETY: the slice is that many bytes that are mapped for as long as it lives, and the guard
    // keeps it alive; the advice changes nothing about them.
    let advised = unsafe { madvise(start.cast(), slice.len(), MmapAdvise::MADV_DONTDUMP) };
    if let Err(errno) = advised {
        log::warn!("memory cannot be left out of core dumps: {errno}");
    }
}

/// Sets all bytes of a slice to one value.
///
/// A repeated copy of a pattern would read as much as it writes.
pub fn fill(slice: &VolatileSlice<'_>, value: u8) {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice is that many bytes that are mapped and may be written for as long as it
    // lives, and the guard keeps it alive; any address is aligned for bytes. There are no
    // references to the bytes, as they are handed out only as volatile slices and atomics. Other
    // threads may use them at the same time. In this the write equals any copy into a volatile
    // slice, which `vm-memory` makes by `copy_nonoverlapping`: a concurrent reader finds old bytes
    // and new ones.
    unsafe { std::ptr::write_bytes(guard.as_ptr(), value, slice.len()) }
}

/// A set of frames that several threads may change at the same time.
#[derive(Debug)]
pub struct FrameSet {
    words: Box<[AtomicU64]>,
    count: AtomicU64,
}

impl FrameSet {
    /// An empty set of frames below `frames`.
    pub fn new(frames: u64) -> Self {
        let words = (0..frames.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        Self {
            words,
            count: AtomicU64::new(0),
        }
    }

    /// The number of frames in the set.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Adds a run of frames to the set.
    pub fn insert(&self, frame: u64, pages: u64) {
        self.each_word(frame, pages, |word, mask| {
            // Most runs are live already: do not dirty the cache line without need.
            if word.load(Ordering::Relaxed) & mask != mask {
                let old = word.fetch_or(mask, Ordering::Relaxed);
                self.count
                    .fetch_add(u64::from((mask & !old).count_ones()), Ordering::Relaxed);
            }
        });
    }

    /// Removes a run of frames from the set and returns how many were in it.
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

    /// Removes the first run of frames at or behind `from` from the set, up to a length of `limit`.
    /// Returns its first frame and its length.
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
/// A snapshot: what it maps stays mapped as long as it lives, even if the guest's memory changes.
#[derive(Debug, Default)]
pub struct SystemMemory {
    map: Arc<GuestMemoryMmap>,
}

impl SystemMemory {
    /// The guest's memory as a front end describes it.
    pub fn new(map: Arc<GuestMemoryMmap>) -> Self {
        let memory = Self { map };
        memory.slices().for_each(|slice| leave_out_of_dumps(&slice));
        memory
    }

    /// All of it, one slice per piece.
    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.map.iter().filter_map(|region| {
            let length = usize::try_from(region.len()).ok()?;
            region.get_slice(MemoryRegionAddress(0), length).ok()
        })
    }

    /// The address of each piece in this process, and its length in bytes.
    pub fn host_pieces(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.slices()
            .map(|slice| (slice.ptr_guard().as_ptr() as usize, slice.len()))
    }

    /// Checks that the file behind each piece is long enough.
    ///
    /// # Errors
    ///
    /// When a file is too short: an access behind its end would kill the process.
    pub fn check_files(&self) -> io::Result<()> {
        for region in self.map.iter() {
            let Some(behind) = region.file_offset() else {
                continue;
            };
            let file = behind.file().metadata()?;
            let end = behind.start().saturating_add(region.len());
            // The length of a device file is unknown.
            if file.is_file() && file.len() < end {
                return Err(io::Error::other(format!(
                    "the guest's memory at {:#x} is to end at byte {end:#x} of a file of {:#x} \
                     bytes",
                    region.start_addr().0,
                    file.len()
                )));
            }
        }
        Ok(())
    }

    /// The guest-physical address at which the guest sees all of a device memory, if it does.
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
        guest_bytes_of(frame, pages).is_some_and(|(start, bytes)| {
            GuestMemory::check_range(&*self.map, start, bytes, Permissions::ReadWrite)
        })
    }

    /// The bytes of a run of frames, if they are contiguous.
    pub fn slice(&self, frame: u64, pages: u64) -> Option<VolatileSlice<'_>> {
        let (start, bytes) = guest_bytes_of(frame, pages)?;
        GuestMemoryBackend::get_slice(&*self.map, start, bytes).ok()
    }

    /// The bytes from a frame to the end of its region, which is one mapping.
    pub fn mapping_from(&self, frame: u64) -> Option<VolatileSlice<'_>> {
        let (start, _) = guest_bytes_of(frame, 0)?;
        let (region, offset) = self.map.to_region_addr(start)?;
        let bytes = region.len().checked_sub(offset.0)?;
        region.get_slice(offset, usize::try_from(bytes).ok()?).ok()
    }

    /// The bytes of a run of frames piece by piece; ends with `None` at a frame that is not backed.
    pub fn pieces(
        &self,
        frame: u64,
        pages: u64,
    ) -> impl Iterator<Item = Option<VolatileSlice<'_>>> {
        let slices = guest_bytes_of(frame, pages).and_then(|(start, bytes)| {
            GuestMemory::get_slices(&*self.map, start, bytes, Permissions::ReadWrite).ok()
        });
        let missing = slices.is_none().then_some(None);
        slices.into_iter().flatten().map(Result::ok).chain(missing)
    }
}

/// The offset and the length of a run of frames, in bytes.
fn bytes_of(frame: u64, pages: u64) -> Option<(u64, usize)> {
    let start = frame.checked_mul(PAGE_BYTES)?;
    let bytes = pages.checked_mul(PAGE_BYTES)?;
    start.checked_add(bytes)?;
    Some((start, usize::try_from(bytes).ok()?))
}

fn guest_bytes_of(frame: u64, pages: u64) -> Option<(GuestAddress, usize)> {
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
    fn memory_that_was_taken_at_the_start_is_kept() {
        let backed = |memory: &DeviceMemory| memory.file().metadata().unwrap().blocks() * 512;
        let sparse = DeviceMemory::new(1 << 21).unwrap();
        assert_eq!(backed(&sparse), 0);
        let memory = DeviceMemory::allocated(1 << 21).unwrap();
        assert_eq!(backed(&memory), 1 << 21);
        memory.release(0, 512).unwrap();
        assert_eq!(backed(&memory), 1 << 21);
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
        // Discarding continues to work.
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
