//! Puts policies beside each other, and beside the bound.

use std::time::Duration;

use hmm_policy::placement::Strategy;
use serde::Serialize;

use crate::cost::Cost;
use crate::link::Link;
use crate::uses::Uses;
use crate::{belady, bound, play};

/// What decides which memory moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Player {
    /// One of the driver's strategies.
    Strategy(Strategy),
    /// Moves at every fault, and evicts what is used again last.
    Belady,
}

impl Player {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Strategy(Strategy::Never),
        Self::Strategy(Strategy::FirstTouch),
        Self::Strategy(Strategy::Clock),
        Self::Belady,
        Self::Strategy(Strategy::Heat),
        Self::Strategy(Strategy::Adaptive),
    ];

    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Strategy(strategy) => strategy.name(),
            Self::Belady => "belady",
        }
    }

    /// The one of this name.
    ///
    /// # Errors
    ///
    /// A sentence with all names.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|player| player.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("the policies are {}", names.join(", "))
        })
    }

    /// What it costs on a device for so many granules.
    #[must_use]
    pub fn play(self, uses: &Uses, capacity: usize) -> Cost {
        match self {
            Self::Strategy(strategy) => play::play(strategy, uses, capacity),
            Self::Belady => belady::play(uses, capacity),
        }
    }
}

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Question {
    /// The players.
    pub players: Vec<Player>,
    /// The sizes of device memory, in bytes. A device has whole granules only.
    pub capacities: Vec<u64>,
    /// Whether the bound is computed.
    pub bound: bool,
    /// The link, if times are wanted.
    pub link: Option<Link>,
}

/// What one policy costs on one device.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Verdict {
    /// The policy.
    pub policy: &'static str,
    /// Device memory, in bytes.
    pub capacity: u64,
    /// The size of all granules that are used, in bytes.
    pub footprint: u64,
    /// What happened.
    #[serde(flatten)]
    pub cost: Cost,
    /// Bytes over the link.
    pub link_bytes: u64,
    /// The fewest bytes over the link that were possible.
    pub bound: Option<u64>,
    /// How long the link was in use, in nanoseconds.
    pub link_nanoseconds: Option<u64>,
}

impl Verdict {
    /// Bytes over the link for each byte of the bound; none if there is no bound, or it is zero.
    #[must_use]
    pub fn of_bound(&self) -> Option<f64> {
        let bound = self.bound.filter(|bound| *bound > 0)?;
        Some(ratio(self.link_bytes, bound))
    }

    /// Bytes over the link for each byte of the footprint.
    #[must_use]
    pub fn of_footprint(&self) -> f64 {
        ratio(self.link_bytes, self.footprint.max(1))
    }

    /// The share of used bytes that were on the device.
    #[must_use]
    pub fn served(&self) -> f64 {
        let used = self.cost.on_device + self.cost.in_place;
        ratio(self.cost.on_device, used.max(1))
    }

    /// How long the link was in use.
    #[must_use]
    pub fn time(&self) -> Option<Duration> {
        self.link_nanoseconds.map(Duration::from_nanos)
    }
}

/// A ratio for people.
#[expect(clippy::cast_precision_loss, reason = "for a table")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// Footprint for each byte of device memory, in hundredths, where nothing else is asked for.
pub const USUAL_RATIOS: [u64; 4] = [125, 150, 200, 400];

/// Device memory that a footprint exceeds by [`USUAL_RATIOS`], in whole granules.
#[must_use]
pub fn usual_capacities(uses: &Uses) -> Vec<u64> {
    let granules = uses.granules as u64;
    let granules = USUAL_RATIOS.map(|ratio| granules * 100 / ratio);
    granules.map(|count| count * uses.granule_bytes).into()
}

/// Plays everything that is asked for: for each capacity, all policies.
#[must_use]
pub fn judge(uses: &Uses, question: &Question) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for capacity in &question.capacities {
        let blocks = capacity / uses.granule_bytes;
        // More blocks than granules change nothing.
        let blocks = usize::try_from(blocks).map_or(uses.granules, |all| all.min(uses.granules));
        let bound = question.bound.then(|| bound::link_bytes(uses, blocks));
        for player in &question.players {
            let cost = player.play(uses, blocks);
            let time = question.link.map(|link| link.time(&cost).as_nanos());
            verdicts.push(Verdict {
                policy: player.name(),
                capacity: *capacity,
                footprint: uses.footprint(),
                cost,
                link_bytes: cost.link_bytes(),
                bound,
                link_nanoseconds: time.map(|time| u64::try_from(time).unwrap_or(u64::MAX)),
            });
        }
    }
    verdicts
}
