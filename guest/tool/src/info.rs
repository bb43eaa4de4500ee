//! `hmm info`.

use std::path::Path;

use anyhow::{bail, Result};
use hmm::spec::uapi::DeviceState;
use hmm::spec::wire::config::capability;
use hmm::Device;
use hmm_cli::{figure, say};

/// Shows what the device is and how large.
pub(crate) fn show(path: &Path, json: bool) -> Result<()> {
    let device = match Device::open(path) {
        Ok(device) => device,
        Err(error) => match Device::list().as_slice() {
            [] => bail!("{error}; there is no accelerator: is the driver loaded?"),
            others => bail!("{error}; there are {others:?}"),
        },
    };
    let info = device.info()?;
    let checking = info.capabilities & capability::CHECK != 0;
    let coherent = info.capabilities & capability::COHERENT != 0;
    let state = DeviceState::from_raw(info.state).map_or("unknown", DeviceState::name);
    if json {
        say!(
            "{}",
            serde_json::json!({
                "version": info.version,
                "device_version": info.device_version,
                "engines": info.engines,
                "device_memory": info.device_memory,
                "free_memory": info.free_memory,
                "coherent": coherent,
                "checking": checking,
                "max_jobs": info.max_jobs,
                "max_spaces": info.max_spaces,
                "address_bits": info.address_bits,
                "state": state,
                "resets": info.resets,
            })
        );
        return Ok(());
    }
    say!(
        "{}: version {}, device version {}",
        path.display(),
        info.version,
        info.device_version
    );
    say!("  engines         {}", info.engines);
    say!(
        "  device memory   {}, {} free",
        figure::bytes(info.device_memory),
        figure::bytes(info.free_memory)
    );
    let reach = if coherent {
        "reaches"
    } else {
        "does not reach"
    };
    say!("  the CPU         {reach} device memory");
    say!("  addresses       {} bits", info.address_bits);
    say!(
        "  at a time       {} processes, {} jobs",
        info.max_spaces,
        info.max_jobs
    );
    say!(
        "  state           {state}, started anew {} times",
        info.resets
    );
    say!("  checking mode   {}", if checking { "on" } else { "off" });
    Ok(())
}
