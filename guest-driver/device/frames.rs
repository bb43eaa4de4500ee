// SPDX-License-Identifier: GPL-2.0

//! Which frames of device memory are in use.
//!
//! Memory is managed in blocks of 2 MiB, which are allocated whole or frame by frame. A freed frame
//! is *stale*: the device holds its contents until it is told to discard them. A frame whose
//! contents the device has lost is *lost* until it is freed: it no longer contains a page.
//! Knows neither the device nor what frames are used for.
//!
//! All functions except [`Frames::new`] may be called in atomic context.

use crate::{
    device::shares::{Holder, Resource, Shares},
    mm::{
        memremap::{MemoryId, UnusedFrames},
        pages_of, HPAGE_PMD_NR, HPAGE_PMD_ORDER,
    },
};
use kernel::{
    new_spinlock_irq, pr_warn_once,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLockIrq,
    },
};

/// The number of words in a set of the frames of a block.
const WORDS: usize = HPAGE_PMD_NR / u64::BITS as usize;

/// A block of frames.
#[derive(Clone, Copy)]
struct Block {
    /// Frames that cannot be allocated: in use, or being discarded.
    busy: [u64; WORDS],
    /// Frames that the device must be told to discard.
    stale: [u64; WORDS],
    /// Frames in use whose contents are lost.
    lost: [u64; WORDS],
    /// The number of busy frames.
    count: u16,
}

impl Block {
    const EMPTY: Self = Self {
        busy: [0; WORDS],
        stale: [0; WORDS],
        lost: [0; WORDS],
        count: 0,
    };

    /// The first word with frames that are not busy, and a mask of these frames. Prefers frames
    /// that are not stale.
    fn find(&self) -> Option<(usize, u64)> {
        let first = |free: &dyn Fn(usize) -> u64| {
            let mut words = (0..WORDS).map(|word| (word, free(word)));
            words.find(|(_, mask)| *mask != 0)
        };
        first(&|word| !(self.busy[word] | self.stale[word]))
            .or_else(|| first(&|word| !self.busy[word]))
    }
}

/// The lowest set bits of a word, at most `most` of them.
fn lowest(word: u64, most: usize) -> u64 {
    let mut rest = word;
    for _ in 0..most.min(u64::BITS as usize) {
        // Clears the lowest one.
        rest &= rest.wrapping_sub(1);
    }
    word & !rest
}

/// A word with the lowest `count` bits set, or all bits if there are fewer.
fn ones(count: usize) -> u64 {
    let next = 1_u64.checked_shl(count as u32).unwrap_or(0);
    next.wrapping_sub(1)
}

/// The word of a frame and its bit in there.
fn bit(frame: usize) -> (usize, u64) {
    (frame / 64, 1 << (frame % 64))
}

/// The first frame of a block.
fn first_of(block: usize) -> u64 {
    block.saturating_mul(HPAGE_PMD_NR) as u64
}

/// A set of blocks, as a linked list in an array: every operation takes constant time.
struct Set {
    /// The neighbours of each block: `NONE` at the ends, `OUT` if it is not in the set.
    links: KVVec<(u32, u32)>,
    first: u32,
}

const NONE: u32 = u32::MAX;
const OUT: u32 = u32::MAX - 1;

impl Set {
    fn new(blocks: usize) -> Result<Self> {
        Ok(Self {
            links: KVVec::from_elem((OUT, OUT), blocks, GFP_KERNEL)?,
            first: NONE,
        })
    }

    fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// The neighbours of a block; `None` for the block number `NONE`.
    fn links(&mut self, block: u32) -> Option<&mut (u32, u32)> {
        self.links.get_mut(block as usize)
    }

    fn insert(&mut self, block: u32) {
        let first = self.first;
        match self.links(block) {
            Some(links) if *links == (OUT, OUT) => *links = (NONE, first),
            _ => return,
        }
        if let Some(next) = self.links(first) {
            next.0 = block;
        }
        self.first = block;
    }

    fn remove(&mut self, block: u32) {
        let Some(links) = self.links(block) else {
            return;
        };
        let (previous, next) = core::mem::replace(links, (OUT, OUT));
        if previous == OUT {
            return;
        }
        match self.links(previous) {
            Some(previous) => previous.1 = next,
            None => self.first = next,
        }
        if let Some(next) = self.links(next) {
            next.0 = previous;
        }
    }

    fn set(&mut self, block: u32, member: bool) {
        if member {
            self.insert(block);
        } else {
            self.remove(block);
        }
    }
}

