//! The page table against a map of pages.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vhost_device_hmm::device::mmu::{
    Budget, Change, Leaf, NoMemory, PageRange, PageTable, Place, Rule, Run,
};
use virtio_hmm_spec::wire::{rights, LARGE_PAGES, PAGE_BYTES};

/// An action on the table.
#[derive(Clone, Debug)]
enum Action {
    Map(Vec<Run>),
    /// In pieces of at most that many visited slots.
    Take(Rule, PageRange, u64),
    /// An engine reads, or also writes, through a page.
    Use(u64, bool),
}

/// The addresses of pages: few places far apart, so that actions overlap.
fn start() -> impl Strategy<Value = u64> {
    let region = prop_oneof![
        Just(0),
        Just((1 << 18) - LARGE_PAGES),
        Just((1 << 27) - LARGE_PAGES),
        Just((1 << 45) - 4 * LARGE_PAGES)
    ];
    (region, 0..3 * LARGE_PAGES).prop_map(|(region, offset)| region + offset)
}

fn range(start: u64, pages: u64) -> PageRange {
    PageRange::new(start * PAGE_BYTES, pages).unwrap()
}

fn run() -> impl Strategy<Value = Run> {
    let place = prop_oneof![Just(Place::System), Just(Place::Device)];
    (
        start(),
        1..LARGE_PAGES,
        any::<bool>(),
        place,
        1..=rights::ALL,
        0..4_u64,
    )
        .prop_map(|(start, pages, large, place, rights, far)| {
            let (start, pages) = match large {
                false => (start, pages),
                true => (start / LARGE_PAGES * LARGE_PAGES, LARGE_PAGES),
            };
            // The same page often maps to the same frame again.
            let frame = start % (1 << 20) + far * (1 << 30);
            Run {
                range: range(start, pages),
                leaf: Leaf::new(place, frame, rights),
                large,
            }
        })
}

fn any_range() -> impl Strategy<Value = PageRange> {
    (start(), 1..2 * LARGE_PAGES)
        .prop_map(|(start, pages)| range(start, pages.min((1 << 45) - start)))
}

fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![Just(Rule::Unmap), Just(Rule::Protect)]
}

fn looks() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..4000_u64, Just(u64::MAX)]
}

/// Takes back everything in a range, in pieces.
fn take(
    table: &mut PageTable,
    rule: Rule,
    range: PageRange,
    looks: u64,
    mut observe: impl FnMut(Change),
) {
    let mut rest = Some(range);
    while let Some(range) = rest {
        rest = table.change(&range, rule, &mut looks.clone(), &mut observe);
        assert!(rest.is_none_or(|rest| rest.start() > range.start() && rest.end() == range.end()));
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => proptest::collection::vec(run(), 1..3).prop_map(Action::Map),
        4 => (rule(), any_range(), looks()).prop_map(|(rule, range, looks)| {
            Action::Take(rule, range, looks)
        }),
        1 => looks().prop_map(|looks| Action::Take(Rule::Unmap, PageRange::ALL, looks)),
        1 => looks().prop_map(|looks| Action::Take(Rule::Protect, PageRange::ALL, looks)),
        3 => (start(), any::<bool>()).prop_map(|(page, dirty)| Action::Use(page, dirty)),
    ]
}

type Model = BTreeMap<u64, Leaf>;

/// The number of pages that allow less afterwards than before.
fn taken_back(before: &Model, after: &Model) -> u64 {
    before
        .iter()
        .filter(|(page, old)| !after.get(page).is_some_and(|new| new.covers(old)))
        .count() as u64
}

