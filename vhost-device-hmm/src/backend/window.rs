//! Adaptive polling: how long to poll for the next request before sleeping until a kick.
//!
//! A kick and the wake-up after it take longer than most requests, and drivers send many requests
//! that depend on each other. But polling in vain takes processor time from the guest. The window
//! therefore follows the recent pauses between requests. It opens when a somewhat longer window
//! would have been enough, and closes when the longest would not. With too few processors, the
//! polling thread is preempted; polling then stops for a while.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The size to which a closed window opens.
const LEAST: Duration = Duration::from_micros(16);

/// The largest size: the time of a kick and a wake-up on an idle host.
pub const MOST: Duration = Duration::from_micros(128);

/// A polling thread yields its processor at this interval, for example to another device's thread
/// for which the guest also waits.
const SHARE: Duration = Duration::from_micros(8);

/// A longer gap between two polls means that the thread was preempted.
const STOPPED: Duration = Duration::from_micros(20);

/// The number of pauses without polling after that.
const REST: u32 = 48;

/// How long to poll for requests of one queue.
#[derive(Debug)]
pub(super) struct Window {
    most: Duration,
    nanoseconds: AtomicU64,
    /// The number of pauses left without polling.
    rest: AtomicU32,
    /// When the queue became empty.
    idle: Mutex<Option<Instant>>,
}

impl Window {
    /// A closed window that opens up to `most`, but at most to [`MOST`].
    pub(super) fn new(most: Duration) -> Self {
        Self {
            most: most.min(MOST),
            nanoseconds: AtomicU64::new(0),
            rest: AtomicU32::new(0),
            idle: Mutex::new(None),
        }
    }

    /// A request has arrived.
    pub(super) fn busy(&self) {
        if let Some(idle) = self.idle.lock().take() {
            self.learn(idle.elapsed());
        }
    }

    /// The queue is empty: polls with `look` for the current window. Returns whether a request
    /// arrived.
    pub(super) fn look(&self, mut look: impl FnMut() -> bool) -> bool {
        let idle = Instant::now();
        *self.idle.lock() = Some(idle);
        let rest = self.rest.load(Ordering::Relaxed);
        if rest > 0 {
            self.rest.store(rest - 1, Ordering::Relaxed);
            return false;
        }
        let (window, mut looked, mut shared) = (self.length(), idle, idle);
        while looked - idle < window {
            if look() {
                return true;
            }
            std::hint::spin_loop();
            let now = Instant::now();
            if now - looked > STOPPED {
                self.rest.store(REST, Ordering::Relaxed);
                return false;
            }
            looked = now;
            if now - shared > SHARE {
                std::thread::yield_now();
                shared = now;
            }
        }
        false
    }

    fn length(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    fn learn(&self, pause: Duration) {
        let now = self.length();
        let next = match pause {
            _ if pause <= now => return,
            _ if pause > MOST => now / 2,
            _ => (now * 2).max(LEAST).min(self.most),
        };
        let next = u64::try_from(next.as_nanos()).unwrap_or(0);
        self.nanoseconds.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_opens_for_short_pauses_and_closes_for_long_ones() {
        let window = Window::new(MOST);
        window.learn(MOST * 2);
        assert_eq!(window.length(), Duration::ZERO);
        for expected in [LEAST, LEAST * 2, LEAST * 4, MOST] {
            window.learn(window.length() + Duration::from_nanos(1));
            assert_eq!(window.length(), expected);
        }
        window.learn(LEAST);
        assert_eq!(window.length(), MOST, "it is long enough");
        while !window.length().is_zero() {
            window.learn(MOST * 2);
        }
    }

    #[test]
    fn a_closed_window_does_not_look() {
        assert!(!Window::new(MOST).look(|| panic!("it looks")));
    }

    #[test]
    fn a_window_that_may_not_open_stays_closed() {
        let window = Window::new(Duration::ZERO);
        for _ in 0..9 {
            window.learn(LEAST);
        }
        assert_eq!(window.length(), Duration::ZERO);
    }

    #[test]
    fn a_window_that_is_stopped_while_looking_rests() {
        let window = Window::new(MOST);
        window.learn(LEAST);
        let stopped = || {
            std::thread::sleep(2 * STOPPED);
            false
        };
        assert!(!window.look(stopped));
        for _ in 0..REST {
            assert!(!window.look(|| panic!("it looks")));
        }
        assert!(window.look(|| true));
    }

    #[test]
    fn an_open_window_sees_what_comes() {
        let window = Window::new(MOST);
        window.learn(LEAST);
        assert!(window.look(|| true));
        window.busy();
        assert_eq!(window.length(), LEAST);
    }
}
