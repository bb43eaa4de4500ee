//! A trace of what the device does, moment by moment, for `hmm timeline`.
//!
//! There is one in a process, as there is one log. Without a trace, a place where something can be
//! recorded is one load and a branch. With one, a thread appends to one of a few buffers; its own,
//! unless there are very many threads. Another thread writes the buffers to the file. What comes faster
//! than that is dropped and counted: no thread of the device waits for the file.
//!
//! Knows nothing of the device.
//!
//! Lock order: a buffer's lock and that of `Trace::turns` are taken last, and not together. The writer
//! holds neither while it writes to the file.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hmm_timeline::device::{Event, Header, Record, MAGIC, VERSION};
use nix::time::{clock_gettime, ClockId};
use parking_lot::{Condvar, Mutex};

/// The number of buffers: more than a device with a few engines has threads.
const BUFFERS: usize = 16;

/// The most records in a buffer: what a busy thread records in a tenth of a second.
const MOST: usize = 1 << 14;

/// How long a record waits for the writer at most, unless the file is slow.
const SOON: Duration = Duration::from_millis(50);

static ON: AtomicBool = AtomicBool::new(false);
static TRACE: OnceLock<Trace> = OnceLock::new();
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: OnceCell<Thread> = const { OnceCell::new() };
}

/// What a thread records with.
struct Thread {
    buffer: usize,
    name: Arc<str>,
}

#[derive(Debug)]
struct Trace {
    /// A moment on both clocks: that of the records is the host's monotonic one.
    origin: (Instant, u64),
    buffers: [Mutex<Buffer>; BUFFERS],
    turns: Mutex<Turns>,
    /// Signalled when either number of `turns` has changed.
    turned: Condvar,
}

/// How often the writer was asked to write, and up to which of these it has.
#[derive(Debug, Default)]
struct Turns {
    asked: u64,
    done: u64,
}

#[derive(Debug, Default)]
struct Buffer {
    records: Vec<Record>,
    lost: u64,
}

/// A file for a trace, and a moment on both clocks. It is made before the process enters the sandbox.
#[derive(Debug)]
pub struct Prepared {
    file: File,
    origin: (Instant, u64),
}

