//! What packages install fits the program.

use std::process::Command;

use clap::CommandFactory;
use vhost_device_hmm::args::Args;

fn packaged(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/");
    std::fs::read_to_string(format!("{folder}{name}")).unwrap()
}

/// The description by which management software finds the program.
fn description() -> serde_json::Value {
    serde_json::from_str(&packaged("50-vhost-device-hmm.json")).unwrap()
}

#[test]
fn management_software_finds_the_kind_of_device_that_the_program_reports() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"));
    let output = program.arg("--print-capabilities").output().unwrap();
    let capabilities: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let description = description();
    assert_eq!(description["type"], capabilities["type"]);
    assert!(description["description"].is_string());
}

#[test]
fn the_units_start_the_program_that_the_description_names() {
    let service = packaged("vhost-device-hmm@.service");
    let start = service
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let mut words = start.unwrap().split(' ');
    assert_eq!(words.next(), description()["binary"].as_str());
    assert!(service.lines().any(|line| line == "Type=notify"));
    // The example for libvirt connects to the socket of an instance.
    let socket = packaged("vhost-device-hmm@.socket");
    let path = socket
        .lines()
        .find_map(|line| line.strip_prefix("ListenStream="));
    let path = path.unwrap().replace("%i", "demo");
    let domain = packaged("libvirt-domain.xml");
    assert!(domain.contains(&format!("path={path}'")), "{path}");
    assert!(domain.contains("<access mode='shared'/>"));
}

#[test]
fn the_manual_and_the_completions_have_every_option() {
    let mut command = Args::command();
    command.build();
    let mut manual = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut manual)
        .unwrap();
    let manual = String::from_utf8(manual).unwrap().replace("\\-", "-");
    let mut completions = Vec::new();
    let shell = clap_complete::Shell::Bash;
    clap_complete::generate(shell, &mut command, "vhost-device-hmm", &mut completions);
    let completions = String::from_utf8(completions).unwrap();
    let options: Vec<_> = command
        .get_opts()
        .filter_map(|option| option.get_long())
        .collect();
    assert!(options.contains(&"sandbox") && options.contains(&"fd"));
    for option in options {
        let option = format!("--{option}");
        assert!(manual.contains(&option), "{option} is not in the manual");
        assert!(completions.contains(&option), "{option} is not completed");
    }
    assert!(
        manual.contains("SIGSYS"),
        "what is worth knowing beside the options"
    );
}

/// Where the Debian package puts each file: its source, from this folder, and its directory.
fn assets() -> Vec<(String, String)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = cargo
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut packages = metadata["packages"].as_array().unwrap().iter();
    let package = packages.find(|package| package["name"] == env!("CARGO_PKG_NAME"));
    let assets = package.unwrap()["metadata"]["deb"]["assets"].as_array();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let assets = assets.unwrap().iter();
    assets
        .map(|asset| (text(&asset[0]), text(&asset[1])))
        .collect()
}

#[test]
fn the_debian_package_puts_each_file_where_the_table_says() {
    let assets = assets();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = packaged("README.md");
    let mut files: Vec<_> = std::fs::read_dir(folder.join("packaging"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.retain(|file| file != "README.md");
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let source = format!("packaging/{file}");
        let asset = assets.iter().find(|(from, _)| *from == source);
        let (_, to) = asset.unwrap_or_else(|| panic!("{source} is not in the package"));
        let row = format!("| `{file}` | `/{}` |", to.trim_end_matches('/'));
        assert!(table.contains(&row), "{row}");
    }
    // All others are built.
    for (source, _) in &assets {
        let is_built = source.starts_with("target/") || source.starts_with("../target/manual/");
        assert!(is_built || folder.join(source).is_file(), "{source}");
    }
}
