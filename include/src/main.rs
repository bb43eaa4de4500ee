//! Writes the generated files into the checkout; `cargo xtask headers` runs it.

use anyhow::{Context, Result};
use hmm_cli::say;

fn main() -> Result<()> {
    for file in hmm_headers::all()? {
        let path = file.path;
        std::fs::write(&path, file.text).with_context(|| format!("writing {}", path.display()))?;
        let path = path.canonicalize().unwrap_or(path);
        say!("{}", path.display());
    }
    Ok(())
}