fn apply(model: &mut Model, action: &Action) {
    match action {
        Action::Map(runs) => {
            for run in runs {
                for page in run.range.start()..run.range.end() {
                    let leaf = run.leaf.at(page - run.range.start());
                    let old = model.get(&page);
                    let same = old.filter(|old| old.frame == leaf.frame && old.place == leaf.place);
                    // A large leaf cannot keep the marks of single pages.
                    let (accessed, dirty) = same
                        .filter(|_| !run.large)
                        .map_or((false, false), |o| (o.accessed, o.dirty));
                    model.insert(
                        page,
                        Leaf {
                            accessed,
                            dirty,
                            ..leaf
                        },
                    );
                }
            }
        }
        Action::Take(rule, range, _) => model.retain(|page, leaf| {
            if !range.contains(*page) || *rule == Rule::Prune {
                return true;
            }
            leaf.rights &= rights::READ;
            leaf.rights != 0 && *rule == Rule::Protect
        }),
        Action::Use(..) => {}
    }
}

/// A leaf without the marks of engines.
fn plain(leaf: Leaf) -> Leaf {
    Leaf {
        accessed: false,
        dirty: false,
        ..leaf
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_table_says_what_was_mapped_last(actions in proptest::collection::vec(action(), 1..24)) {
        let budget = Budget::new(64 << 20);
        let mut table = PageTable::new(&budget).unwrap();
        let empty = budget.used();
        let mut model = Model::new();
        for action in &actions {
            let before = model.clone();
            apply(&mut model, action);
            // A run that a later run of the same request replaces counts too.
            let mut reported = 0;
            let observe = |change: Change| if change.takes_back() { reported += change.pages };
            match action {
                Action::Map(runs) => table.map(runs, observe).unwrap(),
                Action::Take(rule, range, looks) => take(&mut table, *rule, *range, *looks, observe),
                Action::Use(page, dirty) => {
                    if let Some(found) = table.find(*page) {
                        found.mark(*dirty);
                        let after = table.find(*page).unwrap().leaf;
                        prop_assert!(after.accessed && (after.dirty || !dirty));
                    }
                }
            }
            let taken = taken_back(&before, &model);
            match action {
                Action::Map(runs) if runs.len() > 1 => prop_assert!(reported >= taken),
                _ => prop_assert_eq!(reported, taken),
            }
            prop_assert_eq!(table.mapped_pages(), model.len() as u64);
            for (page, leaf) in &model {
                let found = table.find(*page).expect("it is mapped");
                prop_assert_eq!(found.frame_of(*page), leaf.frame);
                prop_assert_eq!(plain(found.leaf.at(*page - found.first)), plain(*leaf));
            }
            for page in [before.keys(), model.keys()].into_iter().flatten() {
                prop_assert_eq!(table.find(*page).is_some(), model.contains_key(page));
                prop_assert_eq!(table.find(page + 1).is_some(), model.contains_key(&(page + 1)));
            }
            let (mut walked, mut page) = (Vec::new(), 0);
            while let Some((first, leaf, order)) = table.next(page) {
                page = first + (1 << order);
                walked.extend((first..page).map(|page| (page, plain(leaf.at(page - first)))));
            }
            let all: Vec<_> = model.iter().map(|(page, leaf)| (*page, plain(*leaf))).collect();
            prop_assert_eq!(walked, all, "leaf after leaf");
        }
        table.unmap(&PageRange::ALL, |_| ());
        prop_assert_eq!(table.mapped_pages(), 0);
        prop_assert_eq!(table.large_leaves(), 0);
        prop_assert_eq!(budget.used(), empty, "empty tables are freed");
        drop(table);
        prop_assert_eq!(budget.used(), 0);
    }

    // {dev-map-whole}
    #[test]
    fn a_map_that_does_not_fit_changes_nothing(
        first in proptest::collection::vec(run(), 0..3),
        second in proptest::collection::vec(run(), 1..4),
        bytes in (1_u64..40).prop_map(|pages| pages * PAGE_BYTES),
    ) {
        let budget = Budget::new(bytes);
        let Ok(mut table) = PageTable::new(&budget) else { return Ok(()) };
        let mut model = Model::new();
        for runs in [&first, &second] {
            let (used, pages) = (budget.used(), table.mapped_pages());
            let mut told = 0;
            match table.map(runs, |_| told += 1) {
                Ok(()) => apply(&mut model, &Action::Map(runs.clone())),
                Err(NoMemory) => {
                    prop_assert_eq!(told, 0);
                    prop_assert_eq!((budget.used(), table.mapped_pages()), (used, pages));
                }
            }
            prop_assert!(budget.used() <= bytes / PAGE_BYTES);
            for (page, leaf) in &model {
                let found = table.find(*page).expect("it is mapped");
                prop_assert_eq!(found.frame_of(*page), leaf.frame);
            }
        }
        // Mappings can be taken back page by page, however little memory is left.
        // {dev-unmap-never-fails}
        for page in model.keys() {
            table.unmap(&range(*page, 1), |_| ());
            prop_assert!(table.find(*page).is_none());
        }
        prop_assert_eq!(table.mapped_pages(), 0);
    }
}

#[test]
fn tables_take_less_than_three_thousandths_of_what_they_map() {
    let budget = Budget::new(64 << 20);
    let mut table = PageTable::new(&budget).unwrap();
    let pages = 1 << 18;
    let leaf = Leaf::new(Place::System, 0, rights::READ);
    table
        .map(
            &[Run {
                range: range(0, pages),
                leaf,
                large: false,
            }],
            |_| (),
        )
        .unwrap();
    assert!(budget.used() * 1000 < pages * 3, "{} pages", budget.used());
}

/// A table of 2^18 pages that can be read and written.
fn full(budget: &std::sync::Arc<Budget>) -> PageTable {
    let mut table = PageTable::new(budget).unwrap();
    let run = Run {
        range: range(0, 1 << 18),
        leaf: Leaf::new(Place::System, 0, rights::ALL),
        large: false,
    };
    table.map(&[run], |_| ()).unwrap();
    table
}

/// The number of slots that a rule for all addresses visits.
fn looks_at(table: &mut PageTable, rule: Rule) -> u64 {
    let mut looks = u64::MAX;
    assert!(table
        .change(&PageRange::ALL, rule, &mut looks, |_| ())
        .is_none());
    u64::MAX - looks
}

// {dev-unmap-cost}
#[test]
fn what_stays_as_it_is_is_not_looked_at() {
    let budget = Budget::new(64 << 20);
    let mut table = full(&budget);
    assert!(looks_at(&mut table, Rule::Protect) > 1 << 18);
    let path = 5 * 512;
    assert!(looks_at(&mut table, Rule::Protect) < path);
    // One writable page is found among all the others.
    let run = Run {
        range: range(70_000, 1),
        leaf: Leaf::new(Place::System, 70_000, rights::ALL),
        large: false,
    };
    table.map(&[run], |_| ()).unwrap();
    assert!(looks_at(&mut table, Rule::Protect) <= path);
    assert!(table.find(70_000).unwrap().leaf.rights == rights::READ);
    assert!(looks_at(&mut table, Rule::Unmap) > 1 << 18);
    assert!(looks_at(&mut table, Rule::Unmap) < path);
}

#[test]
fn a_page_of_a_large_leaf_can_be_taken_out() {
    let budget = Budget::new(64 << 20);
    let mut table = PageTable::new(&budget).unwrap();
    let leaf = Leaf::new(Place::Device, 512, rights::ALL);
    table
        .map(
            &[Run {
                range: range(0, 1024),
                leaf,
                large: true,
            }],
            |_| (),
        )
        .unwrap();
    assert_eq!(
        (table.large_leaves(), table.find(700).unwrap().order),
        (2, 9)
    );
    table.unmap(&range(700, 1), |_| ());
    assert_eq!((table.large_leaves(), table.mapped_pages()), (1, 1023));
    assert!(table.find(700).is_none());
    assert_eq!(table.find(701).unwrap().frame_of(701), 512 + 701);
    assert_eq!(
        (table.find(701).unwrap().order, table.find(5).unwrap().order),
        (0, 9)
    );
}
