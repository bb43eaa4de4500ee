// SPDX-License-Identifier: GPL-2.0

//! Buffers for moving pages, kept from one move to the next.
//!
//! Does not know how pages move.

use crate::{
    device::queue::{Command, Message},
    mm::migrate::MigratePfns,
};
use core::ops::Range;
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// How many parts the device has in flight while another one is collected: enough to keep it busy
/// until the driver notices that the first one is done.
pub(crate) const DEPTH: usize = 2;

/// Reusable memory for one move at a time.
pub(crate) struct Memory<R: Command> {
    pub(crate) pfns: MigratePfns,
    pub(crate) list: ListMemory<R>,
}

impl<R: Command> Memory<R> {
    /// Memory for `pages` pages, for requests about a space; zero for none.
    pub(crate) fn new(space: u32, pages: usize) -> Result<Self> {
        Ok(Self {
            pfns: MigratePfns::new(pages)?,
            list: ListMemory {
                message: Message::new(space, pages, pages)?,
                covered: KVVec::with_capacity(pages, GFP_KERNEL)?,
            },
        })
    }
}

/// The part of it that holds the list of copies.
pub(crate) struct ListMemory<R: Command> {
    pub(crate) message: Message<R>,
    /// The pages that each item of the message covers.
    pub(crate) covered: KVVec<Range<usize>>,
}

/// Memory for at most this many pages is not pooled, unless the pool itself is that small.
const FEW: usize = 64;

/// A pool of memory for moves. The kernel clears what it allocates; for the lists of a huge page
/// this takes a tenth of the time of its whole move.
///
/// Lock order: `kept` is taken last.
#[pin_data]
pub(crate) struct Spares<R: Command> {
    /// The number of pages that each entry is large enough for.
    pages: usize,
    #[pin]
    kept: Mutex<KVec<Memory<R>>>,
}

impl<R: Command> Spares<R> {
    /// For up to `count` moves at a time, of at most `pages` pages each. The pool is empty at
    /// first.
    pub(crate) fn new(count: usize, pages: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pages,
            kept <- new_mutex!(KVec::with_capacity(count, GFP_KERNEL)?, "Spares::kept"),
        })
    }

    /// Memory for a move of `pages` pages, for requests about a space; zero for none.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is none.
    pub(crate) fn take(&self, space: u32, pages: usize) -> Result<Memory<R>> {
        let kept = self.kept.lock().pop();
        if let Some(mut memory) = kept {
            memory.list.message.set_space(space);
            return Ok(memory);
        }
        let is_kept = pages > FEW || self.pages <= FEW;
        Memory::new(space, if is_kept { self.pages } else { pages })
    }

    /// Returns memory to the pool. There is no list if the device refused it.
    pub(crate) fn keep(&self, pfns: MigratePfns, list: Option<ListMemory<R>>) {
        let Some(list) = list else { return };
        if pfns.pages() == self.pages {
            let memory = Memory { pfns, list };
            let surplus = self.kept.lock().push_within_capacity(memory);
            // After unlocking.
            drop(surplus);
        }
    }
}
