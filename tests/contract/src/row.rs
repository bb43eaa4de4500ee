//! The rows: their type, their list, and how they are printed.
//!
//! It knows neither how a row is contained nor what rows do.

use std::fmt::Write;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::rows::CHAPTERS;

/// One duty, and a program that would notice if it were not done.
pub(crate) struct Row {
    /// Its name: unique, of words with hyphens.
    pub(crate) name: &'static str,
    /// What must be so, and what must not happen.
    pub(crate) duty: &'static str,
    /// The source of the duty: a file and function of Linux 7.3, or a section of its
    /// `Documentation/mm/hmm.rst`.
    pub(crate) source: &'static str,
    /// Tries the duty. An error means that it was not done, unless it is [`CannotRun`].
    pub(crate) run: fn() -> Result<()>,
}

/// Rows that belong together.
pub(crate) struct Chapter {
    pub(crate) title: &'static str,
    pub(crate) rows: &'static [Row],
}

/// Why a row cannot be tried on this kernel or machine.
#[derive(Debug)]
pub(crate) struct CannotRun(pub(crate) String);

impl std::fmt::Display for CannotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot run here: {}", self.0)
    }
}

impl std::error::Error for CannotRun {}

/// An error with this reason.
pub(crate) fn cannot_run(reason: impl Into<String>) -> anyhow::Error {
    CannotRun(reason.into()).into()
}

/// The outcome of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "reason", rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The duty was done.
    Kept,
    /// It was not done, or something happened that must not happen.
    Broken(String),
    /// It could not be tried, for this reason.
    CannotRun(String),
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Kept,
            Err(error) => match error.downcast_ref::<CannotRun>() {
                Some(CannotRun(reason)) => Self::CannotRun(reason.clone()),
                None => Self::Broken(format!("{error:#}")),
            },
        }
    }
}

/// All rows, in the order in which they are listed and run.
pub(crate) fn all() -> impl Iterator<Item = &'static Row> {
    CHAPTERS.iter().flat_map(|chapter| chapter.rows)
}

/// Runs the row with this name in this process, if it exists.
pub(crate) fn run_here(name: &str) -> Option<Outcome> {
    let row = all().find(|row| row.name == name)?;
    Some((row.run)().into())
}

/// A line for each row.
pub(crate) fn list() -> String {
    all().fold(String::new(), |mut text, row| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {} ({})", row.name, row.duty, row.source);
        text
    })
}

/// The tables of the documentation: one for each chapter.
pub(crate) fn markdown() -> String {
    let mut text = String::new();
    for chapter in CHAPTERS {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "## {}\n\n| row | duty | source |\n| --- | --- | --- |\n",
            chapter.title
        );
        for row in chapter.rows {
            let _ = writeln!(text, "| `{}` | {} | {} |", row.name, row.duty, row.source);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The document that people read; its tables begin after this line.
    const DOCUMENT: &str = include_str!("../../../docs/contract.md");
    const BEGIN: &str = "<!-- `hmm-contract list --markdown` from here on -->\n";

    #[test]
    fn the_document_lists_exactly_the_rows_that_there_are() {
        let (_, tables) = DOCUMENT.split_once(BEGIN).expect("the mark is there");
        assert_eq!(tables.trim(), markdown().trim());
    }

    #[test]
    fn every_row_has_a_name_of_its_own_a_duty_and_a_source() {
        let mut names = BTreeSet::new();
        for row in all() {
            let of_words = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(row.name.chars().all(of_words), "{}", row.name);
            assert!(names.insert(row.name), "{} is there twice", row.name);
            assert!(row.duty.len() > 20, "{} says what must be so", row.name);
            assert!(row.source.len() > 5, "{} says where it is from", row.name);
            let table = |text: &str| !text.contains(['|', '\n']);
            assert!(table(row.duty) && table(row.source), "{}", row.name);
        }
    }

    #[test]
    fn what_cannot_run_is_neither_kept_nor_broken() {
        let outcome = Outcome::from(Err(cannot_run("there is no swap")));
        assert_eq!(outcome, Outcome::CannotRun("there is no swap".into()));
        let wrapped = cannot_run("no swap").context("while preparing");
        assert_eq!(
            Outcome::from(Err(wrapped)),
            Outcome::CannotRun("no swap".into())
        );
        let broken = Outcome::from(Err(anyhow::anyhow!("two").context("one")));
        assert_eq!(broken, Outcome::Broken("one: two".into()));
    }
}
