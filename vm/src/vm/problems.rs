//! Collects the problems of a machine, to report them together.

use anyhow::{bail, Result};

use crate::klog::Complaint;
use crate::logs::Logs;

/// The problems of a machine.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    /// Keeps an error.
    pub(super) fn note<T>(&mut self, result: Result<T, impl Into<anyhow::Error>>) {
        if let Err(error) = result {
            self.0.push(format!("{:#}", error.into()));
        }
    }

    /// Keeps the kernel's complaints.
    pub(super) fn kernel(&mut self, complaints: Vec<Complaint>) {
        self.lines(
            "guest kernel",
            complaints.into_iter().map(|complaint| complaint.line),
        );
    }

    /// Keeps lines that `who` printed, but no line twice.
    pub(super) fn lines(&mut self, who: &str, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            // The kernel log and the console have the same lines, one of them with the time.
            let known = self.0.iter().any(|problem| {
                problem
                    .strip_prefix(who)
                    .and_then(|problem| problem.strip_prefix(": "))
                    .is_some_and(|problem| line.ends_with(problem))
            });
            if !known {
                self.0.push(format!("{who}: {line}"));
            }
        }
    }

    /// Reports all problems.
    ///
    /// # Errors
    ///
    /// When there are any.
    pub(super) fn report(self, logs: &Logs) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        bail!(
            "{}\nlogs: {}",
            self.0.join("\n"),
            logs.directory().display()
        )
    }
}
