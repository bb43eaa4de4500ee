//! Page traces: which pages jobs have used, in order, as text.
//!
//! ```text
//! virtio-hmm page trace 1
//! # A comment.
//! r 256 16 65536 512
//! w 768 1 64 1
//! ```
//!
//! After the first line each line is an access of jobs of one process to consecutive pages: `r` if
//! they were only read, else `w`; the number of the first page, which is its address divided by
//! 4096; the number of pages; the bytes that were used, in whole lines of 64 bytes; and the number of
//! pages from the first one on that the job had announced to use in the same way, as in the device's
//! fault records. Empty lines, and lines that begin with `#`, mean nothing.

use std::io::{self, BufRead, Write};
use std::num::ParseIntError;
use std::str::SplitWhitespace;

/// The size of a page, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// The first line.
const HEADER: &str = "virtio-hmm page trace";

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// The pages beyond the last address that a process can have (56 bits).
const PAGES: u64 = 1 << 44;

/// The most pages of one access, 4 GiB: far more than a step of a job uses, and few enough that a
/// wrong line does not become an endless run.
pub const MOST_PAGES: u64 = 1 << 20;

/// The most bytes of one access. It keeps sums over any trace that fits into memory below 2^64.
pub const MOST_BYTES: u64 = 1 << 40;

/// An access to consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The number of the first page.
    pub first: u64,
    /// How many pages, from 1 to [`MOST_PAGES`].
    pub pages: u64,
    /// How many bytes of them were used in all, from 1 to [`MOST_BYTES`].
    pub bytes: u64,
    /// Whether any was written.
    pub written: bool,
    /// How many pages from the first one on the job had announced to use; zero if none.
    pub announced: u64,
}

