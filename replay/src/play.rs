//! Lets a policy decide on the uses of a trace.
//!
//! Uses come one after the other, a fault is answered before the next use, and moves take no time. The
//! policy is told of each use; a real device tells the driver only of much use at once.
//! The policy is the one that the driver has, with tables of the same size.

use hmm_policy::placement::{
    Block, BlockNumber, Decision, Fault, Granule, Policy, Remote, Shadow, Strategy, Tables, SAMPLE,
};

use crate::cost::Cost;
use crate::uses::Uses;

/// Entries of the policy's table of memory that is not on the device: 256 MiB in granules of 64 KiB.
const REMOTES: usize = 4096;

/// Where a granule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In system memory, and the device has no mapping of it: the next use is a fault.
    Unmapped,
    /// In system memory, and jobs use it there.
    Mapped,
    /// On the device.
    Block(BlockNumber),
}

/// The device's memory as a policy has filled it.
struct Device {
    blocks: Vec<Block>,
    remotes: Vec<Remote>,
    shadows: [(Vec<Block>, Vec<Remote>); 2],
    policy: Policy,
    places: Vec<Place>,
    granule_bytes: u64,
    cost: Cost,
}

impl Device {
    fn with<R>(&mut self, call: impl FnOnce(&mut Policy, &mut Tables<'_>) -> R) -> R {
        let mut tables = Tables {
            blocks: &mut self.blocks,
            remotes: &mut self.remotes,
            shadows: self
                .shadows
                .each_mut()
                .map(|(blocks, remotes)| Shadow { blocks, remotes }),
        };
        call(&mut self.policy, &mut tables)
    }

    /// Does what the policy has decided about a granule. Returns where that is now.
    fn obey(&mut self, granule: usize, decision: Decision) -> Place {
        match decision {
            Decision::Stay => self.places[granule] = Place::Mapped,
            Decision::Move { block, evicted } => {
                if let Some(Granule(evicted)) = evicted {
                    let evicted = usize::try_from(evicted).expect("it was an index");
                    assert_eq!(self.places[evicted], Place::Block(block), "a block is full");
                    self.places[evicted] = Place::Unmapped;
                    self.cost.leaves(self.granule_bytes);
                }
                self.places[granule] = Place::Block(block);
                self.cost.comes(self.granule_bytes);
            }
        }
        self.places[granule]
    }
}

/// Replays uses under a strategy, on a device for so many granules.
///
/// # Panics
///
/// When a policy gives a wrong decision, such as a block that is in use.
#[must_use]
pub fn play(strategy: Strategy, uses: &Uses, capacity: usize) -> Cost {
    let size = u32::try_from(uses.granule_bytes).unwrap_or(u32::MAX);
    // With eight entries for each granule none is ever given up, as in a larger table.
    let remotes = REMOTES.min(8 * uses.granules);
    let shadow = || {
        let blocks = vec![Block::FREE; capacity.div_ceil(SAMPLE)];
        (blocks, vec![Remote::FREE; remotes.div_ceil(SAMPLE)])
    };
    let mut device = Device {
        blocks: vec![Block::FREE; capacity],
        remotes: vec![Remote::FREE; remotes],
        shadows: [shadow(), shadow()],
        policy: Policy::new(strategy, size),
        places: vec![Place::Unmapped; uses.granules],
        granule_bytes: uses.granule_bytes,
        cost: Cost::default(),
    };
    for each in &uses.uses {
        let granule = Granule(each.granule as u64);
        let mut place = device.places[each.granule];
        if place == Place::Unmapped {
            device.cost.faults += 1;
            let fault = Fault {
                granule,
                announced: each.announced,
            };
            let decision = device.with(|policy, tables| policy.fault(tables, fault));
            place = device.obey(each.granule, decision);
        }
        if let Place::Block(block) = place {
            device.cost.hit(each.bytes);
            device.with(|policy, tables| policy.used_on_device(tables, block, each.bytes));
        } else {
            device.cost.miss(each.bytes);
            let decision =
                device.with(|policy, tables| policy.used_in_place(tables, granule, each.bytes));
            device.obey(each.granule, decision);
        }
    }
    device.cost
}
