//! What the host's scheduler is asked for.
//!
//! The guest's processors are threads, too, and look for answers for hundreds of microseconds at
//! a time. A thread that is woken to answer, on the processor of one of them, waits until it gives
//! up, even if another processor is free: schedulers look for one only now and then. But one
//! with shorter slices than the other's goes first. For the same reason no engine keeps the
//! others waiting for long.
//!
//! Linux does so from 6.12 on (`PREEMPT_SHORT` in `kernel/sched/features.h`); on earlier ones,
//! asking changes nothing.

use std::io;
use std::time::Duration;

use nix::libc::{self, c_long, sched_attr, syscall, SYS_sched_getattr, SYS_sched_setattr};

/// The shortest slice that Linux gives to ordinary threads.
const SLICE: Duration = Duration::from_micros(100);

const ORDINARY: [i32; 2] = [libc::SCHED_OTHER, libc::SCHED_BATCH];

/// Asks for short slices, for the calling thread and those that it makes from here on. Where
/// somebody has chosen another policy than the ordinary ones, it stays as it is.
///
/// # Errors
///
/// What the system says. Nothing depends on this but time.
pub fn ask_for_short_slices() -> io::Result<()> {
    let mut attributes = attributes()?;
    let policy = i32::try_from(attributes.sched_policy);
    if !policy.is_ok_and(|policy| ORDINARY.contains(&policy)) {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the call reads `attributes`, whose first field says how long it is.
    done(unsafe { syscall(SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<sched_attr> {
    let mut attributes = sched_attr {
        size: u32::try_from(size_of::<sched_attr>()).unwrap_or(0),
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the call writes to `attributes`, no more than it is told that there is room for.
    done(unsafe {
        syscall(
            SYS_sched_getattr,
            0,
            &raw mut attributes,
            attributes.size,
            0,
        )
    })?;
    Ok(attributes)
}

fn done(result: c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::{getpriority_process, setpriority_process};

    use super::*;

    #[test]
    fn the_threads_of_who_asks_have_short_slices_as_far_as_the_kernel_gives_any() {
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let before = attributes().unwrap().sched_runtime;
                ask_for_short_slices().unwrap();
                let made = thread::spawn(|| attributes().unwrap().sched_runtime);
                (before, made.join().unwrap())
            });
            let (before, after) = asking.join().unwrap();
            // Kernels that do not know of slices of one's own say that there is none.
            let expected = if before == 0 { 0 } else { SLICE.as_nanos() };
            assert_eq!(u128::from(after), expected);
        });
    }

    #[test]
    fn who_asks_stays_as_nice_as_before() {
        // Only this thread: Linux has a niceness for each.
        thread::spawn(|| {
            setpriority_process(None, 7).unwrap();
            ask_for_short_slices().unwrap();
            assert_eq!(getpriority_process(None).unwrap(), 7);
        })
        .join()
        .unwrap();
    }
}
