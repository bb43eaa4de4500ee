//! The rounds in which things are measured.

use std::fmt::Display;
use std::time::Duration;

use hmm_cli::say;

use crate::measurement::{Better, Failure, Line, Measurement, Reference, Unit};
use crate::spread::Spread;

/// Which side of a comparison a round measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The subject.
    Measured,
    /// The reference.
    Reference,
}

/// The amount of work of a round. A rate divides it by the time; a time for each is divided by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// This many bytes are moved: the result is in gigabytes per second.
    Bytes(u64),
    /// This many floating point operations are done: the result is in 10^9 of them per second.
    Flops(u64),
    /// The operation is done this many times: the result is in nanoseconds for each.
    Times(u64),
}

impl Per {
    fn unit(self) -> (Unit, Better) {
        match self {
            Self::Bytes(_) => (Unit::GigabytesPerSecond, Better::Higher),
            Self::Flops(_) => (Unit::GigaflopsPerSecond, Better::Higher),
            Self::Times(_) => (Unit::Nanoseconds, Better::Lower),
        }
    }

    // Three digits are shown; the conversions keep fifteen.
    #[allow(clippy::cast_precision_loss)]
    fn value(self, time: Duration) -> f64 {
        let nanoseconds = time.as_nanos().max(1) as f64;
        match self {
            Self::Bytes(amount) | Self::Flops(amount) => amount as f64 / nanoseconds,
            Self::Times(count) => nanoseconds / count.max(1) as f64,
        }
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A [`Line`] of JSON for each result.
    Json,
    /// A table.
    Text,
}

/// Measures one thing after the other and prints each result at once.
#[derive(Debug)]
pub struct Bench {
    format: Format,
    repetitions: usize,
    group: String,
    failures: usize,
}

impl Bench {
    /// Repeats every measurement this many times, at least once.
    pub fn new(format: Format, repetitions: usize) -> Self {
        Self {
            format,
            repetitions: repetitions.max(1),
            group: String::new(),
            failures: 0,
        }
    }

    /// How often every measurement is repeated.
    pub fn repetitions(&self) -> usize {
        self.repetitions
    }

    /// Begins a group: the results that follow belong to it.
    pub fn group(&mut self, name: &str) {
        name.clone_into(&mut self.group);
        if self.format == Format::Text {
            say!("\n{name}");
        }
    }

    /// Whether everything could be measured.
    pub fn is_complete(&self) -> bool {
        self.failures == 0
    }

    /// Measures something by itself. `round` returns how long it took.
    pub fn alone<E: Display>(
        &mut self,
        name: &str,
        per: Per,
        mut round: impl FnMut() -> Result<Duration, E>,
    ) {
        let rounds = self.rounds(|| round().map(|time| per.value(time)));
        let (unit, better) = per.unit();
        self.conclude(name, unit, better, rounds.map(|values| (values, None)));
    }

    /// Measures something in turns with what it is compared with. `round` returns how long the side
    /// took whose turn it was. One round of each side is a warm-up and does not count.
    pub fn pair<E: Display>(
        &mut self,
        name: &str,
        per: Per,
        reference: &str,
        mut round: impl FnMut(Turn) -> Result<Duration, E>,
    ) {
        let rounds = self.rounds(|| {
            let measured = per.value(round(Turn::Measured)?);
            let reference = per.value(round(Turn::Reference)?);
            Ok::<_, E>((measured, reference))
        });
        let (unit, better) = per.unit();
        let result = rounds.map(|rounds| {
            let reference = Reference::of(reference, &rounds);
            (
                rounds.into_iter().map(|(value, _)| value).collect(),
                reference,
            )
        });
        self.conclude(name, unit, better, result);
    }

    /// Measures a quantity other than a time. `round` returns it.
    pub fn figure<E: Display>(
        &mut self,
        name: &str,
        (unit, better): (Unit, Better),
        round: impl FnMut() -> Result<f64, E>,
    ) {
        let rounds = self.rounds(round);
        self.conclude(name, unit, better, rounds.map(|values| (values, None)));
    }

    /// Adds values that were gathered during other measurements, one from each repetition.
    pub fn gathered(&mut self, name: &str, (unit, better): (Unit, Better), values: Vec<f64>) {
        self.conclude(name, unit, better, Ok((values, None)));
    }

    /// One round that does not count, then as many as wanted.
    fn rounds<T, E: Display>(
        &self,
        mut round: impl FnMut() -> Result<T, E>,
    ) -> Result<Vec<T>, String> {
        // The alternate form also shows the causes of an error, if the error has them.
        let text = |error: E| format!("{error:#}");
        round().map_err(text)?;
        (0..self.repetitions)
            .map(|_| round().map_err(text))
            .collect()
    }

    fn conclude(
        &mut self,
        name: &str,
        unit: Unit,
        better: Better,
        result: Result<(Vec<f64>, Option<Reference>), String>,
    ) {
        let (group, name) = (self.group.clone(), name.to_owned());
        let spread = result.and_then(|(values, reference)| {
            let spread =
                Spread::of(values.iter().copied()).ok_or("there was nothing to measure")?;
            Ok((spread, values.len(), reference))
        });
        let line = match spread {
            Ok((value, repetitions, reference)) => Line::Measurement(Measurement {
                group,
                name,
                unit,
                better,
                repetitions,
                value,
                reference,
            }),
            Err(reason) => {
                self.failures += 1;
                Line::Failure(Failure {
                    group,
                    name,
                    reason,
                })
            }
        };
        match (self.format, &line) {
            (Format::Json, line) => say!("{}", serde_json::json!(line)),
            (Format::Text, Line::Measurement(measurement)) => say!("  {measurement}"),
            (Format::Text, Line::Failure(failure)) => say!("  {failure}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn rates_and_times_are_what_they_say() {
        let time = Duration::from_micros(1);
        assert!((Per::Bytes(2000).value(time) - 2.0).abs() < 1e-12);
        assert!((Per::Times(10).value(time) - 100.0).abs() < 1e-12);
    }

    #[test]
    fn the_first_round_does_not_count_and_the_sides_take_turns() {
        let mut turns = Vec::new();
        let mut bench = Bench::new(Format::Json, 3);
        bench.pair("x", Per::Times(1), "y", |turn| {
            turns.push(turn);
            Ok::<_, Infallible>(Duration::from_nanos(5))
        });
        assert_eq!(turns, [Turn::Measured, Turn::Reference].repeat(4));
        assert!(bench.is_complete());
    }

    #[test]
    fn what_fails_once_is_no_measurement_but_the_next_thing_is_measured() {
        let mut bench = Bench::new(Format::Json, 3);
        let mut rounds = 0;
        bench.alone("x", Per::Times(1), || {
            rounds += 1;
            if rounds == 3 {
                Err("lost")
            } else {
                Ok(Duration::ZERO)
            }
        });
        assert_eq!(rounds, 3);
        assert!(!bench.is_complete());
        bench.alone("y", Per::Times(1), || Ok::<_, Infallible>(Duration::ZERO));
        assert!(!bench.is_complete());
    }
}
