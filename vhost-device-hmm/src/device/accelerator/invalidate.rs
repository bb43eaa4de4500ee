//! Takes rights back, piece by piece, for requests of either queue.
//!
//! This module knows which pages lose which rights. It does not know which request asks for that,
//! or what follows.

use virtio_hmm_spec::wire::rights;

use super::{Accelerator, Stop};
use crate::device::engine::nanoseconds;
use crate::device::mmu::{PageRange, Rule};
use crate::device::request::Refusal;
use crate::device::space::{Rest, Space, Taken};

/// Why a control request has not finished.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// It is refused.
    Refused(Refusal),
    /// The device has to stop. The request has been carried out in part, and can be repeated from
    /// the start.
    Stopped,
}

impl<T: Into<Refusal>> From<T> for Unfinished {
    fn from(refusal: T) -> Self {
        Self::Refused(refusal.into())
    }
}

pub(super) type Progress<T> = Result<T, Unfinished>;

impl Accelerator {
    /// Takes rights back, counts this, and verifies it in the checking mode. Engines run between
    /// two pieces: nothing is mapped meanwhile, and rights that are taken back stay so.
    pub(super) fn take(
        &self,
        space: &Space,
        ranges: &[PageRange],
        rule: Rule,
        stop: Stop<'_>,
    ) -> Progress<()> {
        self.counters.invalidations.add(ranges.len() as u64);
        let mut rest = Rest::all(ranges);
        loop {
            let taken = space.take_back(&mut rest, rule, self.check.as_deref());
            self.counters.invalidated_pages.add(taken.pages);
            self.counters
                .invalidation_wait_nanoseconds
                .add(nanoseconds(taken.waited));
            if rest.is_empty() {
                self.audit(space, &taken, ranges, rule);
                return Ok(());
            }
            drop(taken);
            if stop() {
                return Err(Unfinished::Stopped);
            }
        }
    }

    /// In the checking mode: verifies that no TLB would still yield what was taken back.
    fn audit(&self, space: &Space, taken: &Taken<'_>, ranges: &[PageRange], rule: Rule) {
        let Some(check) = &self.check else { return };
        let access = match rule {
            Rule::Unmap => rights::ALL,
            Rule::Protect => rights::ALL & !rights::READ,
            Rule::Prune => return,
        };
        for tlb in &self.tlbs {
            let tlb = tlb.lock();
            for range in ranges.iter().filter(|r| tlb.yields(taken.epoch, r, access)) {
                check.found_stale(
                    space.id(),
                    format_args!("pages {:#x}+{} can be used", range.start(), range.pages()),
                );
            }
        }
    }
}
