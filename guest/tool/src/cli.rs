//! What the command lines of guest programs have in common: the device, the choice of a workload,
//! how often to measure, and the exit status.
//!
//! It does not know which workloads and measurements a program has.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use hmm_bench::{Bench, Format};
use hmm_cli::remark;

use crate::argument::WrongArgument;

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// The device.
    #[arg(long, global = true, default_value = "/dev/hmm0", value_name = "PATH")]
    pub device: PathBuf,
    /// Print JSON, one object for each line.
    #[arg(long, global = true)]
    pub json: bool,
}

/// How often to measure.
#[derive(Clone, Copy, Debug, Args)]
pub struct Rounds {
    /// Rounds of everything.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
}

impl Rounds {
    /// A benchmark of so many rounds, which prints its results as text or as JSON.
    #[must_use]
    pub fn bench(self, json: bool) -> Bench {
        let format = if json { Format::Json } else { Format::Text };
        Bench::new(format, self.repetitions)
    }
}

/// A workload of a program, or all of them. The name of a value is the workload's.
pub trait Choice: ValueEnum + PartialEq + 'static {
    /// The value that stands for all workloads.
    const ALL: Self;

    /// Whether the workload of this name is to run.
    fn includes(&self, name: &str) -> bool {
        let value = self.to_possible_value();
        *self == Self::ALL || value.is_some_and(|value| value.get_name() == name)
    }

    /// The first difference between the values and the names of a program's workloads, for its
    /// tests: each value but the one for all of them names one workload, in the same order.
    fn difference(names: &[&str]) -> Option<String> {
        let single = Self::value_variants().iter();
        let single = single.filter(|value| **value != Self::ALL);
        let values = single.filter_map(Self::to_possible_value);
        let values: Vec<_> = values.map(|value| value.get_name().to_owned()).collect();
        (values != names).then(|| format!("the values {values:?} for the workloads {names:?}"))
    }
}

/// The exit status for a wrong command line, as the parser has it.
const WRONG_USAGE: u8 = 2;

/// The exit status of a program: zero only when everything that was asked for was done, and every
/// answer was right; two when an argument was wrong. Prints an error.
pub fn exit_code(program: &str, outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            remark!("{program}: {error:#}");
            if error.is::<WrongArgument>() {
                ExitCode::from(WRONG_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
    enum Dish {
        All,
        Soup,
        BakedFish,
    }

    impl Choice for Dish {
        const ALL: Self = Self::All;
    }

    #[test]
    fn a_choice_includes_the_workload_of_its_name_and_all_includes_any() {
        assert!(Dish::BakedFish.includes("baked-fish"));
        assert!(!Dish::BakedFish.includes("soup"));
        assert!(!Dish::Soup.includes("all"));
        assert!(Dish::All.includes("soup") && Dish::All.includes("baked-fish"));
    }

    #[test]
    fn a_workload_without_a_choice_and_a_choice_without_a_workload_are_told_of() {
        assert_eq!(Dish::difference(&["soup", "baked-fish"]), None);
        assert!(Dish::difference(&["soup"]).is_some());
        assert!(Dish::difference(&["soup", "baked-fish", "cake"]).is_some());
        assert!(Dish::difference(&["baked-fish", "soup"]).is_some());
    }

    #[test]
    fn only_what_was_done_and_right_ends_with_status_zero() {
        let failed = |outcome| exit_code("test", outcome) != ExitCode::SUCCESS;
        assert!(!failed(Ok(true)));
        assert!(failed(Ok(false)));
        assert!(failed(Err(anyhow::anyhow!("an error"))));
    }

    #[test]
    fn a_wrong_argument_ends_with_the_status_of_the_parser() {
        let wrong = exit_code("test", Err(WrongArgument("too small".to_owned()).into()));
        assert_eq!(wrong, ExitCode::from(WRONG_USAGE));
        let other = exit_code("test", Err(anyhow::anyhow!("an error")));
        assert_ne!(other, ExitCode::from(WRONG_USAGE));
    }
}
