//! The lines that a kernel log must not contain.
//!
//! It judges lines and does not know where they come from.

use std::fmt;

/// A complaint of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The line.
    pub line: String,
    /// How bad it is.
    pub severity: Severity,
}

/// How bad a complaint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is wrong; the machine goes on.
    Wrong,
    /// Something is broken: a running program may never end.
    Broken,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// After these the machine cannot be trusted to go on.
const BROKEN: &[&str] = &[
    "Oops",
    "BUG: ",
    "kernel BUG at",
    "Kernel panic",
    "general protection fault",
    "stack segment",
    "blocked for more than",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stalls on CPUs",
    "detected expedited stalls",
    "Unable to handle kernel",
];

/// These are errors that the machine survives.
const WRONG: &[&str] = &[
    "WARNING: ",
    "------------[ cut here ]",
    "KASAN",
    "KFENCE",
    "KCSAN",
    "UBSAN",
    "refcount_t",
    "possible circular locking",
    "possible recursive locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "HARDIRQ-safe",
    "SOFTIRQ-safe",
    "suspicious RCU usage",
    "held lock freed",
    "lock held when returning",
    "bad unlock balance",
    "Invalid wait context",
    "sleeping function called from invalid context",
    "scheduling while atomic",
    "unreferenced object",
    "leak",
    "Bad page",
    "Bad rss-counter",
    "bad pmd",
    "bad pte",
    "corruption",
    "Objects remaining",
    "nobody cared",
    "still has users",
    "rust_kernel: panicked",
    "panicked at",
];

/// Messages about memory that failed, and about memory that was refused to a page fault. This
/// hardware has no such failures and these machines do not run short: a test has injected them, and
/// the test checks the result.
const ASKED_FOR: &[&str] = &[
    "Memory failure: ",
    "MCE: Killing ",
    "VM_FAULT_OOM leaked out to the #PF handler",
];

/// Whether a line of the kernel log is a complaint.
#[must_use]
pub fn judge(line: &str) -> Option<Complaint> {
    let has = |patterns: &[&str]| patterns.iter().any(|pattern| line.contains(pattern));
    if has(ASKED_FOR) {
        return None;
    }
    let severity = if has(BROKEN) {
        Severity::Broken
    } else if has(WRONG) {
        Severity::Wrong
    } else {
        return None;
    };
    Some(Complaint {
        line: line.to_owned(),
        severity,
    })
}

/// The complaints in a console's log after `mark`, without control characters; all complaints if
/// the mark is missing.
#[must_use]
pub fn judge_console(console: &str, mark: &str) -> Vec<Complaint> {
    let from = console.rfind(mark).map_or(0, |at| at + mark.len());
    console[from..]
        .lines()
        .filter_map(|line| judge(line.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_says_of_its_own_bugs_is_found() {
        for (line, severity) in [
            (
                "WARNING: CPU: 1 PID: 9 at mm/memremap.c:10 f+0x1/0x2",
                Severity::Wrong,
            ),
            (
                "BUG: kernel NULL pointer dereference, address: 0",
                Severity::Broken,
            ),
            (
                "BUG: KASAN: slab-use-after-free in f+0x1/0x2",
                Severity::Broken,
            ),
            ("Oops: 0002 [#1] SMP NOPTI", Severity::Broken),
            (
                "INFO: task hmm:77 blocked for more than 30 seconds.",
                Severity::Broken,
            ),
            (
                "WARNING: possible circular locking dependency detected",
                Severity::Wrong,
            ),
            ("WARNING: inconsistent lock state", Severity::Wrong),
            ("WARNING: suspicious RCU usage", Severity::Wrong),
            (
                "BUG: sleeping function called from invalid context at f.c:1",
                Severity::Broken,
            ),
            ("kmemleak: 1 new suspected memory leaks", Severity::Wrong),
            (
                "unreferenced object 0xffff888003a1b000 (size 512):",
                Severity::Wrong,
            ),
            ("UBSAN: array-index-out-of-bounds in f.c:1", Severity::Wrong),
            ("refcount_t: underflow; use-after-free.", Severity::Wrong),
            (
                "Kernel panic - not syncing: Fatal exception",
                Severity::Broken,
            ),
        ] {
            assert_eq!(judge(line).map(|c| c.severity), Some(severity), "{line}");
        }
    }

    #[test]
    fn what_a_healthy_kernel_says_is_not_taken_for_a_complaint() {
        for line in [
            "virtio_hmm: loading out-of-tree module taints kernel.",
            "virtio_hmm: module verification failed: signature and/or required key missing - tainting kernel",
            "virtio_hmm virtio3: 256 MiB of device memory",
            "pci 0000:01:00.0: BAR 4 [mem 0xfe000000-0xfe003fff 64bit pref]",
            "debugfs: initialised",
            "clocksource: Switched to clocksource hpet",
            "Memory failure: 0x1f2: Sending SIGBUS to t:9 due to hardware memory corruption",
            "MCE: Killing t:9 due to hardware memory corruption fault at 7f7402405000",
        ] {
            assert_eq!(judge(line), None);
        }
    }

    #[test]
    fn what_the_console_shows_before_the_mark_is_the_boot_and_not_judged() {
        let console = "[ 0.1] WARNING: boot\r\n[ 1.0] ready\r\n[ 2.0] WARNING: later\r\n";
        let lines: Vec<String> = judge_console(console, "ready")
            .into_iter()
            .map(|complaint| complaint.line)
            .collect();
        assert_eq!(lines, ["[ 2.0] WARNING: later"]);
    }

    #[test]
    fn without_a_mark_all_of_the_console_is_judged() {
        assert_eq!(
            judge_console("Kernel panic - not syncing\n", "ready").len(),
            1
        );
    }
}
