//! Decides which granules lie in device memory.
//!
//! A *granule* is the piece of a process's memory that moves as a whole; device memory is divided
//! into *blocks* of the same size, each of which holds one granule or none. The caller tells a
//! [`Policy`] what happens: a fault, use of memory on the device or where it is, a granule that has
//! gone. The policy decides whether a granule moves, into which block, and which granule has to
//! leave that block. It moves nothing itself.
//!
//! The caller owns all memory, as [`Tables`], and keeps calls from running at the same time.
//! Nothing here allocates, sleeps, or knows pages, processes, queues or locks.

mod block;
mod heat;

pub use block::{Block, BlockNumber};
pub use heat::Remote;

use block::Blocks;
use heat::{Heat, Remotes};

/// The least use of memory that is told apart, in bytes: what a device fetches at once.
pub const LINE_BYTES: u64 = 64;

/// How many times the device's capacity is used before all heat is halved. With less, an iterated
/// loop over twice the capacity forgets a block before its next round; with more, the device is slow
/// to follow a program that has moved on.
const COOLING_CAPACITIES: u64 = 4;

/// A piece of a process's memory, by a number that the caller chooses and that says which process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granule(pub u64);

/// Which memory moves to the device, and which has to leave for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Nothing moves: jobs use all memory where it is.
    Never,
    /// Each fault moves its granule. What has come first leaves first, whether it is in use or not,
    /// as in drivers that have no knowledge of accesses.
    FirstTouch,
    /// Each fault moves its granule. What has not been used for one round of the hand leaves.
    Clock,
    /// Rent or buy: a granule is used where it is until it has been used for more than its move
    /// costs, and for more than the granule that it replaces. A granule that a job has announced to
    /// use as a whole moves at once if a block is free.
    Heat,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Never, Self::FirstTouch, Self::Clock, Self::Heat];

    /// Its name on command lines and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::FirstTouch => "first-touch",
            Self::Clock => "clock",
            Self::Heat => "heat",
        }
    }

    /// The strategy of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name() == name)
    }
}

/// A device fault: a job waits until a granule can be used, wherever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The granule.
    pub granule: Granule,
    /// How many bytes the job has announced to use from the fault's address on, zero if none.
    pub announced: u64,
}

/// What is to be done about a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is used where it is.
    Stay,
    /// It moves into this block.
    Move {
        /// The block, which from now on counts as holding the granule. If it cannot come after
        /// all, the caller says so by [`Policy::gone`].
        block: BlockNumber,
        /// The granule that has to leave the block before.
        evicted: Option<Granule>,
    },
}

/// What a policy works on. The caller allocates it, once.
#[derive(Debug)]
pub struct Tables<'a> {
    /// The blocks of device memory, all of which a policy may fill.
    pub blocks: &'a mut [Block],
    /// The heat of granules that are not on the device. A granule can be in eight entries; the
    /// coldest one of these is given up for it, and begins anew. 4096 entries are enough for 256 MiB
    /// in granules of 64 KiB.
    pub remotes: &'a mut [Remote],
}

/// A strategy, and what it remembers besides the [`Tables`].
#[derive(Debug)]
pub struct Policy {
    strategy: Strategy,
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

impl Policy {
    /// A strategy for granules of a size in bytes, at least [`LINE_BYTES`]; less counts as that.
    #[must_use]
    pub const fn new(strategy: Strategy, granule_bytes: u32) -> Self {
        let size = lines(granule_bytes as u64);
        Self {
            strategy,
            size: if size == 0 { 1 } else { size },
            hand: 0,
            free_from: 0,
            coolings: 0,
            used: 0,
            floor: Heat::NONE,
        }
    }

    /// A job waits for a granule that is not on the device. Whatever the decision, the caller can let
    /// the job go on.
    pub fn fault(&mut self, tables: &mut Tables<'_>, fault: Fault) -> Decision {
        match self.strategy {
            Strategy::Never => Decision::Stay,
            Strategy::FirstTouch | Strategy::Clock => self.move_always(tables, fault.granule),
            Strategy::Heat => {
                let heat = Remotes(tables.remotes).find(fault.granule);
                let heat = heat.map_or(0, |heat| heat.at(self.coolings));
                let whole = lines(fault.announced) >= self.size;
                self.rent_or_buy(tables, fault.granule, heat, whole)
            }
        }
    }

