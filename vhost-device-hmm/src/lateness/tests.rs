//! Parsing rules and applying them; waits and what ends them.

use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::*;

/// Longer than any test takes: a wait with this limit ends otherwise.
const FOREVER: &str = "limit=600s";

fn lateness(rules: &[&str]) -> Arc<Lateness> {
    let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Arc::new(Lateness::new(&rules))
}

fn about(space: u32, operation: &'static str) -> About {
    About {
        space: Some(space),
        operation: Some(operation),
    }
}

fn error(text: &str) -> RuleError {
    text.parse::<Rule>().unwrap_err()
}

#[test]
fn a_rule_is_written_as_it_is_read() {
    for text in [
        "delay=5ms",
        "delay=0ms..200us@control",
        "delay=1s@engine.step,every=3,seed=18446744073709551615",
        "hold@control.taken",
        "hold@fault,limit=2500ms,space=4",
        "hold@submit.taken,nth=2,operation=list-walk",
        "swap@dma.taken,probability=0.25,seed=7",
        "copy-failure,every=5,operation=to-device",
        "copy-failure@dma.item,count=3",
        "lost-reply,every=100",
        "garbled-reply@control,every=3",
        "stray-reply@fault,every=18446744073709551615",
    ] {
        assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
    }
}

#[test]
fn a_rule_that_makes_no_sense_says_why() {
    assert_eq!(error("flood"), RuleError::Action("flood".into()));
    assert_eq!(error("delay"), RuleError::Value("delay".into()));
    assert_eq!(error("hold=5ms"), RuleError::Value("hold=5ms".into()));
    assert_eq!(error("delay=5"), RuleError::Time("5".into()));
    assert_eq!(error("delay=5min"), RuleError::Time("5min".into()));
    assert_eq!(error("delay=601s"), RuleError::Time("601s".into()));
    assert_eq!(error("delay=2ms..1ms"), RuleError::Range("2ms..1ms".into()));
    assert_eq!(error("hold@dma.lost"), RuleError::Point("dma.lost".into()));
    assert_eq!(error("hold,every"), RuleError::Key("every".into()));
    assert_eq!(error("hold,size=3"), RuleError::Key("size=3".into()));
    assert_eq!(error("hold,seed=1,seed=2"), RuleError::Twice("seed".into()));
    assert_eq!(
        error("hold,operation=flood"),
        RuleError::Operation("flood".into())
    );
    for number in [
        "every=0",
        "nth=0",
        "count=x",
        "probability=0",
        "probability=1.1",
        "probability=NaN",
        "seed=-1",
        "space=4294967296",
    ] {
        let wrong = error(&format!("hold,{number}"));
        assert!(matches!(wrong, RuleError::Number { .. }), "{wrong}");
    }
    for contradiction in [
        "hold,nth=2,every=2",
        "hold,nth=2,count=2",
        "delay=1ms,limit=1s",
        "hold@control.seen,space=1",
        "hold@engine.step,operation=fill",
    ] {
        let wrong = error(contradiction);
        assert!(matches!(wrong, RuleError::Contradiction(_)), "{wrong}");
    }
}

#[test]
fn what_is_not_free_cannot_be_asked_for() {
    // The device carries control requests out in order, and its promise is one.
    for impossible in [
        "swap@control.taken",
        "swap@control.executed",
        "swap@engine",
        "swap@dma.item",
        "copy-failure@control.taken",
        "copy-failure@submit",
        "lost-reply@control.taken",
        "lost-reply@engine.step",
    ] {
        let wrong = error(impossible);
        assert!(matches!(wrong, RuleError::Impossible(..)), "{wrong}");
        assert!(wrong.to_string().contains("it can at"), "{wrong}");
    }
    let swaps: Vec<Point> = "swap".parse::<Rule>().unwrap().points().collect();
    assert!(swaps.iter().all(|point| point.order_is_free()));
    assert!(swaps.contains(&Point::DmaTaken) && !swaps.contains(&Point::ControlTaken));
}

#[test]
fn every_nth_occasion_is_the_one() {
    let fails = |rules: &[&str]| -> Vec<bool> {
        let lateness = lateness(rules);
        let about = about(0, "ToDevice");
        let occasions = 0..8;
        occasions
            .map(|_| lateness.copy_fails(Point::DmaItem, about))
            .collect()
    };
    let (no, yes) = (false, true);
    assert_eq!(
        fails(&["copy-failure,every=3"]),
        [no, no, yes, no, no, yes, no, no]
    );
    assert_eq!(
        fails(&["copy-failure,nth=3"]),
        [no, no, yes, no, no, no, no, no]
    );
    assert_eq!(
        fails(&["copy-failure,every=2,count=2"]),
        [no, yes, no, yes, no, no, no, no]
    );
    assert_eq!(fails(&["copy-failure,operation=to-system"]), [no; 8]);
    assert_eq!(fails(&["copy-failure@control.item"]), [no; 8]);
    assert_eq!(fails(&["lost-reply"]), [no; 8]);
}