impl Prepared {
    /// Begins the file of a trace.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn new(mut file: File) -> io::Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let origin = (Instant::now(), nanoseconds(Duration::from(now)));
        let header = Header {
            trace: MAGIC.into(),
            version: VERSION,
        };
        writeln!(file, "{}", serde_json::to_string(&header)?)?;
        Ok(Self { file, origin })
    }

    /// Begins to record. There must be no other trace in the process.
    ///
    /// # Errors
    ///
    /// When the system cannot start a thread.
    pub fn start(self) -> io::Result<()> {
        let Self { file, origin } = self;
        let trace = TRACE.get_or_init(|| Trace::new(origin));
        trace.start(file)?;
        ON.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether something is recorded.
#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Records from now on, or no more until it is called again. Returns whether what was recorded before is
/// in the file, for which it waits, but no longer than `patience`; `None` if there is no file.
pub fn set_on(on: bool, patience: Duration) -> Option<bool> {
    let trace = TRACE.get()?;
    ON.store(on, Ordering::Relaxed);
    Some(trace.flush(patience))
}

/// Waits until what has been recorded is in the file, but no longer than `patience`.
pub fn flush(patience: Duration) {
    if let Some(trace) = TRACE.get() {
        trace.flush(patience);
    }
}

/// The time at which something begins that [`since`] may record.
#[inline]
pub fn begin() -> Option<Instant> {
    is_on().then(Instant::now)
}

/// Records something that has lasted from `begun` until now.
#[inline]
pub fn since(begun: Option<Instant>, space: Option<u32>, event: impl FnOnce() -> Event) {
    if let (Some(begun), true) = (begun, is_on()) {
        record(begun, begun.elapsed(), space, event());
    }
}

/// Records a moment.
#[inline]
pub fn moment(space: Option<u32>, event: impl FnOnce() -> Event) {
    if is_on() {
        record(Instant::now(), Duration::ZERO, space, event());
    }
}

#[cold]
fn record(begun: Instant, lasted: Duration, space: Option<u32>, event: Event) {
    let Some(trace) = TRACE.get() else { return };
    let since_origin = begun.saturating_duration_since(trace.origin.0);
    let at = trace.origin.1.saturating_add(nanoseconds(since_origin));
    // A thread that is ending may have lost its name already.
    let _ = THREAD.try_with(|thread| {
        let thread = thread.get_or_init(Thread::this);
        let Some(buffer) = trace.buffers.get(thread.buffer) else {
            return;
        };
        let mut buffer = buffer.lock();
        if buffer.records.len() >= MOST {
            buffer.lost += 1;
            return;
        }
        buffer.records.push(Record {
            at,
            lasted: nanoseconds(lasted),
            thread: Arc::clone(&thread.name),
            space,
            event,
        });
        let is_half_full = buffer.records.len() == MOST / 2;
        drop(buffer);
        if is_half_full {
            trace.ask();
        }
    });
}

impl Thread {
    fn this() -> Self {
        let number = THREADS.fetch_add(1, Ordering::Relaxed);
        let name = std::thread::current().name().unwrap_or("thread").into();
        Self {
            buffer: number % BUFFERS,
            name,
        }
    }
}

impl Trace {
    fn new(origin: (Instant, u64)) -> Self {
        Self {
            origin,
            buffers: Default::default(),
            turns: Mutex::default(),
            turned: Condvar::new(),
        }
    }

    /// Starts the thread that writes. No other thread touches the file, which may take long.
    fn start(&'static self, mut file: impl Write + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("trace".into());
        thread.spawn(move || loop {
            let mut turns = self.turns.lock();
            if turns.asked == turns.done {
                self.turned.wait_for(&mut turns, SOON);
            }
            let asked = turns.asked;
            drop(turns);
            self.write(&mut file);
            self.turns.lock().done = asked;
            self.turned.notify_all();
        })?;
        Ok(())
    }

    /// Asks the writer to write now, and returns the number of that.
    fn ask(&self) -> u64 {
        let mut turns = self.turns.lock();
        turns.asked += 1;
        self.turned.notify_all();
        turns.asked
    }

    /// Waits until what has been recorded is written; returns whether it is.
    fn flush(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let turn = self.ask();
        let mut turns = self.turns.lock();
        while turns.done < turn {
            if self.turned.wait_until(&mut turns, end).timed_out() {
                return turns.done >= turn;
            }
        }
        true
    }

    /// Writes what is in the buffers.
    fn write(&self, file: &mut impl Write) {
        let mut lines = Vec::new();
        for buffer in &self.buffers {
            let Buffer { records, lost } = std::mem::take(&mut *buffer.lock());
            for record in &records {
                put_line(&mut lines, record);
            }
            if lost > 0 {
                let since_origin = self.origin.0.elapsed();
                put_line(
                    &mut lines,
                    &Record {
                        at: self.origin.1.saturating_add(nanoseconds(since_origin)),
                        lasted: 0,
                        thread: "trace".into(),
                        space: None,
                        event: Event::Lost { records: lost },
                    },
                );
            }
        }
        if let Err(error) = file.write_all(&lines) {
            if ON.swap(false, Ordering::Relaxed) {
                log::error!("the trace ends here, because it cannot be written: {error}");
            }
        }
    }
}

fn put_line(lines: &mut Vec<u8>, record: &Record) {
    // Writing to memory cannot fail.
    if serde_json::to_writer(&mut *lines, record).is_ok() {
        lines.push(b'\n');
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Seek};

    use hmm_timeline::device::Device;

    use super::*;

    fn fault(job: u64) -> Event {
        Event::Fault {
            job,
            address: 0,
            access: 1,
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_file_that_takes_nothing_keeps_no_thread_waiting_for_longer_than_it_has_patience() {
        let (reader, writer) = io::pipe().unwrap();
        let trace: &Trace = Box::leak(Box::new(Trace::new((Instant::now(), 0))));
        trace.start(writer).unwrap();
        let record = Record {
            at: 1,
            lasted: 0,
            thread: "t".into(),
            space: None,
            event: fault(7),
        };
        // More than a pipe holds.
        trace.buffers[0].lock().records = vec![record; MOST];
        assert!(!trace.flush(Duration::from_millis(100)));
        let reading = std::thread::spawn(move || {
            let lines = BufReader::new(reader).lines().take(MOST);
            lines.map(|line| line.unwrap().len()).sum::<usize>()
        });
        assert!(trace.flush(LONG));
        assert!(reading.join().unwrap() > 1 << 16, "a pipe holds less");
    }

    // One test, because there is one trace in a process.
    #[test]
    fn what_is_recorded_is_in_the_file_or_counted() {
        moment(None, || unreachable!("nothing is recorded without a trace"));
        assert!(begin().is_none());
        assert_eq!(set_on(true, LONG), None, "there is no file");

        let mut file = tempfile::tempfile().unwrap();
        let prepared = Prepared::new(file.try_clone().unwrap()).unwrap();
        prepared.start().unwrap();
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                std::thread::spawn(move || {
                    for job in 0..50_000 {
                        let begun = begin();
                        since(begun, Some(1), || fault(thread << 32 | job));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(set_on(false, LONG), Some(true));
        moment(None, || unreachable!("it is off"));

        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let Device { records, lost } = Device::read(&text).unwrap();
        // Other tests of the process may have recorded something as well.
        let jobs: std::collections::HashSet<u64> = records
            .iter()
            .filter_map(|record| match record.event {
                Event::Fault { job, .. } if record.space == Some(1) => Some(job),
                _ => None,
            })
            .collect();
        let lost = usize::try_from(lost).unwrap();
        assert!(jobs.len() + lost >= 200_000, "{} {lost}", jobs.len());
        assert!(jobs.len() > 50_000, "{}", jobs.len());
    }
}
