//! Shows long steps to a person: what runs, for how long, and its last line.
//!
//! All output of a step goes to a log file, which errors name. It does not know what the steps do.
//! Its own output goes to standard error.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use hmm_cli::remark;
use indicatif::{ProgressBar, ProgressStyle};

/// How often the line on a terminal is updated.
const TERMINAL_TICK: Duration = Duration::from_millis(200);
/// How often a line is printed without a terminal.
const PLAIN_TICK: Duration = Duration::from_secs(15);
/// How many last lines of the log an error shows.
const SHOWN_ON_FAILURE: usize = 20;

/// A step that has ended, whether or not it succeeded.
#[derive(Debug)]
pub(crate) struct Finished {
    what: String,
    status: ExitStatus,
    log: PathBuf,
}

/// Prints what is about to be done and why.
pub(crate) fn announce(what: &str, why: &str) {
    remark!("==> {what}: {why}");
}

/// Runs `command`, shows its progress, and keeps its output in `log`.
pub(crate) fn run(what: &str, command: &mut Command, log: &Path) -> Result<Finished> {
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let errors = output.try_clone()?;
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;

    let (ended, ticks) = mpsc::channel::<()>();
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        drop(ended);
        status
    });
    show(what, log, begun, &ticks);
    let status = waiter
        .join()
        .expect("waiting does not panic")
        .with_context(|| format!("waiting for {what}"))?;
    let verdict = if status.success() { "done" } else { "failed" };
    remark!("    {what}: {verdict} after {}", elapsed(begun.elapsed()));
    Ok(Finished {
        what: what.to_owned(),
        status,
        log: log.to_owned(),
    })
}

impl Finished {
    /// Whether the command succeeded.
    pub(crate) fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// All that the command printed.
    pub(crate) fn output(&self) -> Result<String> {
        let bytes =
            fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The file with the output.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// An error with the end of the log, unless the command succeeded.
    pub(crate) fn check(&self) -> Result<()> {
        if self.succeeded() {
            return Ok(());
        }
        let output = self.output()?;
        let lines: Vec<_> = output.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_ON_FAILURE)..].join("\n    ");
        bail!(
            "{} failed ({}); its last lines:\n    {shown}\nthe whole log is {}",
            self.what,
            self.status,
            self.log.display()
        )
    }
}

/// Shows the time and the last line until the other end of `ticks` is dropped.
fn show(what: &str, log: &Path, begun: Instant, ticks: &mpsc::Receiver<()>) {
    let terminal = std::io::stderr().is_terminal();
    let tick = if terminal { TERMINAL_TICK } else { PLAIN_TICK };
    let bar = terminal.then(|| {
        let style = ProgressStyle::with_template("    {spinner} {prefix} [{elapsed}] {wide_msg}")
            .expect("the template is valid");
        ProgressBar::new_spinner()
            .with_style(style)
            .with_prefix(what.to_owned())
    });
    while ticks.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
        let line = last_line(log).unwrap_or_default();
        match &bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None => remark!("    {what} [{}] {line}", elapsed(begun.elapsed())),
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// The last printable line of a growing file.
fn last_line(log: &Path) -> Option<String> {
    const TAIL: u64 = 4096;
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail
        .rsplit(['\n', '\r'])
        .find(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(160).collect())
}

/// A duration in the words of a person.
pub(crate) fn elapsed(duration: Duration) -> String {
    match duration.as_secs() {
        0..=9 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 10..=59 => format!("{seconds} s"),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_its_log_and_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("logs/step.log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; echo broken >&2; exit 3"]);
        let error = run("counting", &mut command, &log)
            .unwrap()
            .check()
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("counting failed (exit status: 3)"), "{text}");
        assert!(text.contains("broken") && text.contains("100"), "{text}");
        assert!(!text.contains("\n    7\n"), "only the end: {text}");
        assert!(text.contains(&log.display().to_string()), "{text}");
    }

    #[test]
    fn the_last_line_ignores_blank_ends_and_overprinted_text() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, "first\n10%\r20%\r\n\n").unwrap();
        assert_eq!(last_line(&log).as_deref(), Some("20%"));
        fs::write(&log, "").unwrap();
        assert_eq!(last_line(&log), None);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(elapsed(Duration::from_millis(1540)), "1.5 s");
        assert_eq!(elapsed(Duration::from_secs(42)), "42 s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2 min 05 s");
    }
}
