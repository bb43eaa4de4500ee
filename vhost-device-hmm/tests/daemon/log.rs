//! What the daemon logs, by its options, its environment and its control socket, and where to.

use std::process::Command;

use virtio_hmm_spec::wire::command::{Request, Status};
use virtio_hmm_spec::wire::Queue;

use crate::guest::{command, Daemon, Guest, DEADLINE};

/// A line of each level that a clumsy driver causes, the least important first.
const LINES: [&str; 3] = [
    "DEBUG vhost_device_hmm::device::accelerator::control] control request refused",
    "INFO  vhost_device_hmm::server] a front end has connected",
    "WARN  vhost_device_hmm::backend::lane] Control queue: the driver sent a chain that",
];

/// Connects, makes a request that is refused and one that has no room for a reply, and goes away.
/// All lines about that are logged when it returns.
fn clumsy(daemon: &Daemon) {
    let mut guest = Guest::connect(daemon, true);
    let (status, _) = guest.control(Request::SpaceCreate, 1, 0, &[]);
    assert_eq!(status, Status::NotReady.raw());
    let ring = &mut guest.rings[0];
    ring.describe(&guest.memory, 0, 0x10_0000, 16, 0, 0);
    ring.make_available(&guest.memory, 0);
    guest.kick(Queue::Control);
    assert_eq!(guest.returned(Queue::Control), (0, Vec::new()));
}

/// A daemon with this variable in its environment.
fn start(folder: &tempfile::TempDir, options: &[&str], variable: Option<&str>) -> Daemon {
    let socket = folder.path().join("hmm.sock");
    let mut command = command(&socket, options);
    command.env_remove("RUST_LOG");
    command.envs(variable.map(|value| ("RUST_LOG", value)));
    Daemon::watch(command.spawn().unwrap(), &socket, "listening on ")
}

/// Whether each of the lines is in a log.
fn found(log: &str) -> [bool; 3] {
    LINES.map(|line| log.contains(line))
}

#[test]
fn the_option_says_what_is_logged_and_without_it_the_environment() {
    const ALL: [bool; 3] = [true, true, true];
    const SOME: [bool; 3] = [false, true, true];
    const FEW: [bool; 3] = [false, false, true];
    const NONE: [bool; 3] = [false, false, false];
    for (options, variable, expected) in [
        (&[][..], None, FEW),
        (&["--log-level", "off"], None, NONE),
        (&["--log-level", "error"], None, NONE),
        (&["--log-level", "warn"], None, FEW),
        (&["--log-level", "info"], None, SOME),
        (&["-l", "debug"], None, ALL),
        (&["-l", "trace"], None, ALL),
        (&[], Some("debug"), ALL),
        (&[], Some("off"), NONE),
        (&["-l", "warn"], Some("debug"), FEW),
        (&["-l", "debug"], Some("off"), ALL),
        // Of one part of the daemon.
        (
            &[],
            Some("vhost_device_hmm::server=info"),
            [false, true, false],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = start(&folder, options, variable);
        clumsy(&daemon);
        assert!(daemon.terminate().0.success());
        let log = daemon.all_lines().join("\n");
        assert_eq!(found(&log), expected, "{options:?} {variable:?}: {log}");
        assert!(!log.contains('\u{1b}'), "no colours in a pipe: {log}");
    }
}

#[test]
fn a_file_gets_the_log_after_what_is_there_and_standard_error_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    std::fs::write(&file, "from before\n").unwrap();
    for _ in 0..2 {
        let options = ["--log-file", file.to_str().unwrap(), "--log-level", "info"];
        let mut daemon = start(&folder, &options, None);
        clumsy(&daemon);
        assert!(daemon.terminate().0.success());
        assert_eq!(daemon.all_lines(), [""; 0]);
    }
    let log = std::fs::read_to_string(&file).unwrap();
    assert!(log.starts_with("from before\n"), "{log}");
    assert_eq!(found(&log), [false, true, true], "{log}");
    assert_eq!(log.matches(LINES[1]).count(), 2, "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_client_of_the_control_socket_changes_what_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let options = ["--control", control.to_str().unwrap(), "-l", "off"];
    let mut daemon = start(&folder, &options, None);
    let level = |arguments: &[&str]| {
        let mut ctl = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"));
        let output = ctl
            .arg("ctl")
            .arg(&control)
            .arg("log-level")
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    clumsy(&daemon);
    assert!(level(&[]).1.contains("off"));
    assert!(level(&["debug"]).0);
    clumsy(&daemon);
    assert!(level(&["off"]).0);
    clumsy(&daemon);
    let (success, _, error) = level(&["loud"]);
    assert!(!success);
    for name in ["off", "error", "warn", "info", "debug", "trace"] {
        assert!(error.contains(name), "{error}");
    }
    let (status, time) = daemon.terminate();
    assert!(status.success() && time < DEADLINE);
    let log = daemon.all_lines().join("\n");
    for line in LINES {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}
