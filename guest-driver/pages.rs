// SPDX-License-Identifier: GPL-2.0

//! Which frames of device memory are in use.
//!
//! Memory is managed in blocks of 2 MiB, which are lent as a whole or frame by frame. A
//! frame that comes back is *stale*: the device still holds its contents until it is
//! told to discard them. Knows neither the device nor what frames are lent for.
//!
//! All calls but [`Frames::new`] may be made in atomic context.

use crate::mm::{pagemap::UnusedFrames, LARGE_ORDER, LARGE_PAGES};
use kernel::{new_spinlock_irq, pr_warn_once, prelude::*, sync::SpinLockIrq};

/// The words of a set of the frames of a block.
const WORDS: usize = LARGE_PAGES / u64::BITS as usize;

/// A block of frames.
#[derive(Clone, Copy)]
struct Block {
    /// Frames that cannot be lent: in use, or being discarded.
    busy: [u64; WORDS],
    /// Frames that the device is to be told to discard.
    stale: [u64; WORDS],
    /// How many frames are busy.
    count: u16,
}

impl Block {
    const EMPTY: Self = Self {
        busy: [0; WORDS],
        stale: [0; WORDS],
        count: 0,
    };

    /// The first word with frames that are not busy, and which of it; such that are not stale,
    /// if there are any.
    fn find(&self) -> Option<(usize, u64)> {
        let first = |free: &dyn Fn(usize) -> u64| {
            let mut words = (0..WORDS).map(|word| (word, free(word)));
            words.find(|(_, mask)| *mask != 0)
        };
        first(&|word| !(self.busy[word] | self.stale[word]))
            .or_else(|| first(&|word| !self.busy[word]))
    }
}

/// The lowest bits of a word, as many as there are up to `most`.
fn lowest(word: u64, most: usize) -> u64 {
    let mut rest = word;
    for _ in 0..most.min(u64::BITS as usize) {
        // Takes the lowest one away.
        rest &= rest.wrapping_sub(1);
    }
    word & !rest
}

/// The bit of a frame in its word.
fn bit(frame: usize) -> (usize, u64) {
    (frame / 64, 1 << (frame % 64))
}

/// A set of blocks, as a list through an array: every operation takes constant time.
struct Set {
    /// The neighbours of each block, `NONE` at the ends, and `OUT` if it is not in the
    /// set.
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

    fn contains(&self, block: u32) -> bool {
        self.links[block as usize].0 != OUT
    }

    fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    fn insert(&mut self, block: u32) {
        if !self.contains(block) {
            if let Some(next) = self.first() {
                self.links[next as usize].0 = block;
            }
            self.links[block as usize] = (NONE, self.first);
            self.first = block;
        }
    }

    fn remove(&mut self, block: u32) {
        if self.contains(block) {
            let (previous, next) = self.links[block as usize];
            match previous {
                NONE => self.first = next,
                previous => self.links[previous as usize].1 = next,
            }
            if next != NONE {
                self.links[next as usize].0 = previous;
            }
            self.links[block as usize] = (OUT, OUT);
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
    /// Blocks without busy frames.
    empty: Set,
    /// Blocks with some busy frames, but not all.
    partial: Set,
    /// Blocks with stale frames that can be discarded.
    stale: Set,
    /// Frames that are lent.
    lent: u64,
    /// Frames that are stale.
    stale_count: u64,
    /// Frames that are busy but not lent: they become free when they are discarded.
    waiting: u64,
    /// Nothing is lent any more.
    closed: bool,
}

/// The frames of a device's memory.
#[pin_data]
pub(crate) struct Frames {
    #[pin]
    state: SpinLockIrq<State>,
    /// Frames must be discarded before they are lent again.
    strict: bool,
    total: u64,
}

/// Frames that have been lent; they come back when this is dropped.
pub(crate) struct Lent<'a> {
    owner: &'a Frames,
    frames: Option<UnusedFrames>,
}

impl Lent<'_> {
    /// The frames; from now on they must be given back by [`Frames::give_back`].
    pub(crate) fn keep(mut self) -> Option<UnusedFrames> {
        self.frames.take()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take() {
            self.owner.give_back(frames);
        }
    }
}

/// A few frames that have been lent together, to be used one by one. Those that are left come
/// back when this is dropped, as they were.
///
/// # Invariants
///
/// The frames behind `base` for which there is a bit in `left` are lent, and nobody else has
/// them.
pub(crate) struct Few<'a> {
    owner: &'a Frames,
    /// The frame that the lowest bit stands for.
    base: u64,
    left: u64,
    /// Those of them that were stale.
    stale: u64,
}

