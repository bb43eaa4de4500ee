//! The control socket's protocol: one JSON object per line, in both directions.
//!
//! `docs/control-socket.md` describes it for people.

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

/// The version of the protocol, sent in the greeting. A new command or member does not change it.
pub const VERSION: u32 = 1;

/// The longest line that is read, in bytes. Rules have at most some hundred bytes.
pub const MAX_LINE: usize = 16 << 10;

/// The requests. Times and points are written as in rules. The descriptions are also the help of
/// `ctl`, which has its own commands for requests that are skipped there.
#[derive(Clone, Debug, Deserialize, Serialize, Subcommand, PartialEq, Eq)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// List the points: the moments that the specification leaves to the device
    Points,
    /// List the rules in force, and how often each has happened
    Rules,
    /// Put a rule in force and print its number, such as: set delay=5ms@dma.taken,every=3
    #[command(name = "set")]
    SetRule {
        /// `ACTION[@POINT][,KEY=VALUE]…`, as for --rule
        rule: String,
    },
    /// End a rule and release what it holds
    #[command(skip)]
    ClearRule {
        /// Its number
        rule: u64,
    },
    /// End all rules and release everything
    #[command(skip)]
    ClearRules,
    /// Hold whatever comes to a point, until it is released
    Hold {
        /// Where, such as control.taken
        point: String,
        /// How long one thing is held at most; then the hold ends by itself [default: 10s]
        #[arg(long, value_name = "TIME")]
        limit: Option<String>,
    },
    /// End holds, and release what they hold
    Release {
        /// Where; everywhere if no point is given
        point: Option<String>,
    },
    /// Release what has been held longest at a point, and go on holding
    Step {
        /// Where
        point: String,
        /// How many [default: 1]
        count: Option<usize>,
    },
    /// List what is held now
    Held,
    /// Wait until something is held at a point
    WaitHeld {
        /// Where
        point: String,
        /// How long at most [default: 10s]
        #[arg(long, value_name = "TIME")]
        timeout: Option<String>,
    },
    /// Let engines take up no more jobs
    Pause,
    /// Let engines go on after `pause`
    Resume,
    /// Print the device's counters
    Statistics,
    /// Print what is logged, or set it
    LogLevel {
        /// off, error, warn, info, debug or trace
        level: Option<String>,
    },
    /// End the trace of a daemon that was started with --trace, or go on with it
    Trace {
        /// Whether to record from now on
        #[arg(value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set,
            value_name = "on|off")]
        on: bool,
    },
    /// Print spaces, jobs, faults and queues
    Dump,
    /// Print how pages of a space are mapped
    Mappings {
        /// Its number, as `dump` prints it
        space: u32,
        /// The address to begin with, such as 0x7f0000000000
        #[arg(long, value_name = "ADDRESS")]
        from: Option<String>,
        /// How many runs of pages to print at most [default: 256]
        #[arg(long, value_name = "N")]
        count: Option<usize>,
    },
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A code for programs.
    pub code: &'static str,
    /// A sentence for people, with what to do next.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The first line that a client reads.
pub fn greeting() -> Value {
    json!({
        "hello": "vhost-device-hmm",
        "version": VERSION,
        "program": env!("CARGO_PKG_VERSION"),
    })
}

/// Parses a line: the client's mark, which the answer repeats, and the request.
pub fn decode(line: &str) -> (Option<Value>, Result<Request, Failure>) {
    let malformed = |error: serde_json::Error| {
        Failure::new(
            "malformed",
            format!("{error}; a request is one JSON object on one line, such as {{\"command\":\"points\"}}"),
        )
    };
    let mut object = match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(object)) => object,
        Ok(_) => {
            let failure = Failure::new(
                "malformed",
                "a request is a JSON object, such as {\"command\":\"points\"}",
            );
            return (None, Err(failure));
        }
        Err(error) => return (None, Err(malformed(error))),
    };
    let mark = object.remove("id");
    (
        mark,
        serde_json::from_value(Value::Object(object)).map_err(malformed),
    )
}

/// The line that answers a request.
pub fn encode(mark: Option<Value>, answer: Result<Value, Failure>) -> Value {
    let mut line = match answer {
        Ok(result) => json!({ "result": result }),
        Err(failure) => json!({
            "error": { "code": failure.code, "message": failure.message }
        }),
    };
    if let (Some(mark), Value::Object(object)) = (mark, &mut line) {
        object.insert("id".into(), mark);
    }
    line
}
