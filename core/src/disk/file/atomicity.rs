//! What of a file or block device stays whole when the power fails.
//!
//! A device's physical sector does. A file's block does where it lies on whole sectors: its filesystem
//! has to be on a device that is known, and to place data in units of a block or more. Anything that
//! is not known is taken for the least that any device keeps whole.

use std::{fs::File, os::unix::fs::MetadataExt, path::Path};

use super::proc::{DeviceNumber, filesystem_type, whole_bytes};
use crate::units::BlockSize;

/// The sector that every device keeps whole.
const LEAST_BYTES: u32 = 512;

/// Larger units are of no use: no block is larger.
const MOST_BYTES: u32 = 4096;

/// Filesystems that keep nothing at all when the power fails: no block is ever torn there.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// The block size for the file at `path`, which may be yet to be made: as large as its medium keeps
/// whole when the power fails.
#[must_use]
pub fn default_block_size(path: &Path) -> BlockSize {
    let opened = File::open(path).or_else(|_| {
        let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))
    });
    match opened {
        Ok(file) if of_file(&file) >= BlockSize::B4096.bytes() as u32 => BlockSize::B4096,
        _ => BlockSize::B512,
    }
}

/// The bytes of a block device that stay whole.
pub(super) fn of_device(device: DeviceNumber) -> u32 {
    within_limits(whole_bytes(device))
}

/// The bytes of a file, or of what will be in a folder, that stay whole.
pub(super) fn of_file(file: &File) -> u32 {
    let known = || {
        let device = DeviceNumber::from_raw(file.metadata().ok()?.dev());
        let filesystem = filesystem_type(device);
        if filesystem.is_some_and(|name| IN_MEMORY.contains(&name.as_str())) {
            return Some(MOST_BYTES);
        }
        // The number is that of a device only where there is one.
        let sector = whole_bytes(device)?;
        let unit = u32::try_from(rustix::fs::fstatfs(file).ok()?.f_bsize).ok()?;
        Some(on_filesystem(sector, unit))
    };
    within_limits(known())
}

/// What stays whole of a file whose filesystem places data in units of `unit` bytes.
fn on_filesystem(sector: u32, unit: u32) -> u32 {
    // The largest power of two that divides both: neither cuts it.
    1 << (sector | unit | 1 << 31).trailing_zeros()
}

fn within_limits(known: Option<u32>) -> u32 {
    known.unwrap_or(0).clamp(LEAST_BYTES, MOST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_count_as_far_as_the_filesystem_does_not_cut_them() {
        for (sector, unit, whole) in [
            (512, 4096, 512),
            (4096, 4096, 4096),
            (4096, 1024, 1024),
            (4096, 65536, 4096),
            (16384, 4096, 4096),
        ] {
            assert_eq!(on_filesystem(sector, unit), whole);
        }
        assert_eq!(within_limits(None), 512);
        assert_eq!(within_limits(Some(65536)), 4096);
    }
}
