// SPDX-License-Identifier: GPL-2.0

//! A process's address space on the device.
//!
//! A [`Space`] mirrors the process's page table. It records which pages are mapped on the device
//! (see `mapped`), so that changes elsewhere cost no round trip. The notifier's lock keeps the
//! record and the order of `Map` and `Unmap` on the control queue right: a `Map` is posted with the
//! lock held, after the sequence was checked, so the `Unmap` of any later change comes behind it.
//! Nothing waits with the lock held.
//!
//! Knows neither how faults are resolved nor files.
//!
//! Lock order: `Spaces::table`; the notifier's locks (see `mm::mmu_notifier`); the ring's.

pub(crate) mod counters;
pub(crate) mod fault_around;
pub(crate) mod ids;
pub(crate) mod inbox;
pub(crate) mod life;
pub(crate) mod mapped;
pub(crate) mod mirror;
pub(crate) mod refusals;

use crate::{
    device::{
        command::{range_entry, Map, SpaceCreate, SpaceDestroy, Unmap},
        core::Core,
        queue::{Command, Failure, Message},
        shares::Holder,
        Device,
    },
    mm::{has_process, mmu_notifier::MmuIntervalNotifier, observed},
    poll::Waiters,
    process::{Charging, Owner},
    space::{
        counters::Events,
        fault_around::FaultAround,
        ids::{Ids, Jobs},
        inbox::Inbox,
        mapped::Mapped,
        mirror::{Mirrored, SpaceMirror},
        refusals::Refusals,
    },
    sys::mm_struct,
    wait::Event,
    wire::command::Status,
};
use core::ops::Range;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    impl_has_work,
    mm::{Mm, MmWithUser},
    new_mutex, new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, Mutex,
    },
    workqueue::Work,
};

/// The spaces of a device.
pub(crate) struct Spaces {
    inner: Pin<KBox<Inner>>,
    ids: Arc<Ids>,
    /// Threads that poll a file of the device; woken when the process of a space has ended.
    pub(crate) pollers: Arc<Waiters>,
}

#[pin_data]
struct Inner {
    #[pin]
    table: Mutex<KVec<Arc<Space>>>,
}

impl Spaces {
    /// A table for as many spaces as the device supports.
    pub(crate) fn new(core: &Core) -> Result<Arc<Self>> {
        let inner = pin_init!(Inner {
            table <- new_mutex!(KVec::new(), "Spaces::table"),
        });
        let spaces = Self {
            inner: KBox::pin_init(inner, GFP_KERNEL)?,
            ids: Ids::new(core.limits.spaces(), core.shares.clone())?,
            pollers: Waiters::new()?,
        };
        Ok(Arc::new(spaces, GFP_KERNEL)?)
    }

    /// The number of spaces.
    pub(crate) fn count(&self) -> u64 {
        self.inner.table.lock().len() as u64
    }

    /// The space with this number.
    pub(crate) fn by_id(&self, id: u32) -> Option<Arc<Space>> {
        self.find(|space| space.id() == id)
    }

    /// The space of a process's address space.
    pub(crate) fn of(&self, mm: *const mm_struct) -> Option<Arc<Space>> {
        self.find(|space| space.notifier.is_for(mm))
    }

    fn find(&self, wanted: impl Fn(&Space) -> bool) -> Option<Arc<Space>> {
        let table = self.inner.table.lock();
        table.iter().find(|space| wanted(space)).cloned()
    }