struct State {
    blocks: KVVec<Block>,
    /// The user that each allocated frame is accounted to.
    users: KVVec<u16>,
    /// Blocks without busy frames.
    empty: Set,
    /// Blocks with some busy frames, but not all.
    partial: Set,
    /// Blocks with stale frames that can be discarded.
    stale: Set,
    /// The number of frames that are allocated.
    allocated: u64,
    /// The number of frames that are stale.
    stale_count: u64,
    /// The number of frames that are busy but not allocated: they become free when discarded.
    waiting: u64,
    /// Whether allocation has stopped.
    closed: bool,
}

/// The frames of a device's memory.
#[pin_data]
pub(crate) struct Frames {
    #[pin]
    state: SpinLockIrq<State>,
    shares: Arc<Shares>,
    /// The number of frames that are lost. Written with `state` locked.
    lost: Atomic<u64>,
    /// Whether frames must be discarded before they are allocated again. {drv-discard-checked}
    strict: bool,
    id: MemoryId,
    total: u64,
}

/// Frames that have been allocated; freed when this is dropped.
pub(crate) struct AllocatedFrames<'a> {
    owner: &'a Frames,
    frames: Option<UnusedFrames>,
}

impl AllocatedFrames<'_> {
    /// The frames; from now on they must be freed by [`Frames::free`].
    pub(crate) fn keep(mut self) -> Option<UnusedFrames> {
        let frames = self.frames.take()?;
        // They may have been allocated before others were lost, but they had no contents yet.
        self.owner.clear_lost(&frames);
        Some(frames)
    }
}

impl Drop for AllocatedFrames<'_> {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take() {
            self.owner.free(frames);
        }
    }
}

/// A batch of frames that have been allocated together, to be used one by one. Dropping it frees
/// the remaining ones: each is stale only if it was stale before.
///
/// # Invariants
///
/// The frames from `base` on that have a bit in `left` are allocated, and only this value owns
/// them.
pub(crate) struct FrameBatch<'a> {
    owner: &'a Frames,
    /// The frame of the lowest bit.
    base: u64,
    left: u64,
    /// Those of them that were stale.
    stale: u64,
    /// The user that they are accounted to.
    user: u16,
}

impl<'a> FrameBatch<'a> {
    /// Takes the next frame.
    pub(crate) fn next(&mut self) -> Option<AllocatedFrames<'a>> {
        if self.left == 0 {
            return None;
        }
        let index = self.left.trailing_zeros();
        let frame = self.base.saturating_add(index.into());
        self.left &= self.left.wrapping_sub(1);
        // SAFETY: By the invariants the frame was allocated and only this batch owned it, and from
        // now on the batch does not. It is busy until `free` takes this value or the one that is
        // made when its folio is freed.
        let frames = unsafe { UnusedFrames::new(self.owner.id, frame, 0) };
        Some(AllocatedFrames {
            owner: self.owner,
            frames: Some(frames),
        })
    }
}

impl Drop for FrameBatch<'_> {
    fn drop(&mut self) {
        if self.left != 0 {
            let stale = self.stale & self.left;
            self.owner.free_unused(self.base, self.left, stale);
            let count = u64::from(self.left.count_ones());
            self.owner.shares.give(self.user, Resource::Frame, count);
        }
    }
}

/// Consecutive frames.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// The first frame.
    pub(crate) first: u64,
    /// The number of frames.
    pub(crate) pages: u32,
}

impl Run {
    /// The frame behind the last one.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.pages.into())
    }
}

impl Frames {
    /// Manages this many frames, rounded down to whole blocks. With `strict` a frame must be
    /// discarded before it is allocated again.
    pub(crate) fn new(
        frames: u64,
        strict: bool,
        shares: Arc<Shares>,
    ) -> Result<impl PinInit<Self>> {
        let count = usize::try_from(frames / HPAGE_PMD_NR as u64)?;
        // Block numbers must be less than the two special values.
        if count == 0 || count >= OUT as usize {
            return Err(EINVAL);
        }
        let mut state = State {
            blocks: KVVec::from_elem(Block::EMPTY, count, GFP_KERNEL)?,
            users: KVVec::from_elem(0, count * HPAGE_PMD_NR, GFP_KERNEL)?,
            empty: Set::new(count)?,
            partial: Set::new(count)?,
            stale: Set::new(count)?,
            allocated: 0,
            stale_count: 0,
            waiting: 0,
            closed: false,
        };
        for block in (0..count as u32).rev() {
            state.empty.insert(block);
        }
        Ok(pin_init!(Self {
            state <- new_spinlock_irq!(state, "Frames::state"),
            shares,
            id: MemoryId::new(),
            lost: Atomic::new(0),
            strict,
            total: first_of(count),
        }))
    }

