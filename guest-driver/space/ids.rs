// SPDX-License-Identifier: GPL-2.0

//! Numbers of spaces, and names and slots of jobs. Each is unique on its device.
//!
//! Does not know what spaces and jobs are.

use crate::{
    device::shares::{Holder, Resource, Shares},
    process::Owner,
    virtio::{Chain, Handler},
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLockIrq,
    },
};

/// Gives each job of a device a unique name. {drv-job-names}, {drv-cancel-names}
struct Names(Atomic<u64>);

impl Names {
    const fn new() -> Self {
        Self(Atomic::new(1))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }
}

/// The numbers of spaces that are taken, and the names of jobs.
#[pin_data]
pub(crate) struct Ids {
    shares: Arc<Shares>,
    names: Names,
    #[pin]
    taken: SpinLockIrq<KVVec<bool>>,
}

impl Ids {
    /// `limit` free numbers. `shares` decides which user may have one.
    pub(crate) fn new(limit: u32, shares: Arc<Shares>) -> Result<Arc<Self>> {
        let taken = KVVec::from_elem(false, limit as usize, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                shares,
                names: Names::new(),
                taken <- new_spinlock_irq!(taken, "Ids::taken"),
            }),
            GFP_KERNEL,
        )
    }

    /// A number for a space of a process with this owner.
    pub(crate) fn take(self: &Arc<Self>, owner: Owner) -> Result<Id> {
        let holder = (self.shares).enter(owner.user(), owner.may_exceed_limits())?;
        let number = {
            let mut taken = self.taken.lock();
            let number = taken.iter().position(|taken| !*taken);
            number.inspect(|&number| taken[number] = true)
        };
        let Some(number) = number else {
            self.shares.give(holder.user(), Resource::Space, 1);
            return Err(ENOSPC);
        };
        Ok(Id {
            ids: self.clone(),
            number: number as u32,
            holder,
        })
    }
}

/// The number of a space, which is not used again as long as this exists.
pub(crate) struct Id {
    ids: Arc<Ids>,
    number: u32,
    holder: Holder,
}

impl Drop for Id {
    fn drop(&mut self) {
        if let Some(taken) = self.ids.taken.lock().get_mut(self.number as usize) {
            *taken = false;
        }
        self.ids.shares.give(self.holder.user(), Resource::Space, 1);
    }
}

/// What the jobs of a space hold until the device returns them: their slots, and the space's
/// number, which must not be reused before. {drv-space-reuse}
pub(crate) struct Jobs {
    id: Id,
    /// The number of slots taken.
    slots: Atomic<u64>,
}

impl Jobs {
    /// No jobs yet, for the space with this number.
    pub(crate) fn new(id: Id) -> Result<Arc<Self>> {
        let jobs = Self {
            id,
            slots: Atomic::new(0),
        };
        Ok(Arc::new(jobs, GFP_KERNEL_ACCOUNT)?)
    }

    /// The user and process that resources of the device are accounted to.
    pub(crate) fn holder(&self) -> Holder {
        self.id.holder
    }

    /// Takes a slot for a job if the process may have one. A chain that is posted with this value
    /// as its handler frees the slot when it completes.
    pub(crate) fn take_slot(&self) -> Result {
        let slots = self.slots.fetch_add(1, Relaxed).saturating_add(1);
        let shares = &self.id.ids.shares;
        if shares.take_for_process(self.id.holder, Resource::Job, 1, slots) == 1 {
            Ok(())
        } else {
            self.slots.fetch_sub(1, Relaxed);
            Err(EAGAIN)
        }
    }

    /// Frees a slot for which no chain was posted.
    pub(crate) fn free_slot(&self) {
        self.slots.fetch_sub(1, Relaxed);
        let shares = &self.id.ids.shares;
        shares.give(self.id.holder.user(), Resource::Job, 1);
    }

    /// A name for a job, unique on the device.
    pub(crate) fn next_name(&self) -> u64 {
        self.id.ids.names.next()
    }

    /// The number of the space.
    pub(crate) fn space(&self) -> u32 {
        self.id.number
    }
}

impl Handler for Jobs {
    fn completed(&self, _chain: Arc<Chain>) {
        self.free_slot();
    }
}
