//! The result of a workload: one line of a table for a person, or one object for a program.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use hmm_cli::{figure, say, size};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The result of a workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The workload.
    pub workload: Cow<'static, str>,
    /// Its size.
    pub size: usize,
    /// What `size` counts.
    pub unit: Cow<'static, str>,
    /// Whether it came to its end and every answer was right.
    pub right: bool,
    /// The first few mistakes.
    pub mistakes: Vec<String>,
    /// What kept it from its end.
    pub failure: Option<String>,
    /// Faults that the device raised.
    pub faults: u64,
    /// Pages moved to the device.
    pub pages_to_device: u64,
    /// Pages moved back, for whatever reason.
    pub pages_to_system: u64,
    /// Time from submitting jobs to their end.
    #[serde(rename = "device_ns", with = "nanoseconds")]
    pub device: Option<Duration>,
    /// Time of the CPU for the same work.
    #[serde(rename = "cpu_ns", with = "nanoseconds")]
    pub cpu: Option<Duration>,
    /// The seed that repeats the run.
    pub seed: u64,
    /// A remark.
    pub note: String,
}

/// A time as its number of nanoseconds.
mod nanoseconds {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
            .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_nanos))
    }
}

impl Report {
    /// The first line of a table of reports. It and the others fit into 80 columns.
    #[must_use]
    pub fn header() -> String {
        format!(
            "{:<13} {:>14}  {:<6} {:>6} {:>9} {:>9} {:>7} {:>7}",
            "workload", "size", "answer", "faults", "to device", "to system", "device", "CPU"
        )
    }

    /// Prints the report.
    pub fn print(&self, json: bool) {
        if json {
            say!("{}", serde_json::json!(self));
        } else {
            say!("{self}");
        }
    }

    fn verdict(&self) -> &'static str {
        match (&self.failure, self.right) {
            // Whatever came later, a wrong answer is a wrong answer.
            _ if !self.mistakes.is_empty() => "WRONG",
            (Some(_), _) => "failed",
            (None, true) => "right",
            (None, false) => "WRONG",
        }
    }
}

/// A time with three digits or so.
fn time(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), figure::short_time)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<13} {:>14}  {:<6} {:>6} {:>9} {:>9} {:>7} {:>7}",
            self.workload,
            format!("{} {}", size::write(self.size as u64), self.unit),
            self.verdict(),
            self.faults,
            self.pages_to_device,
            self.pages_to_system,
            time(self.device),
            time(self.cpu),
        )?;
        if !self.note.is_empty() {
            write!(f, "\n    {}", self.note)?;
        }
        for mistake in &self.mistakes {
            write!(f, "\n    wrong: {mistake}")?;
        }
        if let Some(failure) = &self.failure {
            write!(f, "\n    failed: {failure}")?;
        }
        if !self.right {
            write!(f, "\n    again: --seed {}", self.seed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            workload: "sort".into(),
            size: 4,
            unit: "elements".into(),
            right: false,
            mistakes: vec!["2 before 1".into()],
            failure: None,
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
    fn a_table_fits_into_80_columns_and_no_number_is_cut() {
        let large = Report {
            workload: "oversubscribe".into(),
            size: 671_088_641,
            unit: "bytes".into(),
            right: true,
            mistakes: Vec::new(),
            faults: 654_321,
            pages_to_device: 123_456_789,
            pages_to_system: 123_456_789,
            device: Some(Duration::from_millis(59_990)),
            cpu: Some(Duration::from_micros(999_940)),
            ..report()
        };
        let line = large.to_string();
        assert!(Report::header().chars().count() < 80);
        for number in ["671088641 bytes", "654321", "123456789", "60.0s", "999.9ms"] {
            assert!(line.contains(number), "{number}: {line}");
        }
        // A number of one digit more moves the others; it is still whole.
        assert!(line.chars().count() <= 80, "{line}");
    }

    #[test]
    fn what_did_not_come_to_its_end_is_no_wrong_answer() {
        let failed = Report {
            mistakes: Vec::new(),
            failure: Some("the guest is out of memory".into()),
            ..report()
        };
        let text = failed.to_string();
        assert!(
            text.contains("failed: the guest is out of memory"),
            "{text}"
        );
        assert!(!text.contains("WRONG"), "{text}");
        assert!(text.contains("--seed 9"), "{text}");
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
        let again: Report = serde_json::from_value(json).unwrap();
        assert_eq!(again.to_string(), report().to_string());
    }
}
