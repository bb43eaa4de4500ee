//! The blocks of device memory: what each holds, and which one is emptied next.
//!
//! It does not know when anything moves.

use super::heat::{Heat, Record};
use super::Granule;

/// A block of device memory, by its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockNumber(pub u32);

impl BlockNumber {
    /// Its place in the table.
    #[must_use]
    pub const fn index(self) -> usize {
        // Both targets, the host and the kernel, have 64 bits.
        self.0 as usize
    }

    fn at(index: usize) -> Option<Self> {
        u32::try_from(index).ok().map(Self)
    }
}

/// Whether a granule that has come may leave again. One that may leave before its job has used it
/// could make that job fault for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// It has just come and may not leave.
    New,
    /// Time has passed once.
    Waiting,
    /// It was used, or time has passed twice. It may leave.
    Proven,
}

/// A block of device memory: free, or with a granule in it.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    holds: Option<Granule>,
    record: Record,
    proof: Proof,
    /// Since the hand has passed.
    used: bool,
}

impl Block {
    /// A block with nothing in it.
    pub const FREE: Self = Self {
        holds: None,
        record: Record::NONE,
        proof: Proof::Proven,
        used: false,
    };

    /// The granule in it.
    #[must_use]
    pub const fn holds(&self) -> Option<Granule> {
        self.holds
    }

    fn may_leave(&self) -> bool {
        self.holds.is_some() && self.proof == Proof::Proven
    }
}

/// All blocks of a device.
pub(super) struct Blocks<'a>(pub(super) &'a mut [Block]);

impl Blocks<'_> {
    /// The first free block, of which none is before `from`; moves `from` up to it.
    pub(super) fn first_free(&self, from: &mut usize) -> Option<BlockNumber> {
        let later = self.0.get(*from..).unwrap_or_default();
        let found = later.iter().position(|block| block.holds.is_none());
        *from = match found {
            Some(offset) => from.saturating_add(offset),
            None => self.0.len(),
        };
        found.and_then(|_| BlockNumber::at(*from))
    }

    /// Moves the hand to a block that may leave, and past it. If blocks that were used are spared,
    /// the hand takes the sign of use from each that it passes. None if no block may leave.
    pub(super) fn next_victim(
        &mut self,
        hand: &mut usize,
        spares_used: bool,
    ) -> Option<BlockNumber> {
        // In the first round the hand may have taken all signs; the second one then finds a block.
        for _ in 0..self.0.len().saturating_mul(2) {
            let index = if *hand < self.0.len() { *hand } else { 0 };
            *hand = index.saturating_add(1);
            let block = self.0.get_mut(index)?;
            if !block.may_leave() {
                continue;
            }
            if spares_used && core::mem::take(&mut block.used) {
                continue;
            }
            return BlockNumber::at(index);
        }
        None
    }

    /// The block that holds a granule. Takes time for each block.
    pub(super) fn find(&mut self, granule: Granule) -> Option<(BlockNumber, &mut Record)> {
        let blocks = (0..self.0.len()).zip(self.0.iter_mut());
        let mut holding = blocks.filter(|(_, block)| block.holds == Some(granule));
        let (index, block) = holding.next()?;
        Some((BlockNumber::at(index)?, &mut block.record))
    }

    /// The coldest block that may leave, and its heat in lines. Takes time for each block.
    pub(super) fn coldest(&self, coolings: u32) -> Option<(BlockNumber, u32)> {
        // Not `enumerate`, whose counter could overflow as far as the compiler knows.
        let blocks = (0..self.0.len()).zip(self.0.iter());
        let leaving = blocks.filter(|(_, block)| block.may_leave());
        let coldest = leaving
            .map(|(index, block)| (index, block.record.heat.at(coolings)))
            .min_by_key(|(_, heat)| *heat)?;
        Some((BlockNumber::at(coldest.0)?, coldest.1))
    }

    /// The least heat of all blocks, also of those that may not leave.
    pub(super) fn floor(&self, coolings: u32) -> Heat {
        let heats = self.0.iter().map(|block| block.record.heat.at(coolings));
        Heat::new(heats.min().unwrap_or(0), coolings)
    }

    /// Puts a granule into a block, and returns what was in it before, and what is known of that.
    pub(super) fn fill(
        &mut self,
        number: BlockNumber,
        granule: Granule,
        record: Record,
    ) -> Option<(Granule, Record)> {
        let block = self.0.get_mut(number.index())?;
        let before = block.holds.map(|granule| (granule, block.record));
        *block = Block {
            holds: Some(granule),
            record,
            proof: Proof::New,
            used: false,
        };
        before
    }

    /// Makes a block free. False if there is no such block.
    pub(super) fn empty(&mut self, number: BlockNumber) -> bool {
        match self.0.get_mut(number.index()) {
            Some(block) => {
                *block = Block::FREE;
                true
            }
            None => false,
        }
    }

    /// Counts use of what a block holds.
    pub(super) fn use_of(&mut self, number: BlockNumber, lines: u64, coolings: u32) {
        if let Some(block) = self.0.get_mut(number.index()) {
            block.record.heat.add(lines, coolings);
            block.proof = Proof::Proven;
            block.used = true;
        }
    }

    /// Time has passed.
    pub(super) fn settle(&mut self) {
        for block in self.0.iter_mut() {
            block.proof = match block.proof {
                Proof::New => Proof::Waiting,
                Proof::Waiting | Proof::Proven => Proof::Proven,
            };
        }
    }
}