#[test]
fn the_first_of_several_rules_happens_and_all_count() {
    let lateness = lateness(&["short-reply,every=2", "lost-reply@dma"]);
    let mishap = |point| {
        let mishap = lateness.reply_mishap(point, About::default());
        mishap.map(|(mishap, _)| mishap)
    };
    assert_eq!(mishap(Point::ControlExecuted), None);
    assert_eq!(mishap(Point::DmaExecuted), Some(ReplyMishap::Short));
    assert_eq!(mishap(Point::DmaExecuted), Some(ReplyMishap::Lost));
    let rules = lateness.rules();
    let counts: Vec<(u64, u64)> = rules
        .iter()
        .map(|rule| (rule.occasions, rule.happened))
        .collect();
    assert_eq!(counts, [(3, 1), (2, 1)]);
}

#[test]
fn a_filter_counts_only_what_it_is_for() {
    let lateness = lateness(&["hold@control.taken,space=3,operation=unmap,limit=600s"]);
    let point = Point::ControlTaken;
    assert!(lateness.arrive(point, about(3, "Map")).is_none());
    assert!(lateness.arrive(point, about(4, "Unmap")).is_none());
    assert!(lateness.arrive(point, About::default()).is_none());
    assert!(lateness
        .arrive(Point::DmaTaken, about(3, "Unmap"))
        .is_none());
    assert!(lateness.arrive(point, about(3, "Unmap")).is_some());
    assert_eq!(lateness.rules()[0].occasions, 1);
}

#[test]
fn a_device_without_rules_looks_at_one_number() {
    let lateness = Lateness::default();
    assert!(Point::ALL.iter().all(|point| !lateness.concerns(*point)));
    // Each point has a bit of its own.
    let bits = Point::ALL.iter().fold(0, |bits, point| {
        assert_eq!(bits & bit(*point), 0);
        bits | bit(*point)
    });
    let id = lateness.set("delay=0ms".parse().unwrap()).unwrap();
    assert_eq!(lateness.concerned.load(Ordering::Relaxed), bits);
    lateness.clear(id).unwrap();
    assert_eq!(lateness.concerned.load(Ordering::Relaxed), 0);
}

/// Waits at a point in a new thread.
fn waiter(lateness: &Arc<Lateness>, point: Point) -> thread::JoinHandle<()> {
    let lateness = Arc::clone(lateness);
    thread::spawn(move || lateness.pass(point, About::default(), || false))
}

/// Starts a thread that waits at a point, and returns once it is held.
fn held_at(lateness: &Arc<Lateness>, point: Point) -> thread::JoinHandle<()> {
    let waiter = waiter(lateness, point);
    assert!(lateness.wait_held(point, LONGEST, || true).is_some());
    waiter
}

#[test]
fn what_is_held_goes_on_when_it_is_released() {
    let point = Point::DmaTaken;
    let lateness = lateness(&[&format!("hold@dma.taken,{FOREVER}")]);
    let first = held_at(&lateness, point);
    let second = waiter(&lateness, point);
    while lateness.held().len() < 2 {
        thread::yield_now();
    }
    assert_eq!(lateness.step(point, 1), 1);
    first.join().unwrap();
    assert_eq!(lateness.held().len(), 1, "the other one is still held");
    assert_eq!(lateness.release(Some(Point::ControlTaken)), 0);
    assert_eq!(lateness.release(Some(point)), 1);
    second.join().unwrap();
    assert!(lateness.rules().is_empty(), "a release ends the hold");
    lateness.pass(point, About::default(), || false);
}

#[test]
fn a_rule_that_is_cleared_lets_go() {
    let lateness = lateness(&[&format!("hold@submit,{FOREVER}")]);
    let waiter = held_at(&lateness, Point::SubmitEnded);
    assert_eq!(lateness.clear(2), Err(LatenessError::NoRule(2)));
    lateness.clear(1).unwrap();
    waiter.join().unwrap();
    assert_eq!(lateness.clear(1), Err(LatenessError::NoRule(1)));
}

#[test]
fn a_hold_that_is_forgotten_ends_with_its_rule() {
    let lateness = lateness(&["hold@engine.step,limit=20ms"]);
    let started = Instant::now();
    waiter(&lateness, Point::EngineStep).join().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(20));
    assert!(lateness.rules().is_empty());
    assert!(!lateness.concerns(Point::EngineStep));
    assert!(lateness.held().is_empty());
}

