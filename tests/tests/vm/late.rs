//! The driver is late where it is told to be, and for no longer than it may be.

use std::time::{Duration, Instant};

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::{Command, Error};
use hmm_vm::vm::{Vm, MIB};

use super::support::{self, LATE, WORKLOADS};

/// A program that moves this many bytes to the device and has a job read them.
const MOVES: [&str; 3] = ["hmm", "run", "migrate"];

fn set(vm: &Vm, rules: &str) {
    vm.guest().write_file(LATE, rules).unwrap();
}

/// The contents of the file.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    points: Vec<(String, u64)>,
    /// For each rule: how often it took effect, the microseconds of delay in all, and its text.
    rules: Vec<(u64, u64, String)>,
    left: u64,
}

impl Told {
    fn by(vm: &Vm) -> Self {
        let text = String::from_utf8(vm.guest().read_file(LATE).unwrap()).unwrap();
        let mut told = Self {
            points: Vec::new(),
            rules: Vec::new(),
            left: 0,
        };
        for line in text.lines() {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            let number = |word: &str| word.parse::<u64>().unwrap();
            match words[..] {
                ["point", name, passed] => told.points.push((name.to_owned(), number(passed))),
                ["rule", struck, microseconds, rule] => {
                    told.rules
                        .push((number(struck), number(microseconds), rule.to_owned()));
                }
                ["left", left] => told.left = number(left),
                _ => panic!("{line}"),
            }
        }
        told
    }

    fn texts(&self) -> Vec<&str> {
        let texts = self.rules.iter().map(|(_, _, text)| text.as_str());
        texts.collect()
    }

    fn passed(&self, point: &str) -> u64 {
        let found = self.points.iter().find(|(name, _)| name == point);
        found.unwrap_or_else(|| panic!("there is no {point}")).1
    }
}

#[test]
fn the_driver_is_late_where_it_is_told_to_be_and_no_longer() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts)
        .check()
        .device_memory(512 * MIB)
        .memory(2048 * MIB)
        .module_parameter("late=delay=1ms@install,count=2;delay=2ms@kick-dma,every=2")
        .start()
        .unwrap();

    // With the parameter, the file shows each point and rule.
    let told = Told::by(&vm);
    assert_eq!(told.points.len(), 12);
    assert_eq!(told.left, 60_000_000);
    vm.run(MOVES).unwrap().succeeded().unwrap();
    let told = Told::by(&vm);
    let [(installs, spent, _), (kicks, twice_spent, _)] = &told.rules[..] else {
        panic!("{told:?}");
    };
    assert_eq!((*installs, *spent), (2, 2000), "{told:?}");
    assert_eq!(*kicks, told.passed("kick-dma") / 2, "{told:?}");
    assert_eq!(*twice_spent, kicks * 2000);
    assert_eq!(told.left, 60_000_000 - spent - twice_spent);

    // Invalid rules are refused, and the rules in force stay.
    for nonsense in ["lock", "delay=1ms@never", "delay=20s@lock", "hold@lock"] {
        let error = vm.guest().write_file(LATE, nonsense).unwrap_err();
        assert!(
            matches!(error, Error::Refused { .. }),
            "{nonsense}: {error}"
        );
    }
    let crowd = "delay=1us@lock\n".repeat(17);
    vm.guest().write_file(LATE, crowd).unwrap_err();
    // The counts are not compared: the driver itself may pass points meanwhile, as it discards
    // frames in its own time.
    assert_eq!(Told::by(&vm).texts(), told.texts());

    // A program that does everything passes every point, except those where contents are lost and
    // where a huge page is split that processes share.
    let is_passed = |point: &str| !["lost", "split"].contains(&point);
    let points = told.points.iter().filter(|(point, _)| is_passed(point));
    let all: String = points.fold(String::new(), |text, (point, _)| {
        text + "delay=20us..200us@" + point + ",probability=0.5,seed=1\n"
    });
    set(&vm, &all);
    let churn = vm.run([WORKLOADS, "run", "churn"]).unwrap();
    churn.succeeded().unwrap();
    let told = Told::by(&vm);
    for (struck, microseconds, rule) in &told.rules {
        assert!(*struck > 0, "{rule} struck never: {told:?}");
        assert!(
            (struck * 20..=struck * 200).contains(microseconds),
            "{told:?}"
        );
    }

    // A task that is being killed is not delayed any more, and the limit of all delays holds.
    set(&vm, "delay=1s@collected\ndelay=1s@copied");
    let begun = Instant::now();
    let killed = Command::new("timeout").arguments(["-s", "KILL", "2"]);
    let killed = vm.run(killed.arguments(MOVES)).unwrap();
    let took = begun.elapsed();
    assert!(!killed.success());
    let told = Told::by(&vm);
    let promised: u64 = told
        .rules
        .iter()
        .map(|(_, microseconds, _)| microseconds)
        .sum();
    // Either it passed few points after the kill, or they did not delay it.
    assert!(
        promised < 30_000_000 || took < Duration::from_micros(promised),
        "after the kill it was late for {promised} microseconds in {took:?}"
    );
    assert!(promised <= 60_000_000);

    // Without rules no passes are counted.
    set(&vm, "\n");
    let before = Told::by(&vm);
    assert!(before.rules.is_empty());
    vm.run(MOVES).unwrap().succeeded().unwrap();
    assert_eq!(Told::by(&vm), before);
    vm.finish().unwrap();
}

#[test]
fn a_driver_that_is_told_nonsense_does_not_start() {
    let artifacts = Artifacts::required();
    let mut vm = Vm::builder(&artifacts).without_driver().start().unwrap();
    let error = vm.load_driver("late=sometimes").unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    vm.load_driver("").unwrap();
    vm.finish().unwrap();
}
