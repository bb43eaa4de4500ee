// SPDX-License-Identifier: GPL-2.0

//! How often and how long the driver retries to map pages that change meanwhile.
//!
//! Does not know what is mapped.

use crate::{
    mm::{mmu_notifier::MmuIntervalNotifier, turn::Turn},
    space::{mirror::SpaceMirror, Space},
};
use kernel::time::{Delta, Instant, Monotonic};

/// The minimum number of attempts when the process keeps changing its mappings, unless [`BOUND`]
/// has passed.
const ATTEMPTS: u32 = 64;

/// The maximum number of attempts.
const MOST_ATTEMPTS: u32 = 1024;

/// Minimum time to keep retrying: attempts fail immediately while another thread
/// migrates the pages.
const PERSISTENCE: Delta = Delta::from_secs(2);

/// Maximum time to keep retrying, since a page was last made present.
const BOUND: Delta = Delta::from_secs(5);

/// The number of attempts to map pages ahead of a fault: one to see what is missing, one when it is
/// present.
const ATTEMPTS_AHEAD: u32 = 2;

/// Counts attempts.
pub(crate) struct Attempts<'a> {
    notifier: &'a MmuIntervalNotifier<SpaceMirror>,
    made: u32,
    is_ahead: bool,
    /// When the first attempt was made, or when a page was last made present.
    begun: Instant<Monotonic>,
    /// Whether the delay is due to a slow page and not to changes.
    awaits_page: bool,
    turn: Option<Turn<'a>>,
}

impl<'a> Attempts<'a> {
    /// For pages that a job waits for.
    pub(crate) fn new(space: &'a Space) -> Self {
        Self {
            notifier: &space.notifier,
            made: 0,
            is_ahead: false,
            begun: Instant::now(),
            awaits_page: false,
            turn: None,
        }
    }

    /// For pages that no job waits for yet.
    pub(crate) fn ahead(space: &'a Space) -> Self {
        Self {
            is_ahead: true,
            ..Self::new(space)
        }
    }

    /// Whether to try once more.
    pub(crate) fn go_on(&mut self) -> bool {
        let time = self.begun.elapsed();
        let goes_on = if self.is_ahead {
            self.made < ATTEMPTS_AHEAD
        } else {
            self.made < ATTEMPTS_AHEAD
                || (self.made < ATTEMPTS && time < BOUND)
                || (self.made < MOST_ATTEMPTS && time < PERSISTENCE)
        };
        self.made = self.made.saturating_add(1);
        if goes_on && !self.is_ahead && self.turn.is_none() {
            self.turn = self.notifier.want_turn();
        }
        goes_on
    }

    /// A page has been made present. A program may have taken long to provide it.
    pub(crate) fn progressed(&mut self) {
        self.begun = Instant::now();
    }

    /// A page is about to be made present. If it has taken long before, the threads of the process
    /// do not pause meanwhile, because one of them may have to provide it.
    pub(crate) fn faulting(&mut self) {
        if self.awaits_page {
            self.turn = None;
        }
    }

    /// A page takes long.
    pub(crate) fn waited_long(&mut self) {
        self.awaits_page = true;
        self.turn = None;
    }
}
