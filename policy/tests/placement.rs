//! The strategies against models that are simple and slow, and the promises of `placement`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hmm_policy::placement::{
    Block, BlockNumber, Decision, Fault, Granule, Policy, Remote, Shadow, Strategy, Tables,
    LINE_BYTES, SAMPLE,
};

/// The size of a granule in all tests, in lines and in bytes.
const SIZE: u64 = 4;
const SIZE_BYTES: u32 = 256;

/// The strategies that move something.
const MOVING: [Strategy; 4] = [
    Strategy::FirstTouch,
    Strategy::Clock,
    Strategy::Heat,
    Strategy::Adaptive,
];

/// A policy with its tables, and where each granule is.
struct Device {
    blocks: Vec<Block>,
    remotes: Vec<Remote>,
    shadows: [(Vec<Block>, Vec<Remote>); 2],
    policy: Policy,
    places: BTreeMap<u64, BlockNumber>,
}

impl Device {
    fn new(strategy: Strategy, blocks: usize) -> Self {
        Self {
            blocks: vec![Block::FREE; blocks],
            remotes: vec![Remote::FREE; 256],
            shadows: [0, 1].map(|_| {
                let blocks = blocks.div_ceil(SAMPLE);
                (vec![Block::FREE; blocks], vec![Remote::FREE; 32])
            }),
            policy: Policy::new(strategy, SIZE_BYTES),
            places: BTreeMap::new(),
        }
    }

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

    /// Checks an answer and obeys it. Returns what was evicted, if the granule has moved.
    fn obey(&mut self, granule: u64, answer: Decision) -> Option<Option<u64>> {
        let Decision::Move { block, evicted } = answer else {
            return None;
        };
        let evicted = evicted.map(|granule| granule.0);
        let before = self.places.iter().find(|(_, place)| **place == block);
        assert_eq!(before.map(|(granule, _)| *granule), evicted);
        if let Some(evicted) = evicted {
            self.places.remove(&evicted);
        }
        self.places.insert(granule, block);
        assert_eq!(self.blocks[block.index()].holds(), Some(Granule(granule)));
        Some(evicted)
    }

    fn fault(&mut self, granule: u64, announced_lines: u64) -> Option<Option<u64>> {
        let fault = Fault {
            granule: Granule(granule),
            announced: announced_lines * LINE_BYTES,
        };
        let answer = self.with(|policy, tables| policy.fault(tables, fault));
        self.obey(granule, answer)
    }

    fn used_in_place(&mut self, granule: u64, lines: u64) -> Option<Option<u64>> {
        let bytes = lines * LINE_BYTES;
        let answer =
            self.with(|policy, tables| policy.used_in_place(tables, Granule(granule), bytes));
        self.obey(granule, answer)
    }

    fn used_on_device(&mut self, granule: u64, lines: u64) {
        let block = self.places[&granule];
        self.with(|policy, tables| policy.used_on_device(tables, block, lines * LINE_BYTES));
    }

    /// A use wherever the granule is; a fault comes before each that is not on the device.
    fn access(&mut self, granule: u64, lines: u64, announced: u64) -> Vec<Option<u64>> {
        let mut moves = Vec::new();
        if !self.places.contains_key(&granule) {
            moves.extend(self.fault(granule, announced));
        }
        if self.places.contains_key(&granule) {
            self.used_on_device(granule, lines);
        } else {
            moves.extend(self.used_in_place(granule, lines));
        }
        moves
    }

    fn gone(&mut self, granule: u64) {
        let block = self.places.remove(&granule).unwrap();
        self.with(|policy, tables| policy.gone(tables, block));
    }

    fn settle(&mut self) {
        self.with(Policy::settle);
    }

    fn has(&self, granule: u64) -> bool {
        self.places.contains_key(&granule)
    }
}

#[test]
fn a_rule_has_a_name_and_is_found_by_it() {
    for strategy in Strategy::ALL {
        assert_eq!(Strategy::named(strategy.name()), Some(strategy));
    }
    assert_eq!(Strategy::named("always right"), None);
}

#[test]
fn a_device_without_blocks_or_without_a_table_of_remotes_moves_nothing_it_cannot() {
    for strategy in Strategy::ALL {
        let mut device = Device::new(strategy, 0);
        for granule in 0..10 {
            assert_eq!(device.access(granule, 100, SIZE), [], "{}", strategy.name());
        }
        let mut device = Device::new(strategy, 1);
        device.remotes.clear();
        let moves = device.access(1, SIZE, SIZE);
        assert_eq!(
            !moves.is_empty(),
            strategy != Strategy::Never,
            "{}",
            strategy.name()
        );
    }
}

