//! The shared memory region in which the guest's CPUs see device memory.
//!
//! A front end drops the region's mapping whenever the guest resets the device. The device
//! therefore asks again each time the rings start, unless the guest's memory table shows that the
//! region is there. A front end answers a request only when it is idle, and it may be busy waiting
//! for us. Requests therefore have their own thread, which never holds a lock that other threads
//! need.
//!
//! This module knows neither queues nor requests of the guest; it calls a callback once the region
//! is settled.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags, VhostUserShMemConfig};
use vhost::vhost_user::{Backend as FrontEnd, VhostUserFrontendReqHandler};
use virtio_hmm_spec::wire::config::MEMORY_REGION;
use virtio_hmm_spec::wire::PAGE_BYTES;

use crate::device::memory::{DeviceMemory, SystemMemory};

/// How long to wait until a front end that has agreed lists the region as the guest's memory. QEMU
/// lists the region at once, but answers before. QEMU never lists it if the device's bus does not
/// support regions; the guest then has no region either.
const PATIENCE: Duration = Duration::from_secs(1);

/// The region of one front end.
pub(super) struct Region {
    memory: Arc<DeviceMemory>,
    state: Mutex<State>,
    changed: Condvar,
    front_end: OnceLock<FrontEnd>,
}

#[derive(Debug, Default)]
struct State {
    /// The front end supports regions.
    offered: bool,
    /// The guest address of device memory.
    address: Option<u64>,
    /// The number of times that the rings have started.
    starts: u64,
    /// The last start for which it is known whether the region shows device memory.
    settled: u64,
    /// The last start for which the front end has agreed.
    granted: u64,
    /// No more requests are sent.
    closed: bool,
}

impl Region {
    /// A region for a device memory whose size is a power of two.
    pub(super) fn new(memory: Arc<DeviceMemory>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            state: Mutex::default(),
            changed: Condvar::new(),
            front_end: OnceLock::new(),
        })
    }

    fn bytes(&self) -> u64 {
        self.memory.frames() * PAGE_BYTES
    }

    /// The answer to a front end that asks for regions. From now on it has one. {dev-region-length}
    pub(super) fn offer(&self) -> VhostUserShMemConfig {
        self.state.lock().offered = true;
        let mut config = VhostUserShMemConfig::default();
        if let Some(size) = config.memory_sizes.get_mut(usize::from(MEMORY_REGION)) {
            (config.nregions, *size) = (1, self.bytes());
        }
        config
    }

    /// Whether the guest has the region.
    pub(super) fn is_offered(&self) -> bool {
        self.state.lock().offered
    }

    /// Whether it is still unknown if the region shows device memory.
    pub(super) fn is_pending(&self) -> bool {
        let state = self.state.lock();
        state.offered && state.settled != state.starts
    }

    /// Whether the guest can use device memory as the device has told it.
    pub(super) fn is_in_order(&self) -> bool {
        let state = self.state.lock();
        !state.offered || state.address.is_some() || state.granted == state.starts
    }

    /// Starts the thread that asks a front end. `settled` is called, without any lock held,
    /// whenever it has become known whether the region shows device memory.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started. A second channel of a front end is refused with a line in
    /// the log: each would need a thread.
    pub(super) fn ask(
        self: &Arc<Self>,
        front_end: FrontEnd,
        settled: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        if self.front_end.set(front_end).is_err() {
            log::warn!("the front end sent a second channel for requests; it is not used");
            return Ok(());
        }
        let region = Arc::clone(self);
        // The thread is not joined: it may wait for an answer as long as the front end keeps the
        // channel open.
        std::thread::Builder::new()
            .name("region".into())
            .spawn(move || {
                while let Some(start) = region.next_start() {
                    region.settle(start);
                    settled();
                }
            })
            .map(drop)
    }

    /// The rings have started: the region must show device memory before the guest is told that the
    /// device is ready.
    pub(super) fn rings_started(&self) {
        let mut state = self.state.lock();
        state.starts += 1;
        if state.address.is_some() || self.front_end.get().is_none() {
            state.settled = state.starts;
        }
        self.changed.notify_all();
    }

    /// The guest's memory has changed.
    pub(super) fn memory_changed(&self, system: &SystemMemory) {
        let address = system.address_of(&self.memory);
        let mut state = self.state.lock();
        if state.address != address {
            match address {
                Some(address) => log::info!("the guest sees device memory at {address:#x}"),
                None => log::info!("the guest does not see device memory any more"),
            }
            state.address = address;
        }
        self.changed.notify_all();
    }

    /// Sends no more requests.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits for a start of the rings that is not settled.
    fn next_start(&self) -> Option<u64> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if state.settled != state.starts {
                return Some(state.starts);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Asks for the mapping of device memory for this start, and waits until the outcome is known.
    fn settle(&self, start: u64) {
        let shown = self.state.lock().address.is_some();
        // Without the lock: the answer may take as long as the front end likes.
        let asked = match self.front_end.get() {
            Some(front_end) if !shown => self.request(front_end),
            _ => Ok(()),
        };
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        match asked {
            // The front end may refuse because it has mapped the same before.
            Err(error) => log::warn!("the front end does not map device memory: {error}"),
            Ok(()) => {
                let mut late = false;
                while state.address.is_none() && state.starts == start && !state.closed && !late {
                    late = self.changed.wait_until(&mut state, deadline).timed_out();
                }
                state.granted = start;
            }
        }
        state.settled = start;
    }

    fn request(&self, front_end: &FrontEnd) -> io::Result<()> {
        let request = VhostUserMMap {
            shmid: MEMORY_REGION,
            len: self.bytes(),
            flags: VhostUserMMapFlags::WRITABLE.bits(),
            ..Default::default()
        };
        front_end.shmem_map(&request, self.memory.file()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

    fn region() -> Arc<Region> {
        Region::new(Arc::new(DeviceMemory::new(2 << 20).unwrap()))
    }

    fn shown(region: &Region) -> SystemMemory {
        let file = FileOffset::new(region.memory.file().try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(1 << 32), 2 << 20, Some(file))];
        let map = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        SystemMemory::new(Arc::new(map))
    }

    #[test]
    fn a_front_end_without_regions_has_a_device_that_is_in_order() {
        let region = region();
        region.rings_started();
        assert!(!region.is_pending() && region.is_in_order() && !region.is_offered());
    }

    #[test]
    fn a_front_end_with_regions_must_take_requests() {
        let region = region();
        let config = region.offer();
        assert_eq!((config.nregions, config.memory_sizes[0]), (1, 2 << 20));
        region.rings_started();
        assert!(!region.is_pending(), "there is no front end to ask");
        assert!(!region.is_in_order());
    }

    #[test]
    fn memory_that_is_shown_already_is_not_asked_for() {
        let region = region();
        region.offer();
        region.memory_changed(&shown(&region));
        region.rings_started();
        assert!(!region.is_pending() && region.is_in_order());
        region.memory_changed(&SystemMemory::default());
        assert!(!region.is_in_order());
    }

    #[test]
    fn a_channel_that_is_broken_settles_the_matter() {
        let region = region();
        region.offer();
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let (settled, told) = mpsc::channel();
        let front_end = FrontEnd::from_stream(ours);
        front_end.set_shmem_flag(true);
        region
            .ask(front_end, move || settled.send(()).unwrap())
            .unwrap();
        region.rings_started();
        told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(!region.is_pending() && !region.is_in_order());
        region.close();
        // The thread ends and drops its callback.
        assert!(told.recv_timeout(Duration::from_secs(60)).is_err());
    }
}
