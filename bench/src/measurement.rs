//! A result and its two formats: a JSON object, or a line for a person.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spread::Spread;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Gigabytes in a second, of 10^9 bytes.
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    /// 10^9 floating point operations in a second.
    #[serde(rename = "GFLOP/s")]
    GigaflopsPerSecond,
    /// Nanoseconds.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Hundredths.
    #[serde(rename = "%")]
    Percent,
    /// Mebibytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// A plain number.
    #[serde(rename = "")]
    Count,
}

impl Unit {
    /// The unit as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::GigabytesPerSecond => "GB/s",
            Self::GigaflopsPerSecond => "GFLOP/s",
            Self::Nanoseconds => "ns",
            Self::Milliseconds => "ms",
            Self::Percent => "%",
            Self::Mebibytes => "MiB",
            Self::Count => "",
        }
    }
}

/// Whether more or less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What a measurement is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its own value, in the measurement's unit.
    pub value: Spread,
    /// The measurement's value divided by its reference's, repetition by repetition.
    pub ratio: Spread,
}

impl Reference {
    /// Summarises pairs of a value and the reference's value, each pair from one repetition. `None`
    /// when there are none.
    pub fn of(name: &str, repetitions: &[(f64, f64)]) -> Option<Self> {
        let repetitions = repetitions.iter();
        Some(Self {
            name: name.to_owned(),
            value: Spread::of(repetitions.clone().map(|(_, reference)| *reference))?,
            ratio: Spread::of(repetitions.map(|(value, reference)| value / reference))?,
        })
    }
}

/// One thing measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What it belongs to: a heading in a table.
    pub group: String,
    /// Its name, unique within its group.
    pub name: String,
    /// What the values count.
    pub unit: Unit,
    /// Whether a high or a low value is good.
    pub better: Better,
    /// How many repetitions the spreads come from.
    pub repetitions: usize,
    /// Its value.
    pub value: Spread,
    /// What it is compared with, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// Something that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it belongs to.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Why it could not be measured.
    pub reason: String,
}

/// What a benchmark prints in one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A result.
    Measurement(Measurement),
    /// A failure to measure.
    Failure(Failure),
}

/// A number with three digits or so, whatever its size.
#[derive(Clone, Copy, Debug)]
pub struct Digits(pub f64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.0.abs() {
            100.0.. => 0,
            10.0.. => 1,
            1.0.. => 2,
            _ => 3,
        };
        f.pad(&format!("{:.decimals$}", self.0))
    }
}

impl fmt::Display for Measurement {
    /// A row: name, value, unit, ratio, and the reference of the ratio.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<44} {:>9} {:<7}",
            self.name,
            Digits(self.value.median),
            self.unit.name()
        )?;
        if let Some(reference) = &self.reference {
            write!(
                f,
                " {:>8} x {} ({} {})",
                Digits(reference.ratio.median),
                reference.name,
                Digits(reference.value.median),
                self.unit.name()
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<44} NOT MEASURED: {}", self.name, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement() -> Measurement {
        Measurement {
            group: "dma".into(),
            name: "to the device, 64 KiB".into(),
            unit: Unit::GigabytesPerSecond,
            better: Better::Higher,
            repetitions: 9,
            value: Spread::exact(9.5),
            reference: Some(Reference {
                name: "memcpy".into(),
                value: Spread::exact(10.0),
                ratio: Spread::exact(0.95),
            }),
        }
    }

    #[test]
    fn a_line_comes_back_as_it_was_written() {
        let lines = [
            Line::Measurement(measurement()),
            Line::Measurement(Measurement {
                reference: None,
                unit: Unit::Count,
                ..measurement()
            }),
            Line::Failure(Failure {
                group: "dma".into(),
                name: "clear".into(),
                reason: "no memory".into(),
            }),
        ];
        for line in lines {
            let text = serde_json::to_string(&line).unwrap();
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
    }

    #[test]
    fn the_written_form_is_the_documented_one() {
        let json = serde_json::json!(Line::Measurement(measurement()));
        let inner = &json["measurement"];
        assert_eq!(inner["unit"], "GB/s");
        assert_eq!(inner["better"], "higher");
        assert_eq!(inner["value"]["median"], 9.5);
        assert_eq!(inner["reference"]["ratio"]["median"], 0.95);
    }

    #[test]
    fn a_row_shows_the_ratio_and_what_it_is_to() {
        let row = measurement().to_string();
        assert!(row.contains("9.50 GB/s"), "{row}");
        assert!(row.contains("0.950 x memcpy (10.0 GB/s)"), "{row}");
    }
}
