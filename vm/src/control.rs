//! A daemon's control socket, which makes its device late, holds it, or makes it wrong.
//!
//! It speaks the protocol of `docs/control-socket.md` and does not know what the device does with
//! it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, ensure, Context, Result};
use serde_json::{json, Value};
pub use virtio_hmm_spec::points::Point;

use crate::pace::{Pace, CONTROL, HOLD};

/// The version of the protocol that is spoken here.
const VERSION: u64 = 1;

/// The control socket of a daemon. Each request has a connection of its own, so that a request that
/// waits does not block others.
#[derive(Debug)]
pub struct Control {
    socket: PathBuf,
    pace: Pace,
}

impl Control {
    /// A control socket; the daemon need not listen on it yet.
    #[must_use]
    pub fn new(socket: PathBuf, pace: Pace) -> Self {
        Self { socket, pace }
    }

    /// Where it is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends a request, as the protocol writes it, and returns the result.
    ///
    /// # Errors
    ///
    /// When the daemon refuses, or does not answer.
    pub fn ask(&self, request: &Value) -> Result<Value> {
        let ask = || -> Result<Value> {
            let connection = UnixStream::connect(&self.socket)?;
            // Longer than the limit of any wait.
            connection.set_read_timeout(Some(2 * self.pace.scale(CONTROL)))?;
            let mut connection = BufReader::new(connection);
            let greeting = read(&mut connection)?;
            ensure!(greeting["version"] == VERSION, "it greets with {greeting}");
            let line = format!("{request}\n");
            connection.get_mut().write_all(line.as_bytes())?;
            read(&mut connection)
        };
        let mut answer =
            ask().with_context(|| format!("asking {} for {request}", self.socket.display()))?;
        match answer["error"]["message"].as_str() {
            Some(message) => Err(anyhow!("{request}: {message}")),
            None => Ok(answer["result"].take()),
        }
    }

    /// Holds everything that comes to a point from now on, until the guard is dropped.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn hold(&self, point: Point) -> Result<Hold<'_>> {
        let rule = self.rule(&format!("hold@{point},limit={}s", HOLD.as_secs()))?;
        Ok(Hold { rule, point })
    }

    /// Like [`hold`](Self::hold), only for what further keys of the rule select, such as
    /// `operation=unmap`.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn hold_only(&self, point: Point, keys: &str) -> Result<Hold<'_>> {
        let limit = HOLD.as_secs();
        let rule = self.rule(&format!("hold@{point},limit={limit}s,{keys}"))?;
        Ok(Hold { rule, point })
    }

    /// Puts a rule in force until the guard is dropped.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask), in particular when the rule makes no sense.
    pub fn rule(&self, rule: &str) -> Result<Rule<'_>> {
        let set = self.ask(&json!({ "command": "set-rule", "rule": rule }))?;
        let id = set["rule"].as_u64().context("a rule has a number")?;
        Ok(Rule { control: self, id })
    }

    /// Waits until something is held at a point, and returns it.
    ///
    /// # Errors
    ///
    /// When nothing is held in time.
    pub fn wait_held(&self, point: Point) -> Result<Value> {
        let timeout = format!("{}ms", self.pace.scale(CONTROL).as_millis());
        self.ask(&json!({ "command": "wait-held", "point": point.name(), "timeout": timeout }))
    }

    /// The things that are held at a point now.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn held(&self, point: Point) -> Result<Vec<Value>> {
        let Value::Array(mut held) = self.ask(&json!({ "command": "held" }))? else {
            bail!("what is held is a list");
        };
        held.retain(|held| held["point"] == point.name());
        Ok(held)
    }

    /// A counter of the device, by its name in the specification.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask), or when there is no such counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let counters = self.ask(&json!({ "command": "statistics" }))?;
        let counter = counters[name].as_u64();
        counter.with_context(|| format!("there is no counter {name}"))
    }
}

/// A hold that ends when it is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Hold<'a> {
    rule: Rule<'a>,
    point: Point,
}

impl Hold<'_> {
    /// Waits until something is held, and returns it.
    ///
    /// # Errors
    ///
    /// When nothing is held in time.
    pub fn wait(&self) -> Result<Value> {
        self.rule.control.wait_held(self.point)
    }

    /// Releases the first thing that is held, and goes on holding.
    ///
    /// # Errors
    ///
    /// When nothing is held.
    pub fn step(&self) -> Result<()> {
        let step = json!({ "command": "step", "point": self.point.name() });
        let stepped = self.rule.control.ask(&step)?;
        ensure!(
            stepped["released"] == 1,
            "nothing is held at {}",
            self.point
        );
        Ok(())
    }

    /// Ends the hold.
    ///
    /// # Errors
    ///
    /// When the hold has reached its limit before.
    pub fn release(self) -> Result<()> {
        self.rule.clear()
    }
}

/// A rule that ends when this is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Rule<'a> {
    control: &'a Control,
    id: u64,
}

impl Rule<'_> {
    /// How often the rule has taken effect.
    ///
    /// # Errors
    ///
    /// As [`Control::ask`], or when the rule is no longer in force.
    pub fn happened(&self) -> Result<u64> {
        let rules = self.control.ask(&json!({ "command": "rules" }))?;
        let mine = rules
            .as_array()
            .and_then(|rules| rules.iter().find(|rule| rule["rule"] == self.id));
        mine.and_then(|rule| rule["happened"].as_u64())
            .with_context(|| format!("rule {} is in force no more", self.id))
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// When the rule was a hold that has reached its limit, or the daemon does not answer.
    pub fn clear(self) -> Result<()> {
        let cleared = self.end();
        std::mem::forget(self);
        cleared
    }

    fn end(&self) -> Result<()> {
        let clear = json!({ "command": "clear-rule", "rule": self.id });
        self.control.ask(&clear).map(|_| ())
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        // The rule may have ended with its limit, and the daemon may have ended before that.
        let _ = self.end();
    }
}

fn read(connection: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    ensure!(!line.is_empty(), "the daemon has closed the connection");
    Ok(serde_json::from_str(&line)?)
}
