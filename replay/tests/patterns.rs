//! Policies on the patterns that programs have: how far each may be from the bound.
//!
//! The figures are those that the patterns have on paper. Real operations are recorded and judged by
//! the daemon's bench `oversubscription`.

use hmm_policy::placement::Strategy;
use hmm_replay::cost::Cost;
use hmm_replay::uses::{Use, Uses};
use hmm_replay::{belady, bound, play};

/// The size of a granule, in bytes.
const SIZE: u64 = 64 << 10;

/// Granules of a pattern.
const GRANULES: usize = 240;

/// Footprint for each byte of the device, in hundredths.
const RATIOS: [usize; 4] = [125, 150, 200, 400];

fn uses(list: impl IntoIterator<Item = (usize, u64, u64)>) -> Uses {
    let uses = list.into_iter().map(|(granule, bytes, announced)| Use {
        granule,
        bytes,
        announced,
    });
    let uses: Vec<_> = uses.collect();
    let granules = 1 + uses.iter().map(|each| each.granule).max().unwrap();
    Uses {
        uses,
        granules,
        granule_bytes: SIZE,
    }
}

/// All of memory from the first byte to the last, so many times. Announced, as our jobs do.
fn stream(times: usize) -> Uses {
    let once = |_| (0..GRANULES).map(|granule| (granule, SIZE, (GRANULES - granule) as u64 * SIZE));
    uses((0..times).flat_map(once))
}

/// Random lines. Nothing can be announced.
fn updates(count: usize, granule: impl Fn(&mut fastrand::Rng) -> usize) -> Uses {
    let mut random = fastrand::Rng::with_seed(10);
    uses((0..count).map(|_| (granule(&mut random), 64, 64)))
}

/// Memory and a hot granule in turns, so many times.
fn tiles(times: usize) -> Uses {
    let once = |_| (1..GRANULES).flat_map(|granule| [(granule, SIZE, SIZE), (0, SIZE, SIZE)]);
    uses((0..times).flat_map(once))
}

fn heat(uses: &Uses, capacity: usize) -> Cost {
    play::play(Strategy::Heat, uses, capacity)
}

/// Link bytes for each byte of the bound, in hundredths, rounded up.
fn of_bound(cost: &Cost, uses: &Uses, capacity: usize) -> u64 {
    (cost.link_bytes() * 100).div_ceil(bound::link_bytes(uses, capacity))
}

#[test]
fn a_stream_that_is_read_once_costs_its_own_size_and_a_peers_policy_moves_it_home_besides() {
    let uses = stream(1);
    for ratio in RATIOS {
        let capacity = GRANULES * 100 / ratio;
        assert_eq!(heat(&uses, capacity).link_bytes(), uses.footprint());
        assert_eq!(bound::link_bytes(&uses, capacity), uses.footprint());
        let peer = play::play(Strategy::FirstTouch, &uses, capacity).link_bytes();
        let rest = (GRANULES - capacity) as u64 * SIZE;
        assert_eq!(peer, uses.footprint() + rest);
    }
}

#[test]
fn an_iterated_stream_costs_exactly_the_bound_under_heat_and_much_more_when_all_of_it_moves() {
    let uses = stream(8);
    for ratio in RATIOS {
        let capacity = GRANULES * 100 / ratio;
        let rest = (GRANULES - capacity) as u64;
        let least = (capacity as u64 + 8 * rest) * SIZE;
        assert_eq!(heat(&uses, capacity).link_bytes(), least);
        assert_eq!(bound::link_bytes(&uses, capacity), least);
        for strategy in [Strategy::FirstTouch, Strategy::Clock] {
            let moved = play::play(strategy, &uses, capacity).link_bytes();
            assert!(moved > 2 * least, "{} at {ratio}", strategy.name());
        }
        let belady = belady::play(&uses, capacity).link_bytes();
        assert!(belady > least, "eviction alone is not enough at {ratio}");
    }
}

#[test]
fn a_hot_granule_beside_a_stream_stays_on_the_device() {
    let uses = tiles(8);
    for ratio in RATIOS {
        let capacity = GRANULES * 100 / ratio;
        let cost = heat(&uses, capacity);
        assert!(of_bound(&cost, &uses, capacity) <= 101, "{cost:?}");
        assert!(cost.on_device * 2 >= uses.bytes());
    }
}

