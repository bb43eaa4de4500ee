// SPDX-License-Identifier: GPL-2.0

//! The users of a device: open files and the processes that they are bound to, from the first one
//! until the device is removed.
//!
//! Does not know what files request.

use crate::{
    device::Device,
    migrate::{evict, to_system::all_to_system},
    poll::Ready,
    process::Owner,
    space::{Space, Spaces},
    uapi::{trace::Cause, DeviceState, DriverStatistics},
    watchdog::Watchdog,
    wire::statistics::Statistics,
};
use kernel::{
    fs::File,
    mm::MmWithUser,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        poll::PollTable,
        srcu::{self, Srcu},
        Arc,
    },
    time::{Delta, Instant, Monotonic},
};

/// How many rounds of eviction, a millisecond apart, try to move pages as they are before the page
/// tables of processes are searched for them.
const ROUNDS: u32 = 100;

/// How long a removal may go without progress. After that, the contents of the remaining pages are
/// lost. By that time the kernel has killed processes to free memory.
const LAST_RESORT: Delta = Delta::from_secs(20);

/// A device and its users.
#[pin_data]
pub(crate) struct Clients {
    pub(crate) device: Arc<Device>,
    pub(crate) spaces: Arc<Spaces>,
    pub(crate) watchdog: Arc<Watchdog>,
    /// The number of open files.
    files: Atomic<u32>,
    /// A [`DeviceState`].
    state: Atomic<u32>,
    removed: Atomic<bool>,
    #[pin]
    users: Srcu,
}

/// Keeps a device from being removed.
pub(crate) struct Using<'a> {
    clients: &'a Arc<Clients>,
    _guard: srcu::Guard<'a>,
}

impl core::ops::Deref for Using<'_> {
    type Target = Arc<Clients>;

    fn deref(&self) -> &Arc<Clients> {
        self.clients
    }
}

