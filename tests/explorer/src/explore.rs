//! The search: it chooses the next trial, runs it, and examines what is wrong.
//!
//! It knows a place where subjects can be tried, and nothing of machines.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::coverage::Coverage;
use crate::finding::{Circumstances, Finding};
use crate::rule::{Point, Rule};
use crate::schedule::{Crowd, Phase, Schedule, Shard, Trial};
use crate::shrink::fewest;

/// How often a broken trial is repeated with the same rules.
const AGAIN: u32 = 6;

/// The chance that a rule is kept by mistake: leaving it out made the failure disappear only
/// because it does not always come back.
const DOUBT: f64 = 0.1;

/// How often at most one list of rules is tried while the fewest are looked for.
const MOST_TRIES: u32 = 8;

/// Where subjects can be tried.
pub trait Place {
    /// The points at which something can be late.
    fn points(&self) -> Vec<Point>;

    /// The subjects that can be tried.
    ///
    /// # Errors
    ///
    /// When the subjects cannot be listed.
    fn subjects(&mut self) -> Result<Vec<String>>;

    /// Runs a subject with rules in force.
    ///
    /// # Errors
    ///
    /// When it cannot be tried. A failure of the subject, or of the machine that it ran in, is an
    /// outcome and no error.
    fn try_out(&mut self, subject: &str, rules: &[Rule]) -> Result<Outcome>;

    /// Replaces the place by a new one, whatever its state.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    fn renew(&mut self) -> Result<()>;

    /// Ends the place. Returns a failure that shows only then.
    ///
    /// # Errors
    ///
    /// When it cannot be ended.
    fn finish(&mut self) -> Result<Option<String>>;
}

/// The outcome of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether all was right.
    pub verdict: Verdict,
    /// How often each rule took effect, in their order; shorter if that is not known.
    pub late: Vec<u64>,
    /// How many tasks the subject had at work, if they were counted.
    pub crowd: Option<Crowd>,
}

/// Whether a subject was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All was as it must be.
    Kept,
    /// Something was wrong.
    Broken(String),
    /// It cannot run in this place.
    CannotRun(String),
}

/// What to search for, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel's name, for the report.
    pub kernel: String,
    /// The seed of all random choices.
    pub seed: u64,
    /// How long to search, not counting what earlier searches have found. The trial in progress
    /// then is ended.
    pub time: Duration,
    /// How long to look for the fewest rules.
    pub shrinking: Duration,
    /// The share of the search.
    pub shard: Shard,
    /// The findings of earlier searches, which are tried first.
    pub kept: Vec<Finding>,
    /// Only subjects whose names contain this.
    pub pattern: Option<String>,
    /// Whether to go on without a broken subject, instead of ending.
    pub keep_going: bool,
}

/// The results of a search.
#[derive(Debug)]
pub struct Report {
    /// What was tried.
    pub coverage: Coverage,
    /// What was wrong; at most one finding unless the search goes on after one.
    pub findings: Vec<Finding>,
    /// How many trials there were.
    pub trials: u64,
}

/// What a search reports while it goes on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A line for a person.
    Line(&'a str),
    /// Something is wrong, as far as it is known: once when it is found, and again when it has been
    /// examined. A search of hours may be stopped at any moment.
    Found(&'a Finding),
}

/// A search under way.
struct Search<'a, P: Place> {
    place: &'a mut P,
    options: &'a Options,
    /// The time since the search began.
    clock: &'a dyn Fn() -> Duration,
    tell: &'a mut dyn FnMut(Progress<'_>) -> Result<()>,
    coverage: Coverage,
    trials: u64,
    /// When all earlier findings had been tried.
    begun: Duration,
    /// The time that stalls have taken.
    stalled: Duration,
}