    /// All spaces.
    pub(crate) fn all(&self) -> Result<KVec<Arc<Space>>> {
        let table = self.inner.table.lock();
        let mut all = KVec::with_capacity(table.len(), GFP_KERNEL)?;
        for space in table.iter() {
            all.push(space.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Adds a space with one file bound to it. If there already is a space for the same address
    /// space, binds the file to that one instead. Returns the space that the file is bound to.
    ///
    /// Fails with `EIO` if the device has left the space's life. The spaces of a life are ended
    /// after the life is over, so spaces that were inserted before are found then.
    fn insert(&self, space: Arc<Space>) -> Result<Arc<Space>> {
        let mut table = self.inner.table.lock();
        if let Some(other) = Self::join_in(&table, space.mm.as_raw()) {
            return Ok(other);
        }
        if !space.is_current() {
            return Err(EIO);
        }
        table.push(space.clone(), GFP_KERNEL)?;
        Ok(space)
    }

    /// Binds one more file to the space of an address space, if it has one that files are bound to.
    fn join(&self, mm: *const mm_struct) -> Option<Arc<Space>> {
        Self::join_in(&self.inner.table.lock(), mm)
    }

    fn join_in(table: &KVec<Arc<Space>>, mm: *const mm_struct) -> Option<Arc<Space>> {
        let space = table.iter().find(|space| {
            // It ends after the last file has left, or when the device's life is over.
            space.notifier.is_for(mm) && space.files.load(Relaxed) > 0 && space.is_current()
        })?;
        space.files.fetch_add(1, Relaxed);
        Some(space.clone())
    }

    /// Unbinds a file from a space; returns whether it was the last one.
    pub(crate) fn leave(&self, space: &Space) -> bool {
        let _table = self.inner.table.lock();
        space.files.fetch_sub(1, Relaxed) == 1
    }

    fn remove(&self, space: &Space) {
        let mut table = self.inner.table.lock();
        let found = table
            .iter()
            .position(|other| core::ptr::eq(&**other, space));
        let removed = found.map(|index| table.remove(index));
        drop(table);
        // After unlocking: this may be the last reference.
        drop(removed);
    }

    /// Ends all spaces.
    pub(crate) fn end_all(&self) {
        while let Some(space) = self.find(|_| true) {
            space.end();
        }
    }
}

/// The address space of a process as the device sees it.
#[pin_data]
pub(crate) struct Space {
    /// The table that it is in until it ends.
    spaces: Arc<Spaces>,
    pub(crate) device: Arc<Device>,
    pub(crate) jobs: Arc<Jobs>,
    mm: ARef<Mm>,
    /// How many files are bound to it. Changes with `Spaces::table` locked.
    files: Atomic<u32>,
    /// The life of the device to which the space belongs.
    life: Atomic<u32>,
    /// The last life that ended while the space was asleep; zero if there is none.
    slept: Atomic<u32>,
    #[pin]
    pub(crate) fault_around: FaultAround,
    #[pin]
    pub(crate) inbox: Inbox,
    #[pin]
    pub(crate) work: Work<Space>,
    /// Set when the space is ended and only the control queue has requests about it.
    #[pin]
    alone: Event,
    #[pin]
    pub(crate) notifier: MmuIntervalNotifier<SpaceMirror>,
    pub(crate) refusals: Arc<Refusals>,
    /// The request that destroys it, until it is sent. Preallocated, so that this cannot fail for
    /// lack of memory.
    #[pin]
    destroy: Mutex<Option<Message<SpaceDestroy>>>,
}

impl_has_work! {
    impl HasWork<Self> for Space { self.work }
}

/// A request about a space on another queue than the control queue. Must be dropped when the
/// request has been answered, or was not sent.
pub(crate) struct Elsewhere<'a>(&'a Space);

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        let mut mapped = self.0.notifier.lock();
        mapped.end_elsewhere();
        let is_alone = mapped.is_over() && !mapped.is_elsewhere();
        drop(mapped);
        if is_alone {
            self.0.alone.set();
        }
    }
}

impl Space {
    /// The space of the process with the address space `mm`; created for its owner unless other
    /// files are already bound to it. Binds one more file, which must leave it ([`Spaces::leave`]).
    /// Calls `leave` if binding fails after that.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the device has no space left for the user, `ENOMEM` if there is no memory, `EIO`
    /// or `ENODEV` if the device is given up.
    pub(crate) fn bind(
        spaces: &Arc<Spaces>,
        device: &Arc<Device>,
        mm: &MmWithUser,
        owner: Owner,
        leave: impl FnOnce(&Self),
    ) -> Result<Arc<Self>> {
        let join = || spaces.join(mm.as_raw());
        if let Some(space) = join() {
            return Ok(space);
        }
        match Self::new(spaces.clone(), device.clone(), mm, owner, leave) {
            // Another thread of the process may have got the last one meanwhile.
            Err(error) if error == ENOSPC => join().ok_or(error),
            other => other,
        }
    }

