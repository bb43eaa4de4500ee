//! A log with a rate limit for each kind of line.
//!
//! A guest can cause many lines as often as it likes. The kind of a line is its place in the
//! source, so that no line can be forgotten.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

/// The interval in which lines are counted.
const INTERVAL: Duration = Duration::from_secs(1);

/// The most lines of one kind in that interval, or no limit: a user who asks for details wants each
/// line.
fn most(level: Level) -> Option<u32> {
    match level {
        Level::Error | Level::Warn => Some(4),
        Level::Info => Some(64),
        Level::Debug | Level::Trace => None,
    }
}

/// A log that drops lines if there are too many of one kind.
#[derive(Debug)]
pub struct Limited<L> {
    log: L,
    kinds: Mutex<HashMap<Kind, Count>>,
}

/// The place of a line in the source.
type Kind = (Option<&'static str>, Option<u32>);

#[derive(Debug)]
struct Count {
    since: Instant,
    written: u32,
    withheld: u64,
}

impl<L: Log> Limited<L> {
    /// Limits a log.
    pub fn new(log: L) -> Self {
        let kinds = Mutex::default();
        Self { log, kinds }
    }

    /// Decides on a line: `None` drops it, otherwise it is written with the number of lines of its
    /// kind that were dropped since the last one.
    fn pass(&self, kind: Kind, level: Level, now: Instant) -> Option<u64> {
        let Some(most) = most(level) else {
            return Some(0);
        };
        let mut kinds = self.kinds.lock();
        let count = kinds.entry(kind).or_insert(Count {
            since: now,
            written: 0,
            withheld: 0,
        });
        if now.saturating_duration_since(count.since) >= INTERVAL {
            (count.since, count.written) = (now, 0);
        }
        if count.written >= most {
            count.withheld += 1;
            return None;
        }
        count.written += 1;
        Some(std::mem::take(&mut count.withheld))
    }
}

impl<L: Log> Log for Limited<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.log.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.log.enabled(record.metadata()) {
            return;
        }
        let kind = (record.file_static(), record.line());
        match self.pass(kind, record.level(), Instant::now()) {
            None => {}
            Some(0) => self.log.log(record),
            Some(withheld) => self.log.log(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .module_path_static(record.module_path_static())
                    .file_static(record.file_static())
                    .line(record.line())
                    .args(format_args!(
                        "{} ({withheld} more like it since the last)",
                        record.args()
                    ))
                    .build(),
            ),
        }
    }

    fn flush(&self) {
        self.log.flush();
    }
}

/// Installs a limited log for the process. Panics are written to it, too.
///
/// # Errors
///
/// When a log is installed already.
pub fn install(log: impl Log + 'static, filter: LevelFilter) -> Result<(), log::SetLoggerError> {
    log::set_boxed_logger(Box::new(Limited::new(log)))?;
    log::set_max_level(filter);
    std::panic::set_hook(Box::new(|panic| {
        log::error!("{}", panic.to_string().replace('\n', ": "));
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Log for Lines {
        fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &Record<'_>) {
            self.0.lock().push(record.args().to_string());
        }
        fn flush(&self) {}
    }

    fn write(log: &Limited<Lines>, line: u32, level: Level) {
        let mut record = Record::builder();
        record.level(level).file_static(Some("x")).line(Some(line));
        log.log(&record.args(format_args!("line {line}")).build());
    }

    #[test]
    fn lines_of_a_kind_are_counted_and_not_written_when_there_are_many() {
        let log = Limited::new(Lines::default());
        for _ in 0..100 {
            write(&log, 1, Level::Error);
            write(&log, 2, Level::Warn);
            write(&log, 3, Level::Debug);
        }
        for kind in log.kinds.lock().values_mut() {
            kind.since -= INTERVAL;
        }
        write(&log, 1, Level::Error);
        write(&log, 1, Level::Error);
        let lines = log.log.0.into_inner();
        let count = |line: &str| lines.iter().filter(|found| found.starts_with(line)).count();
        assert_eq!(
            (count("line 1"), count("line 2"), count("line 3")),
            (6, 4, 100)
        );
        let last = &lines[lines.len() - 2..];
        assert_eq!(last, ["line 1 (96 more like it since the last)", "line 1"]);
    }
}