impl Clients {
    /// A device without users.
    pub(crate) fn new(device: Arc<Device>, spaces: Arc<Spaces>) -> Result<Arc<Self>> {
        let watchdog = Watchdog::new(device.core.clone(), spaces.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                device,
                spaces,
                watchdog,
                files: Atomic::new(0),
                state: Atomic::new(DeviceState::Resetting.raw()),
                removed: Atomic::new(false),
                users <- kernel::new_srcu!("Clients::users"),
            }),
            GFP_KERNEL,
        )
    }

    /// Keeps the device from being removed as long as the result exists.
    ///
    /// # Errors
    ///
    /// `ENODEV` if it has already been removed.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Using<'_>> {
        let guard = self.users.read_lock();
        if self.is_removed() {
            return Err(ENODEV);
        }
        Ok(Using {
            clients: self,
            _guard: guard,
        })
    }

    /// Whether the device is being removed, so that calls must end.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Acquire)
    }

    /// A file has been opened.
    pub(crate) fn opened(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    /// The space of the process with the address space `mm` and this owner; see [`Space::bind`].
    /// Binds one more file to it, which must leave it ([`Self::leave`]).
    pub(crate) fn bind(self: &Arc<Self>, mm: &MmWithUser, owner: Owner) -> Result<Arc<Space>> {
        Space::bind(&self.spaces, &self.device, mm, owner, |space| {
            self.leave(space, || ())
        })
    }

    /// Unbinds a file from a space. The space ends with its last file. As long as there are other
    /// files, their jobs continue, and `cancel` must end those of this file.
    pub(crate) fn leave(self: &Arc<Self>, space: &Space, cancel: impl FnOnce()) {
        if self.spaces.leave(space) {
            self.leaving(space);
            space.end();
        } else {
            cancel();
        }
    }

    /// Called before a space ends because its last file is being closed. If that is the last open
    /// file of the device, moves the pages of the space back first: while their process is known,
    /// huge pages can move as well.
    fn leaving(self: &Arc<Self>, space: &Space) {
        if self.files.load(Relaxed) == 1 {
            if let Ok(_clients) = self.enter() {
                all_to_system(space, Cause::Exit);
            }
        }
    }

    /// A file has been closed. If it was the last one, moves back the pages that are still in
    /// device memory, because no process is left that would use them there. Huge pages may stay
    /// until a CPU accesses them.
    pub(crate) fn closed(self: &Arc<Self>) {
        if self.files.fetch_sub(1, Relaxed) == 1 {
            if let Ok(clients) = self.enter() {
                let is_opened = || clients.files.load(Relaxed) > 0;
                let stop = &mut |moved| moved == 0 || is_opened();
                evict::evict_all(&clients.device, Cause::Exit, stop);
            }
        }
    }

    /// The poll state of a file as far as it depends on the device. The polling thread is woken by
    /// changes, and when the process of any space has ended.
    pub(crate) fn watch(&self, file: &File, table: &PollTable<'_>) -> Ready {
        self.spaces.pollers.register(file, table);
        if self.is_removed() {
            Ready::ERROR | Ready::HUNG_UP
        } else {
            Ready::NOTHING
        }
    }

    /// Whether the device serves programs, and if not, why.
    pub(crate) fn state(&self) -> DeviceState {
        let state = DeviceState::from_raw(self.state.load(Acquire)).unwrap_or(DeviceState::Gone);
        // The device is given up before the state changes, and its jobs end in between.
        if state == DeviceState::Running && !self.device.core.link.queues().is_running() {
            return DeviceState::Resetting;
        }
        state
    }

    pub(crate) fn set_state(&self, state: DeviceState) {
        self.state.store(state.raw(), Release);
        self.spaces.pollers.wake();
    }

    /// Changes the state from `from` to `to`; returns whether it was `from`.
    pub(crate) fn change_state(&self, from: DeviceState, to: DeviceState) -> bool {
        let is_changed = self.state.cmpxchg(from.raw(), to.raw(), Full).is_ok();
        if is_changed {
            self.spaces.pollers.wake();
        }
        is_changed
    }

    /// Ends all use of the device: takes the spaces away, waits until no thread is inside a call
    /// any more, and moves all pages to system memory.
    ///
    /// A removal never waits for a program. Calls do not hold the device while they read or write
    /// a program's memory, and a thread that waits for a page to be provided checks periodically
    /// whether the page is still wanted. What is left is the mmap lock of a process: the kernel itself
    /// holds it for reading while it waits for a file system whose server does not answer, as in
    /// access_process_vm(), and then nothing that needs it goes on. A removal does not wait for memory
    /// for ever either: pages that cannot move back are lost in the end. {drv-region-before-reset}
    pub(crate) fn remove(&self) {
        self.removed.store(true, Release);
        self.spaces.pollers.wake();
        self.all_to_system(Cause::Removal);
        self.spaces.end_all();
        self.users.synchronize();
        // A file may have been bound meanwhile.
        self.spaces.end_all();
        self.device.core.close();
        let mut least = u64::MAX;
        let mut since = Instant::<Monotonic>::now();
        loop {
            evict::evict_all(&self.device, Cause::Removal, &mut evict::rounds(ROUNDS));
            let left = self.device.core.frames.used();
            if left == 0 {
                break;
            }
            if left < least {
                least = left;
                since = Instant::now();
            }
            if since.elapsed() < LAST_RESORT {
                // A huge page that found no huge page of system memory moves in small pages.
                evict::evict_from_processes(&self.device, Cause::Removal);
            } else {
                evict::poison_all(&self.device);
            }
        }
        // Files may stay open, but the bus may now reuse the addresses of coherent memory.
        self.device.pagemap.unmap();
    }

    /// Moves all pages to system memory. Returns when there are none left in device memory, or when
    /// `stop` says so. `stop` is called after each round with the number of pages moved.
    pub(crate) fn evict_all(&self, cause: Cause, stop: &mut dyn FnMut(u64) -> bool) {
        self.all_to_system(cause);
        evict::evict_all(&self.device, cause, stop);
    }

    /// Moves the pages of all spaces to system memory, as far as that is possible at the moment.
    /// While their process is known, huge pages can move in small pages.
    fn all_to_system(&self, cause: Cause) {
        match self.spaces.all() {
            Ok(spaces) => spaces.iter().for_each(|space| all_to_system(space, cause)),
            Err(error) => pr_debug!("huge pages may have to stay large: {:?}\n", error),
        }
    }

    /// The counters of the driver.
    pub(crate) fn statistics(&self) -> DriverStatistics {
        let counters = &self.device.core.counters;
        let (control_requests, dma_requests) = self.device.core.link.requests();
        DriverStatistics {
            spaces: self.spaces.count(),
            used_frames: self.device.core.frames.used(),
            total_frames: self.device.core.frames.total(),
            faults: counters.faults.get(),
            fault_batches: counters.fault_batches.get(),
            fault_pages: counters.fault_pages.get(),
            fault_retries: counters.fault_retries.get(),
            faults_terminated: counters.faults_terminated.get(),
            invalidations: counters.invalidations.get(),
            invalidations_sent: counters.invalidations_sent.get(),
            pages_to_device: counters.pages_to_device.get(),
            huge_to_device: counters.huge_to_device.get(),
            pages_to_system: counters.pages_to_system.get(),
            cpu_fault_pages: counters.cpu_fault_pages.get(),
            pages_evicted: counters.pages_evicted.get(),
            huge_to_system: counters.huge_to_system.get(),
            pages_refused: counters.pages_refused.get(),
            pages_lost: counters.pages_lost.get(),
            collect_nanoseconds: counters.collect_nanoseconds.get(),
            allocate_nanoseconds: counters.allocate_nanoseconds.get(),
            copy_nanoseconds: counters.copy_nanoseconds.get(),
            commit_nanoseconds: counters.commit_nanoseconds.get(),
            finalise_nanoseconds: counters.finalise_nanoseconds.get(),
            invalidate_nanoseconds: counters.invalidate_nanoseconds.get(),
            control_requests,
            dma_requests,
            interrupts: self.device.core.link.queues().interrupts(),
            kicks: self.device.core.link.queues().kicks(),
            changes_hurried: counters.changes_hurried.get(),
        }
    }

    /// The counters of the device.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn device_statistics(&self) -> Result<Statistics> {
        self.device.core.read_statistics()
    }
}