#[test]
fn a_delay_lasts_as_long_as_it_says() {
    let lateness = lateness(&["delay=20ms@dma.item"]);
    let started = Instant::now();
    lateness.pass(Point::DmaItem, About::default(), || false);
    assert!(started.elapsed() >= Duration::from_millis(20));
    assert!(lateness.held().is_empty(), "it is not held");
    assert_eq!(lateness.rules().len(), 1, "and not over");
}

#[test]
fn nothing_waits_in_a_queue_that_is_stopped() {
    let lateness = lateness(&[&format!("hold,{FOREVER}")]);
    let dma = held_at(&lateness, Point::DmaTaken);
    let engine = held_at(&lateness, Point::EngineStep);
    lateness.stop(Some(Queue::Dma));
    dma.join().unwrap();
    // The thread that stops may wait for the others.
    engine.join().unwrap();
    lateness.pass(Point::DmaItem, About::default(), || false);
    let engine = held_at(&lateness, Point::EngineStep);
    lateness.start(Some(Queue::Dma));
    let dma = held_at(&lateness, Point::DmaTaken);
    lateness.end(0);
    dma.join().unwrap();
    engine.join().unwrap();
    assert_eq!(lateness.rules().len(), 1, "the rule stays for the next one");
    lateness.begin();
    assert_eq!(lateness.rules()[0].occasions, 0);
    let again = held_at(&lateness, Point::EngineStep);
    lateness.clear_all();
    again.join().unwrap();
}

#[test]
fn a_thread_with_no_more_reason_to_wait_goes_on() {
    let lateness = lateness(&[&format!("hold,{FOREVER}")]);
    let cancelled = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (theirs, flag) = (Arc::clone(&lateness), Arc::clone(&cancelled));
    let waiter = thread::spawn(move || {
        let given_up = || flag.load(Ordering::Acquire);
        theirs.pass(Point::EngineStep, About::default(), given_up);
    });
    assert!(lateness
        .wait_held(Point::EngineStep, LONGEST, || true)
        .is_some());
    cancelled.store(true, Ordering::Release);
    lateness.wake();
    waiter.join().unwrap();
    assert!(lateness.held().is_empty());
}

#[test]
fn there_are_only_so_many_rules() {
    let lateness = Lateness::default();
    let rule: Rule = "delay=1ms".parse().unwrap();
    for _ in 0..MAX_RULES {
        lateness.set(rule.clone()).unwrap();
    }
    assert_eq!(lateness.set(rule), Err(LatenessError::TooMany));
    assert_eq!(lateness.clear_all(), MAX_RULES);
}

/// What a rule does at each of `occasions` occasions: the delay, if it happens.
fn schedule(rule: &str, occasions: u64) -> Vec<Option<Duration>> {
    let rule: Rule = rule.parse().unwrap();
    let occasions = 1..=occasions;
    occasions
        .map(|occasion| rule.happens(occasion, 0).then(|| rule.delay(occasion)))
        .collect()
}

#[test]
fn a_seed_makes_chances_repeatable() {
    let rule = |seed| format!("delay=1ms..9ms,probability=0.3,seed={seed}");
    let (first, second) = (schedule(&rule(1), 2000), schedule(&rule(2), 2000));
    assert_eq!(first, schedule(&rule(1), 2000));
    assert_ne!(first, second);
    for schedule in [first, second] {
        let late: Vec<Duration> = schedule.into_iter().flatten().collect();
        assert!((450..750).contains(&late.len()), "{} of 2000", late.len());
        let (least, most) = (late.iter().min().unwrap(), late.iter().max().unwrap());
        assert!(*least >= Duration::from_millis(1) && *most <= Duration::from_millis(9));
        assert!(
            *most - *least > Duration::from_millis(7),
            "all of the range"
        );
    }
    assert!(schedule("hold,probability=1", 100)
        .iter()
        .all(Option::is_some));
}

proptest! {
    #[test]
    fn no_text_is_more_than_a_mistake(text in "[a-z0-9=@.,-]{0,60}") {
        let _ = text.parse::<Rule>();
    }

    #[test]
    fn whatever_makes_sense_can_be_read_again(
        action in prop::sample::select(vec!["hold", "swap", "delay=3us", "delay=1ms..2s", "copy-failure", "long-reply"]),
        place in prop::sample::select(vec!["", "@control", "@dma.taken", "@fault.raised", "@engine.step"]),
        keys in prop::collection::vec(prop::sample::select(vec!["every=2", "nth=7", "count=9", "probability=0.5", "seed=3", "limit=1s", "space=1", "operation=map"]), 0..4),
    ) {
        let text = [&[action], &keys[..]].concat();
        let text = format!("{}{place}{}", text[0], text[1..].iter().map(|key| format!(",{key}")).collect::<String>());
        if let Ok(rule) = text.parse::<Rule>() {
            let again: Rule = rule.to_string().parse().unwrap();
            prop_assert_eq!(&again, &rule);
            prop_assert!(rule.points().next().is_some());
        }
    }
}
