// SPDX-License-Identifier: GPL-2.0

//! The lives of a device: each begins with a start and ends with a reset.
//!
//! ```text
//!             given up                 too many attempts
//!   Running ------------> Resetting --------------------> Gone
//!    |   ^ <------------    |   ^
//!    |   |  started anew    |   | cannot be started
//!    |   +--------------- Suspended <-- the system sleeps
//!    +-------------------------^
//! ```
//!
//! *Given up*: the contents of the device are lost. Its spaces end, and the frames that hold pages
//! are lost frames (see `device::frames`). The device is restarted at once, and then a few times
//! after longer and longer pauses. Programs must bind to it again; none of their state is kept.
//!
//! *The system sleeps*: nothing is lost. Jobs are cancelled, pages move back, and the spaces wait.
//! When the device has been started again it gets the spaces, and faults restore the mappings.
//!
//! Does not know what programs do with the device.
//!
//! Lock order: `Lifecycle::parts` is taken before any other lock, except for `Data::parts`.

use crate::{
    clients::Clients,
    device::Device,
    fault::Serving,
    migrate::evict,
    uapi::{trace::Cause, DeviceState},
    virtio::{BoundQueues, Watcher},
    wait::{Event, Workqueue},
    wire::{config::Config, Queue},
};
use kernel::{
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex,
    },
    time::{Delta, Instant, Monotonic},
    workqueue::{Work, WorkItem},
};
use zerocopy::{FromZeros, IntoBytes};

/// How long to wait before each attempt to restart the device. A device that has
/// only lost its state is back at once. One that is being repaired, or whose program is restarted,
/// has a quarter of a minute. After that an administrator must decide.
const PAUSES: [Delta; 6] = [
    Delta::ZERO,
    Delta::from_millis(100),
    Delta::from_millis(300),
    Delta::from_secs(1),
    Delta::from_secs(3),
    Delta::from_secs(10),
];

/// A life that has lasted this long, in milliseconds, resets the count of attempts.
const STEADY: i64 = 60_000;

/// How many rounds of eviction, a millisecond apart, try to move pages that are in use, before a
/// device is restarted, or put to sleep, without them.
const ROUNDS: u32 = 500;

/// Reads the configuration space in units of four bytes, the smallest width of its fields: each
/// access is a message between virtual machine and device. {drv-config-width}
pub(crate) fn read_config(read: impl Fn(u32) -> u32) -> Config {
    let mut config = Config::new_zeroed();
    for (index, piece) in config.as_mut_bytes().chunks_exact_mut(4).enumerate() {
        piece.copy_from_slice(&read(index as u32 * 4).to_le_bytes());
    }
    config
}

/// What exists as long as a driver is bound to the device, in the order of teardown.
pub(crate) struct Parts {
    /// Stops accepting faults.
    pub(crate) serving: Serving,
    /// Finishes all work.
    pub(crate) _workqueue: Workqueue,
    /// Resets the device.
    pub(crate) queues: BoundQueues,
}

/// Starts and stops a device.
#[pin_data]
pub(crate) struct Lifecycle {
    clients: Arc<Clients>,
    /// The configuration of the device when it was bound.
    config: Config,
    #[pin]
    parts: Mutex<Option<Parts>>,
    /// The number of attempts to restart it since it was last steady.
    attempts: Atomic<u32>,
    /// When the last attempt succeeded, in milliseconds.
    started: Atomic<i64>,
    clock: Instant<Monotonic>,
    /// Set when the driver releases the device.
    #[pin]
    over: Event,
    #[pin]
    recovery: Work<Lifecycle>,
}

impl_has_work! {
    impl HasWork<Self> for Lifecycle { self.recovery }
}

impl WorkItem for Lifecycle {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.recover();
    }
}

impl Watcher for Lifecycle {
    fn given_up(self: Arc<Self>) {
        // If it is being put to sleep or started, the thread that does so will notice.
        let clients = &self.clients;
        if clients.change_state(DeviceState::Running, DeviceState::Resetting) {
            self.recover_soon();
        }
    }
}

/// A device that a driver is bound to. Dropping this ends all use of the device and resets it.
pub(crate) struct Alive(Arc<Lifecycle>);