    /// Jobs have used so many bytes of a granule that is not on the device. No job waits for the
    /// decision.
    pub fn used_in_place(
        &mut self,
        tables: &mut Tables<'_>,
        granule: Granule,
        bytes: u64,
    ) -> Decision {
        if self.strategy != Strategy::Heat {
            return Decision::Stay;
        }
        self.count(tables, bytes);
        let heat = Remotes(tables.remotes).add(granule, lines(bytes), self.coolings);
        self.rent_or_buy(tables, granule, heat, false)
    }

    /// Jobs have used so many bytes of what a block holds.
    pub fn used_on_device(&mut self, tables: &mut Tables<'_>, block: BlockNumber, bytes: u64) {
        self.count(tables, bytes);
        Blocks(tables.blocks).use_of(block, lines(bytes), self.coolings);
    }

    /// What a block held is no longer there, or has not come: the process has touched it, freed it,
    /// or ended. The block is free, and the granule's heat is forgotten.
    pub fn gone(&mut self, tables: &mut Tables<'_>, block: BlockNumber) {
        if Blocks(tables.blocks).empty(block) {
            self.free_from = self.free_from.min(block.index());
        }
    }

    /// Time has passed. A granule that came before the last call but one may be evicted, even if it
    /// has never been used. The caller calls it about once a second while anything moves.
    pub fn settle(&mut self, tables: &mut Tables<'_>) {
        Blocks(tables.blocks).settle();
    }

    /// Counts use, and halves all heat when it is time to.
    fn count(&mut self, tables: &Tables<'_>, bytes: u64) {
        let capacity = self.size.saturating_mul(tables.blocks.len() as u64);
        self.used = self.used.saturating_add(lines(bytes));
        if self.used >= capacity.saturating_mul(COOLING_CAPACITIES).max(1) {
            self.used = 0;
            self.coolings = self.coolings.wrapping_add(1);
        }
    }

    /// A free block, or else the one that the hand comes to.
    fn move_always(&mut self, tables: &mut Tables<'_>, granule: Granule) -> Decision {
        let spares_used = self.strategy == Strategy::Clock;
        let mut blocks = Blocks(tables.blocks);
        let block = match blocks.first_free(&mut self.free_from) {
            Some(block) => block,
            None => match blocks.next_victim(&mut self.hand, spares_used) {
                Some(block) => block,
                None => return Decision::Stay,
            },
        };
        let evicted = blocks.fill(block, granule, Heat::NONE);
        Decision::Move {
            block,
            evicted: evicted.map(|(granule, _)| granule),
        }
    }

    /// Moves a granule of this heat if that is cheaper than its further use where it is, supposed
    /// that the future is like the past.
    fn rent_or_buy(
        &mut self,
        tables: &mut Tables<'_>,
        granule: Granule,
        heat: u32,
        whole: bool,
    ) -> Decision {
        let mut blocks = Blocks(tables.blocks);
        let block = if let Some(block) = blocks.first_free(&mut self.free_from) {
            if !whole && u64::from(heat) < self.size {
                return Decision::Stay;
            }
            block
        } else {
            // One granule goes home and the other comes.
            let swap = self.size.saturating_mul(2);
            let pays = |cold: u32| u64::from(heat) >= u64::from(cold).saturating_add(swap);
            if !pays(self.floor.at(self.coolings)) {
                return Decision::Stay;
            }
            self.floor = blocks.floor(self.coolings);
            match blocks.coldest(self.coolings) {
                Some((block, cold)) if pays(cold) => block,
                _ => return Decision::Stay,
            }
        };
        let mut remotes = Remotes(tables.remotes);
        remotes.forget(granule);
        let heat = Heat::new(heat, self.coolings);
        if heat.at(self.coolings) < self.floor.at(self.coolings) {
            self.floor = heat;
        }
        let evicted = blocks.fill(block, granule, heat);
        Decision::Move {
            block,
            evicted: evicted.map(|(evicted, heat)| {
                remotes.remember(evicted, heat, self.coolings);
                evicted
            }),
        }
    }
}

/// Bytes in lines, of which the last one may be used in part.
const fn lines(bytes: u64) -> u64 {
    bytes.div_ceil(LINE_BYTES)
}
