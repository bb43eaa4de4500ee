// SPDX-License-Identifier: GPL-2.0

//! Lateness on demand: the driver delays itself where a rule says so.
//!
//! Each [`LatePoint`] is one call of [`at`] in the code. The call is a static branch, which costs
//! nothing while there are no rules. With rules, a task that reaches a point sleeps as long as they
//! say. No task sleeps longer than `MAX_DELAY` at a time, or once it is being killed, and all tasks
//! together sleep no longer than `MAX_LATENESS`, so nothing can hang.
//!
//! A point may be reached with sleeping locks held, but not where sleeping is forbidden. If a point
//! is reached there nevertheless, the delay is too short to matter.
//!
//! Does not know what the points are about.
//!
//! Lock order: [`static@SETTING`], then [`static@RULES`], within which no lock is taken.

use crate::{
    sys as bindings,
    uapi::late::{LatePoint, LateRule, MAX_LATENESS, MAX_RULES},
    wire::Queue,
};
use core::ffi::c_char;
use kernel::{prelude::*, seq_file::SeqFile, seq_print, sync::global_lock};

/// The number of points.
const POINTS: usize = 12;

global_lock! {
    // SAFETY: `init` is called before the module does anything else.
    unsafe(uninit) static RULES: SpinLockIrq<Rules> = Rules::NONE;
}

global_lock! {
    // SAFETY: `init` is called before the module does anything else.
    //
    // Held while the rules and the static branch that enables them change.
    unsafe(uninit) static SETTING: Mutex<()> = ();
}

/// Prepares the lock of the rules.
///
/// # Safety
///
/// Must be called exactly once, before anything else of this module.
pub(crate) unsafe fn init() {
    // SAFETY: The caller promises that this is the only call.
    unsafe { RULES.init() };
    // SAFETY: The caller promises that this is the only call.
    unsafe { SETTING.init() };
}

/// Delays the caller if a rule says so. May sleep.
#[inline(always)]
pub(crate) fn at(point: LatePoint) {
    // SAFETY: C defines the key as a static key.
    let is_on = unsafe {
        kernel::jump_label::static_branch_unlikely!(
            bindings::virtio_hmm_late,
            bindings::virtio_hmm_late,
            key
        )
    };
    if is_on {
        delay_at(point);
    }
}

/// The same for the point before the device is notified of the requests in a queue.
#[inline(always)]
pub(crate) fn before_kick(queue: Queue) {
    at(match queue {
        Queue::Control => LatePoint::KickControl,
        Queue::Dma => LatePoint::KickDma,
        Queue::Submit => LatePoint::KickSubmit,
        Queue::Fault => LatePoint::KickFault,
    });
}

#[cold]
#[inline(never)]
fn delay_at(point: LatePoint) {
    let microseconds = RULES.lock().delay(point);
    if microseconds > 0 {
        // SAFETY: Always safe to call: the function checks whether it may sleep.
        unsafe { bindings::virtio_hmm_late_delay(microseconds) };
    }
}

/// The rules and their statistics.
struct Rules {
    kept: [Option<Kept>; MAX_RULES as usize],
    /// How often each point was reached, by its number.
    passed: [u64; POINTS],
    /// The remaining time that may be spent, in microseconds.
    left: u64,
}

/// A rule and its statistics.
#[derive(Clone, Copy)]
struct Kept {
    rule: LateRule,
    struck: u64,
    microseconds: u64,
}

impl Rules {
    const NONE: Self = Self {
        kept: [None; MAX_RULES as usize],
        passed: [0; POINTS],
        left: 0,
    };

