//! Log lines that a guest can cause as often as it likes, at most one a second.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The least time between two lines of one kind.
const INTERVAL: Duration = Duration::from_secs(1);

/// One kind of log line.
#[derive(Debug, Default)]
pub struct Limited {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    withheld: u64,
}

impl Limited {
    /// Lets a line through, with how many of its kind were withheld since the last one,
    /// or withholds it.
    pub fn pass(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.last.is_some_and(|last| now - last < INTERVAL) {
            state.withheld += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.withheld))
    }

    /// Logs a line, unless there was one less than a second ago.
    pub fn log(&self, level: log::Level, line: std::fmt::Arguments<'_>) {
        match self.pass() {
            None => {}
            Some(0) => log::log!(level, "{line}"),
            Some(withheld) => log::log!(level, "{line} ({withheld} more like it since the last)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_the_same_second_are_counted_not_written() {
        let limited = Limited::default();
        assert_eq!(limited.pass(), Some(0));
        assert_eq!(limited.pass(), None);
        assert_eq!(limited.pass(), None);
        limited.state.lock().last = None;
        assert_eq!(limited.pass(), Some(2));
    }
}
