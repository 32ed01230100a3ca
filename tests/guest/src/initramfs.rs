//! Owns the initramfs of the guest: a "newc" cpio archive with busybox, a few modules and the init.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::recipe;

/// A cpio archive under construction.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;

    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Magic, then 13 fields of 8 hex digits; name and content each padded to 4 bytes.
        let mut header = String::from("070701");
        let size = u32::try_from(content.len()).expect("an initramfs file is small");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        header.extend(fields.map(|field| format!("{field:08x}")));
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Writes the initramfs for the guest root at `root`, whose modules are at `modules`.
pub fn write(file: &Path, root: &Path, modules: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules"] {
        archive.add(folder, Archive::DIRECTORY, &[]);
    }
    let busybox = root.join("usr/bin/busybox");
    let busybox = fs::read(&busybox).with_context(|| format!("read {}", busybox.display()))?;
    archive.add("bin/busybox", Archive::PROGRAM, &busybox);
    archive.add("init", Archive::PROGRAM, recipe::STAGE1.as_bytes());
    let dependencies = fs::read_to_string(modules.join("modules.dep"))?;
    for (index, path) in load_order(&dependencies, recipe::BOOT_MODULES)?
        .iter()
        .enumerate()
    {
        let name = format!("modules/{index:02}.ko");
        archive.add(&name, Archive::PROGRAM, &fs::read(modules.join(path))?);
    }
    archive.add("TRAILER!!!", 0, &[]);
    fs::write(file, &archive.bytes)?;
    Ok(())
}

/// The module files in the order in which to load them, from the text of `modules.dep`.
fn load_order(dependencies: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let suffix = format!("/{name}.ko");
        let (module, needs) = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(module, _)| module.ends_with(&suffix))
            .with_context(|| format!("the kernel package has no module {name}"))?;
        // depmod lists what to load first last.
        for path in needs.split_whitespace().rev().chain([module]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need() {
        let dep = "fs/9p/9p.ko: net/9p/9pnet.ko fs/netfs/netfs.ko\nnet/9p/9pnet.ko:\n\
                   fs/netfs/netfs.ko:\n";
        let order = load_order(dep, &["9pnet", "9p"]).unwrap();
        assert_eq!(
            order,
            ["net/9p/9pnet.ko", "fs/netfs/netfs.ko", "fs/9p/9p.ko"]
        );
    }

    #[test]
    fn archive_entries_are_aligned() {
        let mut archive = Archive::default();
        archive.add("a", Archive::PROGRAM, b"xyz");
        assert_eq!(archive.bytes.len(), 116);
        assert_eq!(&archive.bytes[112..], b"xyz\0");
    }
}
