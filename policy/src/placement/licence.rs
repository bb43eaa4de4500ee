//! The licence to move what a job announces: whether that is cheaper than to wait for heat.
//!
//! Two shadows play both rules on the same part of all granules, on the same part of the memory.
//! Nothing lies in a shadow's blocks; it only counts what its moves would have cost.

use super::block::Blocks;
use super::heat::Remotes;
use super::rule::{Player, Rule};
use super::{Decision, Granule, Shadow};

/// One granule in so many is in the shadows, and so many times smaller is their memory. A power of two.
pub(super) const SAMPLE: usize = 8;

/// The other rule gets the licence when it costs less than so many hundredths of what the present one
/// costs. Without a difference, runs of equal costs would change the rule again and again.
const CLEARLY: u64 = 90;

/// What is known of both rules, and which one is followed.
#[derive(Debug)]
pub(super) struct Licence {
    /// In the order of [`RULES`].
    shadows: [Counted; 2],
    /// The one that is followed.
    present: usize,
    /// The size of a granule, in lines.
    size: u64,
    /// Lines that were used since the shadows were last compared.
    used: u64,
}

/// The rules that are compared. The first one is followed until the other has earned it: a wrong start
/// costs least so.
const RULES: [Rule; 2] = [Rule::Heat, Rule::Planned];

/// A shadow, and what its moves and its use of memory in place would have cost, in lines.
#[derive(Debug)]
struct Counted {
    player: Player,
    cost: u64,
}

impl Licence {
    /// For granules of so many lines.
    pub(super) const fn new(size: u64) -> Self {
        Self {
            shadows: [Counted::new(RULES[0], size), Counted::new(RULES[1], size)],
            present: 0,
            size,
            used: 0,
        }
    }

    /// A job waits for a granule, and has announced to use all of it or not.
    pub(super) fn announced(
        &mut self,
        tables: &mut [Shadow<'_>; 2],
        granule: Granule,
        whole: bool,
    ) {
        if !is_sampled(granule) {
            return;
        }
        for (shadow, tables) in self.shadows.iter_mut().zip(tables) {
            shadow.player.announce(tables, granule, whole);
        }
    }

    /// Jobs have used so many lines of a granule, wherever it is. Returns the rule to follow on a
    /// device of so many blocks.
    pub(super) fn used(
        &mut self,
        tables: &mut [Shadow<'_>; 2],
        granule: Granule,
        lines: u64,
        capacity: u64,
    ) -> Rule {
        if is_sampled(granule) {
            for (shadow, tables) in self.shadows.iter_mut().zip(tables) {
                shadow.uses(tables, granule, lines, self.size);
            }
        }
        self.used = self.used.saturating_add(lines);
        if self.used >= capacity.saturating_mul(self.size) {
            self.used = 0;
            self.compare();
        }
        RULES.get(self.present).copied().unwrap_or(Rule::Heat)
    }

    /// A granule is no longer on the device, and nothing is known of it any more.
    pub(super) fn gone(&mut self, tables: &mut [Shadow<'_>; 2], granule: Granule) {
        if !is_sampled(granule) {
            return;
        }
        for (shadow, tables) in self.shadows.iter_mut().zip(tables) {
            Remotes(tables.remotes).forget(granule);
            if let Some((block, _)) = Blocks(tables.blocks).find(granule) {
                shadow.player.gone(tables.blocks, block);
            }
        }
    }

    /// Gives the licence to the rule that is clearly cheaper, and lets half of what was seen weigh in
    /// the next comparison.
    fn compare(&mut self) {
        let other = 1_usize.saturating_sub(self.present);
        let cost = |index: usize| self.shadows.get(index).map_or(0, |shadow| shadow.cost);
        if cost(other).saturating_mul(100) < cost(self.present).saturating_mul(CLEARLY) {
            self.present = other;
        }
        for shadow in &mut self.shadows {
            shadow.cost >>= 1;
        }
    }
}

impl Counted {
    const fn new(rule: Rule, size: u64) -> Self {
        Self {
            player: Player::new(rule, size),
            cost: 0,
        }
    }

    /// Jobs have used so many lines of a granule of so many.
    fn uses(&mut self, tables: &mut Shadow<'_>, granule: Granule, lines: u64, size: u64) {
        if let Some((block, _)) = Blocks(tables.blocks).find(granule) {
            self.player.used_on_device(tables.blocks, block, lines);
            return;
        }
        // Where a granule would be mapped is not known: each use in place counts as one that faults.
        let whole = Remotes(tables.remotes).is_whole(granule);
        let (blocks, remotes) = (&mut *tables.blocks, &mut *tables.remotes);
        let mut decision = self.player.fault(blocks, remotes, granule, whole);
        if decision == Decision::Stay {
            decision = self.player.used_in_place(blocks, remotes, granule, lines);
        }
        let cost = match decision {
            Decision::Stay => lines,
            Decision::Move { evicted: None, .. } => size,
            Decision::Move { .. } => size.saturating_mul(2),
        };
        self.cost = self.cost.saturating_add(cost);
        if let Decision::Move { block, .. } = decision {
            self.player.used_on_device(tables.blocks, block, lines);
        }
    }
}

/// Whether the shadows look at a granule. Neighbours and rows of matrices are spread over the sample.
const fn is_sampled(granule: Granule) -> bool {
    // The golden ratio in 64 bits: the upper bits of the product are as good as random.
    let mixed = granule.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) & (SAMPLE as u64).wrapping_sub(1) == 0
}