impl Alive {
    /// The device with these parts, which runs.
    pub(crate) fn new(clients: Arc<Clients>, config: Config, parts: Parts) -> Result<Self> {
        let lifecycle = Arc::pin_init(
            pin_init!(Lifecycle {
                clients,
                config,
                parts <- new_mutex!(Some(parts), "Lifecycle::parts"),
                attempts: Atomic::new(0),
                started: Atomic::new(0),
                clock: Instant::now(),
                over <- Event::new(),
                recovery <- new_work!("Lifecycle::recovery"),
            }),
            GFP_KERNEL,
        )?;
        let watcher: Arc<dyn Watcher> = lifecycle.clone();
        lifecycle
            .clients
            .device
            .core
            .link
            .queues()
            .watch(Some(watcher));
        lifecycle.serve();
        Ok(Self(lifecycle))
    }

    /// See [`crate::virtio::Driver::prepare`].
    pub(crate) fn prepare(&self) {
        self.0.prepare();
    }

    /// See [`crate::virtio::Driver::freeze`].
    pub(crate) fn freeze(&self) -> Result {
        self.0.freeze()
    }

    /// See [`crate::virtio::Driver::restore`].
    pub(crate) fn restore(&self) -> Result {
        self.0.restore()
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let lifecycle = &self.0;
        let clients = &lifecycle.clients;
        let queues = clients.device.core.link.queues();
        queues.watch(None);
        lifecycle.over.set();
        if clients.state() != DeviceState::Running {
            // Ends all waits for the start of the device.
            queues.give_up(c"its driver is being removed");
        }
        let parts = lifecycle.parts.lock().take();
        clients.remove();
        clients.set_state(DeviceState::Gone);
        drop(parts);
    }
}

impl Lifecycle {
    fn now(&self) -> i64 {
        self.clock.elapsed().as_millis()
    }

    /// The device runs; starts serving programs.
    fn serve(self: &Arc<Self>) {
        self.started.store(self.now(), Relaxed);
        self.clients.set_state(DeviceState::Running);
        if !self.clients.device.core.link.queues().is_running() {
            // It was given up before the state was set.
            self.clone().given_up();
        }
    }

    fn recover_soon(self: &Arc<Self>) {
        self.clients.device.core.work.with(|queue| {
            // It does not matter if the work is already queued.
            let _ = queue.enqueue(self.clone());
        });
    }

    /// Starts a device that has been reset, by calling `start`. It has no spaces afterwards.
    fn start(&self, parts: &mut Parts, start: impl FnOnce(&mut BoundQueues) -> Result) -> Result {
        let core = &self.clients.device.core;
        // All frames that are still allocated lose their contents.
        core.frames.lose_all();
        let started = start(&mut parts.queues).and_then(|()| {
            let config = read_config(|offset| parts.queues.read_config(offset));
            if config.as_bytes() != self.config.as_bytes() {
                return Err(ENODEV);
            }
            // {drv-init-after-reset}
            core.begin()?;
            parts.serving.offer(&core.link)
        });
        if started.is_err() {
            parts.queues.stop();
        }
        started
    }

    /// Discards everything that belongs to the life that is over. {drv-reset-forgets}
    fn bury(&self) {
        let Device { core, pagemap, .. } = &*self.clients.device;
        core.frames.lose_all();
        self.clients.spaces.end_all();
        if pagemap.is_coherent() {
            // CPUs still use its memory, because no fault stops them. Take its pages away from
            // their processes; the contents are lost.
            core.frames.close();
            let stop = &mut evict::rounds(ROUNDS);
            evict::evict_all(&self.clients.device, Cause::Reset, stop);
        }
    }

