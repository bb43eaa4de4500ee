//! Programs without what only a debugger on the host reads.
//!
//! It knows the format of programs and nothing of guests.

use anyhow::{Context, Result};
use object::build::elf::Builder;

/// The beginning of the names of the sections for debuggers.
const DEBUG: &[u8] = b".debug";

/// The program without its debug information, which is most of it. The names of functions stay, for
/// backtraces; the file on the host has the rest.
///
/// # Errors
///
/// When it is no program.
pub(crate) fn strip(program: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(program).context("reading the program")?;
    for section in &mut elf.sections {
        if section.name.as_slice().starts_with(DEBUG) && !section.is_alloc() {
            section.delete = true;
        }
    }
    elf.delete_orphans();
    let mut stripped = Vec::new();
    elf.write(&mut stripped).context("writing the program")?;
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use object::{Object, ObjectSection};

    #[test]
    fn a_stripped_program_runs_and_is_smaller_and_has_names() {
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let stripped = strip(&program).unwrap();
        assert!(
            stripped.len() < program.len() / 2,
            "{} of {} bytes",
            stripped.len(),
            program.len()
        );
        let elf = object::File::parse(&*stripped).unwrap();
        assert!(elf.symbols().next().is_some());
        let debug = elf
            .sections()
            .find(|section| section.name().is_ok_and(|name| name == ".debug_info"));
        assert!(debug.is_none());

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stripped");
        fs::write(&path, stripped).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        // This very program, which lists its tests.
        let output = Command::new(path).arg("--list").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let list = String::from_utf8(output.stdout).unwrap();
        assert!(list.contains("a_stripped_program_runs"), "{list}");
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        assert!(strip(b"#!/bin/sh\n").is_err());
    }
}
