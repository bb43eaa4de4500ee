//! The resources that a process uses, as the system counts them.

use std::time::Duration;
use std::{fs, io, thread};

use rustix::param::clock_ticks_per_second;

/// The share of one processor that a process uses over a time, in percent. It exceeds a hundred if
/// several of its threads run.
///
/// # Errors
///
/// When there is no such process.
pub fn processor_share(process: u32, over: Duration) -> io::Result<f64> {
    let before = processor_ticks(process)?;
    thread::sleep(over);
    let ticks = processor_ticks(process)? - before;
    // The rate is a hundred or a thousand.
    #[allow(clippy::cast_precision_loss)]
    let rate = clock_ticks_per_second() as f64;
    Ok(100.0 * ticks / rate / over.as_secs_f64())
}

/// The memory that a process uses, in mebibytes.
///
/// # Errors
///
/// When there is no such process.
pub fn resident_mebibytes(process: u32) -> io::Result<f64> {
    of_status(process, "VmRSS:")
}

/// The private part of that memory: without files and without memory that it shares with other
/// processes, such as a guest's memory.
///
/// # Errors
///
/// When there is no such process.
pub fn own_mebibytes(process: u32) -> io::Result<f64> {
    of_status(process, "RssAnon:")
}

fn of_status(process: u32, field: &str) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes: Option<f64> =
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    Ok(kibibytes.ok_or_else(|| unclear("status"))? / 1024.0)
}

/// User and system time so far, in clock ticks.
fn processor_ticks(process: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name is in parentheses and may contain anything.
    let (_, fields) = stat.rsplit_once(") ").ok_or_else(|| unclear("stat"))?;
    // proc_pid_stat(5): utime and stime are fields 14 and 15, counted from 1; the text after the
    // name begins with field 3.
    let ticks = fields.split_ascii_whitespace().skip(14 - 3).take(2);
    let ticks: Result<Vec<f64>, _> = ticks.map(str::parse).collect();
    ticks
        .ok()
        .filter(|ticks| ticks.len() == 2)
        .map(|ticks| ticks.iter().sum())
        .ok_or_else(|| unclear("stat"))
}

fn unclear(file: &str) -> io::Error {
    let text = format!("the process's {file} does not say what it should");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_busy_process_takes_processor_time_and_memory() {
        let busy = AtomicBool::new(true);
        let share = thread::scope(|scope| {
            scope.spawn(|| {
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
            let share = processor_share(std::process::id(), Duration::from_millis(500));
            busy.store(false, Ordering::Relaxed);
            share
        });
        assert!(share.unwrap() > 0.0);
        let all = resident_mebibytes(std::process::id()).unwrap();
        let own = own_mebibytes(std::process::id()).unwrap();
        assert!(0.0 < own && own < all, "{own} of {all}");
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        assert!(processor_share(u32::MAX, Duration::ZERO).is_err());
        assert!(resident_mebibytes(u32::MAX).is_err());
    }
}
