//! The package of Python on the real library: its own tests, which need no device.

use std::path::Path;
use std::process::Command;

use super::built;

#[test]
fn the_tests_of_the_package_pass_with_the_shared_library() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python");
    let output = Command::new("python3")
        .args([
            "-B",
            "-W",
            "error",
            "-m",
            "unittest",
            "discover",
            "--verbose",
        ])
        .args(["--start-directory", "tests", "--top-level-directory", "."])
        .current_dir(package)
        .env("HMM_LIBRARY", &built::libraries().shared)
        .output()
        .unwrap_or_else(|error| panic!("python3 cannot be run: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // Nothing was left out, and the part that needs the library was there.
    assert!(
        text.contains("test_the_library_has_every_function"),
        "{text}"
    );
    assert!(!text.contains("skipped"), "{text}");
}