#[test]
fn never_moves_nothing_however_hot_it_is() {
    let mut device = Device::new(Strategy::Never, 8);
    for _ in 0..100 {
        assert_eq!(device.access(1, 1000, SIZE), []);
    }
}

#[test]
fn first_touch_evicts_in_the_order_of_arrival() {
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..300 {
        let capacity = random.usize(1..6);
        let mut device = Device::new(Strategy::FirstTouch, capacity);
        let mut model = VecDeque::new();
        for _ in 0..100 {
            let granule = random.u64(..10);
            let moves = device.access(granule, 1, 0);
            if model.contains(&granule) {
                assert_eq!(moves, []);
                continue;
            }
            let full = model.len() == capacity;
            let oldest = full.then(|| model.pop_front()).flatten();
            assert_eq!(moves, [oldest]);
            model.push_back(granule);
        }
    }
}

#[test]
fn clock_gives_what_was_used_a_second_chance() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..300 {
        let capacity = random.usize(1..6);
        let mut device = Device::new(Strategy::Clock, capacity);
        // The textbook's queue: what was used goes from the front to the back.
        let mut model: VecDeque<(u64, bool)> = VecDeque::new();
        for _ in 0..100 {
            let granule = random.u64(..10);
            let moves = device.access(granule, 1, 0);
            if let Some((_, used)) = model.iter_mut().find(|(held, _)| *held == granule) {
                *used = true;
                assert_eq!(moves, []);
                continue;
            }
            let mut evicted = None;
            while model.len() == capacity {
                match model.pop_front() {
                    Some((held, true)) => model.push_back((held, false)),
                    Some((held, false)) => evicted = Some(held),
                    None => unreachable!("the capacity is not zero"),
                }
            }
            assert_eq!(moves, [evicted]);
            // Each arrival is used at once.
            model.push_back((granule, true));
        }
    }
}

/// `heat` with everything in plain sight: all heat is halved when it is to be, and every block is
/// looked at for each decision.
#[derive(Default)]
struct PlainHeat {
    capacity: usize,
    blocks: Vec<Option<u64>>,
    heat: BTreeMap<u64, u64>,
    used: u64,
    /// Come, and not used since.
    new: BTreeSet<u64>,
}

impl PlainHeat {
    fn count(&mut self, granule: u64, lines: u64) {
        self.used += lines;
        if self.used >= (4 * SIZE * self.capacity as u64).max(1) {
            self.used = 0;
            self.heat.values_mut().for_each(|heat| *heat /= 2);
        }
        *self.heat.entry(granule).or_default() += lines;
    }

    fn heat(&self, granule: u64) -> u64 {
        self.heat.get(&granule).copied().unwrap_or(0)
    }

    fn decide(&mut self, granule: u64, whole: bool) -> Option<Option<u64>> {
        let heat = self.heat(granule);
        if let Some(free) = self.blocks.iter_mut().find(|block| block.is_none()) {
            let moves = whole || heat >= SIZE;
            return moves.then(|| {
                self.new.insert(granule);
                free.replace(granule)
            });
        }
        let blocks = self.blocks.iter().flatten().enumerate();
        let old = blocks.filter(|(_, held)| !self.new.contains(held));
        let heats = old.map(|(block, held)| (block, self.heat(*held)));
        let (coldest, cold) = heats.min_by_key(|(_, heat)| *heat)?;
        (heat >= cold + 2 * SIZE).then(|| {
            self.new.insert(granule);
            self.blocks[coldest].replace(granule)
        })
    }

    fn access(&mut self, granule: u64, lines: u64, announced: u64) -> Vec<Option<u64>> {
        let mut moves = Vec::new();
        if !self.blocks.contains(&Some(granule)) {
            moves.extend(self.decide(granule, announced >= SIZE));
        }
        let was_there = self.blocks.contains(&Some(granule));
        self.new.remove(&granule);
        self.count(granule, lines);
        if !was_there {
            moves.extend(self.decide(granule, false));
        }
        moves
    }
}

