//! The bound against every schedule there is, and all policies against the bound, on small random
//! traces.

use hmm_policy::placement::Strategy;
use hmm_replay::judge::Player;
use hmm_replay::uses::{Use, Uses};
use hmm_replay::{belady, bound, play};

/// The size of a granule in these tests, in bytes.
const SIZE: u64 = 1024;

/// Random uses of few granules: some small, some announced, some of more than a granule's size.
fn random_uses(random: &mut fastrand::Rng, granules: usize, most: usize) -> Uses {
    let uses = (0..random.usize(..=most)).map(|_| {
        let most = if random.bool() { 4 } else { 40 };
        Use {
            granule: random.usize(..granules).min(random.usize(..granules)),
            bytes: 64 * random.u64(1..=most),
            announced: if random.bool() { SIZE } else { 0 },
        }
    });
    Uses {
        uses: uses.collect(),
        granules,
        granule_bytes: SIZE,
    }
}

/// The cost of the best schedule: for each set of granules on the device, the least that it costs to
/// come so far and have these there. Between uses any set may follow any other.
fn best_of_all(uses: &Uses, capacity: usize) -> u64 {
    let sets = 1_usize << uses.granules;
    let allowed = |set: &usize| set.count_ones() as usize <= capacity;
    let mut best = vec![u64::MAX; sets];
    best[0] = 0;
    for each in &uses.uses {
        let mut then = vec![u64::MAX; sets];
        for (before, cost) in best
            .iter()
            .enumerate()
            .filter(|(_, cost)| **cost < u64::MAX)
        {
            for after in (0..sets).filter(allowed) {
                let moves = u64::from((before ^ after).count_ones());
                let in_place = after & (1 << each.granule) == 0;
                let bytes = if in_place { each.bytes } else { 0 };
                then[after] = then[after].min(cost + moves * SIZE + bytes);
            }
        }
        best = then;
    }
    best.into_iter().min().unwrap()
}

#[test]
fn the_bound_is_the_cost_of_the_best_schedule_that_there_is() {
    let mut random = fastrand::Rng::with_seed(6);
    let mut moves_pay = 0;
    for round in 0..3000 {
        let granules = random.usize(1..5);
        let uses = random_uses(&mut random, granules, 14);
        let capacity = random.usize(0..=granules);
        let least = best_of_all(&uses, capacity);
        assert_eq!(
            bound::link_bytes(&uses, capacity),
            least,
            "{round}: {uses:?}"
        );
        moves_pay += usize::from(least < uses.bytes());
    }
    assert!(moves_pay > 1000, "{moves_pay}: the traces are too easy");
}

#[test]
fn no_policy_beats_the_bound_and_more_memory_never_costs_more() {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..600 {
        let granules = random.usize(1..12);
        let uses = random_uses(&mut random, granules, 120);
        let mut before = uses.bytes();
        for capacity in 0..=granules {
            let bound = bound::link_bytes(&uses, capacity);
            assert!(bound <= before, "{round}");
            before = bound;
            for player in Player::ALL {
                let cost = player.play(&uses, capacity);
                let name = player.name();
                assert!(
                    cost.link_bytes() >= bound,
                    "{round}: {name} {cost:?} {bound}"
                );
                assert_eq!(cost.on_device + cost.in_place, uses.bytes(), "{name}");
                assert_eq!(cost.hits + cost.misses, uses.uses.len() as u64, "{name}");
                let there = cost.moves - cost.evictions;
                assert!(there <= capacity as u64, "{name}");
            }
        }
    }
}

#[test]
fn a_device_with_room_for_all_is_bounded_by_one_move_of_what_is_worth_it() {
    let mut random = fastrand::Rng::with_seed(8);
    for _ in 0..300 {
        let uses = random_uses(&mut random, 8, 60);
        let mut of_granule = [0; 8];
        for each in &uses.uses {
            of_granule[each.granule] += each.bytes;
        }
        let least: u64 = of_granule.iter().map(|bytes| SIZE.min(*bytes)).sum();
        assert_eq!(bound::link_bytes(&uses, 8), least);
    }
}

#[test]
fn belady_moves_least_of_all_that_move_at_every_fault() {
    let mut random = fastrand::Rng::with_seed(9);
    let mut better = 0;
    for _ in 0..1000 {
        let uses = random_uses(&mut random, 10, 200);
        let capacity = random.usize(1..10);
        let least = belady::play(&uses, capacity).moves;
        for strategy in [Strategy::FirstTouch, Strategy::Clock] {
            let moves = play::play(strategy, &uses, capacity).moves;
            assert!(least <= moves, "{}", strategy.name());
            better += usize::from(least < moves);
        }
    }
    assert!(better > 500, "{better}");
}
