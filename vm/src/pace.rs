//! How long things may take.
//!
//! Every wait of the fixture has a limit, and every limit is here. It is the time that a machine
//! with KVM and the stock kernel may need on a busy host; slower machines get a multiple. When a
//! limit passes, the failure names it.

use std::time::Duration;

/// From starting QEMU to the agent's greeting: normally 1 to 4 s.
pub const BOOT: Duration = Duration::from_secs(40);

/// Writing or reading the state of a machine, some hundred megabytes.
pub const STATE: Duration = Duration::from_secs(20);

/// A command, unless the test says otherwise. Most take well under a second.
pub const COMMAND: Duration = Duration::from_secs(60);

/// A request that the agent answers at once.
pub const ANSWER: Duration = Duration::from_secs(20);

/// Loading the driver, which talks to the device, or unloading it, which moves
/// every page off the device first.
pub const DRIVER: Duration = Duration::from_secs(30);

/// From the request to switch off to the end of QEMU.
pub const POWER_OFF: Duration = Duration::from_secs(20);

/// From starting a daemon to its word that it listens.
pub const DAEMON_START: Duration = Duration::from_secs(10);

/// From SIGTERM to the end of a daemon.
pub const DAEMON_STOP: Duration = Duration::from_secs(10);

/// Until something reaches a point where a device is told to hold it.
pub const CONTROL: Duration = Duration::from_secs(20);

/// How long a device holds something that is not released. The same on every machine, because the
/// driver waits 30 s for a reply on every machine.
pub const HOLD: Duration = Duration::from_secs(20);

/// From a device's removal to QEMU's word that it is gone.
pub const UNPLUG: Duration = Duration::from_secs(30);

/// How long a command may still run once the kernel has complained. An Oops often kills the
/// program, and its last output is worth having.
pub const AFTER_TROUBLE: Duration = Duration::from_secs(5);

/// How many seconds a guest task may be stuck before the kernel reports it.
pub const HUNG_TASK_SECONDS: u32 = 30;

/// How many seconds an RCU grace period may take before the kernel reports it. The kernel's own
/// limit of 21 s is too short for a virtual processor that shares a processor of the host. The
/// largest possible value is in `rcu_jiffies_till_stall_check`, `kernel/rcu/tree_stall.h`.
pub const STALL_SECONDS: u32 = 60;

/// The largest value that the kernel accepts for it.
const MAX_STALL_SECONDS: u32 = 300;

/// How slow a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace(u32);

impl Pace {
    /// The pace of a machine with or without KVM and with or without a kernel that
    /// checks itself.
    #[must_use]
    pub const fn new(kvm: bool, debug: bool) -> Self {
        // Emulation costs a factor of 3 in what our tests do; KASAN and lock
        // checking together another 3.
        let emulation = if kvm { 1 } else { 3 };
        let checking = if debug { 3 } else { 1 };
        Self(emulation * checking)
    }

    /// The pace of a machine that a debugger may stop for as long as a person thinks: a limit of
    /// seconds becomes days.
    #[must_use]
    pub const fn for_a_debugger() -> Self {
        Self(10_000)
    }

    /// A limit at this pace.
    #[must_use]
    pub const fn scale(self, limit: Duration) -> Duration {
        limit.saturating_mul(self.0)
    }

    /// The limit for grace periods at this pace.
    #[must_use]
    pub const fn stall_seconds(self) -> u32 {
        let seconds = STALL_SECONDS.saturating_mul(self.0);
        if seconds < MAX_STALL_SECONDS {
            seconds
        } else {
            MAX_STALL_SECONDS
        }
    }

    /// The limit for stuck tasks at this pace.
    #[must_use]
    pub const fn hung_task_seconds(self) -> u32 {
        HUNG_TASK_SECONDS.saturating_mul(self.0)
    }
}
