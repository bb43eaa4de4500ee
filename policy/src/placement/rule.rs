//! The rules by which granules move, and a player, which plays by one of them on blocks.
//!
//! It does not know whether anything really lies in the blocks.

use super::block::{Block, BlockNumber, Blocks};
use super::heat::{Heat, Record, Remote, Remotes};
use super::{lines, Decision, Granule, Shadow};

/// How many times the capacity is used before all heat is halved. With less, an iterated loop over
/// twice the capacity forgets a block before its next round; with more, the device is slow to follow
/// a program that has moved on.
const COOLING_CAPACITIES: u64 = 4;

/// When granules move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Never.
    Never,
    /// At each fault; what came first leaves.
    FirstTouch,
    /// At each fault; what was not used for a round of the hand leaves.
    Clock,
    /// When use in place has cost as much.
    Heat,
    /// As `Clock`, if a job has announced to use the granule as a whole; else as `Heat`.
    Planned,
}

/// A rule on blocks.
#[derive(Debug)]
pub(super) struct Player {
    rule: Rule,
    /// The size of a granule, in lines.
    size: u64,
    /// The block that is looked at next when one has to be emptied.
    hand: usize,
    /// No block before this one is free.
    free_from: usize,
    /// How often all heat has been halved.
    coolings: u32,
    /// Lines used since the last time.
    used: u64,
    /// No block is colder. It saves the search for the coldest one when nothing can come of it.
    floor: Heat,
}

impl Player {
    /// A player on free blocks.
    pub(super) const fn new(rule: Rule, size: u64) -> Self {
        Self {
            rule,
            size,
            hand: 0,
            free_from: 0,
            coolings: 0,
            used: 0,
            floor: Heat::NONE,
        }
    }

    /// Plays by this rule from now on.
    pub(super) fn follow(&mut self, rule: Rule) {
        self.rule = rule;
    }

    /// Whether a job that has announced so many bytes will use a granule as a whole.
    pub(super) fn is_whole(&self, announced: u64) -> bool {
        lines(announced) >= self.size
    }

    /// A job has announced to use all of a granule, or not.
    pub(super) fn announce(&mut self, tables: &mut Shadow<'_>, granule: Granule, whole: bool) {
        match Blocks(tables.blocks).find(granule) {
            Some((_, record)) => record.whole = whole,
            None => {
                Remotes(tables.remotes).announce(granule, whole, self.coolings);
            }
        }
    }

    /// A job waits for a granule.
    pub(super) fn fault(
        &mut self,
        blocks: &mut [Block],
        remotes: &mut [Remote],
        granule: Granule,
        whole: bool,
    ) -> Decision {
        match self.rule {
            Rule::Never => Decision::Stay,
            Rule::FirstTouch | Rule::Clock => self.move_always(blocks, remotes, granule),
            Rule::Heat | Rule::Planned => {
                let known = Remotes(remotes).announce(granule, whole, self.coolings);
                if whole && self.rule == Rule::Planned {
                    return self.move_always(blocks, remotes, granule);
                }
                self.rent_or_buy(blocks, remotes, granule, known, whole)
            }
        }
    }

    /// Jobs have used so many lines of a granule where it is.
    pub(super) fn used_in_place(
        &mut self,
        blocks: &mut [Block],
        remotes: &mut [Remote],
        granule: Granule,
        lines: u64,
    ) -> Decision {
        if !matches!(self.rule, Rule::Heat | Rule::Planned) {
            return Decision::Stay;
        }
        self.count(blocks.len(), lines);
        let known = Remotes(remotes).add(granule, lines, self.coolings);
        if known.whole && self.rule == Rule::Planned {
            return self.move_always(blocks, remotes, granule);
        }
        self.rent_or_buy(blocks, remotes, granule, known, false)
    }

    /// Jobs have used so many lines of what a block holds.
    pub(super) fn used_on_device(&mut self, blocks: &mut [Block], block: BlockNumber, lines: u64) {
        self.count(blocks.len(), lines);
        Blocks(blocks).use_of(block, lines, self.coolings);
    }

    /// A block is free.
    pub(super) fn gone(&mut self, blocks: &mut [Block], block: BlockNumber) {
        if Blocks(blocks).empty(block) {
            self.free_from = self.free_from.min(block.index());
        }
    }

    /// Counts use, and halves all heat when it is time to.
    fn count(&mut self, blocks: usize, lines: u64) {
        let capacity = self.size.saturating_mul(blocks as u64);
        self.used = self.used.saturating_add(lines);
        if self.used >= capacity.saturating_mul(COOLING_CAPACITIES).max(1) {
            self.used = 0;
            self.coolings = self.coolings.wrapping_add(1);
        }
    }

    /// A free block, or else the one that the hand comes to.
    fn move_always(
        &mut self,
        blocks: &mut [Block],
        remotes: &mut [Remote],
        granule: Granule,
    ) -> Decision {
        let spares_used = self.rule != Rule::FirstTouch;
        let mut table = Blocks(blocks);
        let block = match table.first_free(&mut self.free_from) {
            Some(block) => block,
            None => match table.next_victim(&mut self.hand, spares_used) {
                Some(block) => block,
                None => return Decision::Stay,
            },
        };
        self.fill(blocks, remotes, granule, block)
    }

    /// Moves a granule if that is cheaper than its further use where it is, supposed that the future
    /// is like the past.
    fn rent_or_buy(
        &mut self,
        blocks: &mut [Block],
        remotes: &mut [Remote],
        granule: Granule,
        known: Record,
        whole: bool,
    ) -> Decision {
        let heat = u64::from(known.heat.at(self.coolings));
        let table = Blocks(blocks);
        let block = if let Some(block) = table.first_free(&mut self.free_from) {
            if !whole && heat < self.size {
                return Decision::Stay;
            }
            block
        } else {
            // One granule goes home and the other comes.
            let swap = self.size.saturating_mul(2);
            let pays = |cold: u32| heat >= u64::from(cold).saturating_add(swap);
            if !pays(self.floor.at(self.coolings)) {
                return Decision::Stay;
            }
            self.floor = table.floor(self.coolings);
            match table.coldest(self.coolings) {
                Some((block, cold)) if pays(cold) => block,
                _ => return Decision::Stay,
            }
        };
        self.fill(blocks, remotes, granule, block)
    }

    /// Puts a granule into a block, and keeps what is known of the one that leaves it.
    fn fill(
        &mut self,
        blocks: &mut [Block],
        remotes: &mut [Remote],
        granule: Granule,
        block: BlockNumber,
    ) -> Decision {
        let mut remotes = Remotes(remotes);
        let known = remotes.forget(granule);
        let heat = known.heat.at(self.coolings);
        if heat < self.floor.at(self.coolings) {
            self.floor = Heat::new(heat, self.coolings);
        }
        let evicted = Blocks(blocks).fill(block, granule, known);
        Decision::Move {
            block,
            evicted: evicted.map(|(evicted, record)| {
                remotes.remember(evicted, record, self.coolings);
                evicted
            }),
        }
    }
}

/// Time has passed.
pub(super) fn settle(blocks: &mut [Block]) {
    Blocks(blocks).settle();
}
