//! Another process that takes turns with this one.
//!
//! Parent and child pass the turn to each other through pipes, so that a row decides the order of
//! their steps. It does not know what they do.

use std::fs::File;
use std::io::{Read, Write};

use anyhow::{bail, ensure, Context, Result};

use crate::row::{CannotRun, Outcome};
use crate::sys::{self, End};

/// The child's view.
pub(crate) struct Turns {
    told: File,
    telling: File,
}

impl Turns {
    /// Waits until the parent passes the turn.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let mut byte = [0];
        self.told
            .read_exact(&mut byte)
            .context("the parent is gone")
    }

    /// Passes the turn to the parent.
    pub(crate) fn pass(&mut self) -> Result<()> {
        self.telling.write_all(b".").context("the parent is gone")
    }

    /// Passes the turn and waits until it comes back.
    pub(crate) fn pass_and_wait(&mut self) -> Result<()> {
        self.pass()?;
        self.wait()
    }
}

/// The parent's view. Dropping it kills the child.
#[derive(Debug)]
pub(crate) struct Child {
    id: i32,
    telling: File,
    told: File,
    ended: bool,
}

impl Child {
    /// Forks; the child does what `body` says and ends.
    pub(crate) fn fork(body: impl FnOnce(&mut Turns) -> Result<()>) -> Result<Self> {
        let (child_told, telling) = sys::pipe().context("a pipe")?;
        let (told, child_telling) = sys::pipe().context("a pipe")?;
        // SAFETY: rows fork from their only thread, or from one of several while the
        // others neither allocate nor print; the child ends with `leave`.
        let id = unsafe { sys::fork() }.context("fork")?;
        let Some(id) = id else {
            drop((telling, told));
            let mut turns = Turns {
                told: child_told.into(),
                telling: child_telling.into(),
            };
            let outcome = Outcome::from(body(&mut turns));
            let text = serde_json::json!(outcome).to_string();
            let sent = turns.telling.write_all(text.as_bytes());
            sys::leave(if sent.is_ok() { 0 } else { 1 });
        };
        Ok(Self {
            id,
            telling: telling.into(),
            told: told.into(),
            ended: false,
        })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> i32 {
        self.id
    }

    /// Passes the turn to the child.
    pub(crate) fn pass(&mut self) -> Result<()> {
        self.telling.write_all(b".").context("the child is gone")
    }

    /// Waits until the child passes the turn.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let mut byte = [0];
        let count = self.told.read(&mut byte).context("hearing of the child")?;
        if count == 1 && byte == *b"." {
            return Ok(());
        }
        self.last_words(byte[..count].to_vec())?;
        bail!("the child ended before its turn was over")
    }

    /// Passes the turn and waits until it comes back.
    pub(crate) fn pass_and_wait(&mut self) -> Result<()> {
        self.pass()?;
        self.wait()
    }

    /// Waits until the child has ended, which must go well.
    pub(crate) fn end(mut self) -> Result<()> {
        self.last_words(Vec::new())
    }

    /// Passes the turn for the last time and waits for the child's end.
    pub(crate) fn pass_and_end(mut self) -> Result<()> {
        self.pass()?;
        self.end()
    }

    /// Waits until the child has ended in whatever way.
    pub(crate) fn status(mut self) -> Result<End> {
        self.ended = true;
        sys::wait(self.id).context("waiting for the child")
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(self) -> Result<()> {
        sys::signal(self.id, libc::SIGKILL).context("killing the child")?;
        let end = self.status()?;
        ensure!(end == End::Signalled(libc::SIGKILL), "{end:?}");
        Ok(())
    }

    fn last_words(&mut self, mut words: Vec<u8>) -> Result<()> {
        self.told
            .read_to_end(&mut words)
            .context("hearing of the child")?;
        self.ended = true;
        let end = sys::wait(self.id).context("waiting for the child")?;
        ensure!(end == End::Exited(0), "the child ended otherwise: {end:?}");
        match serde_json::from_slice(&words).context("the child's last words")? {
            Outcome::Kept => Ok(()),
            Outcome::CannotRun(reason) => Err(CannotRun(reason).into()),
            Outcome::Broken(reason) => bail!("in the child: {reason}"),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            // It may be traced or stopped: SIGKILL ends it all the same.
            let _ = sys::signal(self.id, libc::SIGKILL);
            let _ = sys::wait(self.id);
        }
    }
}