#[test]
fn heat_decides_as_a_model_that_looks_at_everything_each_time() {
    let mut random = fastrand::Rng::with_seed(4);
    let (mut moved, mut swapped) = (0, 0);
    for _ in 0..1000 {
        let capacity = random.usize(0..6);
        let mut device = Device::new(Strategy::Heat, capacity);
        let mut model = PlainHeat {
            capacity,
            blocks: vec![None; capacity],
            ..PlainHeat::default()
        };
        for _ in 0..100 {
            let granule = random.u64(..10).min(random.u64(..10));
            let (lines, announced) = (random.u64(1..2 * SIZE), random.u64(..=SIZE));
            let moves = device.access(granule, lines, announced);
            assert_eq!(moves, model.access(granule, lines, announced));
            moved += moves.len();
            swapped += moves.iter().flatten().count();
        }
    }
    assert!(
        moved > 1000 && swapped > 100,
        "{moved} moves, {swapped} swaps"
    );
}

/// What rounds cost on a device of so many blocks, in lines over the link. A round uses a working set
/// that is its own, granule after granule and as a whole, a few times.
fn cost_of_phases(strategy: Strategy, blocks: usize, set: u64, times: u64) -> u64 {
    let mut device = Device::new(strategy, blocks);
    device.remotes = vec![Remote::FREE; 1 << 14];
    for (_, remotes) in &mut device.shadows {
        *remotes = vec![Remote::FREE; 1 << 12];
    }
    let mut cost = 0;
    for round in 0..40 {
        for _ in 0..times {
            for granule in round * set..(round + 1) * set {
                for evicted in device.access(granule, SIZE, SIZE) {
                    cost += SIZE + evicted.map_or(0, |_| SIZE);
                }
                cost += if device.has(granule) { 0 } else { SIZE };
            }
        }
    }
    cost
}

#[test]
fn the_licence_moves_a_working_set_at_once_that_is_used_soon_again() {
    let cost = |strategy| cost_of_phases(strategy, 64, 48, 3);
    let (heat, clock) = (cost(Strategy::Heat), cost(Strategy::Clock));
    assert!(clock < heat * 3 / 4, "{clock} {heat}");
    let adaptive = cost(Strategy::Adaptive);
    assert!(adaptive < (heat + clock) / 2, "{adaptive} {heat} {clock}");
}

#[test]
fn there_is_no_licence_where_heat_is_cheaper() {
    // A set larger than the device, gone through again and again: a clock moves each granule in vain.
    let cost = |strategy| cost_of_phases(strategy, 64, 96, 8);
    let (heat, clock) = (cost(Strategy::Heat), cost(Strategy::Clock));
    assert!(heat < clock * 3 / 4, "{heat} {clock}");
    assert_eq!(cost(Strategy::Adaptive), heat);
}

#[test]
fn the_licence_is_lost_when_it_no_longer_pays() {
    let mut device = Device::new(Strategy::Adaptive, 64);
    device.remotes = vec![Remote::FREE; 1 << 14];
    for (_, remotes) in &mut device.shadows {
        *remotes = vec![Remote::FREE; 1 << 12];
    }
    let mut moves = |granules: std::ops::Range<u64>, times: u64| {
        let mut moves = 0;
        for _ in 0..times {
            for granule in granules.clone() {
                moves += device.access(granule, SIZE, SIZE).len();
            }
        }
        moves
    };
    let mut licensed = 0;
    for round in 0..40 {
        licensed = moves(round * 48..(round + 1) * 48, 3);
    }
    assert_eq!(licensed, 48, "each granule moves once, at its first use");
    moves(10_000..10_096, 20);
    let lost = moves(10_000..10_096, 10);
    assert!(lost < 96, "{lost} moves in 960 uses");
}

#[test]
fn what_is_announced_as_a_whole_moves_at_once_and_the_rest_when_it_has_paid() {
    let mut device = Device::new(Strategy::Heat, 2);
    assert_eq!(device.fault(1, SIZE), Some(None));
    assert_eq!(device.fault(2, SIZE - 1), None);
    assert_eq!(
        device.used_in_place(2, SIZE - 1),
        None,
        "rented for less than it costs"
    );
    assert_eq!(device.used_in_place(2, 1), Some(None));
}