#[test]
fn of_two_streams_the_one_that_is_used_twice_as_much_is_found_out_in_time() {
    // y += a * x: y is read and written.
    let half = GRANULES / 2;
    let pairs = |_| (0..half).flat_map(|x| [(x, SIZE, SIZE), (half + x, 2 * SIZE, SIZE)]);
    let uses = uses((0..4).flat_map(pairs));
    for ratio in RATIOS {
        let capacity = GRANULES * 100 / ratio;
        let cost = heat(&uses, capacity);
        assert!(of_bound(&cost, &uses, capacity) <= 145, "{cost:?}");
    }
}

#[test]
fn a_product_in_blocks_costs_more_than_the_bound_and_far_less_than_without_a_device() {
    // Each block of rows meets each block of columns. Nothing is announced. It is the pattern that
    // suits `heat` least: what has been used for the cost of a move is not used much more.
    const BLOCKS: usize = 8;
    const DEPTH: usize = 10;
    let block = |index: usize| (index * DEPTH..(index + 1) * DEPTH).map(|use_of| (use_of, SIZE, 0));
    let product = |row: usize, column: usize| {
        let result = 2 * BLOCKS * DEPTH + row * BLOCKS + column;
        let inputs = block(row).zip(block(BLOCKS + column));
        let inputs = inputs.flat_map(|(row, column)| [row, column]);
        inputs.chain([(result, 2 * SIZE, 0)])
    };
    let row = |row: usize| (0..BLOCKS).flat_map(move |column| product(row, column));
    let uses = uses((0..BLOCKS).flat_map(row));
    for ratio in RATIOS {
        let capacity = uses.granules * 100 / ratio;
        let cost = heat(&uses, capacity);
        assert!(of_bound(&cost, &uses, capacity) <= 270, "{cost:?}");
        let never = play::play(Strategy::Never, &uses, capacity).link_bytes();
        assert!(cost.link_bytes() * 10 <= never * 8, "{cost:?}");
    }
}

#[test]
fn random_updates_cost_no_more_than_if_nothing_moved() {
    // A quarter of a granule's lines for each granule: no move can pay.
    let uses = updates(GRANULES * 256, |random| random.usize(..GRANULES));
    for ratio in RATIOS {
        let capacity = GRANULES * 100 / ratio;
        let never = play::play(Strategy::Never, &uses, capacity).link_bytes();
        assert_eq!(heat(&uses, capacity).link_bytes(), never);
        assert_eq!(bound::link_bytes(&uses, capacity), never);
        let peer = play::play(Strategy::FirstTouch, &uses, capacity).link_bytes();
        assert!(peer > 100 * never, "at {ratio}");
    }
}

#[test]
fn long_random_updates_fill_the_device_once_and_do_not_thrash() {
    let uses = updates(GRANULES * 3072, |random| random.usize(..GRANULES));
    for ratio in RATIOS {
        let capacity = GRANULES * 100 / ratio;
        let cost = heat(&uses, capacity);
        let never = play::play(Strategy::Never, &uses, capacity).link_bytes();
        assert!(cost.link_bytes() < never, "{cost:?}");
        assert!(cost.evictions <= capacity as u64 / 10, "{cost:?}");
    }
}

#[test]
fn a_skewed_gather_is_served_from_the_device_once_it_is_warm() {
    let hot = GRANULES / 10;
    let uses = updates(GRANULES * 2048, |random| {
        let is_hot = random.u32(..10) < 9;
        random.usize(if is_hot { 0..hot } else { hot..GRANULES })
    });
    let cost = heat(&uses, GRANULES / 2);
    let all = cost.hits + cost.misses;
    assert!(cost.hits * 10 >= all * 8, "{cost:?}");
    let never = play::play(Strategy::Never, &uses, GRANULES / 2);
    assert!(cost.link_bytes() * 3 < never.link_bytes(), "{cost:?}");
}

#[test]
fn a_hot_set_that_moves_on_is_followed() {
    let hot = GRANULES / 10;
    let stay = GRANULES * 2048;
    let mut random = fastrand::Rng::with_seed(11);
    let uses = uses((0..4 * stay).map(|count| {
        let from = (count / stay) * hot * 2;
        (random.usize(from..from + hot), 64, 64)
    }));
    // Room for one hot set and a half.
    let cost = heat(&uses, hot * 3 / 2);
    assert!(cost.hits * 4 >= (cost.hits + cost.misses) * 3, "{cost:?}");
}
