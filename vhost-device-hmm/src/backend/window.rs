//! How long to look for the next request before a kick is slept for.
//!
//! A kick and the wake-up behind it take longer than most requests, and drivers send many that
//! depend on each other. But who looks for nothing takes processor time away from the guest.
//! So the window follows the pauses there were between requests lately: it opens when a
//! somewhat longer one would have been enough, and closes when the longest would not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a window opens to.
const LEAST: Duration = Duration::from_micros(16);

/// How far: what a kick and a wake-up take at most where nothing else is to be done.
const MOST: Duration = Duration::from_micros(128);

/// How long is worth looking for requests of one queue.
#[derive(Debug, Default)]
pub(super) struct Window {
    nanoseconds: AtomicU64,
    /// When there was nothing to do any more.
    idle: Mutex<Option<Instant>>,
}

impl Window {
    /// There is a request.
    pub(super) fn busy(&self) {
        if let Some(idle) = self.idle.lock().take() {
            self.learn(idle.elapsed());
        }
    }

    /// There is none. Looks for one by `look`, as long as it is worth that; says whether
    /// there is one now.
    pub(super) fn look(&self, mut look: impl FnMut() -> bool) -> bool {
        let idle = Instant::now();
        *self.idle.lock() = Some(idle);
        let window = self.length();
        while idle.elapsed() < window {
            if look() {
                return true;
            }
            std::hint::spin_loop();
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
            _ => (now * 2).clamp(LEAST, MOST),
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
        let window = Window::default();
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
        assert!(!Window::default().look(|| panic!("it looks")));
    }

    #[test]
    fn an_open_window_sees_what_comes() {
        let window = Window::default();
        window.learn(LEAST);
        assert!(window.look(|| true));
        window.busy();
        assert_eq!(window.length(), LEAST);
    }
}
