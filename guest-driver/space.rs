// SPDX-License-Identifier: GPL-2.0

//! A process's address space on the device.
//!
//! A [`Space`] mirrors the process's page table. Which pages are mapped on the device is
//! recorded (see `mapped`), so that changes elsewhere cost no round trip. The record and
//! the order of `Map` and `Unmap` on the control queue are kept right by the
//! interval's lock: a `Map` is posted with the lock held, after the sequence was
//! checked, so that the `Unmap` of any later change lies behind it. Nothing is waited
//! for with the lock held.
//!
//! Knows nothing of how faults are resolved, nor of files.
//!
//! Lock order: `Spaces::table`; the interval's locks (see `mm::interval`); the ring's.

use crate::{
    command::{range_entry, SpaceCreate, SpaceDestroy, Unmap},
    device::{Core, Device},
    fault::Inbox,
    mapped::Mapped,
    mm::{
        interval::{Interval, Mirror},
        Owner,
    },
    queue::{Message, Sent},
    sys::mm_struct,
    touch::Touches,
    virtio::{Chain, Handler},
};
use core::ops::Range;
use kernel::{
    current, impl_has_work,
    mm::{Mm, MmWithUser},
    new_mutex, new_spinlock_irq, new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, Mutex, SpinLockIrq,
    },
    task::Pid,
    workqueue::Work,
};

/// The spaces of a device.
pub(crate) struct Spaces {
    inner: Pin<KBox<Inner>>,
    ids: Arc<Ids>,
    jobs: Arc<JobPlaces>,
}

#[pin_data]
struct Inner {
    #[pin]
    table: Mutex<KVec<Arc<Space>>>,
}

impl Spaces {
    /// Room for so many spaces and jobs.
    pub(crate) fn new(max_spaces: u32, max_jobs: u32) -> Result<Self> {
        let inner = pin_init!(Inner {
            table <- new_mutex!(KVec::new(), "Spaces::table"),
        });
        Ok(Self {
            inner: KBox::pin_init(inner, GFP_KERNEL)?,
            ids: Ids::new(max_spaces)?,
            jobs: Arc::new(
                JobPlaces {
                    taken: Atomic::new(0),
                    limit: max_jobs,
                },
                GFP_KERNEL,
            )?,
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.inner.table.lock().len() as u64
    }

    /// The space with this number.
    pub(crate) fn by_id(&self, id: u32) -> Option<Arc<Space>> {
        self.find(|space| space.id() == id)
    }

    /// The space of the process with this id.
    pub(crate) fn by_pid(&self, pid: Pid) -> Option<Arc<Space>> {
        self.find(|space| space.pid == pid)
    }

    /// The space of an address space.
    pub(crate) fn of(&self, mm: *const mm_struct) -> Option<Arc<Space>> {
        self.find(|space| space.interval.is_for(mm))
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

    fn insert(&self, space: Arc<Space>) -> Result {
        self.inner.table.lock().push(space, GFP_KERNEL)?;
        Ok(())
    }

    fn remove(&self, space: &Space) {
        let mut table = self.inner.table.lock();
        let found = table
            .iter()
            .position(|other| core::ptr::eq(&**other, space));
        let removed = found.map(|index| table.remove(index));
        drop(table);
        // Not with the lock held: this may have been the last reference.
        drop(removed);
    }

    /// Ends all spaces.
    pub(crate) fn end_all(&self) {
        while let Some(space) = self.find(|_| true) {
            space.end();
        }
    }
}

/// Which numbers of spaces are taken.
#[pin_data]
struct Ids {
    #[pin]
    taken: SpinLockIrq<KVVec<bool>>,
}

impl Ids {
    /// The most spaces that are used, whatever the device offers: more processes than a
    /// guest is likely to have.
    const LIMIT: u32 = 4096;

    fn new(limit: u32) -> Result<Arc<Self>> {
        let taken = KVVec::from_elem(false, limit.min(Self::LIMIT) as usize, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                taken <- new_spinlock_irq!(taken, "Ids::taken"),
            }),
            GFP_KERNEL,
        )
    }

    fn take(self: &Arc<Self>) -> Option<Id> {
        let mut taken = self.taken.lock();
        let number = taken.iter().position(|taken| !*taken)?;
        taken[number] = true;
        Some(Id {
            ids: self.clone(),
            number: number as u32,
        })
    }
}

/// The number of a space, which nobody else gets as long as this exists.
struct Id {
    ids: Arc<Ids>,
    number: u32,
}

impl Drop for Id {
    fn drop(&mut self) {
        if let Some(taken) = self.ids.taken.lock().get_mut(self.number as usize) {
            *taken = false;
        }
    }
}

/// Counts the jobs that the device has.
struct JobPlaces {
    taken: Atomic<u32>,
    limit: u32,
}

/// What the jobs of a space hold until the device returns them: the space's number, which
/// must not be given to another one before, and their places.
pub(crate) struct Jobs {
    id: Id,
    places: Arc<JobPlaces>,
}

impl Jobs {
    /// Takes a place for a job if there is one; a chain that is posted with this as its
    /// handler gives it back.
    pub(crate) fn take_place(&self) -> Result {
        if self.places.taken.fetch_add(1, Relaxed) < self.places.limit {
            Ok(())
        } else {
            self.give_place();
            Err(EAGAIN)
        }
    }

