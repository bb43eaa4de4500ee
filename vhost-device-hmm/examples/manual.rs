//! Writes the manual pages and the shells' completions of the program into a folder:
//!
//!     cargo run -p vhost-device-hmm --example manual -- FOLDER
//!
//! Both come from the definitions of the command line, so that they say what `--help` says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use hmm_cli::remark;
use vhost_device_hmm::args::Args;

/// The shells for which packages install completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        remark!("manual: name the folder to write to");
        return ExitCode::from(2);
    };
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            remark!("manual: cannot write to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut command = Args::command();
    command.build();
    clap_mangen::generate_to(command.clone(), folder)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut command, "vhost-device-hmm", folder)?;
    }
    Ok(())
}
