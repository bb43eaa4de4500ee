//! The least that any policy could have cost, with the future known: exactly.
//!
//! Each block of device memory is a unit of flow through time. At each use it may be empty, or take
//! the granule that is used, and then keep it from one use to the next, which saves the bytes of that
//! use on the link. Taking costs a move, giving back another one, and what is there at the end stays
//! there. So all schedules of moves are flows, and the cheapest one is the bound. A schedule may use
//! memory in place, as policies may.
//!
//! No crate that we could find solves it: one that has a network simplex is under the GPL, another
//! one builds a library in C++, and those for graphs in general stop at the largest flow.

use crate::flow::Network;
use crate::uses::Uses;

/// The fewest bytes over the link with which the uses can be served by a device for so many granules.
///
/// Takes time for each use and each granule of the device; see the README for how long.
///
/// # Panics
///
/// When all bytes together are 2^62 or more.
#[must_use]
pub fn link_bytes(uses: &Uses, capacity: usize) -> u64 {
    let size = signed(uses.granule_bytes);
    let in_place = signed(uses.bytes());
    // A granule whose use costs no more than its move is not worth it.
    let mut of_granule = vec![0_u64; uses.granules];
    for each in &uses.uses {
        of_granule[each.granule] += each.bytes;
    }
    let worth: Vec<_> = (0..uses.uses.len())
        .filter(|index| of_granule[uses.uses[*index].granule] > uses.granule_bytes)
        .collect();
    let mut next = vec![None; worth.len()];
    let mut later = vec![None; uses.granules];
    for (time, index) in worth.iter().enumerate().rev() {
        next[time] = later[uses.uses[*index].granule].replace(time);
    }
    // At each use there are three nodes: a block without a granule before the use, and one with the
    // granule before and after the use. Between the latter only one unit can flow, so that no use is
    // saved twice.
    let end = 3 * worth.len();
    let mut network = Network::new(end + 1);
    let room = capacity as u64;
    for (time, index) in worth.iter().enumerate() {
        let (empty, before, after, then) = (3 * time, 3 * time + 1, 3 * time + 2, 3 * time + 3);
        network.arc(empty, then, room, 0);
        network.arc(empty, before, 1, size);
        network.arc(before, after, 1, -signed(uses.uses[*index].bytes));
        match next[time] {
            Some(again) => network.arc(after, 3 * again + 1, 1, 0),
            None => network.arc(after, end, 1, 0),
        }
        if then != end {
            network.arc(after, then, 1, size);
        }
    }
    let saved = network.cheapest(room);
    u64::try_from(in_place + saved).expect("no schedule costs less than nothing")
}

fn signed(bytes: u64) -> i64 {
    let bytes = i64::try_from(bytes).ok();
    bytes.filter(|bytes| *bytes < 1 << 62).expect("below 2^62")
}
