//! A guest that breaks every rule.
#![forbid(unsafe_code)]

mod device;
mod health;
mod machine;
mod memory;
mod model;
mod pci;
mod request;
mod ring;
mod session;
mod transport;

fn main() -> anyhow::Result<()> {
    let mut d = session::Session::open()?;
    health::check(&mut d, &mut fastrand::Rng::with_seed(1))
}
