//! QEMU's monitor: commands, answers and events.
//!
//! It speaks the protocol over a connection that the caller made, and knows nothing of the machine
//! behind it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
pub use qapi_spec::Command;
use qapi_spec::{Any, Dictionary, Empty, Execute, Never, Response};
use serde::{Deserialize, Serialize};

/// Makes a type a command with this name, which has no result.
macro_rules! command {
    ($type:ty, $name:literal) => {
        impl Command for $type {
            type Ok = Empty;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = false;
        }
    };
}

/// Asks for a device to be unplugged; the guest has to agree.
#[derive(Debug, Serialize)]
pub struct DeviceDel {
    /// The device's name.
    pub id: String,
}

command!(DeviceDel, "device_del");

/// Plugs a device in.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct DeviceAdd {
    /// Its settings and its name.
    pub arguments: Dictionary,
}

command!(DeviceAdd, "device_add");

/// Stops the machine.
#[derive(Debug, Serialize)]
pub struct Stop {}

command!(Stop, "stop");

/// Lets the machine go on.
#[derive(Debug, Serialize)]
pub struct Continue {}

command!(Continue, "cont");

/// Writes the machine's state.
#[derive(Debug, Serialize)]
pub struct Migrate {
    /// Where to.
    pub uri: String,
}

command!(Migrate, "migrate");

/// Reads a machine's state.
#[derive(Debug, Serialize)]
pub struct MigrateIncoming {
    /// Where from.
    pub uri: String,
}

command!(MigrateIncoming, "migrate-incoming");

/// Says how a state is written and read.
#[derive(Debug, Serialize)]
pub struct MigrateSetCapabilities {
    /// What is turned on or off.
    pub capabilities: Vec<Capability>,
}

/// Something that a monitor does about states, or not.
#[derive(Debug, Serialize)]
pub struct Capability {
    /// Its name.
    pub capability: &'static str,
    /// Whether it is on.
    pub state: bool,
}

command!(MigrateSetCapabilities, "migrate-set-capabilities");

/// Ends the greeting.
#[derive(Serialize)]
struct Capabilities {}

command!(Capabilities, "qmp_capabilities");

/// A message of the monitor.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Event(Event),
    Greeting {
        #[serde(rename = "QMP")]
        _versions: Any,
    },
    Answer(Response<Any>),
}

/// A message that the monitor sends unasked.
#[derive(Debug, Deserialize)]
struct Event {
    event: String,
    #[serde(default)]
    data: Dictionary,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// Events that arrived while an answer was awaited.
    events: VecDeque<Event>,
    limit: Duration,
}

impl Monitor {
    /// Greets a monitor. `limit` is how long it may take for an answer.
    ///
    /// # Errors
    ///
    /// When it is no monitor or does not answer.
    pub fn greet(stream: UnixStream, limit: Duration) -> Result<Self> {
        stream.set_write_timeout(Some(limit))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
            limit,
        };
        match monitor.receive(Instant::now() + limit)? {
            Message::Greeting { .. } => {}
            Message::Event(_) | Message::Answer(_) => bail!("QEMU's monitor did not greet"),
        }
        monitor.execute(&Capabilities {})?;
        Ok(monitor)
    }

    /// Executes a command.
    ///
    /// # Errors
    ///
    /// When QEMU refuses it or does not answer.
    pub fn execute<C: Command>(&mut self, command: &C) -> Result<C::Ok> {
        let mut line = serde_json::to_vec(&Execute::<&C, Never>::with_command(command))?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .with_context(|| format!("sending {} to QEMU's monitor", C::NAME))?;
        let deadline = Instant::now() + self.limit;
        loop {
            match self.receive(deadline)? {
                Message::Event(event) => self.events.push_back(event),
                Message::Greeting { .. } => bail!("QEMU's monitor greeted twice"),
                Message::Answer(answer) => {
                    let answer = answer
                        .result()
                        .with_context(|| format!("QEMU refused {}", C::NAME))?;
                    return Ok(serde_json::from_value(answer)?);
                }
            }
        }
    }

    /// Waits until the event called `name` arrives with the wanted data, or finds that it has
    /// arrived. Earlier events are forgotten.
    ///
    /// # Errors
    ///
    /// When it does not come within `limit`.
    pub fn wait_for(
        &mut self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Dictionary) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => match self.receive(deadline)? {
                    Message::Event(event) => event,
                    Message::Greeting { .. } | Message::Answer(_) => {
                        bail!("QEMU's monitor answered what it was not asked")
                    }
                },
            };
            if event.event == name && wanted(&event.data) {
                return Ok(());
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message> {
        let mut line = Vec::new();
        // If the limit cuts a line in two, its first bytes stay in `line`.
        while line.last() != Some(&b'\n') {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "QEMU's monitor said nothing in time");
            self.stream.get_ref().set_read_timeout(Some(left))?;
            match self.stream.read_until(b'\n', &mut line) {
                Ok(0) => bail!("QEMU's monitor closed the connection"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("reading from QEMU's monitor"),
            }
        }
        serde_json::from_slice(&line)
            .with_context(|| format!("QEMU's monitor said {}", String::from_utf8_lossy(&line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A monitor that sends the first of `lines` at once, and each other one after a line from us.
    fn played(lines: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut from = BufReader::new(theirs.try_clone().unwrap());
            let mut to = theirs;
            for line in lines {
                // We may have closed our end by now.
                if to.write_all(format!("{line}\r\n").as_bytes()).is_err() {
                    return;
                }
                let _ = from.read_until(b'\n', &mut Vec::new());
            }
        });
        ours
    }

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 11}}, "capabilities": []}}"#;

    #[test]
    fn an_event_between_command_and_answer_is_not_lost() {
        let stream = played(&[
            GREETING,
            r#"{"return": {}}"#,
            "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"a\"}, \"timestamp\": {}}\n{\"return\": {}}",
        ]);
        let mut monitor = Monitor::greet(stream, LIMIT).unwrap();
        monitor.execute(&DeviceDel { id: "a".into() }).unwrap();
        monitor
            .wait_for("DEVICE_DELETED", LIMIT, |data| {
                data.get("device").is_some_and(|device| *device == "a")
            })
            .unwrap();
    }

    #[test]
    fn a_refusal_is_an_error_with_the_reason() {
        let stream = played(&[
            GREETING,
            r#"{"return": {}}"#,
            r#"{"error": {"class": "DeviceNotFound", "desc": "Device 'a' not found"}}"#,
        ]);
        let mut monitor = Monitor::greet(stream, LIMIT).unwrap();
        let error = monitor.execute(&DeviceDel { id: "a".into() }).unwrap_err();
        assert!(
            format!("{error:#}").contains("Device 'a' not found"),
            "{error:#}"
        );
    }

    #[test]
    fn a_monitor_that_closes_or_is_silent_is_an_error() {
        let error = Monitor::greet(played(&[]), LIMIT).unwrap_err();
        assert!(error.to_string().contains("closed"), "{error:#}");
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = Monitor::greet(ours, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("in time"), "{error:#}");
    }
}