impl<'a> Few<'a> {
    /// The next one of them.
    pub(crate) fn next(&mut self) -> Option<Lent<'a>> {
        if self.left == 0 {
            return None;
        }
        let frame = self.base + u64::from(self.left.trailing_zeros());
        self.left &= self.left - 1;
        // SAFETY: By the invariants the frame was lent, and nobody else has it, nor do we from
        // now on. It is busy until `give_back` takes this value or the one that is made when
        // it comes back.
        let frames = unsafe { UnusedFrames::new(frame, 0) };
        Some(Lent {
            owner: self.owner,
            frames: Some(frames),
        })
    }
}

impl Drop for Few<'_> {
    fn drop(&mut self) {
        if self.left != 0 {
            let stale = self.stale & self.left;
            self.owner.take_unused(self.base, self.left, stale);
        }
    }
}

/// Frames that lie one behind the other.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// The first frame.
    pub(crate) first: u64,
    /// How many.
    pub(crate) pages: u32,
}

impl Frames {
    /// As many frames, of which only whole blocks are used. With `strict` a frame must
    /// be discarded before it is lent again.
    pub(crate) fn new(frames: u64, strict: bool) -> Result<impl PinInit<Self>> {
        let count = usize::try_from(frames / LARGE_PAGES as u64)?;
        // Numbers of blocks must stay below the two that have a meaning of their own.
        if count == 0 || count >= OUT as usize {
            return Err(EINVAL);
        }
        let mut state = State {
            blocks: KVVec::from_elem(Block::EMPTY, count, GFP_KERNEL)?,
            empty: Set::new(count)?,
            partial: Set::new(count)?,
            stale: Set::new(count)?,
            lent: 0,
            stale_count: 0,
            waiting: 0,
            closed: false,
        };
        for block in (0..count as u32).rev() {
            state.empty.insert(block);
        }
        Ok(pin_init!(Self {
            state <- new_spinlock_irq!(state, "Frames::state"),
            strict,
            total: (count * LARGE_PAGES) as u64,
        }))
    }

    /// How many frames there are.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How many frames are lent.
    pub(crate) fn used(&self) -> u64 {
        self.state.lock().lent
    }

    /// Lends nothing any more.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Whether nothing is lent any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Whether there are fewer frames than `wanted` to be lent, but will be more when those
    /// that are waiting have been discarded.
    pub(crate) fn is_short(&self, wanted: u64) -> bool {
        let state = self.state.lock();
        state.waiting > 0 && self.total - state.lent - state.waiting < wanted
    }

    /// The first frame of the first block from `frame` on in which frames are in use.
    pub(crate) fn next_in_use(&self, frame: u64) -> Option<u64> {
        let state = self.state.lock();
        let first = usize::try_from(frame / LARGE_PAGES as u64).ok()?;
        let blocks = state.blocks.get(first..)?;
        let found = blocks.iter().position(|block| block.count > 0)?;
        Some(((first + found) * LARGE_PAGES) as u64)
    }

