//! The output of benchmarks: shown as it arrives, and kept.

use std::io::{self, Write};

use anyhow::{ensure, Result};
use hmm_bench::{Failure, Line, Measurement};
use hmm_cli::say;

/// Results in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The part of a line whose end has not arrived.
    rest: Vec<u8>,
    /// The group that was shown last.
    group: String,
    /// The number of results when the last benchmark ended.
    ended: usize,
    lines: Vec<Line>,
}

impl Lines {
    /// Adds a result and shows it.
    pub(super) fn add(&mut self, line: Line) {
        let (group, row) = match &line {
            Line::Measurement(measurement) => (&measurement.group, measurement.to_string()),
            Line::Failure(failure) => (&failure.group, failure.to_string()),
        };
        if *group != self.group {
            say!("\n{group}");
            self.group.clone_from(group);
        }
        say!("  {row}");
        self.lines.push(line);
    }

    /// How many things could not be measured.
    pub(super) fn failures(&self) -> usize {
        let failures = self
            .lines
            .iter()
            .filter(|line| matches!(line, Line::Failure(_)));
        failures.count()
    }

    /// Whether there was anything that could not be measured.
    pub(super) fn has_failures(&self) -> bool {
        self.failures() > 0
    }

    /// Ends a benchmark's output.
    pub(super) fn end(&mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.rest);
        ensure!(
            rest.is_empty(),
            "the benchmark's last line has no end: {}",
            String::from_utf8_lossy(&rest)
        );
        ensure!(
            self.lines.len() > self.ended,
            "the benchmark printed nothing"
        );
        self.ended = self.lines.len();
        Ok(())
    }

    /// The measurements, and what could not be measured.
    pub(super) fn into_results(self) -> (Vec<Measurement>, Vec<Failure>) {
        let (mut measurements, mut failures) = (Vec::new(), Vec::new());
        for line in self.lines {
            match line {
                Line::Measurement(measurement) => measurements.push(measurement),
                Line::Failure(failure) => failures.push(failure),
            }
        }
        (measurements, failures)
    }
}

/// Takes a benchmark's output in pieces of any size.
impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let text: Vec<u8> = self.rest.drain(..=end).collect();
            let line = serde_json::from_slice(&text).map_err(|error| {
                let text = String::from_utf8_lossy(&text);
                let text = format!(
                    "the benchmark printed no result but: {} ({error})",
                    text.trim()
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            self.add(line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURE: &str =
        "{\"failure\":{\"group\":\"dma\",\"name\":\"copy\",\"reason\":\"lost\"}}\n";

    #[test]
    fn lines_may_come_in_pieces() {
        let mut lines = Lines::default();
        for piece in FAILURE.repeat(2).as_bytes().chunks(7) {
            lines.write_all(piece).unwrap();
        }
        lines.end().unwrap();
        assert_eq!(lines.failures(), 2);
        let (measurements, failures) = lines.into_results();
        assert_eq!(
            (measurements.len(), failures[0].reason.as_str()),
            (0, "lost")
        );
    }

    #[test]
    fn a_benchmark_that_says_nothing_or_half_a_line_has_failed() {
        let mut lines = Lines::default();
        assert!(lines.end().is_err());
        lines.write_all(FAILURE.as_bytes()).unwrap();
        lines.end().unwrap();
        assert!(lines.end().is_err(), "the second one said nothing");
        lines.write_all(&FAILURE.as_bytes()[..9]).unwrap();
        assert!(lines.end().is_err());
    }

    #[test]
    fn other_output_is_an_error_that_quotes_it() {
        let error = Lines::default().write_all(b"Killed\n").unwrap_err();
        assert!(error.to_string().contains("Killed"));
    }
}
