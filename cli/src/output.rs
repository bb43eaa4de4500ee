//! Prints lines.
//!
//! A program whose reader has gone (`hmm stats | head`) ends at its next line, without a word and
//! without success: what it was asked for is not done. Its exit status is the one that a shell
//! gives to a program that a closed pipe has killed.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process;

/// The exit status of a program whose output was closed: 128 and the number of SIGPIPE.
pub const CLOSED: u8 = 128 + 13;

/// Prints a line to standard output, as `println!` does. A closed pipe ends the program.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::output::line(::std::format_args!($($argument)*))
    };
}

/// Prints a line to standard error, as `eprintln!` does. It is no error if it cannot be written.
#[macro_export]
macro_rules! remark {
    ($($argument:tt)*) => {
        $crate::output::remark(::std::format_args!($($argument)*))
    };
}

/// See [`say!`].
pub fn line(line: fmt::Arguments<'_>) {
    done(writeln!(io::stdout().lock(), "{line}"));
}

/// Prints text that has its own ends of lines to standard output. A closed pipe ends the program.
pub fn text(text: &str) {
    let mut output = io::stdout().lock();
    done(
        output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush()),
    );
}

/// See [`remark!`].
pub fn remark(line: fmt::Arguments<'_>) {
    // There is no other place to report it.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Passes on bytes to standard error. It is no error if they cannot be written.
pub fn errors(bytes: &[u8]) {
    let mut output = io::stderr().lock();
    let _ = output.write_all(bytes).and_then(|()| output.flush());
}

/// Ends the program unless the output was written.
fn done(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => process::exit(CLOSED.into()),
        Err(error) => {
            remark(format_args!("error: writing the output: {error}"));
            process::exit(1);
        }
    }
}
