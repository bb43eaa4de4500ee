// SPDX-License-Identifier: GPL-2.0

//! Buffers for moving pages, free from one move to the next.
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

/// A reusable buffer for one move at a time.
pub(crate) struct MoveBuffer<R: Command> {
    pub(crate) pfns: MigratePfns,
    pub(crate) list: ListBuffer<R>,
}

impl<R: Command> MoveBuffer<R> {
    /// A buffer for `pages` pages, for requests about a space; zero for none.
    pub(crate) fn new(space: u32, pages: usize) -> Result<Self> {
        Ok(Self {
            pfns: MigratePfns::new(pages)?,
            list: ListBuffer {
                message: Message::new(space, pages, pages)?,
                covered: KVVec::with_capacity(pages, GFP_KERNEL)?,
            },
        })
    }
}

/// The part of a [`MoveBuffer`] that holds the list of copies.
pub(crate) struct ListBuffer<R: Command> {
    pub(crate) message: Message<R>,
    /// The pages that each item of the message covers.
    pub(crate) covered: KVVec<Range<usize>>,
}

/// A buffer for at most this many pages is not pooled, unless the pool's buffers are that small.
const MAX_UNPOOLED: usize = 64;

/// A pool of buffers for moves. The kernel clears what it allocates. For the lists of a huge page
/// this takes a tenth of the time of the whole move.
///
/// Lock order: `free` is taken last.
#[pin_data]
pub(crate) struct BufferPool<R: Command> {
    /// The number of pages that each buffer in the pool is large enough for.
    pages: usize,
    #[pin]
    free: Mutex<KVec<MoveBuffer<R>>>,
}

impl<R: Command> BufferPool<R> {
    /// For up to `count` moves at a time, of at most `pages` pages each. The pool is empty at
    /// first.
    pub(crate) fn new(count: usize, pages: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pages,
            free <- new_mutex!(KVec::with_capacity(count, GFP_KERNEL)?, "BufferPool::free"),
        })
    }

    /// A buffer for a move of `pages` pages, for requests about a space; zero for none.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for it.
    pub(crate) fn take(&self, space: u32, pages: usize) -> Result<MoveBuffer<R>> {
        let pooled = self.free.lock().pop();
        if let Some(mut buffer) = pooled {
            buffer.list.message.set_space(space);
            return Ok(buffer);
        }
        let is_pooled = pages > MAX_UNPOOLED || self.pages <= MAX_UNPOOLED;
        MoveBuffer::new(space, if is_pooled { self.pages } else { pages })
    }

    /// Returns a buffer to the pool. There is no list if the device refused it; the rest of the
    /// buffer is then freed.
    pub(crate) fn put(&self, pfns: MigratePfns, list: Option<ListBuffer<R>>) {
        let Some(list) = list else { return };
        if pfns.pages() == self.pages {
            let buffer = MoveBuffer { pfns, list };
            let surplus = self.free.lock().push_within_capacity(buffer);
            // After unlocking.
            drop(surplus);
        }
    }
}
