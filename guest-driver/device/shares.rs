// SPDX-License-Identifier: GPL-2.0

//! How much of a device one user, and one process of a user, may hold, so that others get a part.
//!
//! Spaces, job slots and frames of device memory are limited, and none of them can be taken back
//! from a user by force. So each user has to leave some to others. A user may hold at most a part
//! of what all other users leave: three quarters, unless the administrator sets another value. A
//! process may hold at most a part of what the other processes of its user leave of that. If one
//! user holds its full share, a quarter is left for the second user, and a quarter of that for the
//! third one. When a resource is returned, a user that holds less can get it.
//!
//! A process with `CAP_SYS_RESOURCE` may take everything that is free. What it holds is still
//! accounted to its user.
//!
//! Does not know what is shared. Takes no lock except its own, and may be used in atomic context,
//! except for [`Shares::enter`].

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Mutex,
    },
};

/// A limited resource of the device.
#[derive(Clone, Copy)]
pub(crate) enum Resource {
    Space,
    Job,
    Frame,
}

const RESOURCES: usize = 3;

/// A number for each resource.
type Numbers = [Atomic<u64>; RESOURCES];

/// Not a valid user ID, so no user has it. A namespace that does not map a user shows the overflow
/// ID ("nobody") instead, which is a different number.
const NO_USER: u32 = u32::MAX;

/// The limits that an administrator may set.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// How much of what other users leave a user may hold, in percent.
    pub(crate) user: u32,
    /// How much of a user's limit, less what its other processes hold, one process may hold, in
    /// percent.
    pub(crate) process: u32,
}

impl Rules {
    /// `percent` of `left`, but at least one if there is one.
    fn part(percent: u32, left: u64) -> u64 {
        let percent = u64::from(percent.min(100));
        let part = (left / 100).saturating_mul(percent);
        let part = part.saturating_add((left % 100).saturating_mul(percent) / 100);
        part.max(left.min(1))
    }
}

struct User {
    id: Atomic<u32>,
    held: Numbers,
}

/// What all users of a device hold of it.
#[pin_data]
pub(crate) struct Shares {
    rules: Rules,
    totals: [u64; RESOURCES],
    held: Numbers,
    users: KVVec<User>,
    /// Held while a slot is assigned to a user.
    #[pin]
    naming: Mutex<()>,
}

/// The user that resources are accounted to.
///
/// # Invariants
///
/// `user` is the index of a user in [`Shares::users`].
#[derive(Clone, Copy)]
pub(crate) struct Holder {
    user: u16,
    /// Whether the limits do not apply.
    is_privileged: bool,
}

impl Holder {
    /// The number that identifies the user to [`Shares::give`].
    pub(crate) fn user(self) -> u16 {
        self.user
    }
}

fn none() -> Numbers {
    [const { Atomic::new(0) }; RESOURCES]
}

impl Shares {
    /// For a device with this many spaces, job slots and frames.
    pub(crate) fn new(
        rules: Rules,
        spaces: u32,
        jobs: u32,
        frames: u64,
    ) -> Result<impl PinInit<Self>> {
        // A user that has left may still have frames, until their contents are used or freed. The
        // last slot is for those that find no other one.
        let count = (spaces as usize)
            .saturating_mul(2)
            .saturating_add(2)
            .min(usize::from(u16::MAX));
        let mut users = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            let user = User {
                id: Atomic::new(NO_USER),
                held: none(),
            };
            users.push(user, GFP_KERNEL)?;
        }
        Ok(pin_init!(Self {
            rules,
            totals: [spaces.into(), jobs.into(), frames],
            held: none(),
            users,
            naming <- new_mutex!((), "Shares::naming"),
        }))
    }

    /// Takes a space for a process of the user with this number. Until the space is returned, other
    /// resources may be taken with the returned holder.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the user has reached its limit, or if there are no spaces left.
    pub(crate) fn enter(&self, user: u32, is_privileged: bool) -> Result<Holder> {
        // The slot of a user that holds nothing is free. A user only begins to hold anything here.
        let _naming = self.naming.lock();
        let known = |slot: &User| slot.id.load(Relaxed) == user;
        let free = |slot: &User| slot.held.iter().all(|held| held.load(Relaxed) == 0);
        let (rest, own) = self.users.split_last().ok_or(ENOSPC)?;
        let index = own.iter().position(known);
        let index = index.or_else(|| own.iter().position(free));
        // Users without a slot of their own share the last one: together they count as one user.
        let (index, slot) = index
            .and_then(|index| Some((index, own.get(index)?)))
            .unwrap_or((own.len(), rest));
        slot.id.store(user, Relaxed);
        let holder = Holder {
            user: u16::try_from(index)?,
            is_privileged,
        };
        if self.take(holder, Resource::Space, 1) == 0 {
            return Err(ENOSPC);
        }
        Ok(holder)
    }

    /// Takes as much as the holder may have, at most `wanted`; returns how much.
    pub(crate) fn take(&self, holder: Holder, resource: Resource, wanted: u64) -> u64 {
        self.take_within(holder, resource, wanted, |limit, _| limit)
    }

    /// The same for one process of the user; `of_process` is what that process holds, including
    /// `wanted`.
    pub(crate) fn take_for_process(
        &self,
        holder: Holder,
        resource: Resource,
        wanted: u64,
        of_process: u64,
    ) -> u64 {
        self.take_within(holder, resource, wanted, |limit, mine| {
            let siblings = mine.saturating_sub(of_process);
            let part = Rules::part(self.rules.process, limit.saturating_sub(siblings));
            siblings.saturating_add(part)
        })
    }

    /// `bound` computes the limit that applies from the user's limit and from what the user holds.
    fn take_within(
        &self,
        holder: Holder,
        resource: Resource,
        wanted: u64,
        bound: impl FnOnce(u64, u64) -> u64,
    ) -> u64 {
        let Some(user) = self.users.get(usize::from(holder.user)) else {
            return 0;
        };
        let index = resource as usize;
        // Add first, so that two holders that want the last one never both get it.
        let mine = user.held[index].fetch_add(wanted, Relaxed);
        let mine = mine.saturating_add(wanted);
        let all = self.held[index].fetch_add(wanted, Relaxed);
        let all = all.saturating_add(wanted);
        let left = self.totals[index].saturating_sub(all.saturating_sub(mine));
        let limit = if holder.is_privileged {
            left
        } else {
            bound(Rules::part(self.rules.user, left), mine)
        };
        let excess = mine.saturating_sub(limit).min(wanted);
        self.give(holder.user, resource, excess);
        wanted.saturating_sub(excess)
    }

    /// How much of this resource all users hold together.
    pub(crate) fn held(&self, resource: Resource) -> u64 {
        self.held[resource as usize].load(Relaxed)
    }

    /// Returns what a user held.
    pub(crate) fn give(&self, user: u16, resource: Resource, count: u64) {
        if let Some(user) = self.users.get(usize::from(user)) {
            let index = resource as usize;
            self.held[index].fetch_sub(count, Relaxed);
            user.held[index].fetch_sub(count, Relaxed);
        }
    }
}
