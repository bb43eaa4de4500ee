//! The control socket: inspects and steers a running daemon.
//!
//! One thread listens. Each client has its own thread, which executes requests and writes the
//! answers without a lock held: a client that does not read blocks no other thread. The socket
//! outlives the connections of front ends.

pub mod client;
pub mod protocol;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use parking_lot::Mutex;
use serde_json::{json, Map, Value};
use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::Layout;
use zerocopy::IntoBytes;

use crate::backend::Backend;
use crate::lateness::{parse_time, Held, InForce, Lateness, Rule, RuleError, DEFAULT_LIMIT};
use crate::trace;
use protocol::{Failure, Request, MAX_LINE};

/// The most clients at a time: more than the people and programs that look at one device.
pub const MAX_CLIENTS: usize = 16;

/// How many runs of mappings are shown by default, and at most.
const MAPPINGS: usize = 256;
const MOST_MAPPINGS: usize = 4096;

/// How long a client may take to read an answer, and the file of a trace to take what was recorded.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state that clients inspect and steer.
#[derive(Debug)]
pub struct Console {
    lateness: Arc<Lateness>,
    /// The device of the front end that is connected.
    backend: Mutex<Weak<Backend>>,
    clients: AtomicUsize,
}

impl Console {
    /// A console for a device with these rules.
    pub fn new(lateness: Arc<Lateness>) -> Arc<Self> {
        Arc::new(Self {
            lateness,
            backend: Mutex::default(),
            clients: AtomicUsize::new(0),
        })
    }

    /// Another front end has connected, with its own device.
    pub fn attach(&self, backend: &Arc<Backend>) {
        *self.backend.lock() = Arc::downgrade(backend);
    }

    /// Serves the clients of a socket, in a new thread.
    ///
    /// # Errors
    ///
    /// When the system cannot start a thread.
    pub fn serve(self: &Arc<Self>, listener: UnixListener) -> io::Result<()> {
        let this = Arc::clone(self);
        let thread = std::thread::Builder::new().name("control".into());
        thread.spawn(move || this.accept(&listener)).map(|_| ())
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) => {
                    // For example too many open files: an immediate retry would fail again.
                    log::error!("cannot accept a client of the control socket: {error}");
                    std::thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            let slot = ClientSlot::take(self);
            let thread = std::thread::Builder::new().name("client".into());
            let started = thread.spawn(move || {
                if let Err(error) = serve(slot.as_ref(), client) {
                    log::debug!("a client of the control socket has gone: {error}");
                }
            });
            if let Err(error) = started {
                log::error!("cannot start a thread for a client: {error}");
            }
        }
    }

    fn device(&self) -> Result<Arc<Backend>, Failure> {
        let device = self.backend.lock().upgrade();
        device.ok_or_else(|| {
            Failure::new(
                "no-device",
                "one front end has gone and the device of the next one is being made; ask again",
            )
        })
    }

    /// Executes a client's request. Only a wait takes longer than a moment; it ends when the client
    /// disconnects, to free its slot for other clients.
    fn execute(&self, request: Request, client: &UnixStream) -> Result<Value, Failure> {
        let lateness = &self.lateness;
        match request {
            Request::Points => Ok(Point::ALL.iter().map(|point| describe(*point)).collect()),
            Request::Rules => Ok(lateness.rules().iter().map(in_force).collect()),
            Request::SetRule { rule } => self.set(rule.parse().map_err(wrong_rule)?),
            Request::ClearRule { rule } => lateness
                .clear(rule)
                .map(|()| json!({ "cleared": 1 }))
                .map_err(|error| Failure::new("no-rule", error.to_string())),
            Request::ClearRules => Ok(json!({ "cleared": lateness.clear_all() })),
            Request::Hold { point, limit } => {
                let limit = limit.as_deref().map(time).transpose()?;
                self.set(Rule::hold(named(&point)?, limit))
            }
            Request::Release { point } => {
                let point = point.as_deref().map(named).transpose()?;
                Ok(json!({ "released": lateness.release(point) }))
            }
            Request::Step { point, count } => {
                let stepped = lateness.step(named(&point)?, count.unwrap_or(1));
                Ok(json!({ "released": stepped }))
            }
            Request::Held => Ok(lateness.held().iter().map(held).collect()),
            Request::WaitHeld { point, timeout } => {
                let point = named(&point)?;
                let timeout = timeout.as_deref().map_or(Ok(DEFAULT_LIMIT), time)?;
                let found = lateness.wait_held(point, timeout, || !has_gone(client));
                found.as_ref().map(held).ok_or_else(|| {
                    let message = format!("nothing was held at {point} within {timeout:?}");
                    Failure::new("timeout", message)
                })
            }
            Request::Pause => self.pause(true),
            Request::Resume => self.pause(false),
            Request::Statistics => {
                let statistics = self.device()?.accelerator().statistics();
                Ok(Value::Object(counters(&statistics)))
            }
            Request::LogLevel { level } => {
                if let Some(level) = level {
                    log::set_max_level(level.parse().map_err(|_| {
                        let message = format!(
                            "{level:?} is no log level; use off, error, warn, info, debug or trace"
                        );
                        Failure::new("malformed", message)
                    })?);
                }
                Ok(json!({ "level": log::max_level().as_str().to_lowercase() }))
            }
            Request::Trace { on } => match trace::set_on(on, PATIENCE) {
                Some(true) => Ok(json!({ "on": on })),
                Some(false) => Err(Failure::new(
                    "timeout",
                    "what was recorded before cannot be written to the file in time",
                )),
                None => Err(Failure::new(
                    "no-trace",
                    "this daemon has no file for a trace; start it with --trace FILE",
                )),
            },
            Request::Mappings { space, from, count } => {
                let from = from.as_deref().map_or(Ok(0), address)?;
                let count = count.unwrap_or(MAPPINGS).min(MOST_MAPPINGS);
                let backend = self.device()?;
                let mappings = backend.accelerator().mappings(space, from, count);
                let none = || Failure::new("no-space", format!("there is no space {space}"));
                let mappings = serde_json::to_value(mappings.ok_or_else(none)?);
                mappings.map_err(|error| Failure::new("internal", error.to_string()))
            }
            Request::Dump => {
                let backend = self.device()?;
                let mut dump = serde_json::to_value(backend.accelerator().snapshot())
                    .map_err(|error| Failure::new("internal", error.to_string()))?;
                if let Value::Object(dump) = &mut dump {
                    dump.insert("queues".into(), backend.queues());
                    let held = lateness.held();
                    dump.insert("held".into(), held.iter().map(self::held).collect());
                }
                Ok(dump)
            }
        }
    }

    fn set(&self, rule: Rule) -> Result<Value, Failure> {
        let text = rule.to_string();
        let set = self.lateness.set(rule);
        set.map(|id| json!({ "rule": id, "text": text }))
            .map_err(|error| Failure::new("too-many-rules", error.to_string()))
    }

    fn pause(&self, paused: bool) -> Result<Value, Failure> {
        self.device()?.accelerator().set_engines_paused(paused);
        Ok(json!({ "paused": paused }))
    }
}

