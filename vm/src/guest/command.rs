//! Programs to run in a guest, and their results.

use std::time::Duration;

use hmm_agent::protocol::Program;

use crate::pace::COMMAND;

/// A program to run in the guest.
#[derive(Clone, Debug)]
pub struct Command {
    pub(super) program: Program,
    pub(super) limit: Option<Duration>,
}

impl Command {
    /// A program, looked up in `/bin`, `/root`, `/usr/bin` and `/usr/sbin`.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: Program {
                arguments: vec![program.into()],
                environment: Vec::new(),
            },
            limit: Some(COMMAND),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.program.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into);
        self.program.arguments.extend(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.program.environment.push((name.into(), value.into()));
        self
    }

    /// Sets how long the program may take with KVM and the stock kernel; slower machines get a
    /// multiple.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Sets no limit to how long the program may take.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        self.limit = None;
        self
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Command {
    /// A program and its arguments.
    fn from(words: [S; N]) -> Self {
        Self::from_words(words.into_iter().map(Into::into).collect())
    }
}

impl From<&[String]> for Command {
    /// A program and its arguments.
    fn from(words: &[String]) -> Self {
        Self::from_words(words.to_vec())
    }
}

impl Command {
    fn from_words(arguments: Vec<String>) -> Self {
        Self {
            program: Program {
                arguments,
                environment: Vec::new(),
            },
            limit: Some(COMMAND),
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
}

/// The result of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it exited with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == Status::Exited(0)
    }

    /// What it wrote to standard output, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// What it wrote to standard output, if it succeeded.
    ///
    /// # Errors
    ///
    /// When it did not; the text says how it ended and what it printed.
    pub fn succeeded(self) -> anyhow::Result<String> {
        anyhow::ensure!(
            self.success(),
            "the program ended with {:?}\nstdout:\n{}\nstderr:\n{}",
            self.status,
            String::from_utf8_lossy(&self.stdout),
            String::from_utf8_lossy(&self.stderr)
        );
        Ok(self.text())
    }
}
