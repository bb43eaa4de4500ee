//! `cargo xtask explore`: runs the explorer for a person, for the tests and on several machines.
//!
//! It turns the command line into a search, and the results into files. The explorer decides what
//! is searched, and how.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use hmm_cli::say;
use hmm_explorer::coverage::Coverage;
use hmm_explorer::explore::{explore, replay, Options, Progress};
use hmm_explorer::finding::Finding;
use hmm_explorer::machine::Lab;
use hmm_explorer::schedule::Shard;
use hmm_vm::artifacts::Artifacts;

use crate::args::{ExploreArgs, KernelChoice};
use crate::setup::cargo::{Checkout, Purpose};
use crate::setup::kernel::{DEBUG, STOCK};
use crate::setup::prepare::Prepared;

/// The findings of earlier searches, which every search tries first.
const KEPT: &str = "tests/explorer/kept";

/// How long the fewest rules are searched for, unless the whole search is shorter than twice that.
const SHRINKING: Duration = Duration::from_secs(300);

/// `cargo xtask explore`.
pub(crate) fn run(args: &ExploreArgs) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    let output = match &args.output {
        Some(directory) => directory.clone(),
        None => output(&checkout)?,
    };
    if !args.merge.is_empty() {
        return merge(&args.merge, &output);
    }
    if let Some(path) = &args.replay {
        return again(&checkout, args.kernel.as_ref(), path, args.times);
    }
    let choice = args.kernel.clone().unwrap_or(KernelChoice::Stock);
    let (prepared, kernel) = Prepared::for_kernel(&checkout, &choice, Purpose::Measurements)?;
    let search = Search {
        kernel,
        seed: args.seed.map_or_else(seed, Ok)?,
        time: Duration::from_secs(args.seconds),
        shard: args.shard,
        pattern: args.row.clone(),
        keep_going: args.keep_going,
    };
    let findings = search.run(&checkout, &prepared.artifacts, &output)?;
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A seed that is new each time.
pub(crate) fn seed() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("the clock")?.as_secs())
}

/// The directory for findings and tables, among Cargo's output.
pub(crate) fn output(checkout: &Checkout) -> Result<PathBuf> {
    let directory = checkout.output.join("explorer");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// What to search for.
pub(crate) struct Search {
    /// Its name among the artifacts.
    pub(crate) kernel: String,
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    pub(crate) shard: Shard,
    pub(crate) pattern: Option<String>,
    pub(crate) keep_going: bool,
}

impl Search {
    /// Searches, prints the results and writes them to files. Returns what was wrong.
    ///
    /// # Errors
    ///
    /// When nothing can be tried, or a file cannot be written.
    pub(crate) fn run(
        self,
        checkout: &Checkout,
        artifacts: &Artifacts,
        output: &Path,
    ) -> Result<Vec<Finding>> {
        let kernel = self.kernel.as_str();
        let options = Options {
            kernel: kernel.to_owned(),
            seed: self.seed,
            time: self.time,
            shrinking: SHRINKING.min(self.time / 2),
            shard: self.shard,
            kept: match self.pattern {
                Some(_) => Vec::new(),
                None => Finding::read_all(&checkout.root.join(KEPT))?,
            },
            pattern: self.pattern,
            keep_going: self.keep_going,
        };
        // A search of hours must not end without a place for its results.
        fs::create_dir_all(output).with_context(|| format!("creating {}", output.display()))?;
        let begun = Instant::now();
        let mut lab = Lab::new(artifacts, kernel, self.seed);
        let share = match self.shard {
            Shard::WHOLE => String::new(),
            Shard { index, count } => format!("-{}-of-{count}", index + 1),
        };
        let place = |finding: &Finding| {
            let trial = finding.trial;
            output.join(format!(
                "finding-{kernel}-{}{share}-{trial}.json",
                self.seed
            ))
        };
        let report = explore(&mut lab, &options, &|| begun.elapsed(), &mut |progress| {
            match progress {
                Progress::Line(line) => say!("{line}"),
                Progress::Found(finding) => finding.write(&place(finding))?,
            }
            Ok(())
        })?;
        let covered = output.join(format!("coverage-{kernel}{share}"));
        keep(&report.coverage, &covered)?;
        say!(
            "{} trials in {} s",
            report.trials,
            begun.elapsed().as_secs()
        );
        for finding in &report.findings {
            say!("\n{finding}");
            say!(
                "again: cargo xtask explore --replay {}",
                place(finding).display()
            );
        }
        Ok(report.findings)
    }
}

/// Prints a table of what was covered, and writes it for people and for `--merge`.
fn keep(coverage: &Coverage, path: &Path) -> Result<()> {
    say!("\n{coverage}");
    let (json, text) = (path.with_extension("json"), path.with_extension("md"));
    coverage.write(&json)?;
    fs::write(&text, coverage.to_string())
        .with_context(|| format!("writing {}", text.display()))?;
    say!("kept in {} and {}", json.display(), text.display());
    Ok(())
}

/// Adds up the coverage of several searches.
fn merge(parts: &[PathBuf], output: &Path) -> Result<ExitCode> {
    let mut sum = Coverage::default();
    for part in parts {
        sum.merge(Coverage::read(part)?);
    }
    keep(&sum, &output.join("coverage"))?;
    Ok(ExitCode::SUCCESS)
}

/// Tries a finding again, on its own kernel unless the user chooses one. Fails if the failure comes
/// back.
fn again(
    checkout: &Checkout,
    choice: Option<&KernelChoice>,
    path: &Path,
    times: u32,
) -> Result<ExitCode> {
    let finding = Finding::read(path)?;
    let own = match finding.kernel.as_str() {
        STOCK => Some(&KernelChoice::Stock),
        DEBUG => Some(&KernelChoice::Debug),
        _ => None,
    };
    let choice = choice.or(own).with_context(|| {
        format!(
            "it was found on Linux {}, which is none of ours: say where that was built, with \
             --kernel DIRECTORY",
            finding.kernel
        )
    })?;
    let (prepared, kernel) = Prepared::for_kernel(checkout, choice, Purpose::Measurements)?;
    say!("{finding}");
    let mut lab = Lab::new(&prepared.artifacts, &kernel, finding.seed);
    let (came_back, _) = replay(&mut lab, &finding, times, &mut |line| say!("{line}"))?;
    say!("it came back {came_back} of {times} times");
    Ok(if came_back == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
