// SPDX-License-Identifier: GPL-2.0

//! The link to a device and the state of its memory. Exists as long as any part of the device is
//! left.
//!
//! Knows neither the kernel's pages for its memory nor processes.

use crate::{
    device::{
        command::{Copy, Init, LongFetch, ReadStatistics},
        counters::Counters,
        frames::{Frames, Run},
        inject::Injection,
        limits::Limits,
        pool::{BufferPool, DEPTH},
        queue::{Link, Message, Watch},
        shares::{Resource, Rules, Shares},
    },
    mm::{memremap::UnusedFrames, HPAGE_PMD_NR},
    virtio::Queues,
    wait::{Event, WorkLink},
    wire::statistics::Statistics,
};
use kernel::{
    impl_has_work, new_mutex, new_work,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex,
    },
    time::Delta,
    workqueue::{Work, WorkItem},
};

/// The maximum number of runs discarded by one request: a list of one or two kilobytes.
const DISCARD_RUNS: usize = 64;

/// How long freed frames stay undiscarded. A process that migrates back and forth
/// reuses them at once, and the device then need not find new memory for them, which takes longer
/// than the copy. Kept short for others on the host that wait for the memory; the host itself keeps
/// freed memory for longer than this.
const STALE_FOR: Delta = Delta::from_millis(100);

/// The link to the device, and the state of its memory.
#[pin_data]
pub(crate) struct Core {
    pub(crate) limits: Limits,
    pub(crate) link: Link,
    pub(crate) counters: Counters,
    pub(crate) work: Arc<WorkLink>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) injection: Injection,
    pub(crate) shares: Arc<Shares>,
    /// Buffers for all moves except those for CPU faults in a space.
    #[pin]
    pub(crate) buffers: BufferPool<Copy>,
    /// Buffers for CPU faults on huge pages in a space.
    #[pin]
    pub(crate) fault_buffers: BufferPool<LongFetch>,
    #[pin]
    pub(crate) frames: Frames,
    /// Held while frames are being discarded, so that a thread that needs frames can wait.
    #[pin]
    discarding: Mutex<()>,
    #[pin]
    discard: Work<Core>,
    /// Set when no more memory is allocated.
    #[pin]
    pub(crate) closed: Event,
    /// The number of its node, for traces.
    node: Atomic<u32>,
}

impl_has_work! {
    impl HasWork<Self> for Core { self.discard }
}

impl WorkItem for Core {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // {drv-discard-checked}
        if !this.limits.is_checked() {
            this.closed.wait_timeout(STALE_FOR);
            if !this.frames.is_discard_due() {
                // The frames are in use again.
                return;
            }
        }
        if let Err(error) = this.discard_stale() {
            // The frames stay stale and are discarded with the next ones.
            pr_debug!("frames not discarded: {:?}\n", error);
        }
    }
}

impl Core {
    /// For the device behind `queues`, which is running.
    pub(crate) fn new(
        limits: Limits,
        queues: Arc<Queues>,
        work: Arc<WorkLink>,
        rules: Rules,
    ) -> Result<Arc<Self>> {
        let total = limits.device_memory >> PAGE_SHIFT;
        let shares = Shares::new(rules, limits.spaces(), limits.max_jobs, total)?;
        let shares = Arc::pin_init(shares, GFP_KERNEL)?;
        let list = Frames::new(total, limits.is_checked(), shares.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                limits,
                link: Link::new(queues),
                counters: Counters::new(),
                work,
                watch: Arc::new(Watch::new(), GFP_KERNEL)?,
                injection: Injection::new(),
                shares,
                // Enough for the parts of one move; concurrent moves allocate.
                buffers <- BufferPool::new(DEPTH + 1, limits.max_move),
                fault_buffers <- BufferPool::new(1, HPAGE_PMD_NR),
                frames <- list,
                discarding <- new_mutex!((), "Core::discarding"),
                discard <- new_work!("Core::discard"),
                closed <- Event::new(),
                node: Atomic::new(u32::MAX),
            }),
            GFP_KERNEL,
        )
    }

    /// The number of its node, `N` of `/dev/hmmN`; `u32::MAX` before it has one.
    pub(crate) fn node(&self) -> u32 {
        self.node.load(Relaxed)
    }

    /// Sets that number.
    pub(crate) fn set_node(&self, number: u32) {
        self.node.store(number, Relaxed);
    }

    /// The number of jobs.
    pub(crate) fn jobs(&self) -> u64 {
        self.shares.held(Resource::Job)
    }

    /// The counters of the device.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn read_statistics(&self) -> Result<Statistics> {
        let message = Message::<ReadStatistics>::new(0, 0, 1)?;
        let reply = self.link.send(message)?;
        reply.output(&self.link, 0)
    }

    /// Stops allocating memory.
    pub(crate) fn close(&self) {
        self.frames.close();
        self.closed.set();
    }

    /// Makes a device that has just been started forget everything; then it takes requests.
    pub(crate) fn begin(&self) -> Result {
        let mut message = Message::<Init>::new(0, 1, 0)?;
        message.push(&Init::entry())?;
        self.link.send_first(message)?;
        Ok(())
    }

    /// Frees frames that held a page. May be called in atomic context.
    pub(crate) fn free_frames(self: &Arc<Self>, frames: UnusedFrames) {
        if self.frames.free(frames) {
            self.discard_soon();
        }
    }

    /// Schedules discarding of stale frames if it is due, after unused frames were freed.
    pub(crate) fn discard_if_due(self: &Arc<Self>) {
        if self.frames.is_discard_due() {
            self.discard_soon();
        }
    }

    /// Schedules discarding of stale frames.
    pub(crate) fn discard_soon(self: &Arc<Self>) {
        self.work.with(|queue| {
            // It does not matter if the work is already queued.
            let _ = queue.enqueue(self.clone());
        });
    }

    /// Discards all stale frames. When it returns they are free, and so are those that another
    /// thread has been discarding. {drv-discard-unmapped}
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
            // Discarding lets the device free memory. Frames that the device did not discard can be
            // used nevertheless: every frame is written before it is read.
            self.frames.discarded(&runs);
            sent?;
        }
    }
}
