//! The command line.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use hmm_cli::size;
use log::LevelFilter;
use nix::unistd::Group;

use crate::backend::{Options, LONGEST_POLL};
use crate::control_socket::client::Ctl;
use crate::device::DeviceConfig;
use crate::lateness::Rule;
use crate::misreport::Misreport;
use crate::sandbox::Mode;
use crate::server::{Access, Place};

/// The unit of the size of device memory, which must hold whole large leaves.
const MEMORY_UNIT: u64 = 2 << 20;

/// The largest size. Any host can map less than this, and reports its own limit.
const MAX_SIZE: u64 = 64 << 40;

/// The most spaces that can be configured: each takes some ten kilobytes.
const MAX_SPACES: i64 = 65_536;

/// The most jobs that can be configured: a ring holds no more chains.
const MAX_JOBS: i64 = 1024;

/// The most engines that can be configured.
const MAX_ENGINES: i64 = 256;

/// The log levels, from nothing to everything.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The heading of the options for sockets.
const SOCKETS: &str = "Sockets";

/// What is worth knowing beside the options.
const AFTER_HELP: &str = "\
Sizes:
  A number of bytes, or one with a suffix K, M, G or T, which are powers of 1024, such as 1.5G.

Signals:
  SIGTERM and SIGINT end the daemon; the sockets that it has made are then removed.
  SIGSYS and SIGBUS kill it after a message: a system call was forbidden by the sandbox, or memory
  that is mapped is missing.

Environment:
  RUST_LOG                   What to log, without --log-level
  LISTEN_FDS, LISTEN_PID     Set by systemd with the sockets of a socket unit: one for front ends,
                             and maybe the control socket, with FileDescriptorName=control
  NOTIFY_SOCKET              Set by systemd for a unit with Type=notify: it is told when front ends
                             can connect, and whether one is served

Exit status:
  0 after a signal, or the end of the only front end; 1 if the daemon cannot start or go on; 2 if
  the command line is wrong.

Examples:
  vhost-device-hmm --socket-path /run/hmm.sock --memory 1G --socket-group kvm
  vhost-device-hmm --socket-path hmm.sock --check --control hmm.control
  vhost-device-hmm ctl hmm.control dump";

/// A virtual accelerator with memory of its own, for virtual machines.
///
/// It serves a virtual machine monitor (QEMU, say) that hosts a vhost-user device, and then the next
/// one, until SIGTERM or SIGINT ends it. Without --socket-path and --fd it takes the sockets that
/// systemd passes.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_long_help = AFTER_HELP
)]
pub struct Args {
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Socket to listen on; a socket on which no process listens any more is replaced
    #[arg(short, long, value_name = "PATH", conflicts_with = "fd", help_heading = SOCKETS)]
    pub socket_path: Option<PathBuf>,

    /// Descriptor of a socket that the program was started with, instead: one that listens, or one
    /// that is connected to a front end, with which the program then ends
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..),
        help_heading = SOCKETS)]
    pub fd: Option<RawFd>,

    /// Group that may connect to the socket, by name or number
    #[arg(long, value_name = "GROUP", requires = "socket_path", conflicts_with = "fd",
        value_parser = parse_group, help_heading = SOCKETS)]
    pub socket_group: Option<u32>,

    /// Permissions of the socket, in octal: the right to write is the right to connect [default: as
    /// the umask says, or 660 with --socket-group]
    #[arg(long, value_name = "MODE", requires = "socket_path", conflicts_with = "fd",
        value_parser = parse_mode, help_heading = SOCKETS)]
    pub socket_mode: Option<u32>,

    /// Socket to steer the daemon by while it runs, for its owner only; see `vhost-device-hmm ctl
    /// --help`
    #[arg(long, value_name = "PATH", help_heading = SOCKETS)]
    pub control: Option<PathBuf>,

    /// What a daemon may do that has read the first byte from a front end
    ///
    /// The sandbox denies the daemon files, the network, other processes and most system calls. Root
    /// becomes nobody.
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub sandbox: Mode,

    /// Size of device memory, with a suffix K, M, G or T; a multiple of 2M
    #[arg(short, long, value_name = "SIZE", default_value = "256M", value_parser = parse_memory)]
    pub memory: u64,

    /// Allocate host memory for all of device memory at the start, and keep it: a host that has
    /// none left later kills the daemon
    #[arg(long)]
    pub prealloc: bool,

    /// Let the guest's CPUs address device memory, whose size must then be a power of two
    #[arg(long)]
    pub coherent: bool,

    /// Number of engines, each of which runs one job at a time
    #[arg(short, long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=MAX_ENGINES))]
    pub engines: u32,

    /// How long at most to look for the next control request before sleeping, in
    /// microseconds, up to 128 [default: 128, or 0 on fewer than four
    /// processors]
    #[arg(long, value_name = "MICROSECONDS", value_parser = parse_poll)]
    pub poll: Option<Duration>,

    /// Check every use of a translation and of a frame, and report those that are wrong
    #[arg(long)]
    pub check: bool,

    /// Be late, or wrong, on purpose; can be given more than once
    ///
    /// ACTION is delay=TIME or delay=TIME..TIME, hold (until released over the control socket),
    /// swap (with the next one), copy-failure, lost-reply, short-reply, long-reply,
    /// garbled-reply, unknown-status, wrong-result, repeated-reply or stray-reply. POINT is one
    /// of those that `ctl PATH points` lists, or control, dma, submit, fault or engine for all of
    /// theirs. The keys are every=N, nth=N, count=N, probability=P, seed=N, limit=TIME (of a
    /// hold), space=N and operation=NAME.
    ///
    /// Such as: delay=1ms..5ms@control.taken,operation=map,probability=0.1,seed=7
    #[arg(long, value_name = "ACTION[@POINT][,KEY=VALUE]…")]
    pub rule: Vec<Rule>,

    /// Report another value of a field of the configuration space than the device's own; can be
    /// given more than once
    ///
    /// FIELD is magic, version or capabilities, whose bits are set beside the device's own. A
    /// driver must refuse a device that it does not know, and ignore capabilities that it does not
    /// know.
    #[arg(long, value_name = "FIELD=N")]
    pub misreport: Vec<Misreport>,

    /// Processes that can be bound to the device at a time
    #[arg(long, value_name = "N", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=MAX_SPACES))]
    pub max_spaces: u32,

    /// Jobs that can be submitted and not yet ended
    #[arg(long, value_name = "N", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=MAX_JOBS))]
    pub max_jobs: u32,

    /// Memory that page tables may take, with a suffix K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub table_memory: u64,

    /// What to log [default: RUST_LOG, or warn]
    #[arg(short, long, value_name = "LEVEL",
        value_parser = PossibleValuesParser::new(LOG_LEVELS).try_map(|level| level.parse::<LevelFilter>()))]
    pub log_level: Option<LevelFilter>,

    /// File to log to, instead of standard error
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,

    /// File to write a trace of all that the device does to, for `hmm timeline`; it is overwritten
    ///
    /// It takes some hundred bytes for each request, and begins with the start of the daemon. With
    /// `ctl PATH trace` it is ended and gone on with.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Print what this program can do, as JSON, and exit, whatever else is asked for
    #[arg(long)]
    pub print_capabilities: bool,
}

