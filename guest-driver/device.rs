// SPDX-License-Identifier: GPL-2.0

//! A device as the rest of the driver sees it: what it can do, the way to it, its
//! memory, and the processes that use it.
//!
//! Knows nothing of buses, files or faults.

use crate::{
    command::{Copy, Init, LongFetch, ReadStatistics},
    counters::Counters,
    job::Names,
    migrate::{self, Injection},
    mm::{
        pagemap::{Kind, Pagemap, UnusedFrames},
        LARGE_PAGES, PAGE_SHIFT,
    },
    pages::{Frames, Run},
    pipeline::DEPTH,
    queue::{Link, Message, Watch},
    space::{Space, Spaces},
    touch::Store,
    transfer::Spares,
    uapi::DriverStatistics,
    virtio::Queues,
    wait::{Event, WorkLink},
    wire::{
        config::{capability, Config, MAGIC, VERSION},
        statistics::Statistics,
    },
};
use kernel::{
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        srcu::{self, Srcu},
        Arc, Mutex,
    },
    workqueue::{Work, WorkItem},
};

/// The most runs that are discarded by one request: a kilobyte or two of list.
const DISCARD_RUNS: usize = 64;

/// How long frames that nobody uses may stay stale, in milliseconds. Who moves pages there and
/// back wants them again soon, and as long as the device has not discarded them it need not
/// find new memory for them, which takes longer than the copy. Short for who waits for the
/// memory on the host, which keeps it for longer than this itself.
const STALE_FOR: u32 = 100;

/// What the device can do, checked.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) device_memory: u64,
    pub(crate) capabilities: u64,
    pub(crate) max_spaces: u32,
    pub(crate) max_jobs: u32,
    /// Pages that one migration may move: the least of several limits.
    pub(crate) max_move: usize,
    pub(crate) max_discard: u32,
    pub(crate) engines: u32,
    pub(crate) address_bits: u32,
}

impl Limits {
    /// The most pages that are moved by one request: 4 MiB. The device copies so many about as
    /// fast as memory for as many is found, and a request costs little compared with them.
    const MAX_MOVE: u32 = 1024;

    /// Checks what a device says of itself.
    ///
    /// # Errors
    ///
    /// `ENODEV` if it is another device, or one that this driver cannot use.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        if config.magic.get() != MAGIC {
            pr_err!("a device of this id that is not an HMM device\n");
            return Err(ENODEV);
        }
        if config.version.get() != VERSION {
            pr_err!(
                "the device speaks version {}, this driver version {}\n",
                config.version.get(),
                VERSION,
            );
            return Err(ENODEV);
        }
        let max_items = config.max_items.get();
        let max_copy_pages = config.max_copy_pages.get();
        let large = LARGE_PAGES as u32;
        if max_items < large || max_copy_pages < large || config.max_entries.get() < large {
            pr_err!("the device takes less than a large page in one request\n");
            return Err(ENODEV);
        }
        if !(PAGE_SHIFT..usize::BITS).contains(&config.address_bits.get()) {
            pr_err!(
                "the device's addresses have {} bits\n",
                config.address_bits.get()
            );
            return Err(ENODEV);
        }
        let max_move = max_items.min(max_copy_pages).min(Self::MAX_MOVE);
        Ok(Self {
            device_memory: config.device_memory.get(),
            capabilities: config.capabilities.get(),
            max_spaces: config.max_spaces.get(),
            max_jobs: config.max_jobs.get(),
            max_move: (max_move - max_move % large) as usize,
            max_discard: max_copy_pages,
            engines: config.engines.get(),
            address_bits: config.address_bits.get(),
        })
    }

    /// CPUs can have addresses for device memory.
    pub(crate) fn is_coherent(&self) -> bool {
        self.capabilities & capability::COHERENT != 0
    }

    /// Frames must be discarded as soon as they are free.
    pub(crate) fn is_checked(&self) -> bool {
        self.capabilities & capability::CHECK != 0
    }
}

/// The way to the device, what is known of its memory, and the processes that use it.
#[pin_data]
pub(crate) struct Core {
    pub(crate) limits: Limits,
    pub(crate) link: Link,
    pub(crate) counters: Counters,
    pub(crate) work: Arc<WorkLink>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) jobs: Names,
    pub(crate) injection: Injection,
    pub(crate) spaces: Spaces,
    #[pin]
    pub(crate) spares: Spares<Copy>,
    /// The same for large pages that CPUs touch.
    #[pin]
    pub(crate) touch_spares: Spares<LongFetch>,
    #[pin]
    pub(crate) frames: Frames,
    /// Held while frames are being discarded, so that whoever wants some can wait.
    #[pin]
    discarding: Mutex<()>,
    #[pin]
    discard: Work<Core>,
    /// Nothing is lent any more.
    #[pin]
    closed: Event,
}

impl_has_work! {
    impl HasWork<Self> for Core { self.discard }
}