    /// Parses rules, one per line or separated by `;`.
    fn parse(text: &str) -> Result<Self> {
        let mut rules = Self {
            left: MAX_LATENESS,
            ..Self::NONE
        };
        let texts = text.split(['\n', ';']).map(str::trim);
        let mut free = rules.kept.iter_mut();
        for text in texts.filter(|text| !text.is_empty()) {
            let rule = LateRule::parse(text).map_err(|error| {
                pr_notice!("no rule for lateness: {:?}\n", error);
                EINVAL
            })?;
            *free.next().ok_or(EINVAL)? = Some(Kept {
                rule,
                struck: 0,
                microseconds: 0,
            });
        }
        Ok(rules)
    }

    fn is_empty(&self) -> bool {
        self.kept.iter().all(Option::is_none)
    }

    /// A task reaches a point; returns its delay, in microseconds.
    fn delay(&mut self, point: LatePoint) -> u32 {
        let Some(passed) = self.passed.get_mut(point.raw() as usize) else {
            return 0;
        };
        *passed = passed.saturating_add(1);
        let occasion = *passed;
        let mut sum = 0_u32;
        for kept in self.kept.iter_mut().flatten() {
            if kept.rule.point != point {
                continue;
            }
            let Some(delay) = kept.rule.delay(occasion, kept.struck) else {
                continue;
            };
            // The longest delay counts.
            let more = delay.saturating_sub(sum);
            if u64::from(more) > self.left {
                continue;
            }
            self.left = self.left.saturating_sub(more.into());
            sum = sum.saturating_add(more);
            kept.struck = kept.struck.saturating_add(1);
            kept.microseconds = kept.microseconds.saturating_add(delay.into());
        }
        sum
    }
}

/// Replaces the rules.
fn set(rules: Rules) {
    let _setting = SETTING.lock();
    let is_on = !rules.is_empty();
    *RULES.lock() = rules;
    // SAFETY: Always safe to call where sleeping is allowed.
    unsafe { bindings::virtio_hmm_set_late(is_on) };
}

/// The file that sets the rules, until it is dropped.
pub(crate) struct File(*mut bindings::dentry);

// SAFETY: It is only removed, which any thread may do.
unsafe impl Send for File {}
// SAFETY: Nothing can be done with a reference.
unsafe impl Sync for File {}

impl File {
    /// Sets the rules of the module parameter, and creates the file.
    ///
    /// # Errors
    ///
    /// `EINVAL` if these are invalid.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Always safe to call after `init`.
        kernel::error::to_result(unsafe { bindings::virtio_hmm_late_parameter() })?;
        // SAFETY: Always safe to call. The returned value need not be checked.
        Ok(Self(unsafe { bindings::virtio_hmm_make_late_file() }))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: The directory was created by `new`, and this waits for the users of its file.
        unsafe { bindings::virtio_hmm_remove_late_file(self.0) };
    }
}

/// Sets the rules of a text of `bytes` bytes.
///
/// # Safety
///
/// The text must be valid for reads of `bytes` bytes.
#[no_mangle]
unsafe extern "C" fn virtio_hmm_late_store(text: *const c_char, bytes: usize) -> c_int {
    // SAFETY: The caller promises that it is so.
    let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), bytes) };
    kernel::error::from_result(|| {
        let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
        set(Rules::parse(text)?);
        Ok(0)
    })
}

/// Shows the rules' statistics.
///
/// # Safety
///
/// The file must be valid and have no other user.
#[no_mangle]
unsafe extern "C" fn virtio_hmm_late_show(file: *mut bindings::seq_file) {
    // SAFETY: The caller promises that it is so.
    let file = unsafe { SeqFile::from_raw(file) };
    let (kept, passed, left) = {
        let rules = RULES.lock();
        (rules.kept, rules.passed, rules.left)
    };
    for (point, passed) in LatePoint::all().zip(passed) {
        seq_print!(file, "point {} {}\n", point.word(), passed);
    }
    for kept in kept.iter().flatten() {
        let Kept {
            rule,
            struck,
            microseconds,
        } = kept;
        seq_print!(file, "rule {} {} {}\n", struck, microseconds, rule);
    }
    seq_print!(file, "left {}\n", left);
}

impl kernel::fmt::Display for LateRule {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}