#[test]
fn a_full_device_takes_only_what_is_hotter_by_a_swap() {
    let mut device = Device::new(Strategy::Heat, 1);
    device.access(1, 4 * SIZE, SIZE);
    assert_eq!(
        device.fault(2, SIZE),
        None,
        "an announcement replaces nothing"
    );
    assert!(device.has(1));
    // All heat is halved after four capacities of use: at the first access, and again here.
    assert_eq!(device.used_in_place(2, 3 * SIZE), None);
    assert_eq!(device.used_in_place(2, 3 * SIZE), Some(Some(1)));
}

#[test]
fn what_has_come_stays_until_it_is_used_or_time_has_passed_twice() {
    for strategy in MOVING {
        let mut device = Device::new(strategy, 1);
        assert_eq!(device.fault(1, SIZE), Some(None));
        let wants = |device: &mut Device| {
            let moved = device.fault(2, SIZE);
            moved.or_else(|| device.used_in_place(2, 100 * SIZE))
        };
        assert_eq!(wants(&mut device), None, "{}: it is new", strategy.name());
        device.settle();
        assert_eq!(wants(&mut device), None, "{}", strategy.name());
        device.settle();
        assert_eq!(wants(&mut device), Some(Some(1)), "{}", strategy.name());
        device.used_on_device(2, 1);
        let moved = device.fault(1, SIZE);
        let moved = moved.or_else(|| device.used_in_place(1, 1000 * SIZE));
        assert_eq!(moved, Some(Some(2)), "{}: it was used", strategy.name());
    }
}

#[test]
fn a_block_that_is_empty_again_is_filled_before_any_other_is_emptied() {
    for strategy in MOVING {
        let mut device = Device::new(strategy, 4);
        for granule in 0..4 {
            device.access(granule, 1, SIZE);
        }
        device.gone(1);
        device.gone(3);
        assert_eq!(device.access(5, 1, SIZE), [None], "{}", strategy.name());
        assert_eq!(device.access(6, 1, SIZE), [None], "{}", strategy.name());
        assert!(device.has(0) && device.has(2), "{}", strategy.name());
    }
}

#[test]
fn a_block_that_does_not_exist_is_no_harm() {
    for strategy in Strategy::ALL {
        let mut device = Device::new(strategy, 2);
        let nowhere = BlockNumber(u32::MAX);
        device.with(|policy, tables| {
            policy.used_on_device(tables, nowhere, u64::MAX);
            policy.gone(tables, nowhere);
        });
        let moves = device.access(1, SIZE, SIZE);
        assert_eq!(
            !moves.is_empty(),
            strategy != Strategy::Never,
            "{}",
            strategy.name()
        );
    }
}

#[test]
fn the_largest_numbers_are_borne() {
    for strategy in Strategy::ALL {
        let mut device = Device::new(strategy, 2);
        for granule in [0, u64::MAX, 1, u64::MAX - 1] {
            for _ in 0..3 {
                let fault = Fault {
                    granule: Granule(granule),
                    announced: u64::MAX,
                };
                if !device.has(granule) {
                    let answer = device.with(|policy, tables| policy.fault(tables, fault));
                    device.obey(granule, answer);
                }
                if let Some(block) = device.places.get(&granule).copied() {
                    device.with(|policy, tables| policy.used_on_device(tables, block, u64::MAX));
                } else {
                    let answer = device.with(|policy, tables| {
                        policy.used_in_place(tables, Granule(granule), u64::MAX)
                    });
                    device.obey(granule, answer);
                }
            }
        }
    }
}

#[test]
fn under_random_events_each_answer_can_be_obeyed() {
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..400 {
        let strategy = Strategy::ALL[round % Strategy::ALL.len()];
        let mut device = Device::new(strategy, random.usize(0..5));
        // Fewer entries than granules: what is remembered is lost now and then.
        device.remotes.truncate(random.usize(0..12));
        for _ in 0..200 {
            let granule = random.u64(..40);
            match random.u32(..10) {
                0 if device.has(granule) => device.gone(granule),
                1 => device.settle(),
                2 if !device.has(granule) => {
                    device.fault(granule, random.u64(..2 * SIZE));
                }
                _ => {
                    device.access(granule, random.u64(1..4 * SIZE), random.u64(..2 * SIZE));
                }
            }
            let held = device.blocks.iter().filter_map(Block::holds);
            let mut held: Vec<_> = held.map(|granule| granule.0).collect();
            held.sort_unstable();
            assert!(held.iter().eq(device.places.keys()), "{held:?}");
        }
    }
}
