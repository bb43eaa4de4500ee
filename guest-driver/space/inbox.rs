// SPDX-License-Identifier: GPL-2.0

//! Faults of a space that wait to be resolved, and those that are being resolved.
//!
//! Does not know how they are resolved.

use crate::wire::fault::FaultRecord;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_mutex,
    prelude::*,
    sync::Mutex,
    time::{Delta, Instant, Monotonic},
};

/// The pending faults of a space.
///
/// It has room for one fault of each possible job. Faults of jobs that were cancelled meanwhile may
/// take some of it (see `fault`). The memory is charged to the process that binds: the dispatcher
/// works for all processes, and must not wait for the memory of one.
#[pin_data]
pub(crate) struct Inbox {
    limit: usize,
    #[pin]
    records: Mutex<Records>,
}

struct Records {
    batch: Batch,
    /// The buffer for the next batch while one is being resolved.
    spare: KVec<FaultRecord>,
    taken: Taken,
}

/// What is known of the last batch taken.
struct Taken {
    life: u32,
    /// When its resolution began, if it is not finished.
    since: Option<Instant<Monotonic>>,
    /// The numbers of its faults, unless they have been given up.
    faults: KVec<u64>,
}

impl Taken {
    /// The life of its faults, if they have been worked on for longer than `time`.
    fn stuck(&self, time: Delta) -> Option<u32> {
        let since = self.since.as_ref()?;
        (since.elapsed() > time).then_some(self.life)
    }
}

/// Faults of one life of the device, sorted by address.
pub(crate) struct Batch {
    pub(crate) life: u32,
    pub(crate) records: KVec<FaultRecord>,
}

impl Inbox {
    /// Room for `limit` faults.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for it.
    pub(crate) fn new(limit: usize) -> Result<impl PinInit<Self>> {
        let room = || KVec::with_capacity(limit, GFP_KERNEL_ACCOUNT);
        let records = Records {
            batch: Batch {
                life: 0,
                records: room()?,
            },
            spare: room()?,
            taken: Taken {
                life: 0,
                since: None,
                faults: KVec::with_capacity(limit, GFP_KERNEL_ACCOUNT)?,
            },
        };
        Ok(pin_init!(Self {
            limit,
            records <- new_mutex!(records, "Inbox::records"),
        }))
    }

    /// The number of faults that fit.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Adds a fault, unless its life is over; returns false if the inbox is full.
    /// {drv-stale-records}
    pub(crate) fn put(&self, record: FaultRecord, life: u32) -> bool {
        let mut guard = self.records.lock();
        let batch = &mut guard.batch;
        if life < batch.life {
            return true;
        }
        if batch.life != life {
            batch.records.clear();
            batch.life = life;
        }
        let records = &mut batch.records;
        let address = record.address.get();
        let index = records.partition_point(|other| other.address.get() <= address);
        records.len() < self.limit && records.insert_within_capacity(index, record).is_ok()
    }

    /// Whether there are no pending faults.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.lock().batch.records.is_empty()
    }

    /// Discards all pending faults.
    pub(crate) fn clear(&self) {
        self.records.lock().batch.records.clear();
    }

    /// Removes all pending faults and calls `tell` for each.
    pub(crate) fn drain(&self, mut tell: impl FnMut(&FaultRecord)) {
        let mut guard = self.records.lock();
        guard.batch.records.iter().for_each(&mut tell);
        guard.batch.records.clear();
    }

    /// Takes all pending faults. The batch must be returned before the next call.
    pub(crate) fn take(&self) -> Batch {
        let mut guard = self.records.lock();
        let Records {
            batch,
            spare,
            taken,
        } = &mut *guard;
        taken.life = batch.life;
        taken.since = Some(Instant::now());
        for record in &batch.records {
            // The capacity is that of a batch.
            let _ = taken.faults.push_within_capacity(record.fault.get());
        }
        let room = core::mem::take(spare);
        Batch {
            life: batch.life,
            records: core::mem::replace(&mut batch.records, room),
        }
    }

    /// The life of the batch that has been worked on for longer than `time`, if
    /// there is one.
    pub(crate) fn stuck(&self, time: Delta) -> Option<u32> {
        self.records.lock().taken.stuck(time)
    }

    /// Takes the faults of a batch of this life, if it has still been worked on for longer than
    /// `time`, and the faults that wait for it. Calls `tell` with the number of
    /// each.
    pub(crate) fn give_up(&self, time: Delta, life: u32, mut tell: impl FnMut(u64)) {
        let mut guard = self.records.lock();
        let Records { batch, taken, .. } = &mut *guard;
        if taken.stuck(time) != Some(life) {
            return;
        }
        taken.faults.iter().copied().for_each(&mut tell);
        taken.faults.clear();
        if batch.life == life {
            batch
                .records
                .iter()
                .for_each(|record| tell(record.fault.get()));
            batch.records.clear();
        }
    }

    /// Returns the buffer of a batch.
    pub(crate) fn give_back(&self, batch: Batch) {
        let mut records = batch.records;
        records.clear();
        let mut guard = self.records.lock();
        guard.taken.since = None;
        guard.taken.faults.clear();
        let none = core::mem::replace(&mut guard.spare, records);
        drop(guard);
        // After unlocking.
        drop(none);
    }
}