/// A client's slot among the [`MAX_CLIENTS`].
struct ClientSlot(Arc<Console>);

impl ClientSlot {
    fn take(console: &Arc<Console>) -> Option<Self> {
        let more = |clients| (clients < MAX_CLIENTS).then_some(clients + 1);
        let (clients, order) = (&console.clients, Ordering::Relaxed);
        clients.fetch_update(order, order, more).ok()?;
        Some(Self(Arc::clone(console)))
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one client until it disconnects, or tells it that there is no slot.
fn serve(slot: Option<&ClientSlot>, client: UnixStream) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(client.try_clone()?);
    let mut answers = client;
    let Some(ClientSlot(console)) = slot else {
        let message = format!("{MAX_CLIENTS} clients are connected already; close one of them");
        let failure = Failure::new("too-many-clients", message);
        return say(&mut answers, &protocol::encode(None, Err(failure)));
    };
    say(&mut answers, &protocol::greeting())?;
    loop {
        let mut line = Vec::new();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        (&mut lines).take(most).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            if line.len() == MAX_LINE {
                let message = format!("a line has at most {MAX_LINE} bytes; this one is not read");
                let failure = Failure::new("malformed", message);
                say(&mut answers, &protocol::encode(None, Err(failure)))?;
            }
            // An unfinished line is not a request.
            return Ok(());
        }
        let (mark, request) = match std::str::from_utf8(&line) {
            Ok(line) => protocol::decode(line),
            Err(_) => (None, Err(Failure::new("malformed", "a line is UTF-8"))),
        };
        let answer = request.and_then(|request| console.execute(request, &answers));
        say(&mut answers, &protocol::encode(mark, answer))?;
    }
}

/// Whether a client can no longer read answers. One that has only closed its sending side can.
fn has_gone(client: &UnixStream) -> bool {
    let mut events = [PollFd::new(client.as_fd(), PollFlags::empty())];
    let found = poll(&mut events, PollTimeout::ZERO);
    found.is_ok_and(|found| found > 0)
}

fn say(client: &mut UnixStream, line: &Value) -> io::Result<()> {
    client.write_all(format!("{line}\n").as_bytes())
}

fn named(name: &str) -> Result<Point, Failure> {
    let point = Point::from_name(name);
    point.ok_or_else(|| wrong_rule(RuleError::Point(name.to_owned())))
}

fn time(text: &str) -> Result<Duration, Failure> {
    parse_time(text).map_err(wrong_rule)
}

fn address(text: &str) -> Result<u64, Failure> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| {
        let message = format!("{text:?} is no address; write it such as 0x7f0000000000");
        Failure::new("malformed", message)
    })
}

fn wrong_rule(error: RuleError) -> Failure {
    let code = match error {
        RuleError::Point(_) => "unknown-point",
        _ => "wrong-rule",
    };
    Failure::new(code, error.to_string())
}

fn describe(point: Point) -> Value {
    json!({
        "point": point.name(),
        "meaning": point.meaning(),
        "section": point.section(),
        "freedom": point.freedom(),
        "swap": point.order_is_free(),
    })
}

fn in_force(in_force: &InForce) -> Value {
    json!({
        "rule": in_force.id,
        "text": in_force.rule.to_string(),
        "occasions": in_force.occasions,
        "happened": in_force.happened,
    })
}

fn held(held: &Held) -> Value {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let now = Instant::now();
    json!({
        "point": held.point.name(),
        "rule": held.rule,
        "space": held.about.space,
        "operation": held.about.operation.map(crate::lateness::kebab),
        "milliseconds": milliseconds(now.saturating_duration_since(held.since)),
        "milliseconds-left": milliseconds(held.until.saturating_duration_since(now)),
    })
}

/// The counters by their names in the specification.
fn counters(statistics: &Statistics) -> Map<String, Value> {
    let bytes = statistics.as_bytes();
    let fields = Statistics::FIELDS.iter();
    fields
        .map(|field| {
            let value = bytes.get(field.offset..field.offset + field.size);
            let value = value.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            let value = value.map_or(0, u64::from_le_bytes);
            (field.name.to_owned(), value.into())
        })
        .collect()
}
