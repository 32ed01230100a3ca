//! Owns getting the machine ready: Debian packages that the stages call.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell;

/// What the guest stage calls, and the Debian package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
];

/// Installs what is missing where we may; elsewhere says what to install.
pub fn prepare() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(tool, _)| !installed(tool))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!(
        "apt-get install --no-install-recommends {}",
        missing.join(" ")
    );
    if !installed("apt-get") || !is_root() {
        println!("the guest stage needs packages that are not installed: {install}");
        return Ok(());
    }
    println!("installing packages for the guest stage: {install}");
    let done = apt(&["update"])?
        && apt(&[&["install", "--no-install-recommends"], &missing[..]].concat())?;
    if !done {
        println!("the packages could not be installed");
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<bool> {
    let mut command = shell::command("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--yes", "-qq"])
        .args(arguments);
    // A line for each of a hundred packages helps nobody; errors go to the terminal.
    command.stdout(std::process::Stdio::null());
    shell::succeeds(&mut command)
}

fn is_root() -> bool {
    let mut root = false;
    let said = shell::each_line(shell::command("id").arg("-u"), |line| root = line == "0");
    said.is_ok() && root
}

fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .any(|folder| folder.join(tool).is_file())
}