    /// The memory that they belong to.
    pub(crate) fn id(&self) -> MemoryId {
        self.id
    }

    /// The number of frames.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The number of frames that are allocated.
    pub(crate) fn used(&self) -> u64 {
        self.state.lock().allocated
    }

    /// Stops allocating frames.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Resumes allocating frames.
    pub(crate) fn open(&self) {
        self.state.lock().closed = false;
    }

    /// The device has lost the contents of all frames that are allocated.
    pub(crate) fn lose_all(&self) {
        let mut state = self.state.lock();
        let mut lost = 0_u64;
        for block in state.blocks.iter_mut() {
            for word in 0..WORDS {
                // In strict mode, stale frames stay busy.
                block.lost[word] = block.busy[word] & !block.stale[word];
                lost = lost.saturating_add(block.lost[word].count_ones().into());
            }
        }
        self.lost.store(lost, Relaxed);
    }

    /// The number of frames that are lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Whether any of these frames is lost.
    pub(crate) fn is_lost(&self, first: u64, count: usize) -> bool {
        // Almost always no frame is lost.
        self.lost() != 0 && {
            let state = self.state.lock();
            (first..first.saturating_add(count as u64)).any(|frame| state.is_lost(frame))
        }
    }

    /// Records that frames have no contents that could be lost.
    fn clear_lost(&self, frames: &UnusedFrames) {
        if self.lost() != 0 {
            let block = (frames.first() / HPAGE_PMD_NR as u64) as u32;
            let start = (frames.first() % HPAGE_PMD_NR as u64) as usize;
            let mut state = self.state.lock();
            let mut found = 0_u64;
            let end = start.saturating_add(pages_of(frames.order()));
            for frame in start..end.min(HPAGE_PMD_NR) {
                let (word, mask) = bit(frame);
                found = found.saturating_add(state.clear_lost(block, word, mask));
            }
            self.lost.fetch_sub(found, Relaxed);
        }
    }

    /// Whether allocation has stopped.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Whether fewer than `wanted` frames can be allocated now, but more once the waiting ones have
    /// been discarded.
    pub(crate) fn is_short(&self, wanted: u64) -> bool {
        let state = self.state.lock();
        let free = self.total.saturating_sub(state.allocated);
        state.waiting > 0 && free.saturating_sub(state.waiting) < wanted
    }

    /// The first frame of the first block, at or after that of `frame`, with frames in use.
    pub(crate) fn next_in_use(&self, frame: u64) -> Option<u64> {
        let state = self.state.lock();
        let first = usize::try_from(frame / HPAGE_PMD_NR as u64).ok()?;
        let blocks = state.blocks.get(first..)?;
        let found = blocks.iter().position(|block| block.count > 0)?;
        Some(first_of(first.saturating_add(found)))
    }