    /// Lends frames that are used one by one: at least one, and at most `most`.
    pub(crate) fn lend_few(&self, most: usize) -> Option<Few<'_>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.closed {
            return None;
        }
        let block = state.partial.first().or_else(|| state.empty.first())?;
        let (word, free) = state.blocks[block as usize].find()?;
        let left = lowest(free, most.max(1));
        let stale = state.take(block, word, left);
        state.relink(block);
        // INVARIANT: The frames were not busy, hence nobody had them, and they are from now on.
        Some(Few {
            owner: self,
            base: u64::from(block) * LARGE_PAGES as u64 + word as u64 * u64::from(u64::BITS),
            left,
            stale,
        })
    }

    /// Takes frames of a word back that nobody has used, some of which are stale.
    fn take_unused(&self, base: u64, frames: u64, stale: u64) {
        let block = (base / LARGE_PAGES as u64) as u32;
        let (word, _) = bit((base % LARGE_PAGES as u64) as usize);
        let mut state = self.state.lock();
        let state = &mut *state;
        let entry = &mut state.blocks[block as usize];
        let count = frames.count_ones();
        entry.busy[word] &= !frames;
        entry.stale[word] |= stale;
        entry.count -= count as u16;
        state.lent -= u64::from(count);
        state.stale_count += u64::from(stale.count_ones());
        state.relink(block);
    }

    /// Lends a block.
    pub(crate) fn lend_block(&self) -> Option<Lent<'_>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.closed {
            return None;
        }
        let block = state.empty.first()?;
        for word in 0..WORDS {
            state.take(block, word, u64::MAX);
        }
        state.relink(block);
        let first = u64::from(block) * LARGE_PAGES as u64;
        // SAFETY: The block had no busy frames, so that nobody used any; all are busy from now on,
        // until `give_back` takes this value or those that are made when they come back.
        let frames = unsafe { UnusedFrames::new(first, LARGE_ORDER) };
        Some(Lent {
            owner: self,
            frames: Some(frames),
        })
    }

    /// Takes frames back. They are stale now. Says whether stale frames should be
    /// discarded: if they cannot be lent before, or if [`Self::is_discard_due`].
    pub(crate) fn give_back(&self, frames: UnusedFrames) -> bool {
        let block = (frames.first() / LARGE_PAGES as u64) as u32;
        let start = (frames.first() % LARGE_PAGES as u64) as usize;
        let end = (start + (1 << frames.order())).min(LARGE_PAGES);
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(entry) = state.blocks.get_mut(block as usize) {
            let mut count = 0;
            for frame in start..end {
                let (word, mask) = bit(frame);
                if entry.busy[word] & !entry.stale[word] & mask == 0 {
                    // To count it would spoil what is known of the others.
                    pr_warn_once!("the kernel gives frame {frame} of block {block} back twice\n");
                    continue;
                }
                count += 1;
                entry.stale[word] |= mask;
                if !self.strict {
                    entry.busy[word] &= !mask;
                    entry.count -= 1;
                }
            }
            state.lent -= count;
            state.stale_count += count;
            if self.strict {
                state.waiting += count;
            }
            state.relink(block);
        }
        self.strict || state.is_discard_due()
    }

    /// Whether stale frames should be discarded even if they can be lent as they are.
    pub(crate) fn is_discard_due(&self) -> bool {
        self.state.lock().is_discard_due()
    }

    /// Fills `runs`, within its capacity, with stale frames, of at most `pages` pages in
    /// all. They must be discarded and then be given to [`Frames::discarded`].
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
            for number in run.first..run.first + u64::from(run.pages) {
                let block = (number / LARGE_PAGES as u64) as u32;
                let (word, mask) = bit((number % LARGE_PAGES as u64) as usize);
                if let Some(entry) = state.blocks.get_mut(block as usize) {
                    entry.busy[word] &= !mask;
                    entry.count -= 1;
                    state.waiting -= 1;
                    state.relink(block);
                }
            }
        }
    }
}

impl State {
    /// Whether there are many stale frames, or no others in use.
    fn is_discard_due(&self) -> bool {
        let many = (self.blocks.len() * LARGE_PAGES) as u64 / 4;
        self.stale_count > 0 && (self.lent == 0 || self.stale_count >= many)
    }

    /// Lends frames of a word of a block that are not busy; returns which of them were stale.
    fn take(&mut self, block: u32, word: usize, frames: u64) -> u64 {
        let entry = &mut self.blocks[block as usize];
        entry.busy[word] |= frames;
        entry.count += frames.count_ones() as u16;
        self.lent += u64::from(frames.count_ones());
        // Whoever uses a frame now overwrites it, so there is nothing to discard.
        let stale = entry.stale[word] & frames;
        entry.stale[word] &= !frames;
        self.stale_count -= u64::from(stale.count_ones());
        stale
    }

    /// Moves the stale frames of a block to `runs`; says whether there was room for all.
    fn take_stale(&mut self, block: u32, runs: &mut KVec<Run>, pages: &mut u32) -> bool {
        let base = u64::from(block) * LARGE_PAGES as u64;
        let entry = &mut self.blocks[block as usize];
        for frame in 0..LARGE_PAGES {
            let (word, mask) = bit(frame);
            if entry.stale[word] & mask == 0 {
                continue;
            }
            if *pages == 0 {
                return false;
            }
            let number = base + frame as u64;
            match runs.last_mut() {
                Some(run) if run.first + u64::from(run.pages) == number => run.pages += 1,
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
            *pages -= 1;
            entry.stale[word] &= !mask;
            self.stale_count -= 1;
            if entry.busy[word] & mask == 0 {
                entry.busy[word] |= mask;
                entry.count += 1;
                self.waiting += 1;
            }
        }
        true
    }

    /// Puts a block into the sets that it belongs to.
    fn relink(&mut self, block: u32) {
        let entry = &self.blocks[block as usize];
        let count = usize::from(entry.count);
        let stale = entry.stale.iter().any(|word| *word != 0);
        self.empty.set(block, count == 0);
        self.partial.set(block, count > 0 && count < LARGE_PAGES);
        self.stale.set(block, stale);
    }
}
