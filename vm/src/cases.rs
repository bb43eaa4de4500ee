//! The results of what one test tries one after the other: the rows of the contract, the kernel's
//! own tests of HMM.
//!
//! The command that runs the tests chooses from them by an environment variable, and finds their
//! results in a file. It does not know what they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Cases of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The rows of the contract.
    Rows,
    /// The kernel's own tests of HMM, on our device.
    HmmTests,
}

/// The result of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is as it must be.
    Passed,
    /// It is not; why.
    Failed(String),
    /// This kernel has not what it needs; what that is.
    CannotRun(String),
}

/// The results so far. They are written when this is dropped, so that those of a test that fails
/// are known too.
#[derive(Debug)]
pub struct Cases {
    path: PathBuf,
    outcomes: BTreeMap<String, Outcome>,
}

impl Kind {
    /// What the cases are called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rows => "row",
            Self::HmmTests => "hmm-tests",
        }
    }

    /// The environment variable with the names of the cases that are wanted, one a line. Without
    /// it all are.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Rows => "VIRTIO_HMM_ROWS",
            Self::HmmTests => "VIRTIO_HMM_TESTS",
        }
    }

    /// Those of `all` that are wanted.
    ///
    /// # Errors
    ///
    /// When one is wanted that does not exist.
    pub fn wanted(self, all: impl IntoIterator<Item = String>) -> Result<BTreeSet<String>> {
        chosen(all, std::env::var(self.variable()).ok().as_deref())
    }

    /// The file of the results, below the directory of reports.
    fn file(self, reports: &Path, kernel: &str) -> PathBuf {
        reports.join(format!("{}-{kernel}.json", self.name()))
    }

    /// The results of a run that has ended. There are none if the test has not come that far.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn results(self, reports: &Path, kernel: &str) -> Result<BTreeMap<String, Outcome>> {
        let path = self.file(reports, kernel);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }
}

/// Those of `all` that a text names, one a line; all of them without a text.
fn chosen(all: impl IntoIterator<Item = String>, names: Option<&str>) -> Result<BTreeSet<String>> {
    let all: BTreeSet<String> = all.into_iter().collect();
    let Some(names) = names else {
        return Ok(all);
    };
    names
        .lines()
        .map(|name| {
            all.get(name)
                .cloned()
                .with_context(|| format!("there is nothing called {name}"))
        })
        .collect()
}

impl Cases {
    /// None has run yet.
    #[must_use]
    pub fn new(kind: Kind, reports: &Path, kernel: &str) -> Self {
        Self {
            path: kind.file(reports, kernel),
            outcomes: BTreeMap::new(),
        }
    }

    /// Sets the result of a case. A later result replaces an earlier one.
    pub fn set(&mut self, name: impl Into<String>, outcome: Outcome) {
        self.outcomes.insert(name.into(), outcome);
    }
}

impl Drop for Cases {
    fn drop(&mut self) {
        let written = serde_json::to_vec_pretty(&self.outcomes)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(fs::write(&self.path, text)?));
        if let Err(error) = written {
            // The test itself says what failed; this says why its results are missing.
            hmm_cli::remark!("writing {}: {error:#}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn all_cases_are_wanted_unless_some_are_named() {
        let all = || names(&["a", "b", "c"]);
        assert_eq!(chosen(all(), None).unwrap(), all());
        assert_eq!(chosen(all(), Some("a\nc")).unwrap(), names(&["a", "c"]));
        assert!(chosen(all(), Some("a\nd")).is_err());
    }

    #[test]
    fn results_are_written_though_the_test_fails() {
        let reports = tempfile::tempdir().unwrap();
        let kind = Kind::Rows;
        assert!(kind.results(reports.path(), "stock").unwrap().is_empty());
        let failed = std::panic::catch_unwind(|| {
            let mut cases = Cases::new(kind, reports.path(), "stock");
            cases.set("a", Outcome::CannotRun("no swap".to_owned()));
            cases.set("a", Outcome::Passed);
            cases.set("b", Outcome::Failed("late".to_owned()));
            panic!("the test fails");
        });
        assert!(failed.is_err());
        let results = kind.results(reports.path(), "stock").unwrap();
        assert_eq!(results["a"], Outcome::Passed);
        assert_eq!(results["b"], Outcome::Failed("late".to_owned()));
        assert!(kind.results(reports.path(), "debug").unwrap().is_empty());
    }
}