    /// Allocates frames for use one by one: at least one, and at most `most`.
    pub(crate) fn alloc_batch(&self, most: usize, holder: Holder) -> Option<FrameBatch<'_>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.closed {
            return None;
        }
        let block = state.partial.first().or_else(|| state.empty.first())?;
        let (word, free) = state.blocks.get(block as usize)?.find()?;
        let wanted = u64::from(lowest(free, most.max(1)).count_ones());
        let granted = self.shares.take(holder, Resource::Frame, wanted);
        if granted == 0 {
            return None;
        }
        let left = lowest(free, granted as usize);
        let stale = state.alloc(block, word, left);
        state.relink(block);
        let base = first_of(block as usize).saturating_add((word * 64) as u64);
        let mut rest = left;
        while rest != 0 {
            state.set_user(base.saturating_add(rest.trailing_zeros().into()), 1, holder);
            rest &= rest.wrapping_sub(1);
        }
        // INVARIANT: The frames were not busy, so they had no owner; they are busy from now on.
        Some(FrameBatch {
            owner: self,
            base,
            left,
            stale,
            user: holder.user(),
        })
    }

    /// Frees frames of a word that were not used, some of which are stale.
    fn free_unused(&self, base: u64, frames: u64, stale: u64) {
        let block = (base / HPAGE_PMD_NR as u64) as u32;
        let (word, _) = bit((base % HPAGE_PMD_NR as u64) as usize);
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(entry) = state.blocks.get_mut(block as usize) else {
            return;
        };
        let count = frames.count_ones();
        entry.busy[word] &= !frames;
        entry.stale[word] |= stale;
        entry.count = entry.count.saturating_sub(count as u16);
        state.allocated = state.allocated.saturating_sub(count.into());
        let stale = u64::from(stale.count_ones());
        state.stale_count = state.stale_count.saturating_add(stale);
        self.lost
            .fetch_sub(state.clear_lost(block, word, frames), Relaxed);
        state.relink(block);
    }

    /// Allocates a block.
    pub(crate) fn alloc_block(&self, holder: Holder) -> Option<AllocatedFrames<'_>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.closed {
            return None;
        }
        let block = state.empty.first()?;
        let wanted = HPAGE_PMD_NR as u64;
        let granted = self.shares.take(holder, Resource::Frame, wanted);
        if granted < wanted {
            self.shares.give(holder.user(), Resource::Frame, granted);
            return None;
        }
        for word in 0..WORDS {
            state.alloc(block, word, u64::MAX);
        }
        state.relink(block);
        let first = first_of(block as usize);
        state.set_user(first, HPAGE_PMD_NR, holder);
        // SAFETY: The block had no busy frames, so none was in use. All are busy from now on, until
        // `free` takes this value or those that are made when their folios are freed.
        let frames = unsafe { UnusedFrames::new(self.id, first, HPAGE_PMD_ORDER) };
        Some(AllocatedFrames {
            owner: self,
            frames: Some(frames),
        })
    }

    /// Frees frames; they are now stale. Returns whether stale frames should be discarded: if they
    /// cannot be allocated before, or if [`Self::is_discard_due`].
    pub(crate) fn free(&self, frames: UnusedFrames) -> bool {
        let block = (frames.first() / HPAGE_PMD_NR as u64) as u32;
        let start = (frames.first() % HPAGE_PMD_NR as u64) as usize;
        let end = start
            .saturating_add(pages_of(frames.order()))
            .min(HPAGE_PMD_NR);
        // It no longer matters whether they were lost.
        self.clear_lost(&frames);
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(entry) = state.blocks.get_mut(block as usize) {
            let mut count = 0_u64;
            let mut first = frames.first() as usize;
            let mut next = start;
            // A single frame among many others leaves its block in the same sets.
            let (word, _) = bit(start);
            let stays_linked = frames.order() == 0
                && entry.stale[word] != 0
                && (2..HPAGE_PMD_NR).contains(&usize::from(entry.count));
            // Word by word.
            while next < end {
                let (word, mask) = bit(next);
                // Does not change it, but the compiler does not know that.
                let word = word % WORDS;
                let shift = next % 64;
                let (pages, mask) = if frames.order() == 0 {
                    (1, mask)
                } else {
                    let pages = end.saturating_sub(next).min(64_usize.saturating_sub(shift));
                    (pages, ones(pages) << shift)
                };
                let back = entry.busy[word] & !entry.stale[word] & mask;
                if back != mask {
                    // Counting them would corrupt the counts of the other frames.
                    pr_warn_once!("the kernel frees frames of block {block} twice\n");
                }
                let users = state.users.get(first..first.saturating_add(pages));
                self.give(users.unwrap_or_default(), back >> shift);
                first = first.saturating_add(pages);
                entry.stale[word] |= back;
                if !self.strict {
                    entry.busy[word] &= !back;
                    entry.count = entry.count.saturating_sub(back.count_ones() as u16);
                }
                count = count.saturating_add(back.count_ones().into());
                next = next.saturating_add(pages);
            }
            state.allocated = state.allocated.saturating_sub(count);
            state.stale_count = state.stale_count.saturating_add(count);
            if self.strict {
                state.waiting = state.waiting.saturating_add(count);
            }
            if !stays_linked {
                state.relink(block);
            }
        }
        self.strict || state.is_discard_due()
    }

    /// Stops accounting frames of a word, given as bits, to their users.
    fn give(&self, users: &[u16], mut frames: u64) {
        if let ([user], 1..) = (users, frames) {
            return self.shares.give(*user, Resource::Frame, 1);
        }
        // Adjacent frames nearly always belong to one user.
        for users in users.chunk_by(|one, other| one == other) {
            let count = (frames & ones(users.len())).count_ones();
            if let (Some(user), 1..) = (users.first(), count) {
                self.shares.give(*user, Resource::Frame, count.into());
            }
            frames = frames.checked_shr(users.len() as u32).unwrap_or(0);
        }
    }

    /// Whether stale frames should be discarded even if they can be allocated again as they are.
    pub(crate) fn is_discard_due(&self) -> bool {
        self.state.lock().is_discard_due()
    }

    /// Fills `runs`, within its capacity, with stale frames, at most `pages` pages in total. They
    /// must be discarded and then passed to [`Frames::discarded`].
    pub(crate) fn take_stale(&self, runs: &mut KVec<Run>, mut pages: u32) {
        let mut state = self.state.lock();
        let state = &mut *state;
        while let Some(block) = state.stale.first() {
            let complete = state.take_stale(block, runs, &mut pages);
            state.relink(block);
            if !complete {
                return;
            }
        }
    }

    /// Frames of [`Frames::take_stale`] have been discarded.
    pub(crate) fn discarded(&self, runs: &[Run]) {
        let mut state = self.state.lock();
        let state = &mut *state;
        for run in runs {
            for number in run.first..run.end() {
                let block = (number / HPAGE_PMD_NR as u64) as u32;
                let (word, mask) = bit((number % HPAGE_PMD_NR as u64) as usize);
                self.lost
                    .fetch_sub(state.clear_lost(block, word, mask), Relaxed);
                if let Some(entry) = state.blocks.get_mut(block as usize) {
                    entry.busy[word] &= !mask;
                    entry.count = entry.count.saturating_sub(1);
                    state.waiting = state.waiting.saturating_sub(1);
                    state.relink(block);
                }
            }
        }
    }
}