/// Searches until the time is over or something is wrong. `clock` returns the time since the search
/// began, `tell` is told of progress.
///
/// # Errors
///
/// When nothing can be tried, and those of `tell`.
pub fn explore(
    place: &mut impl Place,
    options: &Options,
    clock: &dyn Fn() -> Duration,
    tell: &mut dyn FnMut(Progress<'_>) -> Result<()>,
) -> Result<Report> {
    let mut search = Search {
        place,
        options,
        clock,
        tell,
        coverage: Coverage::default(),
        trials: 0,
        begun: Duration::ZERO,
        stalled: Duration::ZERO,
    };
    let findings = search.run()?;
    for _ in &findings {
        search.coverage.found(&options.kernel);
    }
    Ok(Report {
        coverage: search.coverage,
        findings,
        trials: search.trials,
    })
}

impl<P: Place> Search<'_, P> {
    fn run(&mut self) -> Result<Vec<Finding>> {
        let points = self.place.points();
        let mut subjects = self.place.subjects()?;
        if let Some(pattern) = &self.options.pattern {
            subjects.retain(|subject| subject.contains(pattern.as_str()));
        }
        let kernel = &self.options.kernel;
        self.coverage.begin(kernel, &points, &subjects);
        self.say(&format!(
            "{} points, {} subjects, seed {}, share {} of {}",
            points.len(),
            subjects.len(),
            self.options.seed,
            self.options.shard.index + 1,
            self.options.shard.count
        ))?;
        anyhow::ensure!(
            !subjects.is_empty(),
            "no subject has {:?} in its name; rows are called row:NAME",
            self.options.pattern.as_deref().unwrap_or_default()
        );
        let mut schedule = Schedule::new(points, subjects, self.options.seed, self.options.shard);
        let (mut said, mut findings) = (Duration::ZERO, Vec::new());
        let mut kept = self.options.kept.iter();
        loop {
            let trial = match kept.next() {
                Some(finding) => Trial {
                    phase: Phase::Kept,
                    subject: finding.subject.clone(),
                    rules: finding.rules.clone(),
                },
                None if self.searched() >= self.options.time => break,
                None => match schedule.next(self.phase()) {
                    Some(trial) => trial,
                    None => break,
                },
            };
            self.trials += 1;
            let begun = (self.clock)();
            let outcome = self.try_out(&trial)?;
            match trial.phase {
                Phase::Kept => self.begun = (self.clock)(),
                Phase::Stalls => self.stalled += (self.clock)() - begun,
                Phase::Alone | Phase::Pairs | Phase::Random => {}
            }
            if let Some(crowd) = outcome.crowd {
                schedule.has_crowd(&trial.subject, crowd);
            }
            match outcome.verdict {
                Verdict::Kept => {}
                Verdict::CannotRun(reason) => {
                    self.coverage.cannot_run(kernel, &trial.subject, &reason);
                    schedule.leave_out(&trial.subject);
                }
                Verdict::Broken(what) => {
                    let finding = self.broken(&trial, what)?;
                    (self.tell)(Progress::Found(&finding))?;
                    findings.push(finding);
                    if !self.options.keep_going {
                        return Ok(findings);
                    }
                    schedule.leave_out(&trial.subject);
                    self.place.renew()?;
                }
            }
            let now = (self.clock)();
            if now.saturating_sub(said) > Duration::from_secs(10) {
                said = now;
                let (tried, late, all) = self.coverage.pairs(kernel);
                let line = format!(
                    "{:>4} s  {:<6}  {} trials, {tried} of {all} pairs tried, {late} late; {}",
                    now.as_secs(),
                    trial.phase,
                    self.trials,
                    trial.subject
                );
                self.say(&line)?;
            }
        }
        if let Some(what) = self.place.finish()? {
            // No trial: what all of them have left behind.
            let mut at = self.circumstances(Phase::Random);
            at.trial += 1;
            let subject = "the end of the machine".to_owned();
            let finding = Finding::new(at, subject, what, Vec::new());
            (self.tell)(Progress::Found(&finding))?;
            findings.push(finding);
        }
        Ok(findings)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        (self.tell)(Progress::Line(line))
    }

    /// The time of the search without that of earlier findings. These take long on a slow machine,
    /// where they would leave no time for anything else.
    fn searched(&self) -> Duration {
        (self.clock)().saturating_sub(self.begun)
    }

    /// The part of the search that is due now. Half of the time goes to single points, and a
    /// quarter to pairs, as long as there are any. After the first half, stalls have half of the
    /// time, because each of them takes as long as ten other trials.
    fn phase(&self) -> Phase {
        let (now, all) = (self.searched(), self.options.time);
        if now < all / 2 {
            Phase::Alone
        } else if self.stalled < (now - all / 2) / 2 {
            Phase::Stalls
        } else if now < all / 4 * 3 {
            Phase::Pairs
        } else {
            Phase::Random
        }
    }

    fn circumstances(&self, phase: Phase) -> Circumstances {
        Circumstances {
            kernel: self.options.kernel.clone(),
            seed: self.options.seed,
            phase,
            trial: self.trials,
            seconds: (self.clock)().as_secs(),
        }
    }

    fn try_out(&mut self, trial: &Trial) -> Result<Outcome> {
        let outcome = self
            .place
            .try_out(&trial.subject, &trial.rules)
            .with_context(|| format!("trying {} with {}", trial.subject, list(&trial.rules)))?;
        if !matches!(outcome.verdict, Verdict::CannotRun(_)) {
            let known = outcome.late.iter().copied().chain(std::iter::repeat(0));
            let late = trial.rules.iter().map(|rule| &rule.point).zip(known);
            self.coverage
                .add(&self.options.kernel, &trial.subject, late);
        }
        Ok(outcome)
    }

    /// Examines a broken trial: repeats it, and looks for the fewest rules that bring the failure
    /// back.
    fn broken(&mut self, trial: &Trial, what: String) -> Result<Finding> {
        let at = self.circumstances(trial.phase);
        let subject = trial.subject.clone();
        let mut finding = Finding::new(at, subject, what, trial.rules.clone());
        (self.tell)(Progress::Found(&finding))?;
        self.say(&format!("wrong: {}\n    {}", trial.subject, finding.what))?;
        self.say(&format!("with {}; once more", list(&trial.rules)))?;
        let end = (self.clock)() + self.options.shrinking;
        while finding.tried_again < AGAIN && (self.clock)() < end {
            finding.tried_again += 1;
            finding.came_back += u32::from(self.breaks(&trial.subject, &trial.rules)?);
        }
        if finding.came_back == 0 {
            return Ok(finding);
        }
        let share = f64::from(finding.came_back) / f64::from(finding.tried_again);
        let tries = tries(share);
        self.say(&format!(
            "it came back {} of {} times; looking for the fewest rules",
            finding.came_back, finding.tried_again
        ))?;
        finding.rules = fewest(trial.rules.clone(), |rules| -> Result<bool> {
            for _ in 0..tries {
                // When the time is over, rules that were not tried without are kept.
                if (self.clock)() >= end {
                    return Ok(false);
                }
                if self.breaks(&trial.subject, rules)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        Ok(finding)
    }

    /// Whether a subject is broken with these rules, in a new place.
    fn breaks(&mut self, subject: &str, rules: &[Rule]) -> Result<bool> {
        self.place.renew()?;
        let outcome = self.place.try_out(subject, rules)?;
        Ok(matches!(outcome.verdict, Verdict::Broken(_)))
    }
}

/// How often to try rules with which the failure comes back with this probability.
fn tries(share: f64) -> u32 {
    let mut missed = 1.0 - share;
    let mut tries = 1;
    while missed > DOUBT && tries < MOST_TRIES {
        missed *= 1.0 - share;
        tries += 1;
    }
    tries
}

/// Tries a finding again, `times` times. Returns how often the failure came back, and the last
/// description of it.
///
/// # Errors
///
/// When it cannot be tried.
pub fn replay(
    place: &mut impl Place,
    finding: &Finding,
    times: u32,
    say: &mut dyn FnMut(&str),
) -> Result<(u32, Option<String>)> {
    let (mut came_back, mut last) = (0, None);
    for time in 1..=times {
        place.renew()?;
        match place.try_out(&finding.subject, &finding.rules)?.verdict {
            Verdict::Broken(what) => {
                say(&format!("{time} of {times}: {what}"));
                came_back += 1;
                last = Some(what);
            }
            Verdict::Kept => say(&format!("{time} of {times}: all is right")),
            Verdict::CannotRun(reason) => {
                anyhow::bail!("{} cannot run here: {reason}", finding.subject)
            }
        }
    }
    Ok((came_back, last))
}

fn list(rules: &[Rule]) -> String {
    let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
    rules.join("; ")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::rule::Side;

    /// A place in which each trial takes a second, and some trials go wrong.
    struct Toy<'a> {
        now: &'a Cell<u64>,
        /// The failure of a subject with the names of late points, if any.
        wrong: fn(&str, &[&str]) -> bool,
        renewed: u32,
        /// In how many trials a device stood still.
        stalls: u32,
        at_the_end: Option<String>,
    }

    /// The name of a rule's point, or that the rule stalls a device.
    fn name(rule: &Rule) -> &str {
        let is_long = rule.most() > Some(Duration::from_secs(1));
        if is_long && rule.point.side == Side::Device {
            "stall"
        } else {
            &rule.point.name
        }
    }

    impl Place for Toy<'_> {
        fn points(&self) -> Vec<Point> {
            let point = |side, name: &str| Point {
                side,
                name: name.to_owned(),
                swaps: false,
            };
            let mut points = ["a", "b", "c", "d"]
                .map(|name| point(Side::Driver, name))
                .to_vec();
            points.push(point(Side::Device, "control.taken"));
            points
        }

        fn subjects(&mut self) -> Result<Vec<String>> {
            Ok(["one", "two", "three"].map(str::to_owned).into())
        }

        fn try_out(&mut self, subject: &str, rules: &[Rule]) -> Result<Outcome> {
            self.now.set(self.now.get() + 1);
            let names: Vec<_> = rules.iter().map(name).collect();
            self.stalls += u32::from(names.contains(&"stall"));
            let verdict = if subject == "three" {
                Verdict::CannotRun("it has no legs".to_owned())
            } else if (self.wrong)(subject, &names) {
                Verdict::Broken(format!("{subject} falls"))
            } else {
                Verdict::Kept
            };
            Ok(Outcome {
                verdict,
                late: vec![2; rules.len()],
                crowd: Some(Crowd {
                    tasks: if subject == "two" { 50 } else { 1 },
                    passed: vec!["a".to_owned(), "d".to_owned()],
                }),
            })
        }

        fn renew(&mut self) -> Result<()> {
            self.renewed += 1;
            Ok(())
        }

        fn finish(&mut self) -> Result<Option<String>> {
            Ok(self.at_the_end.take())
        }
    }

    fn toy(now: &Cell<u64>, wrong: fn(&str, &[&str]) -> bool) -> Toy<'_> {
        Toy {
            now,
            wrong,
            renewed: 0,
            stalls: 0,
            at_the_end: None,
        }
    }

    fn options(seconds: u64) -> Options {
        Options {
            kernel: "toy".to_owned(),
            seed: 11,
            time: Duration::from_secs(seconds),
            shrinking: Duration::from_secs(200),
            shard: Shard::WHOLE,
            kept: Vec::new(),
            pattern: None,
            keep_going: false,
        }
    }

    fn search(wrong: fn(&str, &[&str]) -> bool, seconds: u64) -> (Report, u32) {
        let now = Cell::new(0);
        let mut toy = toy(&now, wrong);
        let options = options(seconds);
        let clock = || Duration::from_secs(now.get());
        let report = explore(&mut toy, &options, &clock, &mut |_| Ok(())).unwrap();
        (report, toy.renewed)
    }

    #[test]
    fn a_search_without_a_finding_covers_what_there_is_and_ends_in_time() {
        let (report, renewed) = search(|_, _| false, 100);
        assert_eq!(report.findings, []);
        assert_eq!(report.trials, 100);
        assert_eq!(renewed, 0);
        assert_eq!(report.coverage.pairs("toy"), (10, 10, 10));
    }

    #[test]
    fn stalls_have_half_of_the_time_behind_the_first_half() {
        let now = Cell::new(0);
        let mut toy = toy(&now, |_, _| false);
        let options = Options {
            shrinking: Duration::ZERO,
            ..options(400)
        };
        let clock = || Duration::from_secs(now.get());
        explore(&mut toy, &options, &clock, &mut |_| Ok(())).unwrap();
        assert_eq!(toy.stalls, 100);
    }

    #[test]
    fn what_one_point_breaks_is_found_with_that_point() {
        let (report, _) = search(|subject, late| subject == "two" && late.contains(&"c"), 100);
        let [finding] = &report.findings[..] else {
            panic!("one finding: {:?}", report.findings);
        };
        assert_eq!(finding.phase, Phase::Alone);
        assert_eq!((finding.tried_again, finding.came_back), (6, 6));
        let points: Vec<_> = finding.rules.iter().map(|rule| &rule.point.name).collect();
        assert_eq!(points, ["c"]);
        assert!(report.trials <= 15, "{}", report.trials);
    }

    #[test]
    fn what_three_points_break_is_found_with_those_three() {
        let (report, _) = search(
            |_, late| ["a", "b", "d"].iter().all(|p| late.contains(p)),
            400,
        );
        let [finding] = &report.findings[..] else {
            panic!("one finding: {:?}", report.findings);
        };
        assert_eq!(finding.phase, Phase::Random);
        let mut points: Vec<_> = finding.rules.iter().map(|rule| &rule.point.name).collect();
        points.sort();
        assert_eq!(points, ["a", "b", "d"]);
    }

    #[test]
    fn what_breaks_when_a_device_stands_still_for_many_is_found() {
        let (report, _) = search(
            |subject, late| subject == "two" && late.contains(&"stall"),
            200,
        );
        let [finding] = &report.findings[..] else {
            panic!("one finding: {:?}", report.findings);
        };
        assert_eq!(finding.phase, Phase::Stalls);
        // Nearly all stalls use the one subject that has many tasks.
        assert!((101..=110).contains(&finding.trial), "{}", finding.trial);
        let late: Vec<_> = finding.rules.iter().map(name).collect();
        assert_eq!(late, ["stall"]);
    }

    #[test]
    fn what_needs_no_lateness_is_told_so() {
        let (report, renewed) = search(|subject, _| subject == "one", 100);
        let [finding] = &report.findings[..] else {
            panic!("one finding: {:?}", report.findings);
        };
        assert!(finding.rules.is_empty());
        assert!(!finding.first_rules.is_empty());
        assert!(finding.to_string().contains("without any lateness"));
        assert_eq!(renewed, 7);
    }

    #[test]
    fn what_is_wrong_at_the_end_is_a_finding() {
        let now = Cell::new(0);
        let mut toy = Toy {
            at_the_end: Some("a leak".to_owned()),
            ..toy(&now, |_, _| false)
        };
        let options = Options {
            kernel: "toy".to_owned(),
            seed: 11,
            time: Duration::from_secs(5),
            shrinking: Duration::ZERO,
            shard: Shard::WHOLE,
            kept: Vec::new(),
            pattern: Some("o".to_owned()),
            keep_going: true,
        };
        let clock = || Duration::from_secs(now.get());
        let report = explore(&mut toy, &options, &clock, &mut |_| Ok(())).unwrap();
        assert_eq!(report.findings[0].what, "a leak");
    }

    #[test]
    fn a_finding_is_told_before_and_after_it_is_examined() {
        let now = Cell::new(0);
        let mut toy = toy(&now, |_, late| late.contains(&"control.taken"));
        let clock = || Duration::from_secs(now.get());
        let mut told = Vec::new();
        let report = explore(&mut toy, &options(100), &clock, &mut |progress| {
            if let Progress::Found(finding) = progress {
                told.push(finding.clone());
            }
            Ok(())
        })
        .unwrap();
        let [first, last] = &told[..] else {
            panic!("told twice: {told:?}");
        };
        assert_eq!((first.trial, first.tried_again), (last.trial, 0));
        assert_eq!(std::slice::from_ref(last), report.findings);
    }

    #[test]
    fn a_search_ends_when_a_finding_cannot_be_kept() {
        let now = Cell::new(0);
        let mut toy = toy(&now, |_, late| late.contains(&"control.taken"));
        let clock = || Duration::from_secs(now.get());
        let ended = explore(&mut toy, &options(100), &clock, &mut |progress| {
            anyhow::ensure!(matches!(progress, Progress::Line(_)), "a full disk");
            Ok(())
        });
        assert_eq!(ended.unwrap_err().to_string(), "a full disk");
    }

    #[test]
    fn what_was_found_earlier_is_tried_first() {
        let wrong: fn(&str, &[&str]) -> bool =
            |subject, late| subject == "two" && late == ["control.taken"];
        let (report, _) = search(wrong, 100);
        let kept = report.findings;
        let now = Cell::new(0);
        let mut toy = toy(&now, wrong);
        let options = Options {
            seed: 12,
            kept: kept.clone(),
            ..options(100)
        };
        let clock = || Duration::from_secs(now.get());
        let report = explore(&mut toy, &options, &clock, &mut |_| Ok(())).unwrap();
        let [finding] = &report.findings[..] else {
            panic!("one finding: {:?}", report.findings);
        };
        assert_eq!((finding.phase, finding.trial), (Phase::Kept, 1));
        assert_eq!(finding.rules, kept[0].rules);
    }

    #[test]
    fn what_was_found_earlier_takes_no_time_of_the_search() {
        let wrong: fn(&str, &[&str]) -> bool = |_, late| late == ["control.taken"];
        let (report, _) = search(wrong, 100);
        let now = Cell::new(0);
        let mut toy = toy(&now, |_, _| false);
        let options = Options {
            kept: vec![report.findings[0].clone(); 70],
            ..options(100)
        };
        let clock = || Duration::from_secs(now.get());
        let report = explore(&mut toy, &options, &clock, &mut |_| Ok(())).unwrap();
        assert_eq!(report.trials, 170);
        // Half of the time is for single points, as always: ten pairs need no more.
        assert_eq!(report.coverage.pairs("toy"), (10, 10, 10));
        assert_eq!(toy.stalls, 25);
    }

    #[test]
    fn what_comes_back_rarely_is_tried_more_often() {
        assert_eq!(tries(1.0), 1);
        assert_eq!(tries(0.5), 4);
        assert_eq!(tries(0.1), MOST_TRIES);
    }
}
