//! Rules for lateness: parsing them, and the occasions that they delay.

use proptest::prelude::*;
use virtio_hmm_spec::uapi::late::{LateError, LatePoint, LateRule, MAX_DELAY};
use virtio_hmm_spec::wire::Values;

fn any_rule() -> impl Strategy<Value = LateRule> {
    let times = (0..=MAX_DELAY, 0..=MAX_DELAY);
    let count = proptest::option::of(1..=u32::MAX);
    (
        0_u32..10,
        times,
        1..=u32::MAX,
        count,
        0_u32..=1_000_000,
        any::<u64>(),
    )
        .prop_map(
            |(point, (one, other), every, count, probability, seed)| LateRule {
                point: LatePoint::from_raw(point).unwrap(),
                least: one.min(other),
                most: one.max(other),
                every,
                count,
                probability,
                seed,
            },
        )
}

proptest! {
    #[test]
    fn a_rule_is_read_as_it_is_written(rule in any_rule()) {
        prop_assert_eq!(LateRule::parse(&rule.to_string()), Ok(rule));
    }

    #[test]
    fn whatever_is_written_is_a_rule_or_says_why_not(text in ".{0,60}") {
        let _ = LateRule::parse(&text);
    }

    #[test]
    fn a_delay_is_within_its_range(rule in any_rule(), occasion: u64, struck: u64) {
        if let Some(delay) = rule.delay(occasion, struck) {
            prop_assert!((rule.least..=rule.most).contains(&delay));
            prop_assert!(rule.count.is_none_or(|count| struck < u64::from(count)));
            prop_assert!(rule.probability > 0);
        }
    }
}

#[test]
fn every_point_has_a_word() {
    for point in LatePoint::all() {
        assert_eq!(LatePoint::from_word(point.word()), Some(point));
    }
    assert_eq!(
        LatePoint::all().count(),
        <LatePoint as Values>::VALUES.len()
    );
    assert_eq!(LatePoint::from_word("never"), None);
}

#[test]
fn a_rule_strikes_at_every_nth_occasion_until_it_has_done_so_often_enough() {
    let rule = LateRule::parse("delay=2ms@lock,every=3,count=2").unwrap();
    let mut struck = 0;
    let delays: Vec<_> = (1..=10)
        .map(|occasion| {
            let delay = rule.delay(occasion, struck);
            struck += u64::from(delay.is_some());
            delay.unwrap_or(0)
        })
        .collect();
    assert_eq!(delays, [0, 0, 2000, 0, 0, 2000, 0, 0, 0, 0]);
}

#[test]
fn a_probability_is_about_right_and_the_same_each_time() {
    let rule = LateRule::parse("delay=1us..9us@install,probability=0.25,seed=7").unwrap();
    let strikes = || (1..=10_000).filter_map(|occasion| rule.delay(occasion, 0));
    let count = strikes().count();
    assert!((2200..2800).contains(&count), "{count}");
    assert!(strikes().eq(strikes()));
    assert!((1..=9).all(|delay| strikes().any(|other| other == delay)));
    let other = LateRule { seed: 8, ..rule };
    assert!(!strikes().eq((1..=10_000).filter_map(|occasion| other.delay(occasion, 0))));
}

#[test]
fn a_rule_that_makes_no_sense_says_why() {
    let error = |text: &str| LateRule::parse(text).unwrap_err();
    assert_eq!(error(""), LateError::Action);
    assert_eq!(error("delay=1ms"), LateError::Action);
    assert_eq!(error("hold@lock"), LateError::Action);
    assert_eq!(error("delay=1ms@later"), LateError::Point);
    assert_eq!(error("delay=1ms@lock,every"), LateError::Key);
    assert_eq!(error("delay=1ms@lock,limit=1s"), LateError::Key);
    for delay in [
        "1",
        "ms",
        "1m",
        "-1ms",
        "10001ms",
        "20s",
        "2ms..1ms",
        "99999999999s",
    ] {
        assert_eq!(
            error(&format!("delay={delay}@lock")),
            LateError::Time,
            "{delay}"
        );
    }
    for number in [
        "every=0",
        "count=0",
        "count=x",
        "probability=1.1",
        "probability=-1",
        "probability=.",
        "probability=0.1234567",
        "seed=-1",
    ] {
        let text = format!("delay=1ms@lock,{number}");
        assert_eq!(error(&text), LateError::Number, "{number}");
    }
}

#[test]
fn a_probability_is_written_with_a_point() {
    let probability = |text: &str| {
        let rule = LateRule::parse(&format!("delay=1ms@lock,probability={text}"));
        rule.unwrap().probability
    };
    assert_eq!(probability("1"), 1_000_000);
    assert_eq!(probability("1.0"), 1_000_000);
    assert_eq!(probability("0.5"), 500_000);
    assert_eq!(probability(".25"), 250_000);
    assert_eq!(probability("0"), 0);
    assert_eq!(probability("0.000001"), 1);
}
