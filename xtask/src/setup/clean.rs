//! `cargo xtask clean`: frees the space of entries that are no longer used.
//!
//! After a change of a recipe the old entry stays, because another checkout may still use it.
//! Entries are removed by age; their contents are not known here.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{ensure, Context, Result};
use hmm_cli::say;

use crate::args::CleanArgs;
use crate::setup::cache::{Cache, Entry};
use crate::setup::host;
use crate::setup::space::gigabytes;
use crate::setup::toolbox;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One line of the report.
#[derive(Debug)]
struct Row {
    name: String,
    bytes: u64,
    days: u64,
    fate: Fate,
}

/// The decision about an entry.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Kept,
    InUse,
    Removed,
    WouldBeRemoved,
}

/// Removes entries that have not been used for that long, and reports what is left.
pub(crate) fn clean(args: &CleanArgs) -> Result<ExitCode> {
    let cache = Cache::of_user()?;
    let limit = DAY.saturating_mul(u32::try_from(args.unused_for).unwrap_or(u32::MAX));
    let mut rows = Vec::new();
    for entry in cache.entries()? {
        // The builds in a toolbox are removed with it, or by their own age.
        let builds = toolbox::builds_in(&entry.path);
        if !is_old(&entry, limit) && builds.is_dir() {
            for build in Cache::at(builds).entries()? {
                rows.push(row(&build, &entry.name, limit, args.dry_run)?);
            }
        }
        rows.push(row(&entry, "", limit, args.dry_run)?);
    }
    let mut freed = 0;
    for row in &rows {
        let fate = match row.fate {
            Fate::Kept => "kept",
            Fate::InUse => "kept: another run uses it now",
            Fate::Removed => "removed",
            Fate::WouldBeRemoved => "would be removed",
        };
        let (name, size, days) = (&row.name, gigabytes(row.bytes), row.days);
        say!("{size:>9}  unused for {days:3} days  {name}: {fate}");
        if matches!(row.fate, Fate::Removed | Fate::WouldBeRemoved) {
            freed += row.bytes;
        }
    }
    let tense = if args.dry_run {
        "would be freed"
    } else {
        "freed"
    };
    say!(
        "{} {tense} in {}",
        gigabytes(freed),
        cache.directory().display()
    );
    Ok(ExitCode::SUCCESS)
}

fn row(entry: &Entry, inside: &str, limit: Duration, dry_run: bool) -> Result<Row> {
    let bytes = size(&entry.path)?;
    let fate = match (is_old(entry, limit), dry_run) {
        (false, _) => Fate::Kept,
        (true, true) => Fate::WouldBeRemoved,
        (true, false) if entry.remove()? => Fate::Removed,
        (true, false) => Fate::InUse,
    };
    Ok(Row {
        name: Path::new(inside).join(&entry.name).display().to_string(),
        bytes,
        days: age(entry).as_secs() / DAY.as_secs(),
        fate,
    })
}

fn is_old(entry: &Entry, limit: Duration) -> bool {
    age(entry) >= limit
}

/// The time since the last use; a use in the future counts as now.
fn age(entry: &Entry) -> Duration {
    SystemTime::now()
        .duration_since(entry.used)
        .unwrap_or(Duration::ZERO)
}

/// The disk usage of a tree, parts of which may belong to our subordinate ids.
fn size(tree: &Path) -> Result<u64> {
    let output = host::as_root_of_own_namespace()
        .args(["du", "--summarize", "--one-file-system", "--block-size=1"])
        .arg(tree)
        .stderr(Stdio::inherit())
        .output()
        .context("starting du")?;
    ensure!(output.status.success(), "du failed: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let bytes = text.split_whitespace().next().unwrap_or_default();
    bytes
        .parse()
        .with_context(|| format!("du printed {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_in_the_future_is_not_old() {
        let entry = |used| Entry {
            name: String::new(),
            path: "/".into(),
            used,
        };
        let now = SystemTime::now();
        assert!(!is_old(&entry(now + DAY), DAY));
        assert!(!is_old(&entry(now), DAY));
        assert!(is_old(&entry(now - DAY), DAY));
    }

    #[test]
    fn a_tree_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), vec![1; 100_000]).unwrap();
        assert!(size(directory.path()).unwrap() >= 100_000);
    }
}
