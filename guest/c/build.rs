//! Names the shared library: programs that are linked with it ask for this name at their start.

fn main() {
    // The first number of the version: it changes with each change that old programs do not survive.
    let major = env!("CARGO_PKG_VERSION_MAJOR");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libhmm.so.{major}");
    println!("cargo:rerun-if-changed=build.rs");
}
