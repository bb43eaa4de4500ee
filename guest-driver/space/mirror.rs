// SPDX-License-Identifier: GPL-2.0

//! How a change of a process's mappings affects those of the device.
//!
//! Does not know how mappings are made.

use crate::{
    device::{
        command::{range_entry, Unmap},
        core::Core,
        queue::{Message, Sent},
    },
    late,
    mm::{
        mmu_notifier::{MirrorOps, MmuNotifierRange},
        self_invalidate::{HasSelfInvalidations, SelfInvalidations},
        PgmapOwner,
    },
    poll::Waiters,
    quirks::{
        follow_writes,
        zap_moving::{BlockedZaps, HasBlockedZaps},
    },
    space::{counters::Events, life::Life, mapped::Mapped},
    trace,
    uapi::late::LatePoint,
    wait::Event,
};
use core::ops::{Deref, DerefMut, Range};
use kernel::{prelude::*, sync::Arc, task::Kuid};

/// State that the lock of a space's notifier protects.
pub(crate) struct Mirrored {
    mapped: Mapped,
    /// The migrations that tell the device by themselves.
    self_invalidations: SelfInvalidations,
    /// The parts of the address space from which no huge page can be zapped.
    blocked_zaps: BlockedZaps,
}

impl Mirrored {
    /// Nothing is mapped yet.
    pub(crate) fn new() -> Self {
        Self {
            mapped: Mapped::new(),
            self_invalidations: SelfInvalidations::new(),
            blocked_zaps: BlockedZaps::new(),
        }
    }
}

impl Deref for Mirrored {
    type Target = Mapped;

    fn deref(&self) -> &Mapped {
        &self.mapped
    }
}

impl DerefMut for Mirrored {
    fn deref_mut(&mut self) -> &mut Mapped {
        &mut self.mapped
    }
}

impl HasSelfInvalidations for Mirrored {
    fn self_invalidations(&mut self) -> &mut SelfInvalidations {
        &mut self.self_invalidations
    }
}

impl HasBlockedZaps for Mirrored {
    fn blocked_zaps(&mut self) -> &mut BlockedZaps {
        &mut self.blocked_zaps
    }
}

/// Keeps the device's mappings of a space in step with the process.
pub(crate) struct SpaceMirror {
    core: Arc<Core>,
    space: u32,
    owner: PgmapOwner,
    user: Kuid,
    pub(super) events: Events,
    pub(super) life: Life,
}

impl SpaceMirror {
    /// For the space with this number, on a device whose pages have this owner. The process is one
    /// of `user`; `waiters` are woken when it has ended.
    pub(crate) fn new(
        core: Arc<Core>,
        space: u32,
        owner: PgmapOwner,
        user: Kuid,
        waiters: Arc<Waiters>,
    ) -> Self {
        Self {
            core,
            space,
            owner,
            user,
            events: Events::new(),
            life: Life::new(waiters),
        }
    }
}

/// An `Unmap` of a range on its way; not sent if the device has been reset.
pub(crate) struct Unmapping {
    range: Range<usize>,
    sent: Result<Sent<Unmap>, Message<Unmap>>,
}

impl MirrorOps for SpaceMirror {
    type State = Mirrored;
    type Resources = Message<Unmap>;
    type Pending = Unmapping;

    fn owner(&self) -> PgmapOwner {
        self.owner
    }

    fn alloc_resources(&self) -> Result<Message<Unmap>> {
        Message::new(self.space, 1, 0)
    }

    fn user(&self) -> Kuid {
        self.user
    }

    fn on_event(&self, change: &MmuNotifierRange<'_>) {
        self.core.counters.invalidations.increment();
        self.events.invalidations.increment();
        trace::change(|| trace::Change {
            device: self.core.node(),
            space: self.space,
            start: change.addresses().start as u64,
            end: change.addresses().end as u64,
            event: change.number(),
        });
    }

    fn released(&self) {
        self.life.end();
    }

    fn ignores(&self, state: &Mirrored, change: &MmuNotifierRange<'_>) -> bool {
        state.self_invalidations.covers(change)
    }

    fn blocked_by(&self, state: &Mirrored, change: &MmuNotifierRange<'_>) -> Option<Arc<Event>> {
        state.blocked_zaps.blocker(change)
    }

    fn block_timed_out(&self) {
        self.core.counters.changes_hurried.increment();
    }

    fn unblocked(&self, change: &MmuNotifierRange<'_>) {
        follow_writes::protect(change);
    }

    fn affected_range(&self, state: &Mirrored, range: &Range<usize>) -> Option<Range<usize>> {
        (state.self_invalidations).extend(state.mapped.within(range), range)
    }

    fn invalidate_start(&self, mut message: Message<Unmap>, range: &Range<usize>) -> Self::Pending {
        late::at(LatePoint::ChangeBegins);
        self.core.counters.invalidations_sent.increment();
        self.events.invalidations_sent.increment();
        let link = &self.core.link;
        let range = range.clone();
        let Ok(slot) = link.reserve_slot::<Unmap>() else {
            // The device has been reset, so it has no mappings left. It may be restarted and be
            // given the space again.
            return Unmapping {
                range,
                sent: Err(message),
            };
        };
        // The preallocated message has capacity for one entry.
        let _ = message.push(&range_entry(&range));
        let sent = Ok(link.post(slot, message));
        link.kick::<Unmap>();
        Unmapping { range, sent }
    }

    fn invalidate_wait(&self, pending: Self::Pending) -> Option<Message<Unmap>> {
        late::at(LatePoint::ChangeEnds);
        let waiting = self.core.counters.invalidate_nanoseconds.time();
        let message = match pending.sent {
            // {drv-unmap-before-reuse}, {drv-protect-before-share}
            Ok(sent) => sent.wait_and_reuse(&self.core.link),
            Err(message) => Some(message),
        };
        let nanoseconds = waiting.stop();
        trace::invalidate(|| trace::Invalidate {
            device: self.core.node(),
            space: self.space,
            start: pending.range.start as u64,
            end: pending.range.end as u64,
            nanoseconds,
        });
        message
    }

    fn resources_lost(&self) {
        self.core.link.violated();
    }

    fn invalidated(&self, mapped: &mut Mirrored, range: &Range<usize>) {
        mapped.forget(range);
    }
}
