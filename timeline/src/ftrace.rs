//! Lines of the kernel's tracing, as its file `trace_pipe` has them.
//!
//! Knows the form of a line, and no event.

/// A line of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The name of the task, which may have been shortened.
    pub task: &'a str,
    /// Its thread's number.
    pub tid: u32,
    /// The time of the trace clock, in nanoseconds. The kernel writes whole microseconds.
    pub at: u64,
    /// The event's name.
    pub event: &'a str,
    /// Its fields, as `name=value` with spaces in between.
    pub fields: &'a str,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// An event.
    Event(Line<'a>),
    /// So many events were lost, because they were not read in time.
    Lost(u64),
}

/// The time that the kernel's lines leave out: what they say was up to this much later.
pub const RESOLUTION: u64 = 1000;

/// Reads a line, if it is one that says something. Events of other systems are lines, too.
///
/// ```text
///              hmm-103     [001] d..1.    12.345678: virtio_hmm_submit: device=0 space=0 job=7
/// CPU:1 [LOST 12 EVENTS]
/// ```
#[must_use]
pub fn read(line: &str) -> Option<Said<'_>> {
    let line = line.trim();
    if let Some(lost) = line.strip_prefix("CPU:") {
        let (_, lost) = lost.split_once("[LOST ")?;
        return Some(Said::Lost(lost.strip_suffix(" EVENTS]")?.parse().ok()?));
    }
    // A task's name may hold anything: the first colon behind a time ends the time.
    let (before, time, event) = line.match_indices(": ").find_map(|(index, colon)| {
        let (before, time) = line[..index].rsplit_once(char::is_whitespace)?;
        Some((before, nanoseconds(time)?, &line[index + colon.len()..]))
    })?;
    let (event, fields) = event
        .split_once(": ")
        .unwrap_or((event.trim_end_matches(':'), ""));
    let (task, _processor_and_flags) = before.rsplit_once('[')?;
    let (task, tid) = task.trim_end().rsplit_once('-')?;
    Some(Said::Event(Line {
        task: task.trim(),
        tid: tid.parse().ok()?,
        at: time,
        event,
        fields,
    }))
}

/// A time in seconds, with up to nine decimals.
fn nanoseconds(text: &str) -> Option<u64> {
    let (seconds, decimals) = text.split_once('.')?;
    let digits = u32::try_from(decimals.len())
        .ok()
        .filter(|digits| *digits <= 9)?;
    let part: u64 = decimals.parse().ok()?;
    let seconds: u64 = seconds.parse().ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(part * 10_u64.pow(9 - digits))
}

impl<'a> Line<'a> {
    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'a str> {
        self.fields.split(' ').find_map(|field| {
            let (other, value) = field.split_once('=')?;
            (other == name).then_some(value)
        })
    }

    /// The number in a field, decimal or with `0x`.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.field(name)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Line<'_> {
        match read(line) {
            Some(Said::Event(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_has_a_task_a_time_and_fields() {
        let line = event(
            "             hmm-103     [001] d..1.    12.345678: virtio_hmm_submit: device=0 job=7 at=0x1f\n",
        );
        assert_eq!((line.task, line.tid), ("hmm", 103));
        assert_eq!(line.at, 12_345_678_000);
        assert_eq!(line.event, "virtio_hmm_submit");
        assert_eq!(line.number("job"), Some(7));
        assert_eq!(line.number("at"), Some(31));
        assert_eq!(line.number("space"), None);
    }

    #[test]
    fn a_task_may_have_any_name() {
        for name in [
            "kworker/u8:1",
            "my - program",
            "a-b",
            "x [1] y",
            "odd: name",
        ] {
            let line = format!(" {name}-7 [000] .....     1.000002: e: f=1");
            assert_eq!((event(&line).task, event(&line).tid), (name, 7), "{line}");
        }
    }

    #[test]
    fn lost_events_are_told() {
        assert_eq!(read("CPU:1 [LOST 12 EVENTS]"), Some(Said::Lost(12)));
    }

    #[test]
    fn other_lines_say_nothing() {
        for line in [
            "",
            "# tracer: nop",
            "hello",
            "a: b",
            "x-1 [0] . 1: e: f=1",
            "CPU:1",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }

    #[test]
    fn no_line_is_too_strange_to_be_read() {
        let mut random = fastrand::Rng::with_seed(1);
        let good = " hmm-103 [001] d..1. 12.345678: virtio_hmm_submit: device=0 job=7";
        for _ in 0..20_000 {
            let mut bytes = good.as_bytes().to_vec();
            for _ in 0..random.usize(1..6) {
                let index = random.usize(..bytes.len());
                bytes[index] = random.u8(32..127);
            }
            if let Some(Said::Event(line)) = read(std::str::from_utf8(&bytes).unwrap()) {
                let _ = (line.number("job"), line.field("device"));
            }
        }
    }
}