/// The accesses of a run, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The accesses.
    pub accesses: Vec<Access>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("reading the trace: {0}")]
    Read(#[from] io::Error),
    /// It begins with something else.
    #[error("this is no page trace: its first line is not \"{HEADER} {VERSION}\"")]
    NoTrace,
    /// It has another version.
    #[error("the trace has version {0}, and this program reads version {VERSION}")]
    Version(String),
    /// A line is wrong.
    #[error("line {line} of the trace: {mistake}")]
    Line {
        /// Its number, counted from 1.
        line: usize,
        /// What is wrong with it.
        mistake: Mistake,
    },
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum Mistake {
    /// It does not begin with a kind of access.
    #[error("it begins neither with r nor with w")]
    Kind,
    /// It has not the right number of fields.
    #[error("it has not five fields: r or w, first page, pages, bytes, announced pages")]
    Fields,
    /// A field is no number.
    #[error("{0}")]
    Number(#[from] ParseIntError),
    /// A number is out of range.
    #[error("{0} pages from {1} on with {2} bytes: there is no such access")]
    Range(u64, u64, u64),
}

impl Access {
    /// Whether there can be such an access.
    fn is_possible(&self) -> bool {
        let end = self.first.checked_add(self.pages);
        (1..=MOST_PAGES).contains(&self.pages)
            && (1..=MOST_BYTES).contains(&self.bytes)
            && end.is_some_and(|end| end <= PAGES)
    }

    fn parse(line: &str) -> Result<Self, Mistake> {
        let mut fields = line.split_whitespace();
        let written = match fields.next() {
            Some("r") => false,
            Some("w") => true,
            _ => return Err(Mistake::Kind),
        };
        let access = Self {
            written,
            first: number(&mut fields)?,
            pages: number(&mut fields)?,
            bytes: number(&mut fields)?,
            announced: number(&mut fields)?,
        };
        match fields.next() {
            Some(_) => Err(Mistake::Fields),
            None if access.is_possible() => Ok(access),
            None => Err(Mistake::Range(access.pages, access.first, access.bytes)),
        }
    }
}

fn number(fields: &mut SplitWhitespace<'_>) -> Result<u64, Mistake> {
    Ok(fields.next().ok_or(Mistake::Fields)?.parse()?)
}

impl Trace {
    /// Adds an access. One that continues the last one in the same way, or repeats it, becomes part
    /// of it: the order of pages stays as it was.
    pub fn push(&mut self, access: Access) {
        if let Some(last) = self.accesses.last_mut() {
            let pages = if last.first == access.first && last.pages == access.pages {
                Some(last.pages)
            } else if last.first + last.pages == access.first
                && last.written == access.written
                && last.first + last.announced == access.first + access.announced
            {
                Some(last.pages + access.pages)
            } else {
                None
            };
            let bytes = last.bytes + access.bytes;
            let fits = |pages: &u64| *pages <= MOST_PAGES && bytes <= MOST_BYTES;
            if let Some(pages) = pages.filter(fits) {
                last.pages = pages;
                last.bytes = bytes;
                last.written |= access.written;
                return;
            }
        }
        self.accesses.push(access);
    }

    /// Reads a trace.
    ///
    /// # Errors
    ///
    /// When the input cannot be read, is no trace of this version, or has a wrong line.
    pub fn read(input: impl BufRead) -> Result<Self, TraceError> {
        let mut lines = (1..).zip(input.lines());
        let (_, first) = lines.next().ok_or(TraceError::NoTrace)?;
        let version = first?;
        let version = version.strip_prefix(HEADER).ok_or(TraceError::NoTrace)?;
        if version.trim().parse() != Ok(VERSION) {
            return Err(TraceError::Version(version.trim().to_owned()));
        }
        let mut accesses = Vec::new();
        for (number, line) in lines {
            let line = line?;
            let text = line.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let access = Access::parse(text).map_err(|mistake| TraceError::Line {
                line: number,
                mistake,
            })?;
            accesses.push(access);
        }
        Ok(Self { accesses })
    }

    /// Writes it as [`read`](Self::read) reads it.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn write(&self, mut output: impl Write) -> io::Result<()> {
        writeln!(output, "{HEADER} {VERSION}")?;
        for access in &self.accesses {
            let kind = if access.written { 'w' } else { 'r' };
            let Access {
                first,
                pages,
                bytes,
                announced,
                ..
            } = access;
            writeln!(output, "{kind} {first} {pages} {bytes} {announced}")?;
        }
        output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(first: u64, pages: u64, bytes: u64, written: bool, announced: u64) -> Access {
        Access {
            first,
            pages,
            bytes,
            written,
            announced,
        }
    }

    fn read(text: &str) -> Result<Trace, String> {
        Trace::read(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_trace_is_read_as_it_is_written() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut one = || {
            let (first, pages) = (random.u64(..1 << 30), random.u64(1..=MOST_PAGES));
            let bytes = random.u64(1..=MOST_BYTES);
            access(first, pages, bytes, random.bool(), random.u64(..9))
        };
        let trace = Trace {
            accesses: (0..100).map(|_| one()).collect(),
        };
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        assert_eq!(Trace::read(&text[..]).unwrap(), trace);
    }

    #[test]
    fn what_is_no_trace_or_has_another_version_is_refused() {
        assert!(read("").unwrap_err().contains("no page trace"));
        assert!(read("r 1 1 64 1\n").unwrap_err().contains("no page trace"));
        let other = read("virtio-hmm page trace 2\n").unwrap_err();
        assert!(other.contains("version 2"), "{other}");
        assert_eq!(read("virtio-hmm page trace 1\n"), Ok(Trace::default()));
    }

    #[test]
    fn a_wrong_line_is_told_by_its_number_and_an_empty_one_means_nothing() {
        for (line, mistake) in [
            ("x 1 1 64 1", "neither"),
            ("r 1 1 64", "five fields"),
            ("r 1 1 64 1 1", "five fields"),
            ("r 1 -1 64 1", "invalid digit"),
            ("r 1 0 64 1", "no such access"),
            ("r 1 1 0 1", "no such access"),
            ("r 18446744073709551615 1 64 1", "no such access"),
            ("r 1 99999999999 64 1", "no such access"),
        ] {
            let error = read(&format!("virtio-hmm page trace 1\n\n# x\n{line}\n")).unwrap_err();
            assert!(error.starts_with("line 4 of the trace"), "{error}");
            assert!(error.contains(mistake), "{line}: {error}");
        }
    }

    #[test]
    fn an_access_that_continues_or_repeats_the_last_one_is_part_of_it() {
        let mut trace = Trace::default();
        trace.push(access(10, 2, 128, false, 6));
        trace.push(access(12, 2, 128, false, 4));
        trace.push(access(10, 4, 64, true, 0));
        assert_eq!(trace.accesses, [access(10, 4, 320, true, 6)]);
        // Another announcement, another kind, another place.
        trace.push(access(14, 1, 64, true, 9));
        trace.push(access(15, 1, 64, false, 8));
        trace.push(access(20, 1, 64, false, 3));
        assert_eq!(trace.accesses.len(), 4);
    }
}