impl WorkItem for Core {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if !this.limits.is_checked() {
            this.closed.wait_timeout(STALE_FOR);
            if !this.frames.is_discard_due() {
                // They are in use again.
                return;
            }
        }
        if let Err(error) = this.discard_stale() {
            // They stay stale and are discarded with the next ones.
            pr_debug!("frames not discarded: {:?}\n", error);
        }
    }
}

impl Core {
    /// The device behind `queues`, which runs.
    pub(crate) fn new(
        limits: Limits,
        queues: Arc<Queues>,
        work: Arc<WorkLink>,
    ) -> Result<Arc<Self>> {
        let total = limits.device_memory >> PAGE_SHIFT;
        let list = Frames::new(total, limits.is_checked())?;
        Arc::pin_init(
            try_pin_init!(Self {
                limits,
                link: Link::new(queues),
                counters: Counters::new(),
                work,
                watch: Arc::new(Watch, GFP_KERNEL)?,
                jobs: Names::new(),
                injection: Injection::new(),
                spaces: Spaces::new(limits.max_spaces, limits.max_jobs)?,
                // The parts of one move; who moves pages at the same time gets memory anew.
                spares <- Spares::new(DEPTH + 1, limits.max_move),
                touch_spares <- Spares::new(1, LARGE_PAGES),
                frames <- list,
                discarding <- new_mutex!((), "Core::discarding"),
                discard <- new_work!("Core::discard"),
                closed <- Event::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Lends no memory any more.
    fn close(&self) {
        self.frames.close();
        self.closed.set();
    }

    /// Makes the device forget everything.
    pub(crate) fn reset(&self) -> Result {
        let mut message = Message::<Init>::new(0, 1, 0)?;
        message.push(&Init::entry())?;
        self.link.send(message)?;
        Ok(())
    }

    /// Takes frames back that held a page. May be called in atomic context.
    pub(crate) fn give_back(self: &Arc<Self>, frames: UnusedFrames) {
        if self.frames.give_back(frames) {
            self.discard_soon();
        }
    }

    /// Discards stale frames soon if that is due, after frames have come back unused.
    pub(crate) fn discard_if_due(self: &Arc<Self>) {
        if self.frames.is_discard_due() {
            self.discard_soon();
        }
    }

    fn discard_soon(self: &Arc<Self>) {
        self.work.with(|queue| {
            // If it is on its way already, that is as good.
            let _ = queue.enqueue(self.clone());
        });
    }

    /// Discards all stale frames. When it returns they are free, and also those that
    /// somebody else has been discarding.
    pub(crate) fn discard_stale(&self) -> Result {
        let _discarding = self.discarding.lock();
        let mut runs = KVec::<Run>::with_capacity(DISCARD_RUNS, GFP_KERNEL)?;
        loop {
            let mut message = Message::<Copy>::new(0, DISCARD_RUNS, DISCARD_RUNS)?;
            runs.clear();
            self.frames.take_stale(&mut runs, self.limits.max_discard);
            if runs.is_empty() {
                return Ok(());
            }
            for run in &runs {
                message.push(&Copy::discard(run.first, run.pages))?;
            }
            let sent = self.link.send(message);
            // Discarding lets the device give memory back. Frames that the device
            // did not discard can be used none the less: all are written before they are
            // read.
            self.frames.discarded(&runs);
            sent?;
        }
    }
}

/// A device.
#[pin_data]
pub(crate) struct Device {
    pub(crate) core: Arc<Core>,
    #[pin]
    pub(crate) pagemap: Pagemap<Store>,
    /// How many files are open.
    files: Atomic<u32>,
    removed: Atomic<bool>,
    #[pin]
    users: Srcu,
    /// Takes the pages of memory that is gone away from their processes.
    #[pin]
    loss: Work<Device>,
}

impl_has_work! {
    impl HasWork<Self> for Device { self.loss }
}

impl WorkItem for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.core.close();
        migrate::evict_all(&this, &|| false);
    }
}

/// Keeps a device from being removed.
pub(crate) struct Using<'a> {
    device: &'a Arc<Device>,
    _guard: srcu::Guard<'a>,
}

impl core::ops::Deref for Using<'_> {
    type Target = Arc<Device>;

    fn deref(&self) -> &Arc<Device> {
        self.device
    }
}

impl Device {
    /// The device with this core, whose memory, which is of this kind, gets pages.
    pub(crate) fn new(core: Arc<Core>, kind: Kind) -> Result<Arc<Self>> {
        let store = Store::new(core.clone());
        let pagemap = Pagemap::new(core.frames.total(), kind, c"virtio-hmm", store)?;
        Arc::pin_init(
            try_pin_init!(Self {
                core,
                pagemap <- pagemap,
                files: Atomic::new(0),
                removed: Atomic::new(false),
                users <- kernel::new_srcu!("Device::users"),
                loss <- new_work!("Device::loss"),
            }),
            GFP_KERNEL,
        )
    }