    fn new(
        spaces: Arc<Spaces>,
        device: Arc<Device>,
        mm: &MmWithUser,
        owner: Owner,
        leave: impl FnOnce(&Self),
    ) -> Result<Arc<Self>> {
        // The caller may be another process.
        let _charging = Charging::to(mm);
        let id = spaces.ids.take(owner)?;
        let life = device.core.link.life();
        let jobs = Jobs::new(id)?;
        let number = jobs.space();
        let mirror = SpaceMirror::new(
            device.core.clone(),
            number,
            device.pagemap.owner(),
            owner.effective(),
            spaces.pollers.clone(),
        );
        let notifier = MmuIntervalNotifier::new(mm, mirror, Mirrored::new())?;
        let refusals = Refusals::new(device.core.watch.clone())?;
        let inbox = Inbox::new(device.core.limits.max_jobs as usize)?;
        let core = device.core.clone();
        let create = Message::<SpaceCreate>::new(number, 0, 0)?.only_in(life);
        let destroy = Message::with_handler(number, 0, 0, None, GFP_KERNEL_ACCOUNT)?;
        let space = Arc::pin_init(
            try_pin_init!(Self {
                spaces,
                device,
                jobs,
                mm: ARef::from(&**mm),
                files: Atomic::new(1),
                life: Atomic::new(life),
                slept: Atomic::new(0),
                fault_around <- FaultAround::new(),
                inbox <- inbox,
                work <- new_work!("Space::work"),
                alone <- Event::new(),
                notifier <- notifier,
                refusals,
                destroy <- new_mutex!(Some(destroy), "Space::destroy"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // {drv-queue-order}
        core.link.send(create)?;
        // Whatever fails from here on, the device must be told to destroy the space.
        match space.spaces.insert(space.clone()) {
            Ok(bound) if Arc::ptr_eq(&bound, &space) => Ok(bound),
            // The new space has not been published.
            Ok(bound) => match space.destroy() {
                Ok(()) => Ok(bound),
                Err(error) => {
                    leave(&bound);
                    Err(error)
                }
            },
            Err(error) => {
                space.destroy()?;
                Err(error)
            }
        }
    }

    /// The user and process that memory of the device is accounted to.
    pub(crate) fn holder(&self) -> Holder {
        self.jobs.holder()
    }

    /// The life of the device to which the space belongs, or belonged.
    pub(crate) fn life(&self) -> u32 {
        self.life.load(Relaxed)
    }

    /// Whether the device is still in that life. If not, the space is ended or about to be.
    pub(crate) fn is_current(&self) -> bool {
        let link = &self.device.core.link;
        self.life() == link.life() && link.queues().is_running()
    }

    /// Takes the space away from the device, which ends its jobs as cancelled, but keeps the space
    /// for [`Self::wake`].
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for that; `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn sleep(&self) -> Result {
        let link = &self.device.core.link;
        let message = Message::<SpaceDestroy>::new(self.id(), 0, 0)?.only_in(self.life());
        if self.notifier.lock().set_asleep(true) {
            return Ok(());
        }
        if let Err(error) = link.send(message) {
            if self.is_gone_already(&error) {
                return Ok(());
            }
            // Without this acknowledgement the device could still access the process's memory.
            link.violated_in(self.life());
            return Err(error.into());
        }
        self.notifier.lock().forget(&(0..usize::MAX));
        // These faults have become meaningless.
        self.inbox.clear();
        self.slept.store(self.life(), Relaxed);
        Ok(())
    }

    /// Whether the device refuses to destroy the space because it has already destroyed it: the
    /// request was sent twice, once to put the space to sleep and once to end it.
    fn is_gone_already(&self, failure: &Failure) -> bool {
        matches!(failure, Failure::Refused(Status::NoSpace)) && self.notifier.lock().ended_asleep()
    }

    /// Whether a job of this life of the device, which is over, was cancelled because the system
    /// went to sleep.
    pub(crate) fn has_slept_through(&self, life: u32) -> bool {
        life <= self.slept.load(Relaxed)
    }

    /// Creates the space on the device again if it is asleep; the device may be in another life.
    ///
    /// # Errors
    ///
    /// As [`Self::sleep`].
    pub(crate) fn wake(&self) -> Result {
        if !self.notifier.lock().is_asleep() {
            return Ok(());
        }
        let link = &self.device.core.link;
        let life = link.life();
        link.send(Message::<SpaceCreate>::new(self.id(), 0, 0)?.only_in(life))?;
        if self.has_slept_through(life) {
            // The system has stayed awake, so the device still returns the jobs.
            self.slept.store(0, Relaxed);
        }
        self.life.store(life, Relaxed);
        self.notifier.lock().set_asleep(false);
        Ok(())
    }

    /// The number of the space.
    pub(crate) fn id(&self) -> u32 {
        self.jobs.space()
    }

    /// Whether no process has the address space any more. Observers, which hold references to it, may
    /// keep its memory longer.
    pub(crate) fn has_no_process(&self) -> bool {
        self.notifier.mirror().life.is_over()
            || !observed(&self.mm).is_some_and(|mm| has_process(&mm))
    }

    /// What has happened to it.
    pub(crate) fn events(&self) -> &Events {
        &self.notifier.mirror().events
    }

    /// The address space; it may be empty by now.
    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }

    /// Waits until all requests of the control queue about pages of a range have been carried out,
    /// so that a request `C` about these pages may go to its own queue: there is no order between
    /// queues. Costs one check if nothing is pending. Meanwhile no other thread may map any of
    /// these pages. {drv-queue-order}
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for that, `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn come_behind_maps<C: Command>(&self, range: &Range<usize>) -> Result {
        if C::QUEUE == Map::QUEUE {
            return Ok(());
        }
        let link = &self.device.core.link;
        let last_map = self.notifier.lock().last_map(range);
        if last_map.is_none_or(|last_map| link.has_carried_out(last_map)) {
            return Ok(());
        }
        // It comes behind the `Map`, so its reply means that both have been carried out.
        let mut message = Message::<Unmap>::new(self.id(), 1, 0)?;
        message.push(&range_entry(range))?;
        match link.send(message) {
            Ok(_) | Err(Failure::Refused(Status::NoSpace)) => Ok(()),
            Err(Failure::Device(error)) => Err(error),
            Err(Failure::Refused(_)) => Err(link.violated()),
        }
    }

    /// Allows a request about the space on another queue than the control queue, and keeps the
    /// space until that request has been answered: the device would not find the space if
    /// `SpaceDestroy` came first. `None` if the space is ended. {drv-queue-order}
    pub(crate) fn send_elsewhere(&self, mapped: &mut Mapped) -> Option<Elsewhere<'_>> {
        if mapped.is_ended() {
            return None;
        }
        mapped.begin_elsewhere();
        Some(Elsewhere(self))
    }

    /// Makes the device destroy the space, once. Allocates no memory.
    fn destroy(&self) -> Result {
        let message = self.destroy.lock().take().ok_or(EIO)?;
        let link = &self.device.core.link;
        match link.send(message.only_in(self.life())) {
            Err(error) if !self.is_gone_already(&error) => Err(error.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Ends the space: its jobs are cancelled, and the device no longer uses memory of the process.
    /// Returns when this is done; does nothing if it already is.
    pub(crate) fn end(&self) {
        let mut mapped = self.notifier.lock();
        if mapped.end() {
            return;
        }
        let is_elsewhere = mapped.is_elsewhere();
        drop(mapped);
        // Nothing is mapped from here on, so no mapping can get into the next space with this
        // number.
        self.spaces.remove(self);
        if is_elsewhere {
            // No new request on another queue begins, and those in flight end: the device answers
            // them or is given up.
            self.alone.wait();
        }
        if self.destroy().is_err() {
            // Without this acknowledgement the device could still access the process's memory. In
            // any other life it has no mappings of that memory.
            self.device.core.link.violated_in(self.life());
        }
        self.notifier.lock().forget(&(0..usize::MAX));
    }
}
