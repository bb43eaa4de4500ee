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
mod licence;
mod rule;

pub use block::{Block, BlockNumber};
pub use heat::Remote;

use licence::Licence;
use rule::{Player, Rule};

/// The least use of memory that is told apart, in bytes: what a device fetches at once.
pub const LINE_BYTES: u64 = 64;

/// How many times smaller a [`Shadow`] is than the device.
pub const SAMPLE: usize = licence::SAMPLE;

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
    /// `Heat`, or, as long as that is cheaper, `Clock` for what jobs use as a whole. Two shadows, which
    /// play both on one granule in eight, find out which it is.
    Adaptive,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Never,
        Self::FirstTouch,
        Self::Clock,
        Self::Heat,
        Self::Adaptive,
    ];

    /// Its name on command lines and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::FirstTouch => "first-touch",
            Self::Clock => "clock",
            Self::Heat => "heat",
            Self::Adaptive => "adaptive",
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
    /// What [`Strategy::Adaptive`] compares with. For other strategies, and without a comparison, all
    /// may be empty.
    pub shadows: [Shadow<'a>; 2],
}

/// The memory of one of the two shadows: an eighth of the device's, on which no granule ever lies.
#[derive(Debug, Default)]
pub struct Shadow<'a> {
    /// An eighth of the blocks.
    pub blocks: &'a mut [Block],
    /// An eighth of the table of granules that are not on the device.
    pub remotes: &'a mut [Remote],
}

/// A strategy, and what it remembers besides the [`Tables`].
#[derive(Debug)]
pub struct Policy {
    player: Player,
    /// Decides which rule the player has, if that is not always the same.
    licence: Option<Licence>,
}

impl Policy {
    /// A strategy for granules of a size in bytes, at least [`LINE_BYTES`]; less counts as that.
    #[must_use]
    pub const fn new(strategy: Strategy, granule_bytes: u32) -> Self {
        let size = lines(granule_bytes as u64);
        let size = if size == 0 { 1 } else { size };
        let (rule, licence) = match strategy {
            Strategy::Never => (Rule::Never, None),
            Strategy::FirstTouch => (Rule::FirstTouch, None),
            Strategy::Clock => (Rule::Clock, None),
            Strategy::Heat => (Rule::Heat, None),
            Strategy::Adaptive => (Rule::Heat, Some(Licence::new(size))),
        };
        Self {
            player: Player::new(rule, size),
            licence,
        }
    }

    /// A job waits for a granule that is not on the device. Whatever the decision, the caller can let
    /// the job go on.
    pub fn fault(&mut self, tables: &mut Tables<'_>, fault: Fault) -> Decision {
        let whole = self.player.is_whole(fault.announced);
        if let Some(licence) = &mut self.licence {
            licence.announced(&mut tables.shadows, fault.granule, whole);
        }
        self.player
            .fault(tables.blocks, tables.remotes, fault.granule, whole)
    }

    /// Jobs have used so many bytes of a granule that is not on the device. No job waits for the
    /// decision.
    pub fn used_in_place(
        &mut self,
        tables: &mut Tables<'_>,
        granule: Granule,
        bytes: u64,
    ) -> Decision {
        self.compare(tables, granule, bytes);
        self.player
            .used_in_place(tables.blocks, tables.remotes, granule, lines(bytes))
    }

    /// Jobs have used so many bytes of what a block holds.
    pub fn used_on_device(&mut self, tables: &mut Tables<'_>, block: BlockNumber, bytes: u64) {
        let holds = tables.blocks.get(block.index()).and_then(Block::holds);
        if let Some(granule) = holds {
            self.compare(tables, granule, bytes);
        }
        self.player
            .used_on_device(tables.blocks, block, lines(bytes));
    }

    /// What a block held is no longer there, or has not come: the process has touched it, freed it,
    /// or ended. The block is free, and the granule's heat is forgotten.
    pub fn gone(&mut self, tables: &mut Tables<'_>, block: BlockNumber) {
        let holds = tables.blocks.get(block.index()).and_then(Block::holds);
        if let (Some(granule), Some(licence)) = (holds, &mut self.licence) {
            licence.gone(&mut tables.shadows, granule);
        }
        self.player.gone(tables.blocks, block);
    }

    /// Time has passed. A granule that came before the last call but one may be evicted, even if it
    /// has never been used. The caller calls it about once a second while anything moves.
    pub fn settle(&mut self, tables: &mut Tables<'_>) {
        rule::settle(tables.blocks);
        for shadow in &mut tables.shadows {
            rule::settle(shadow.blocks);
        }
    }

    /// Lets the shadows see a use, and follows the one that is cheaper.
    fn compare(&mut self, tables: &mut Tables<'_>, granule: Granule, bytes: u64) {
        if let Some(licence) = &mut self.licence {
            let capacity = tables.blocks.len() as u64;
            let rule = licence.used(&mut tables.shadows, granule, lines(bytes), capacity);
            self.player.follow(rule);
        }
    }
}

/// Bytes in lines, of which the last one may be used in part.
const fn lines(bytes: u64) -> u64 {
    bytes.div_ceil(LINE_BYTES)
}
