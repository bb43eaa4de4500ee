//! Writes lines to a file without blocking the caller.
//!
//! A pipe that no process reads would block the thread that logs, maybe while it holds a lock that
//! other threads wait for. A separate thread therefore writes. Lines that it cannot write in time
//! are dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The most lines that may wait: some seconds' worth of rate-limited lines.
const WAITING: usize = 1024;

/// The most bytes that are written of one line.
const LINE: usize = 8 << 10;

/// Where lines are written. It can be cloned; the thread runs as long as a clone exists.
#[derive(Clone, Debug)]
pub struct Outlet {
    lines: SyncSender<Vec<u8>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    lost: AtomicU64,
    /// Lines that were accepted and not written yet.
    waiting: Mutex<usize>,
    written: Condvar,
}

impl Outlet {
    /// An outlet to a file.
    ///
    /// # Errors
    ///
    /// When the host cannot start a thread.
    pub fn new(file: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, receiver) = sync_channel(WAITING);
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::Builder::new()
            .name("outlet".into())
            .spawn(move || shared.write(&receiver, file))?;
        Ok(Self { lines, state })
    }

    /// Queues some lines, each of which ends with a line break.
    pub fn put(&self, lines: &[u8]) {
        let lines = lines.get(..LINE).unwrap_or(lines).to_vec();
        let mut waiting = self.state.waiting.lock();
        match self.lines.try_send(lines) {
            Ok(()) => *waiting += 1,
            Err(_) => {
                self.state.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits until all lines are written, at most for `patience`. Returns whether they are.
    pub fn flush(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut waiting = self.state.waiting.lock();
        while *waiting > 0 {
            if self.state.written.wait_until(&mut waiting, end).timed_out() {
                return *waiting == 0;
            }
        }
        true
    }
}

impl State {
    fn write(&self, lines: &Receiver<Vec<u8>>, mut file: impl Write) {
        for line in lines {
            // There is no other place to report a file that cannot be written.
            let _ = file.write_all(&line);
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let _ = writeln!(
                    file,
                    "{lost} lines are missing here: they could not be written"
                );
            }
            let _ = file.flush();
            *self.waiting.lock() -= 1;
            self.written.notify_all();
        }
    }
}

/// Each write is one or more lines.
impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_pipe_that_is_not_read_holds_up_no_thread() {
        let (mut reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::new(writer).unwrap();
        let line = [&[b'x'; 4095][..], b"\n"].concat();
        // More than the pipe and the queue can hold.
        let count = 2 * WAITING;
        for _ in 0..count {
            outlet.put(&line);
        }
        assert!(!outlet.flush(Duration::ZERO));
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        assert!(outlet.flush(Duration::from_secs(60)));
        drop(outlet);
        let text = reading.join().unwrap();
        let whole = text.lines().filter(|line| line.len() == 4095).count();
        let missing = text
            .lines()
            .find_map(|line| line.strip_suffix(": they could not be written"));
        let missing = missing.and_then(|line| line.split(' ').next()).unwrap();
        assert_eq!(whole + missing.parse::<usize>().unwrap(), count);
        assert!(whole >= WAITING);
    }

    #[test]
    fn a_file_that_takes_nothing_does_no_harm() {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let outlet = Outlet::new(full).unwrap();
        outlet.put(b"a line\n");
        assert!(outlet.flush(Duration::from_secs(60)));
    }
}