    /// Gives a place back for which no chain was posted.
    pub(crate) fn give_place(&self) {
        self.places.taken.fetch_sub(1, Relaxed);
    }

    /// The number of the space.
    pub(crate) fn space(&self) -> u32 {
        self.id.number
    }
}

impl Handler for Jobs {
    fn completed(&self, _chain: Arc<Chain>) {
        self.give_place();
    }
}

/// The address space of a process, as far as the device has it.
#[pin_data]
pub(crate) struct Space {
    pub(crate) device: Arc<Device>,
    pub(crate) jobs: Arc<Jobs>,
    mm: ARef<Mm>,
    pid: Pid,
    #[pin]
    pub(crate) touches: Touches,
    #[pin]
    pub(crate) inbox: Inbox,
    #[pin]
    pub(crate) work: Work<Space>,
    #[pin]
    pub(crate) interval: Interval<Mapper>,
}

impl_has_work! {
    impl HasWork<Self> for Space { self.work }
}

impl Space {
    /// Creates the space of the process `pid` with the address space `mm`.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the device has no space left, `ENOMEM` if there is no memory, `EIO` or
    /// `ENODEV` if the device is given up.
    pub(crate) fn new(device: Arc<Device>, mm: &MmWithUser, pid: Pid) -> Result<Arc<Self>> {
        let id = device.core.spaces.ids.take().ok_or(ENOSPC)?;
        let number = id.number;
        let jobs = Arc::new(
            Jobs {
                id,
                places: device.core.spaces.jobs.clone(),
            },
            GFP_KERNEL,
        )?;
        let mapper = Mapper {
            core: device.core.clone(),
            space: number,
            owner: device.pagemap.owner(),
        };
        let interval = Interval::new(mm, mapper, Mapped::new())?;
        let core = device.core.clone();
        // Whatever fails from here on, the device must be told that there is no space.
        let destroy = Message::<SpaceDestroy>::new(number, 0, 0)?;
        core.link.send(Message::<SpaceCreate>::new(number, 0, 0)?)?;
        let space = Arc::pin_init(
            try_pin_init!(Self {
                device,
                jobs,
                mm: ARef::from(&**mm),
                pid,
                touches <- Touches::new(),
                inbox <- Inbox::new(),
                work <- new_work!("Space::work"),
                interval <- interval,
            }),
            GFP_KERNEL,
        );
        let inserted = match &space {
            Ok(space) => space.device.core.spaces.insert(space.clone()),
            Err(error) => Err(*error),
        };
        if let Err(error) = inserted {
            core.link.send(destroy)?;
            return Err(error);
        }
        space
    }

    /// The number of the space.
    pub(crate) fn id(&self) -> u32 {
        self.jobs.space()
    }

    /// Whether this is the space of the calling process.
    pub(crate) fn is_callers(&self) -> bool {
        let task = current!();
        let mm = task.mm();
        mm.is_some_and(|mm| core::ptr::eq(mm.as_raw(), self.mm.as_raw()))
    }

    /// The address space; it may be empty by now.
    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }

    /// Ends the space: its jobs are cancelled, and the device uses none of the process's
    /// memory any more. Returns when this is so; does nothing if it is already.
    pub(crate) fn end(&self) {
        if self.interval.lock().end() {
            return;
        }
        // Nothing is mapped from here on, so that nothing gets into the next space with
        // this number.
        self.device.core.spaces.remove(self);
        let link = &self.device.core.link;
        let destroyed = Message::<SpaceDestroy>::new(self.id(), 0, 0)
            .map_err(crate::queue::Failure::Device)
            .and_then(|message| link.send(message));
        if destroyed.is_err() {
            // Without the promise the process's memory would not be safe from the device.
            link.violated();
        }
        self.interval.lock().forget(&(0..usize::MAX));
    }
}

/// Keeps the device's mappings of a space in step with the process.
pub(crate) struct Mapper {
    core: Arc<Core>,
    space: u32,
    owner: Owner,
}

impl Mirror for Mapper {
    type State = Mapped;
    type Means = Message<Unmap>;
    type Promise = Option<Sent<Unmap>>;

    fn owner(&self) -> Owner {
        self.owner
    }

    fn means(&self) -> Result<Message<Unmap>> {
        Message::new(self.space, 1, 0)
    }

    fn changing(&self) {
        self.core.counters.invalidations.increment();
    }

    fn concerned(&self, mapped: &Mapped, range: &Range<usize>) -> Option<Range<usize>> {
        mapped.within(range)
    }

    fn ask(&self, mut means: Message<Unmap>, range: &Range<usize>) -> Self::Promise {
        self.core.counters.invalidations_sent.increment();
        // The means are made for one entry.
        let _ = means.push(&range_entry(range));
        // If the device is given up it has been reset: all promises are kept.
        self.core.link.submit(means).ok()
    }

    fn wait(&self, promise: Self::Promise) -> Option<Message<Unmap>> {
        let _waiting = self.core.counters.promise_nanoseconds.time();
        promise?.wait_and_reuse(&self.core.link)
    }

    fn forgotten(&self, mapped: &mut Mapped, range: &Range<usize>) {
        mapped.forget(range);
    }
}
