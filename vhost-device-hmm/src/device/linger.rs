//! Frames that were discarded a moment ago.
//!
//! A driver that frees device memory often allocates some again at once. Host memory that has to be
//! found and cleared anew makes a copy four times as long, so discarded frames keep theirs for one
//! to two periods. A device whose memory is not in use frees all of it, and then needs no processor
//! time.
//!
//! Threads that copy or discard share the lock of a [`Linger`], maybe together with other threads.
//! The thread that frees memory holds it exclusively.

use std::io;
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::memory::{DeviceMemory, FrameSet};

/// The minimum time that frames linger.
pub const PERIOD: Duration = Duration::from_secs(1);

/// The retry interval while copies run. Freeing is not urgent, and a blocked writer would keep new
/// copies from starting.
const PAUSE: Duration = Duration::from_millis(1);

/// How many frames are freed without letting copies in between: some hundred microseconds of the
/// host's time.
const AT_ONCE: u64 = 512;

/// The lingering frames: those of the current period and those of the one before.
#[derive(Debug)]
pub struct Lingering {
    young: FrameSet,
    old: FrameSet,
}

impl Lingering {
    /// No lingering frames among `frames`.
    fn new(frames: u64) -> Self {
        Self {
            young: FrameSet::new(frames),
            old: FrameSet::new(frames),
        }
    }

    /// A run of frames has been discarded.
    pub fn discarded(&self, frame: u64, pages: u64) {
        self.old.remove(frame, pages);
        self.young.insert(frame, pages);
    }

    /// A run of frames is about to be written, or its host memory is given back.
    /// {dev-region-stable}
    pub fn taken(&self, frame: u64, pages: u64) {
        for set in [&self.young, &self.old] {
            if set.count() > 0 {
                set.remove(frame, pages);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.young.count() + self.old.count() == 0
    }
}

/// The lingering frames, with the lock for copying, discarding and freeing.
#[derive(Debug)]
pub struct Linger {
    frames: RwLock<Lingering>,
    closed: Mutex<bool>,
    /// The thread waits for lingering frames, or is about to.
    asleep: AtomicBool,
    changed: Condvar,
}

impl Linger {
    /// For `frames` frames, none of which lingers.
    pub fn new(frames: u64) -> Arc<Self> {
        Arc::new(Self {
            frames: RwLock::new(Lingering::new(frames)),
            closed: Mutex::new(false),
            asleep: AtomicBool::new(false),
            changed: Condvar::new(),
        })
    }

    /// Begins a copy or a discard.
    pub fn share(&self) -> RwLockReadGuard<'_, Lingering> {
        self.frames.read()
    }

    /// Waits until all copies have ended, and lets none begin.
    pub fn exclude(&self) -> RwLockWriteGuard<'_, Lingering> {
        self.frames.write()
    }

    /// Ends what [`Self::share`] has begun.
    pub fn unlock(&self, frames: RwLockReadGuard<'_, Lingering>) {
        let lingers = !frames.is_empty();
        drop(frames);
        // Either this sees that the thread is asleep, or the thread sees the lingering frames.
        fence(Ordering::SeqCst);
        if lingers && self.asleep.load(Ordering::Relaxed) {
            let _awake = self.closed.lock();
            self.changed.notify_one();
        }
    }

    /// Starts the thread that frees the host memory of frames that have lingered long enough.
    ///
    /// # Errors
    ///
    /// When the host cannot start a thread.
    pub fn start(self: &Arc<Self>, device: Arc<DeviceMemory>) -> io::Result<JoinHandle<()>> {
        let this = Arc::clone(self);
        std::thread::Builder::new()
            .name("linger".into())
            .spawn(move || this.run(&device))
    }

    /// Ends that thread. Frames that still linger then do so for good.
    pub fn close(&self) {
        *self.closed.lock() = true;
        self.changed.notify_all();
    }