/// What the program does beside serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    #[allow(missing_docs, reason = "the arguments say what it does")]
    Ctl(Ctl),
}

impl Args {
    /// Where front ends come from.
    pub fn place(&self) -> Place<'_> {
        let access = Access {
            group: self.socket_group,
            mode: self.socket_mode,
        };
        match (&self.socket_path, self.fd) {
            (Some(path), _) => Place::Path(path, access),
            (None, Some(number)) => Place::Descriptor(number),
            (None, None) => Place::Systemd,
        }
    }

    /// Refuses a size of device memory that cannot be shown to the guest's CPUs.
    ///
    /// # Errors
    ///
    /// The message for the user.
    pub fn check_memory(&self) -> Result<(), String> {
        // It becomes a range of addresses on a bus, whose sizes are powers of two.
        if !self.coherent || self.memory.is_power_of_two() {
            return Ok(());
        }
        Err(format!(
            "--coherent needs device memory of a size that is a power of two: say \
             --memory {}, for example, and not {}",
            size::write(self.memory.next_power_of_two()),
            size::write(self.memory)
        ))
    }

    /// The settings of the vhost-user side of the device.
    pub fn backend(&self) -> Options {
        let default = Options::default();
        Options {
            coherent: self.coherent,
            poll: self.poll.unwrap_or(default.poll),
            misreports: self.misreport.clone(),
        }
    }

    /// Sizes and limits of the device. {dev-limits-positive}
    pub fn device(&self) -> DeviceConfig {
        DeviceConfig {
            memory: self.memory,
            prealloc: self.prealloc,
            engines: self.engines,
            max_spaces: self.max_spaces,
            max_jobs: self.max_jobs,
            table_memory: self.table_memory,
            check: self.check,
        }
    }
}

fn parse_group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group; see `getent group`".into()),
        Err(errno) => Err(format!("cannot look it up: {errno}")),
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "must be an octal number up to 777, such as 660".into())
}

fn parse_poll(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().map(Duration::from_micros);
    time.filter(|time| *time <= LONGEST_POLL)
        .ok_or_else(|| format!("must be a number up to {}", LONGEST_POLL.as_micros()))
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes % MEMORY_UNIT != 0 {
        return Err(format!(
            "must be a multiple of 2M, such as {}",
            size::write(bytes.next_multiple_of(MEMORY_UNIT))
        ));
    }
    Ok(bytes)
}

fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if bytes > MAX_SIZE {
        return Err(format!("is more than {}", size::write(MAX_SIZE)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vhost-device-hmm"], line].concat())
    }

    #[test]
    fn every_command_that_a_page_shows_is_understood() {
        let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let shown = hmm_book::commands::shown(&checkout, "vhost-device-hmm").unwrap();
        assert!(shown.len() > 15, "{}", shown.len());
        let parse = |words: &[String]| {
            let words = std::iter::once("vhost-device-hmm").chain(words.iter().map(String::as_str));
            Args::try_parse_from(words).map(drop)
        };
        let told = hmm_book::commands::misunderstood(&shown, |_| None, parse);
        assert!(told.is_empty(), "{}", told.join("\n"));
    }

    #[test]
    fn every_rule_that_a_page_gives_to_a_machine_is_one() {
        let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let shown = hmm_book::commands::shown(&checkout, "cargo xtask").unwrap();
        let mut count = 0;
        for command in &shown {
            for pair in command.arguments.windows(2) {
                if let ([option, rule], true) = (pair, command.is_complete) {
                    if option == "--rule" {
                        let parsed = rule.parse::<Rule>();
                        assert!(parsed.is_ok(), "{}: {rule}", command.page.display());
                        count += 1;
                    }
                }
            }
        }
        assert!(count > 3, "{count}");
    }

    #[test]
    fn the_socket_is_all_that_must_be_said() {
        let args = parse(&["--socket-path", "/tmp/s"]).unwrap();
        assert_eq!(args.device(), DeviceConfig::default());
        assert_eq!(parse(&[]).unwrap().place(), Place::Systemd);
        assert!(parse(&["--print-capabilities"]).is_ok());
    }

    #[test]
    fn there_is_one_socket_for_front_ends() {
        assert!(parse(&["--fd", "3", "--socket-path", "x"]).is_err());
        assert!(parse(&["--fd", "2"]).is_err(), "standard error");
        let args = parse(&["--fd", "3"]).unwrap();
        assert_eq!(args.place(), Place::Descriptor(3));
        // The permissions of a socket that another process made are its matter.
        for option in ["--socket-mode=660", "--socket-group=0"] {
            assert!(parse(&["--fd", "3", option]).is_err());
            assert!(parse(&[option]).is_err());
            assert!(parse(&["-s", "x", option]).is_ok());
        }
    }

    #[test]
    fn permissions_are_octal_and_groups_have_names() {
        assert_eq!(parse_mode("660"), Ok(0o660));
        for wrong in ["", "8", "1777", "0x1", "-1", "rw"] {
            assert!(parse_mode(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_group("root"), Ok(0));
        assert_eq!(parse_group("1234"), Ok(1234));
        assert!(parse_group("no such group").is_err());
    }

    #[test]
    fn the_sandbox_is_on_unless_it_is_said() {
        assert_eq!(parse(&["-s", "x"]).unwrap().sandbox, Mode::On);
        for (name, mode) in [("on", Mode::On), ("log", Mode::Log), ("off", Mode::Off)] {
            let args = parse(&["-s", "x", "--sandbox", name]).unwrap();
            assert_eq!(args.sandbox, mode);
        }
    }

    #[test]
    fn coherent_memory_has_a_power_of_two() {
        let check = |line: &[&str]| parse(line).unwrap().check_memory();
        assert_eq!(check(&["-s", "x", "--coherent"]), Ok(()));
        assert_eq!(check(&["-s", "x", "-m", "6M"]), Ok(()));
        let error = check(&["-s", "x", "-m", "6M", "--coherent"]).unwrap_err();
        assert!(error.contains("8M"), "{error}");
    }

    #[test]
    fn sizes_are_those_of_all_programs_up_to_what_a_host_can_map() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse(&["-m", "4T"]).unwrap().memory, 4 << 40);
        assert_eq!(parse_size("64T"), Ok(64 << 40));
        for wrong in ["", "M", "1X", "-1M", "99999999999999999999", "65T"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_time_to_poll_is_at_most_what_the_help_says() {
        for (text, time) in [("128", LONGEST_POLL), ("0", Duration::ZERO)] {
            assert_eq!(parse(&["--poll", text]).unwrap().poll, Some(time));
        }
        for wrong in ["129", "500", "-1", "many"] {
            let error = parse(&[&format!("--poll={wrong}")]).unwrap_err();
            assert!(error.to_string().contains("up to 128"), "{error}");
        }
        let command = Args::command();
        let option = command
            .get_arguments()
            .find(|option| option.get_id() == "poll");
        let help = option.unwrap().get_help().unwrap().to_string();
        assert!(help.contains("up to 128 "), "{help}");
    }

    #[test]
    fn a_wrong_log_level_lists_the_levels() {
        let level = |level| parse(&["--log-level", level]).map(|args| args.log_level);
        for name in LOG_LEVELS {
            assert_eq!(level(name).unwrap(), name.parse().ok());
        }
        let error = level("loud").unwrap_err().to_string();
        assert!(error.contains(&LOG_LEVELS.join(", ")), "{error}");
    }

    #[test]
    fn device_memory_holds_whole_large_leaves() {
        assert_eq!(parse_memory("2M"), Ok(2 << 20));
        for wrong in ["0", "1M", "3M", "4097K"] {
            assert!(parse_memory(wrong).is_err(), "{wrong:?}");
        }
        for limit in ["--engines", "--max-spaces", "--max-jobs"] {
            assert!(parse(&["-s", "x", limit, "0"]).is_err()); // {dev-limits-positive}
        }
        assert!(parse(&["-s", "x", "--max-spaces", "65537"]).is_err());
    }
}
