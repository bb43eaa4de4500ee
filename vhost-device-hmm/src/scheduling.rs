//! Requests short slices from the host's scheduler.
//!
//! The guest's processors are threads, too, and they poll for answers for hundreds of microseconds.
//! A thread that is woken to answer on the processor of a polling vCPU waits until the vCPU stops
//! polling, even if another processor is free: schedulers balance load only now and then. But a
//! woken thread with shorter slices preempts the running one. Short slices also keep an engine from
//! delaying other threads for long.
//!
//! Linux does this since 6.12 (`PREEMPT_SHORT` in `kernel/sched/features.h`); on earlier kernels
//! the request changes nothing.

use std::io;
use std::time::Duration;

use nix::libc::{self, c_long, sched_attr, syscall, SYS_sched_getattr, SYS_sched_setattr};

/// The shortest slice that Linux gives to ordinary threads.
const SLICE: Duration = Duration::from_micros(100);

const ORDINARY: [i32; 2] = [libc::SCHED_OTHER, libc::SCHED_BATCH];

/// Requests short slices for the calling thread and the threads that it starts from now on. Leaves
/// other policies than the ordinary ones as they are.
///
/// # Errors
///
/// The system's error. Only timing depends on this.
pub fn ask_for_short_slices() -> io::Result<()> {
    let mut attributes = attributes()?;
    let policy = i32::try_from(attributes.sched_policy);
    if !policy.is_ok_and(|policy| ORDINARY.contains(&policy)) {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the call reads `attributes`, whose first field gives its length.
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
    // SAFETY: the call writes to `attributes`, not beyond the size that it is given.
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
    fn threads_have_short_slices_if_asked_for_as_far_as_the_kernel_gives_any() {
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let before = attributes().unwrap().sched_runtime;
                ask_for_short_slices().unwrap();
                let made = thread::spawn(|| attributes().unwrap().sched_runtime);
                (before, made.join().unwrap())
            });
            let (before, after) = asking.join().unwrap();
            // Kernels without custom slices report none.
            let expected = if before == 0 { 0 } else { SLICE.as_nanos() };
            assert_eq!(u128::from(after), expected);
        });
    }

    #[test]
    fn a_thread_that_asks_stays_as_nice_as_before() {
        // Only for this thread: in Linux each thread has its own niceness.
        thread::spawn(|| {
            setpriority_process(None, 7).unwrap();
            ask_for_short_slices().unwrap();
            assert_eq!(getpriority_process(None).unwrap(), 7);
        })
        .join()
        .unwrap();
    }
}