    /// Restarts a device that has been given up.
    fn recover(self: &Arc<Self>) {
        if self.now().saturating_sub(self.started.load(Relaxed)) > STEADY {
            self.attempts.store(0, Relaxed);
        }
        self.bury();
        loop {
            let attempt = self.attempts.fetch_add(1, Relaxed);
            let Some(pause) = PAUSES.get(attempt as usize) else {
                break;
            };
            if self.over.wait_timeout(*pause) {
                return;
            }
            let mut parts = self.parts.lock();
            let Some(parts) = (*parts).as_mut() else {
                return;
            };
            if self.clients.state() != DeviceState::Resetting {
                // The system is going to sleep, or has slept.
                return;
            }
            match self.start(parts, BoundQueues::start_anew) {
                Ok(()) => {
                    self.clients.device.core.counters.resets.increment();
                    dev_info!(parts.queues.device(), "the device has been started anew\n");
                    self.go_on();
                    return;
                }
                Err(error) => {
                    dev_err!(parts.queues.device(), "it cannot be started: {:?}\n", error);
                }
            }
        }
        let parts = self.parts.lock();
        if self
            .clients
            .change_state(DeviceState::Resetting, DeviceState::Gone)
        {
            if let Some(parts) = parts.as_ref() {
                dev_err!(
                    parts.queues.device(),
                    "the device is not started any more; bind it to its driver again\n"
                );
            }
        }
    }

    /// The device has been started and has the existing spaces.
    fn go_on(self: &Arc<Self>) {
        let core = &self.clients.device.core;
        core.frames.open();
        self.serve();
        // Discard what has become stale meanwhile.
        core.discard_soon();
    }

    /// Moves pages to system memory while the kernel can still swap out others for them. Before an
    /// image is made, the kernel reserves memory for a copy of everything, and from then on it
    /// cannot swap.
    fn prepare(&self) {
        let _parts = self.parts.lock();
        if self.clients.state() == DeviceState::Running {
            let stop = &mut evict::rounds(ROUNDS);
            self.clients.evict_all(Cause::Suspend, stop);
        }
    }

    fn freeze(self: &Arc<Self>) -> Result {
        let mut parts = self.parts.lock();
        let Some(parts) = (*parts).as_mut() else {
            return Ok(());
        };
        let clients = &self.clients;
        if clients.change_state(DeviceState::Running, DeviceState::Suspended) {
            let slept = self.fall_asleep();
            if clients.device.core.link.queues().is_running() {
                if let Err(error) = slept {
                    dev_err!(parts.queues.device(), "it cannot sleep: {:?}\n", error);
                    self.wake_spaces();
                    self.go_on();
                    return Err(error);
                }
            } else {
                // The device was given up meanwhile. Its contents are lost, which is no reason to
                // keep the system awake.
                self.bury();
            }
        } else {
            // If its state is `Gone`, it stays so.
            clients.change_state(DeviceState::Resetting, DeviceState::Suspended);
            self.bury();
        }
        parts.queues.stop();
        Ok(())
    }

    /// Takes spaces and pages away from the device. {drv-region-before-reset}
    ///
    /// # Errors
    ///
    /// `EBUSY` if pages stay there; `ENOMEM` if there is no memory for that; `EIO` or `ENODEV` if
    /// the device is given up.
    fn fall_asleep(&self) -> Result {
        let core = &self.clients.device.core;
        for space in &self.clients.spaces.all()? {
            space.sleep()?;
        }
        // Collect the jobs that were cancelled.
        core.link.queues().look(Queue::Submit.raw());
        let stop = &mut evict::rounds(ROUNDS);
        self.clients.evict_all(Cause::Suspend, stop);
        if core.frames.used() > core.frames.lost() {
            return Err(EBUSY);
        }
        Ok(())
    }

    /// Gives the sleeping spaces back to the device.
    fn wake_spaces(&self) {
        let spaces = self.clients.spaces.all();
        let Ok(spaces) = spaces else {
            self.clients.spaces.end_all();
            return;
        };
        for space in &spaces {
            if space.wake().is_err() {
                space.end();
            }
        }
    }

    fn restore(self: &Arc<Self>) -> Result {
        let mut parts = self.parts.lock();
        let Some(parts) = (*parts).as_mut() else {
            return Ok(());
        };
        if self.clients.state() != DeviceState::Suspended {
            // Its state was `Gone` before the system slept, and stays so.
            return Ok(());
        }
        if let Err(error) = self.start(parts, BoundQueues::start) {
            dev_err!(parts.queues.device(), "it cannot be started: {:?}\n", error);
            self.clients.set_state(DeviceState::Resetting);
            self.recover_soon();
            return Err(error);
        }
        self.wake_spaces();
        self.go_on();
        Ok(())
    }
}
