//! A failure that was found, and the file that reproduces it.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::file;
use crate::rule::Rule;
use crate::schedule::Phase;

/// The version of the file.
const VERSION: u32 = 1;

/// A failure that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    version: u32,
    /// The kernel.
    pub kernel: String,
    /// The seed of the search.
    pub seed: u64,
    /// The part of the search.
    pub phase: Phase,
    /// The number of the trial, from 1 on.
    pub trial: u64,
    /// How many seconds the search had taken.
    pub seconds: u64,
    /// The subject.
    pub subject: String,
    /// The failure, in the words of the program that noticed it.
    pub what: String,
    /// The fewest rules that brought it back; all rules of the trial if none did.
    pub rules: Vec<Rule>,
    /// The rules of the trial.
    pub first_rules: Vec<Rule>,
    /// How often these rules were tried again.
    pub tried_again: u32,
    /// How often the failure came back then.
    pub came_back: u32,
}

/// The circumstances of a fault.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// The kernel.
    pub kernel: String,
    /// The seed of the search.
    pub seed: u64,
    /// The part of the search.
    pub phase: Phase,
    /// The number of the trial.
    pub trial: u64,
    /// How many seconds the search had taken.
    pub seconds: u64,
}

impl Finding {
    /// A failure of a subject with these rules.
    #[must_use]
    pub fn new(at: Circumstances, subject: String, what: String, rules: Vec<Rule>) -> Self {
        Self {
            version: VERSION,
            kernel: at.kernel,
            seed: at.seed,
            phase: at.phase,
            trial: at.trial,
            seconds: at.seconds,
            subject,
            what,
            first_rules: rules.clone(),
            rules,
            tried_again: 0,
            came_back: 0,
        }
    }

    /// Reads all files of a directory, in the order of their names.
    ///
    /// # Errors
    ///
    /// When one cannot be read or is no finding.
    pub fn read_all(directory: &Path) -> Result<Vec<Self>> {
        let entries = fs::read_dir(directory)
            .with_context(|| format!("reading the directory {}", directory.display()))?;
        let mut paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        paths.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        });
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// Reads the file.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is no finding.
    pub fn read(path: &Path) -> Result<Self> {
        file::read(path, VERSION, "finding")
    }

    /// Writes the file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        file::write(path, self)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} is broken on the {} kernel:",
            self.subject, self.kernel
        )?;
        writeln!(f, "    {}", self.what.trim())?;
        writeln!(
            f,
            "trial {} of seed {} ({}), after {} s; it came back {} of {} times",
            self.trial, self.seed, self.phase, self.seconds, self.came_back, self.tried_again
        )?;
        if self.rules.is_empty() {
            writeln!(f, "without any lateness")?;
        } else {
            writeln!(
                f,
                "with {} of the trial's {} rules:",
                self.rules.len(),
                self.first_rules.len()
            )?;
        }
        for rule in &self.rules {
            writeln!(f, "    {rule}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Point, Side};

    #[test]
    fn every_finding_that_is_kept_can_be_read() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("kept");
        for finding in Finding::read_all(&kept).unwrap() {
            assert!(finding.subject.contains(':'), "{finding}");
        }
    }

    #[test]
    fn a_finding_is_read_as_it_was_written() {
        let point = Point {
            side: Side::Device,
            name: "control.seen".to_owned(),
            swaps: false,
        };
        let rule = Rule {
            text: format!("delay=1ms@{}", point.name),
            point,
        };
        let at = Circumstances {
            kernel: "stock".to_owned(),
            seed: 7,
            phase: Phase::Pairs,
            trial: 12,
            seconds: 34,
        };
        let finding = Finding::new(at, "row:x".to_owned(), "word 3 is 4".to_owned(), vec![rule]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("finding.json");
        finding.write(&path).unwrap();
        assert_eq!(Finding::read(&path).unwrap(), finding);

        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert!(Finding::read(&path).is_err());
        // Another version may have other fields.
        let other = text.replace("\"version\": 1", "\"version\": 2, \"new\": 3");
        fs::write(&path, other).unwrap();
        let error = format!("{:#}", Finding::read(&path).unwrap_err());
        assert!(error.contains("has version 2, not 1"), "{error}");
        let said = finding.to_string();
        assert!(said.contains("device: delay=1ms@control.seen"), "{said}");
    }
}
