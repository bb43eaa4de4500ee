//! The result of a workload: one line for a person or one object for a program.

use std::fmt;
use std::time::Duration;

use hmm_cli::say;
use serde::{Serialize, Serializer};

/// The result of a workload.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The workload.
    pub workload: &'static str,
    /// Its size.
    pub size: usize,
    /// What `size` counts.
    pub unit: &'static str,
    /// Whether every answer was right.
    pub right: bool,
    /// The first few mistakes.
    pub mistakes: Vec<String>,
    /// Faults that the device raised.
    pub faults: u64,
    /// Pages moved to the device.
    pub pages_to_device: u64,
    /// Pages moved back, for whatever reason.
    pub pages_to_system: u64,
    /// Time from submitting jobs to their end.
    #[serde(rename = "device_ns", serialize_with = "nanoseconds")]
    pub device: Option<Duration>,
    /// Time of the CPU for the same work.
    #[serde(rename = "cpu_ns", serialize_with = "nanoseconds")]
    pub cpu: Option<Duration>,
    /// The seed that repeats the run.
    pub seed: u64,
    /// A remark.
    pub note: String,
}

fn nanoseconds<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        .serialize(to)
}

impl Report {
    /// Prints the report.
    pub fn print(&self, json: bool) {
        if json {
            say!("{}", serde_json::json!(self));
        } else {
            say!("{self}");
        }
    }
}

/// A time with three digits or so.
struct Time(Option<Duration>);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(time) => f.pad(&format!("{time:.1?}")),
            None => f.pad("-"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<13} {:>10} {:<9} {:<5} {:>6} faults {:>7} to device {:>7} to system   \
             device {:>8}  cpu {:>8}  seed {}",
            self.workload,
            self.size,
            self.unit,
            if self.right { "right" } else { "WRONG" },
            self.faults,
            self.pages_to_device,
            self.pages_to_system,
            Time(self.device),
            Time(self.cpu),
            self.seed,
        )?;
        if !self.note.is_empty() {
            write!(f, "\n              {}", self.note)?;
        }
        for mistake in &self.mistakes {
            write!(f, "\n              wrong: {mistake}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            workload: "sort",
            size: 4,
            unit: "elements",
            right: false,
            mistakes: vec!["2 before 1".into()],
            faults: 1,
            pages_to_device: 2,
            pages_to_system: 3,
            device: Some(Duration::from_micros(1500)),
            cpu: None,
            seed: 9,
            note: String::new(),
        }
    }

    #[test]
    fn a_wrong_answer_is_said_loudly_and_explained() {
        let text = report().to_string();
        assert!(
            text.contains("WRONG") && text.contains("wrong: 2 before 1"),
            "{text}"
        );
        assert!(text.contains("1.5ms"), "{text}");
    }

    #[test]
    fn a_program_reads_plain_numbers() {
        let json = serde_json::json!(report());
        assert_eq!(json["right"], false);
        assert_eq!(json["device_ns"], 1_500_000);
        assert!(json["cpu_ns"].is_null());
    }
}