    fn run(&self, device: &DeviceMemory) {
        let mut closed = self.closed.lock();
        while !*closed {
            self.asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.frames.read().is_empty() {
                self.changed.wait(&mut closed);
                continue;
            }
            self.asleep.store(false, Ordering::Relaxed);
            let end = Instant::now() + PERIOD;
            while !*closed && !self.changed.wait_until(&mut closed, end).timed_out() {}
            let mut next = Some(0);
            while let (false, Some(frame)) = (*closed, next) {
                next = match self.frames.try_write() {
                    Some(mut frames) => {
                        let next = frames.age(frame, device);
                        drop(frames);
                        // Lets `close` take the lock.
                        MutexGuard::bump(&mut closed);
                        next
                    }
                    None => {
                        self.changed.wait_for(&mut closed, PAUSE);
                        Some(frame)
                    }
                };
            }
        }
    }
}

impl Lingering {
    /// Continues the work at the end of a period from a frame on. Returns the frame from which to
    /// continue, or `None` at the end.
    fn age(&mut self, from: u64, device: &DeviceMemory) -> Option<u64> {
        // No frame is added to `old` meanwhile.
        if let Some((frame, pages)) = self.old.take_run(from, AT_ONCE) {
            if let Err(error) = device.release(frame, pages) {
                log::warn!("cannot give device memory back: {error}");
            }
            return Some(frame + pages);
        }
        std::mem::swap(&mut self.young, &mut self.old);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::Bytes;

    use super::*;

    /// Device memory whose first `frames` frames are written.
    fn written(frames: u64) -> DeviceMemory {
        let device = DeviceMemory::new(1024 * 4096).unwrap();
        let bytes = vec![1; usize::try_from(frames).unwrap() * 4096];
        let slice = device.slice(0, frames).unwrap();
        slice.write_slice(&bytes, 0).unwrap();
        device
    }

    /// A period passes.
    fn age(frames: &mut Lingering, device: &DeviceMemory) {
        let mut next = Some(0);
        while let Some(frame) = next {
            next = frames.age(frame, device);
        }
    }

    /// Frames that have host memory.
    fn backed(device: &DeviceMemory) -> u64 {
        device.file().metadata().unwrap().blocks() * 512 / 4096
    }

    #[test]
    fn discarded_frames_keep_their_memory_for_a_period_and_no_longer_than_two() {
        let (device, linger) = (written(600), Linger::new(1024));
        let mut frames = linger.exclude();
        frames.discarded(0, 600);
        age(&mut frames, &device);
        assert_eq!(backed(&device), 600);
        age(&mut frames, &device);
        assert_eq!(backed(&device), 0);
        assert!(frames.is_empty());
    }

    // {dev-region-stable}
    #[test]
    fn frames_that_are_used_again_keep_what_is_in_them() {
        let (device, linger) = (written(600), Linger::new(1024));
        let mut frames = linger.exclude();
        frames.discarded(0, 600);
        age(&mut frames, &device);
        frames.taken(10, 100);
        age(&mut frames, &device);
        assert_eq!(backed(&device), 100);
        let mut bytes = vec![0; 100 * 4096];
        let slice = device.slice(10, 100).unwrap();
        slice.read_slice(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn a_frame_that_is_discarded_again_begins_anew() {
        let (device, linger) = (written(8), Linger::new(1024));
        let mut frames = linger.exclude();
        frames.discarded(0, 8);
        age(&mut frames, &device);
        frames.discarded(0, 4);
        age(&mut frames, &device);
        assert_eq!(backed(&device), 4);
        age(&mut frames, &device);
        assert_eq!(backed(&device), 0);
    }

    #[test]
    fn the_thread_gives_memory_back_and_ends_when_told() {
        let (device, linger) = (Arc::new(written(8)), Linger::new(1024));
        let thread = linger.start(Arc::clone(&device)).unwrap();
        let frames = linger.share();
        frames.discarded(0, 8);
        linger.unlock(frames);
        let end = Instant::now() + 10 * PERIOD;
        while backed(&device) > 0 {
            assert!(Instant::now() < end, "the memory stays");
            std::thread::sleep(PERIOD / 10);
        }
        linger.close();
        thread.join().unwrap();
    }
}