    /// Keeps the device from being removed as long as the result exists.
    ///
    /// # Errors
    ///
    /// `ENODEV` if it has been.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Using<'_>> {
        let guard = self.users.read_lock();
        if self.removed.load(Acquire) {
            return Err(ENODEV);
        }
        Ok(Using {
            device: self,
            _guard: guard,
        })
    }

    /// A file has been opened.
    pub(crate) fn opened(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    /// The space of a file that is being closed will end. With the last file, its pages come
    /// back: while it is known whose they are, large ones can, too.
    pub(crate) fn leaving(self: &Arc<Self>, space: &Space) {
        if self.files.load(Relaxed) == 1 {
            if let Ok(_device) = self.enter() {
                migrate::send_home(space);
            }
        }
    }

    /// A file has been closed. With the last one, the pages that are still in device
    /// memory come back: nobody is left who would use them there. Large ones may stay until
    /// somebody touches them.
    pub(crate) fn closed(self: &Arc<Self>) {
        if self.files.fetch_sub(1, Relaxed) == 1 {
            if let Ok(device) = self.enter() {
                migrate::evict_all(&device, &|| device.files.load(Relaxed) > 0);
            }
        }
    }

    /// The device has been given up. May be called in atomic context.
    ///
    /// Coherent memory has gone with it, but no fault stops the CPUs that go on using it:
    /// its pages are taken away from them at once, and are lost to their owners.
    pub(crate) fn given_up(self: &Arc<Self>) {
        if self.pagemap.is_coherent() {
            self.core.work.with(|queue| {
                // If it is on its way already, that is as good.
                let _ = queue.enqueue(self.clone());
            });
        }
    }

    /// Ends all use of the device: takes the spaces away, waits until nobody is inside a
    /// call any more, and brings all pages home.
    pub(crate) fn remove(&self) {
        self.removed.store(true, Release);
        self.send_home();
        self.core.spaces.end_all();
        self.users.synchronize();
        // Somebody may have bound meanwhile.
        self.core.spaces.end_all();
        self.core.close();
        migrate::evict_all(self, &|| false);
        // Files may stay open, but the addresses of coherent memory are the bus's again.
        self.pagemap.unmap();
    }

    /// Brings all pages home. Returns when there are none left in device memory, or when
    /// `stop` says so or a round brought nothing.
    pub(crate) fn bring_all_home(&self, stop: &dyn Fn() -> bool) {
        self.send_home();
        migrate::evict_all(self, stop);
    }

    /// Brings the pages of all spaces home, as far as that is possible at the moment. While
    /// it is known whose they are, large pages can come back in pieces.
    fn send_home(&self) {
        match self.core.spaces.all() {
            Ok(spaces) => spaces.iter().for_each(|space| migrate::send_home(space)),
            Err(error) => pr_debug!("large pages may have to stay large: {:?}\n", error),
        }
    }

    /// What the driver has counted.
    pub(crate) fn statistics(&self) -> DriverStatistics {
        let counters = &self.core.counters;
        let (control_requests, dma_requests) = self.core.link.requests();
        DriverStatistics {
            spaces: self.core.spaces.count(),
            used_frames: self.core.frames.used(),
            total_frames: self.core.frames.total(),
            faults: counters.faults.get(),
            fault_batches: counters.fault_batches.get(),
            fault_pages: counters.fault_pages.get(),
            fault_retries: counters.fault_retries.get(),
            faults_terminated: counters.faults_terminated.get(),
            invalidations: counters.invalidations.get(),
            invalidations_sent: counters.invalidations_sent.get(),
            pages_to_device: counters.pages_to_device.get(),
            large_to_device: counters.large_to_device.get(),
            pages_to_system: counters.pages_to_system.get(),
            pages_touched: counters.pages_touched.get(),
            pages_evicted: counters.pages_evicted.get(),
            large_to_system: counters.large_to_system.get(),
            pages_refused: counters.pages_refused.get(),
            pages_lost: counters.pages_lost.get(),
            collect_nanoseconds: counters.collect_nanoseconds.get(),
            lend_nanoseconds: counters.lend_nanoseconds.get(),
            copy_nanoseconds: counters.copy_nanoseconds.get(),
            commit_nanoseconds: counters.commit_nanoseconds.get(),
            finalise_nanoseconds: counters.finalise_nanoseconds.get(),
            promise_nanoseconds: counters.promise_nanoseconds.get(),
            control_requests,
            dma_requests,
            interrupts: self.core.link.queues().interrupts(),
            kicks: self.core.link.queues().kicks(),
        }
    }

    /// What the device has counted.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn device_statistics(&self) -> Result<Statistics> {
        let reply = self
            .core
            .link
            .send(Message::<ReadStatistics>::new(0, 0, 1)?)?;
        reply.output(0).ok_or_else(|| self.core.link.violated())
    }
}
