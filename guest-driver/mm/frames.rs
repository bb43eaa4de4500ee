// SPDX-License-Identifier: GPL-2.0

//! Unused frames of device memory in lists, for a driver to which it does not matter which of them
//! are used next.
//!
//! A huge run that has been taken in single frames is not put together again. Does not know whose
//! memory it is, nor what frames are used for.
//!
//! # Examples
//!
//! ```
//! use kernel::mm::{frames::FreeFrames, HPAGE_PMD_NR, HPAGE_PMD_ORDER};
//!
//! let (_, mut free) = FreeFrames::of_new_memory(2)?;
//! let huge = free.take(HPAGE_PMD_ORDER).ok_or(ENOMEM)?;
//! let small = free.take(0).ok_or(ENOMEM)?;
//! // The other huge run has been split.
//! assert!(free.take(HPAGE_PMD_ORDER).is_none());
//! free.give_back(huge);
//! assert!(free.take(HPAGE_PMD_ORDER).is_some());
//! free.give_back(small);
//! assert_eq!((0..).map_while(|_| free.take(0)).count(), HPAGE_PMD_NR);
//! # Ok::<(), Error>(())
//! ```

use super::{
    memremap::{MemoryId, UnusedFrames},
    HPAGE_PMD_NR, HPAGE_PMD_ORDER,
};
use kernel::prelude::*;

/// Frames that can be taken.
pub(crate) struct FreeFrames {
    large: KVVec<UnusedFrames>,
    small: KVVec<UnusedFrames>,
}

impl FreeFrames {
    /// All frames of a memory that there has not been, of so many huge pages.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn of_new_memory(huge_pages: usize) -> Result<(MemoryId, Self)> {
        let frames = huge_pages.checked_mul(HPAGE_PMD_NR).ok_or(EINVAL)?;
        let (id, runs) = UnusedFrames::of_new_memory(huge_pages as u64, HPAGE_PMD_ORDER);
        let mut free = Self {
            large: KVVec::with_capacity(huge_pages, GFP_KERNEL)?,
            small: KVVec::with_capacity(frames, GFP_KERNEL)?,
        };
        runs.for_each(|run| free.give_back(run));
        Ok((id, free))
    }

    /// Takes a frame, or a large run of them. Does not sleep.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn take(&mut self, order: u32) -> Option<UnusedFrames> {
        if order > 0 {
            return self.large.pop();
        }
        if self.small.is_empty() {
            let run = self.large.pop()?;
            run.split().for_each(|frame| self.give_back(frame));
        }
        self.small.pop()
    }

    /// Gives frames back. Does not sleep.
    pub(crate) fn give_back(&mut self, frames: UnusedFrames) {
        let list = match frames.order() {
            0 => &mut self.small,
            _ => &mut self.large,
        };
        // There is room for all that there are.
        let _ = list.push_within_capacity(frames);
    }
}