impl State {
    fn is_lost(&self, frame: u64) -> bool {
        let block = self.blocks.get((frame / HPAGE_PMD_NR as u64) as usize);
        let (word, mask) = bit((frame % HPAGE_PMD_NR as u64) as usize);
        block.is_some_and(|block| block.lost[word] & mask != 0)
    }

    /// Marks frames of a word of a block as not lost; returns how many were.
    fn clear_lost(&mut self, block: u32, word: usize, frames: u64) -> u64 {
        let Some(entry) = self.blocks.get_mut(block as usize) else {
            return 0;
        };
        let lost = entry.lost[word] & frames;
        entry.lost[word] &= !frames;
        u64::from(lost.count_ones())
    }

    /// Whether there are many stale frames, or no other frames in use.
    fn is_discard_due(&self) -> bool {
        let many = first_of(self.blocks.len()) / 4;
        self.stale_count > 0 && (self.allocated == 0 || self.stale_count >= many)
    }

    /// Accounts frames to a user.
    fn set_user(&mut self, first: u64, count: usize, holder: Holder) {
        let first = first as usize;
        let users = self.users.get_mut(first..first.saturating_add(count));
        users.unwrap_or_default().fill(holder.user());
    }

    /// Allocates frames of a word of a block that are not busy; returns which of them were stale.
    fn alloc(&mut self, block: u32, word: usize, frames: u64) -> u64 {
        let Some(entry) = self.blocks.get_mut(block as usize) else {
            return 0;
        };
        let count = frames.count_ones();
        entry.busy[word] |= frames;
        entry.count = entry.count.saturating_add(count as u16);
        self.allocated = self.allocated.saturating_add(count.into());
        // The next user of a frame overwrites it, so there is nothing to discard.
        let stale = entry.stale[word] & frames;
        entry.stale[word] &= !frames;
        self.stale_count = self.stale_count.saturating_sub(stale.count_ones().into());
        stale
    }

    /// Moves the stale frames of a block to `runs`; returns whether all of them fitted.
    fn take_stale(&mut self, block: u32, runs: &mut KVec<Run>, pages: &mut u32) -> bool {
        let base = first_of(block as usize);
        let Some(entry) = self.blocks.get_mut(block as usize) else {
            return true;
        };
        for frame in 0..HPAGE_PMD_NR {
            let (word, mask) = bit(frame);
            if entry.stale[word] & mask == 0 {
                continue;
            }
            if *pages == 0 {
                return false;
            }
            let number = base.saturating_add(frame as u64);
            match runs.last_mut() {
                Some(run) if run.end() == number => run.pages = run.pages.saturating_add(1),
                _ => {
                    let run = Run {
                        first: number,
                        pages: 1,
                    };
                    if runs.push_within_capacity(run).is_err() {
                        return false;
                    }
                }
            }
            *pages = pages.saturating_sub(1);
            entry.stale[word] &= !mask;
            self.stale_count = self.stale_count.saturating_sub(1);
            if entry.busy[word] & mask == 0 {
                entry.busy[word] |= mask;
                entry.count = entry.count.saturating_add(1);
                self.waiting = self.waiting.saturating_add(1);
            }
        }
        true
    }

    /// Puts a block into the right sets.
    fn relink(&mut self, block: u32) {
        let Some(entry) = self.blocks.get(block as usize) else {
            return;
        };
        let count = usize::from(entry.count);
        let stale = entry.stale.iter().any(|word| *word != 0);
        self.empty.set(block, count == 0);
        self.partial.set(block, count > 0 && count < HPAGE_PMD_NR);
        self.stale.set(block, stale);
    }
}
