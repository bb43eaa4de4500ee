// SPDX-License-Identifier: GPL-2.0

//! Unused frames of device memory in lists, for a driver to which it does not matter which of them
//! are used next.
//!
//! A huge run that has been split into single frames is not put together again. Does not know whose
//! memory it is, nor what frames are used for.
//!
//! # Examples
//!
//! ```
//! use kernel::mm::{frames::FreeFrames, HPAGE_PMD_NR, HPAGE_PMD_ORDER};
//!
//! let (_, mut frames) = FreeFrames::of_new_memory(2)?;
//! let huge = frames.alloc(HPAGE_PMD_ORDER).ok_or(ENOMEM)?;
//! let small = frames.alloc(0).ok_or(ENOMEM)?;
//! // The other huge run has been split.
//! assert!(frames.alloc(HPAGE_PMD_ORDER).is_none());
//! frames.free(huge);
//! assert!(frames.alloc(HPAGE_PMD_ORDER).is_some());
//! frames.free(small);
//! assert_eq!((0..).map_while(|_| frames.alloc(0)).count(), HPAGE_PMD_NR);
//! # Ok::<(), Error>(())
//! ```

use super::{
    memremap::{MemoryId, UnusedFrames},
    HPAGE_PMD_NR, HPAGE_PMD_ORDER,
};
use kernel::prelude::*;

/// Frames that can be allocated.
pub(crate) struct FreeFrames {
    large: KVVec<UnusedFrames>,
    small: KVVec<UnusedFrames>,
}

impl FreeFrames {
    /// Creates a device memory of `huge_pages` huge pages. Returns its identifier and all of its
    /// frames.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn of_new_memory(huge_pages: usize) -> Result<(MemoryId, Self)> {
        let frames = huge_pages.checked_mul(HPAGE_PMD_NR).ok_or(EINVAL)?;
        let (id, runs) = UnusedFrames::of_new_memory(huge_pages as u64, HPAGE_PMD_ORDER);
        let mut free = Self {
            large: KVVec::with_capacity(huge_pages, GFP_KERNEL)?,
            small: KVVec::with_capacity(frames, GFP_KERNEL)?,
        };
        runs.for_each(|run| free.free(run));
        Ok((id, free))
    }

    /// Allocates a frame or, for any order but zero, a huge run of frames. Does not sleep.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn alloc(&mut self, order: u32) -> Option<UnusedFrames> {
        if order > 0 {
            return self.large.pop();
        }
        if self.small.is_empty() {
            let run = self.large.pop()?;
            run.split().for_each(|frame| self.free(frame));
        }
        self.small.pop()
    }

    /// Frees frames. Does not sleep.
    pub(crate) fn free(&mut self, frames: UnusedFrames) {
        let list = match frames.order() {
            0 => &mut self.small,
            _ => &mut self.large,
        };
        // The lists have capacity for all frames.
        let _ = list.push_within_capacity(frames);
    }
}
