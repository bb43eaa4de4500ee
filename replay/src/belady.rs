//! The eviction that knows the future: each use moves its granule, and the granule whose next use is
//! farthest away leaves (L. Belady, 1966).
//!
//! It is the best that moves at every fault can do, and not the best that there is.

use std::collections::BTreeSet;

use crate::cost::Cost;
use crate::uses::Uses;

/// Replays uses on a device for so many granules.
#[must_use]
pub fn play(uses: &Uses, capacity: usize) -> Cost {
    let next = uses.next_of_same();
    // For each granule on the device, its next use; a use that never comes is after all others.
    let mut coming = vec![None; uses.granules];
    let mut order = BTreeSet::new();
    let mut cost = Cost::default();
    for (index, each) in uses.uses.iter().enumerate() {
        if capacity == 0 {
            cost.miss(each.bytes);
            continue;
        }
        match coming[each.granule].take() {
            Some(at) => {
                order.remove(&(at, each.granule));
            }
            None => {
                cost.faults += 1;
                if order.len() == capacity {
                    if let Some((_, farthest)) = order.pop_last() {
                        coming[farthest] = None;
                        cost.leaves(uses.granule_bytes);
                    }
                }
                cost.comes(uses.granule_bytes);
            }
        }
        cost.hit(each.bytes);
        let at = next[index].unwrap_or(usize::MAX);
        coming[each.granule] = Some(at);
        order.insert((at, each.granule));
    }
    cost
}
