//! Limits how many machines run at a time.

use std::sync::{Condvar, Mutex, PoisonError};

/// Each machine keeps two processors of the host busy while it boots: more machines would only wait
/// for each other.
const MAX_MACHINES: usize = 2;

/// A slot for a machine that may run.
#[derive(Debug)]
pub(super) struct Slot;

static RUNNING: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Slot {
    /// Takes a slot, and waits until one is free.
    pub(super) fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = FREED
            .wait_while(running, |running| *running >= MAX_MACHINES)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
